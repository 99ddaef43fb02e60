"""The demonstration's PostgreSQL, for tests: in a temporary folder, on a free port, removed at the end.

Belongs here: what only tests need. Starting and asking the server is the demonstration's own code.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from monoport.daemon.demo import postgres
from monoport.daemon.demo.postgres import HBA

from .cluster import Cluster, Person, free_port


class PostgresServer(postgres.PostgresServer):
    """One server on 127.0.0.1.

    Args:
        certificate, key: of the server, PEM. authorities: CAs of the clients whose certificates it takes, PEM.
    """

    def __init__(self, certificate: str, key: str, authorities: str) -> None:
        # Not under pytest's own folders: they are closed to other users, and socket paths have room for 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix="monoport-pg-"))
        super().__init__(folder, certificate, key, authorities, port=free_port())

    @classmethod
    def from_files(cls, prefix: Path) -> PostgresServer:
        """Use what `tctl auth sign --format=db --out=PREFIX` wrote."""
        return cls(*(Path(f"{prefix}.{end}").read_text() for end in ("crt", "key", "cas")))

    def stop(self, *, remove: bool = True) -> None:
        """Stop the server at once, and remove its folder unless it shall start again."""
        super().stop()
        if remove:
            shutil.rmtree(self.folder)

    def set_hba(self, lines: str = HBA) -> None:
        """Replace pg_hba.conf, with the usual lines by default, and have it read."""
        self.hba = lines
        (self._data / "pg_hba.conf").write_text(lines)
        self.sql("select pg_reload_conf()")
        self.sql("select 1")  # a new connection: the postmaster has read the file before it took this one


def straight(
    cluster: Cluster,
    person: Person,
    database: str = "pg",
    user: str = "alice",
    name: str = "app",
    port: int | None = None,
) -> str:
    """libpq's words for reaching the database straight on the port, or this one, with no local proxy."""
    keys = person.home / ".tsh" / "keys" / "localhost"
    certificate = f"{keys}/alice-db/example.com/{database}-x509.pem"
    return (
        f"host={database}.db.localhost hostaddr=127.0.0.1 port={port or cluster.port} user={user} dbname={name} "
        f"sslmode=verify-full sslrootcert={keys}/certs.pem sslcert={certificate} sslkey={keys}/alice connect_timeout=15"
    )
