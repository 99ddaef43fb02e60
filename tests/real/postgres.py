"""A real PostgreSQL in a folder of its own, which knows its users by certificate alone.

Belongs here: making, starting, asking and stopping the server. Used by the tests of the agent and by those of whole
clusters.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

USER = "postgres"  # whom the server runs as when the tests run as root, which it refuses to be
START = 30.0  # seconds: initdb and recovery on two cores that other tests keep busy

HBA = """
local   all all              trust
hostssl all all 127.0.0.1/32 cert
"""
CONFIG = """
listen_addresses = '127.0.0.1'
unix_socket_directories = '{folder}'
ssl = on
ssl_cert_file = '{folder}/server.crt'
ssl_key_file = '{folder}/server.key'
ssl_ca_file = '{folder}/server.cas'
log_connections = on
log_destination = 'stderr'
fsync = off
max_connections = 50
"""


def _bin(program: str) -> str:
    servers = ":".join(str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    found = shutil.which(program, path=f"{servers}:{os.environ.get('PATH', '')}")
    assert found is not None, f"{program} is not installed"
    return found


class PostgresServer:
    """One server on 127.0.0.1.

    Args:
        certificate, key: of the server, PEM. authorities: CAs of the clients whose certificates it takes, PEM.
        hba: lines of pg_hba.conf in place of the usual ones.
    """

    def __init__(self, certificate: str, key: str, authorities: str, hba: str = HBA) -> None:
        self._user = USER if os.geteuid() == 0 else None
        # Not under pytest's own folders: they are closed to other users, and socket paths have room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="monoport-pg-"))
        self._data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        for name, text in (("server.crt", certificate), ("server.key", key), ("server.cas", authorities)):
            path = self.folder / name
            path.write_text(text)
            path.chmod(0o600)
        self.hba = hba

    @classmethod
    def from_files(cls, _folder: Path, prefix: Path) -> PostgresServer:
        """Use what `tctl auth sign --format=db --out=PREFIX` wrote."""
        return cls(*(Path(f"{prefix}.{end}").read_text() for end in ("crt", "key", "cas")))

    def start(self) -> None:
        """Make the cluster of databases if need be, start the server and wait until it answers."""
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        if not self._data.exists():
            self._run(_bin("initdb"), "-D", str(self._data), "-U", USER, "--auth=trust", "-E", "UTF8", "--no-sync")
        (self._data / "pg_hba.conf").write_text(self.hba)
        (self._data / "postgresql.auto.conf").write_text(CONFIG.format(folder=self.folder))
        if not self.port:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = int(probe.getsockname()[1])
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [_bin("postgres"), "-D", str(self._data), "-p", str(self.port)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
                cwd="/",
            )
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START
        ready = [_bin("pg_isready"), "-q", "-h", str(self.folder), "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            assert self._process.poll() is None, f"PostgreSQL ended:\n{self.log_text()}"
            assert time.monotonic() < deadline, f"PostgreSQL not ready in {START} s:\n{self.log_text()}"
            time.sleep(0.05)

    def stop(self, *, remove: bool = True) -> None:
        """Stop the server at once, and remove its folder unless it shall start again."""
        if self._process is not None:
            self._process.send_signal(2)  # fast shutdown: sessions are ended, data is written
            self._process.wait(START)
            self._process = None
        if remove:
            shutil.rmtree(self.folder)

    def sql(self, script: str, database: str = "postgres") -> str:
        """Run statements as the superuser, through the server's own socket, and return psql's unaligned output."""
        where = ["-h", str(self.folder), "-p", str(self.port), "-U", USER, "-d", database]
        done = subprocess.run(
            [_bin("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", *where, "-f", "-"],
            input=script.encode(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def set_hba(self, lines: str = HBA) -> None:
        """Replace pg_hba.conf, with the usual lines by default, and have it read."""
        (self._data / "pg_hba.conf").write_text(lines)
        self.sql("select pg_reload_conf()")
        self.sql("select 1")  # a new connection: the postmaster has read the file before it took this one

    def log_text(self) -> str:
        """Everything the server has logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            words,
            capture_output=True,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user else None,
            cwd="/",
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
