"""The demonstration's MariaDB, for tests: in a temporary folder, on a free port, removed at the end.

Belongs here: what only tests need. Starting and asking the server is the demonstration's own code.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from monoport.daemon.demo import mariadb

from .cluster import free_port


class MariaDbServer(mariadb.MariaDbServer):
    """One server on 127.0.0.1, whose root has no password on its socket.

    Args:
        certificate, key: of the server, PEM. authorities: CAs of the clients whose certificates it takes, PEM.
        options: further words for the server.
    """

    def __init__(self, certificate: str, key: str, authorities: str, *options: str) -> None:
        # Not under pytest's own folders: they are closed to other users, and socket paths have room for 107 bytes.
        folder = Path(tempfile.mkdtemp(prefix="monoport-my-"))
        options = ("--max-allowed-packet=64M", *options)
        super().__init__(folder, certificate, key, authorities, port=free_port(), options=options)

    @classmethod
    def from_files(cls, prefix: Path, *options: str) -> MariaDbServer:
        """Use what `tctl auth sign --format=db --out=PREFIX` wrote."""
        return cls(*(Path(f"{prefix}.{end}").read_text() for end in ("crt", "key", "cas")), *options)

    def stop(self, *, remove: bool = True) -> None:
        """Stop the server, and remove its folder unless it shall start again."""
        super().stop()
        if remove:
            shutil.rmtree(self.folder)
