"""A real PostgreSQL in a folder of its own, which knows its users by certificate alone.

Belongs here: finding, making, starting and stopping the server. Does not belong here: the cluster in front of it.
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from monoport.errors import Failure

USER = "postgres"  # its superuser, and whom it runs as where we are root, which it refuses to be
START_SECONDS = 60.0  # initdb and start on a small, busy machine

HBA = """\
# The superuser through the socket in this folder; everybody else with a certificate whose name is the role's.
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


def find(program: str) -> str | None:
    """The path of one of PostgreSQL's programs as Debian installs them, the newest version first; None without one."""

    def version(folder: Path) -> int:
        return int(folder.parent.name) if folder.parent.name.isdecimal() else 0

    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    return shutil.which(program, path=":".join([*map(str, servers), os.environ.get("PATH", "")]))


def runner() -> str | None:
    """The account the server runs as: None for our own, Failure where we are root and there is no other."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(USER)
    except KeyError as error:
        raise Failure(f"PostgreSQL does not run as root, and there is no account {USER}") from error
    return USER


class PostgresServer:
    """One server on 127.0.0.1.

    Args:
        folder: of its own; must be reachable for the account it runs as, and short (socket paths hold 107 bytes).
        certificate, key: of the server, PEM. authorities: CAs of the clients whose certificates it takes, PEM.
        port: to listen on. hba: lines of pg_hba.conf.
    """

    def __init__(
        self, folder: Path, certificate: str, key: str, authorities: str, *, port: int, hba: str = HBA
    ) -> None:
        self.folder, self.port, self.hba = folder, port, hba
        self.log = folder / "log"
        self._data = folder / "data"
        self._account = runner()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (("server.crt", certificate), ("server.key", key), ("server.cas", authorities)):
            path = folder / name
            path.unlink(missing_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)

    def start(self) -> None:
        """Make the folder of databases if need be, start the server and wait until it answers; raises Failure."""
        if self._account is not None:
            owner = pwd.getpwnam(self._account)
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        if not self._data.exists():
            made = self._run("initdb", "-D", str(self._data), "-U", USER, "--auth=trust", "-E", "UTF8", "--no-sync")
            if made.returncode:
                raise Failure(f"initdb failed: {made.stderr.decode(errors='replace').strip().splitlines()[-1]}")
            with (self._data / "postgresql.conf").open("a") as config:
                config.write(CONFIG.format(folder=self.folder))
        (self._data / "pg_hba.conf").write_text(self.hba)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", str(self._data), "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C at the terminal is ours: the server is stopped in its turn
                **self._as(),
            )
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._run("pg_isready", "-q", "-h", str(self.folder), "-p", str(self.port)).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"PostgreSQL did not start: {(self.log_text().strip().splitlines() or ['no log'])[-1]}")
            select.select([], [], [], 0.05)

    def stop(self) -> None:
        """End its sessions, write its data, stop it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            try:
                self._process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def sql(self, script: str, database: str = "postgres") -> str:
        """Run statements as the superuser through the server's own socket; psql's unaligned output. Raises Failure."""
        words = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-p", str(self.port), "-U", USER]
        done = self._run("psql", *words, "-d", database, "-f", "-", input=script.encode())
        if done.returncode:
            raise Failure(f"psql failed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def log_text(self) -> str:
        """Everything the server has logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _as(self) -> dict[str, Any]:
        if self._account is None:
            return {}
        return {"user": self._account, "group": self._account, "extra_groups": []}

    def _run(self, program: str, *words: str, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [_program(program), *words], input=input, capture_output=True, check=False, cwd="/", **self._as()
        )


def _program(name: str) -> str:
    found = find(name)
    if found is None:
        raise Failure(f"{name} is not installed: apt-get install postgresql")
    return found
