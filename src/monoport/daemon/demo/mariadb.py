"""A real MariaDB in a folder of its own, which knows its users by certificate alone.

Belongs here: finding, making, starting and stopping the server. Does not belong here: the cluster in front of it.
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import subprocess
import time
from pathlib import Path

from monoport.errors import Failure

ACCOUNT = "mysql"  # whom it runs as where we are root, which it refuses to be
START_SECONDS = 60.0  # the first start on a small, busy machine
PROGRAMS = ("mariadbd", "mariadb-install-db", "mariadb-admin", "mariadb")


def find(program: str) -> str | None:
    """The path of one of MariaDB's programs as Debian installs them; None without one."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def installed() -> bool:
    """Whether everything that a server needs is here."""
    return all(find(program) for program in PROGRAMS)


class MariaDbServer:
    """One server on 127.0.0.1, whose root has no password on its socket.

    Args:
        folder: of its own; must be reachable for the account it runs as, and short (socket paths hold 107 bytes).
        certificate, key: of the server, PEM. authorities: CAs of the clients whose certificates it takes, PEM.
        port: to listen on. options: further words for the server.
    """

    def __init__(
        self, folder: Path, certificate: str, key: str, authorities: str, *, port: int, options: tuple[str, ...] = ()
    ) -> None:
        self.folder, self.port = folder, port
        self.log = folder / "log"
        self._data, self._socket = folder / "data", folder / "socket"
        self._account = [f"--user={ACCOUNT}"] if os.geteuid() == 0 else []
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, text in (("server.crt", certificate), ("server.key", key), ("server.cas", authorities)):
            path = folder / name
            path.unlink(missing_ok=True)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)

    def start(self) -> None:
        """Make its data if it has none, start it and wait until it answers; raises Failure."""
        if self._account:
            owner = _account()
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        if not self._data.exists():
            words = ["--auth-root-authentication-method=normal", "--skip-test-db", *self._account]
            made = self._run("mariadb-install-db", f"--datadir={self._data}", *words)
            if made.returncode:
                raise Failure(f"mariadb-install-db failed: {_last(made.stderr + made.stdout)}")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [_program("mariadbd"), *self._words()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C at the terminal is ours: the server is stopped in its turn
            )
        self._wait()

    def _words(self) -> list[str]:
        return [
            *("--no-defaults", *self._account, f"--datadir={self._data}", f"--socket={self._socket}"),
            *(f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-name-resolve"),
            *(f"--pid-file={self.folder}/pid", "--log-warnings=2", "--innodb-buffer-pool-size=32M"),
            *(f"--ssl-cert={self.folder}/server.crt", f"--ssl-key={self.folder}/server.key"),
            *(f"--ssl-ca={self.folder}/server.cas", "--innodb-flush-log-at-trx-commit=0", "--skip-sync-frm"),
            *self._options,
        ]

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._run("mariadb-admin", f"--socket={self._socket}", "--user=root", "ping").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"MariaDB did not start: {_last(self.log_text())}")
            select.select([], [], [], 0.05)

    def stop(self) -> None:
        """End its sessions, write its data, stop it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(START_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def sql(self, statements: str, database: str = "mysql") -> str:
        """Run statements as root through the server's own socket; what they print, without headings. Raises Failure."""
        done = self._run("mariadb", f"--socket={self._socket}", "--user=root", "-NB", database, "-e", statements)
        if done.returncode:
            raise Failure(f"mariadb failed: {done.stderr.strip()}")
        return done.stdout

    def log_text(self) -> str:
        """Everything the server has logged so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [_program(program), "--no-defaults", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            check=False,
        )


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        raise Failure(f"MariaDB does not run as root, and there is no account {ACCOUNT}") from error


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def _program(name: str) -> str:
    found = find(name)
    if found is None:
        raise Failure(f"{name} is not installed: apt-get install mariadb-server")
    return found
