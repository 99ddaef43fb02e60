"""A real MariaDB in a folder of its own, which knows its users by certificate.

Belongs here: making, starting and stopping the server. Does not belong here: the cluster in front of it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..conftest import find_program  # noqa: TID252 # tests are no package
from .cluster import free_port, wait_until

ACCOUNT = "mysql"  # whom it runs as where we are root
START_SECONDS = 60


class MariaDbServer:
    """One server on 127.0.0.1, whose root has no password on its socket.

    Args:
        certificate, key: of the server, PEM. authorities: CAs of the clients whose certificates it takes, PEM.
        options: further words for the server.
    """

    def __init__(self, certificate: str, key: str, authorities: str, *options: str) -> None:
        # Not under pytest's own folders: they are closed to other users, and socket paths have room for 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="monoport-my-"))
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        for name, text in (("server.crt", certificate), ("server.key", key), ("server.cas", authorities)):
            (self.folder / name).write_text(text)
        if os.geteuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)

    @classmethod
    def from_files(cls, prefix: Path, *options: str) -> MariaDbServer:
        """Use what `tctl auth sign --format=db --out=PREFIX` wrote."""
        return cls(*(Path(f"{prefix}.{end}").read_text() for end in ("crt", "key", "cas")), *options)

    def start(self) -> None:
        """Make its data if it has none, start it and wait until it answers."""
        account = [f"--user={ACCOUNT}"] if os.geteuid() == 0 else []
        data = self.folder / "data"
        if not data.exists():
            words = ["--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal", "--skip-test-db"]
            self._run("mariadb-install-db", *words, *account)
        words = [
            *("--no-defaults", *account, f"--datadir={data}", f"--socket={self.folder}/socket"),
            *(
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                f"--pid-file={self.folder}/pid",
            ),
            *(f"--ssl-cert={self.folder}/server.crt", f"--ssl-key={self.folder}/server.key"),
            *(f"--ssl-ca={self.folder}/server.cas", "--innodb-flush-log-at-trx-commit=0", "--skip-sync-frm"),
            *("--innodb-buffer-pool-size=32M", "--max-allowed-packet=64M", "--log-warnings=2", *self._options),
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([_find("mariadbd"), *words], stdout=log, stderr=log)
        wait_until(self._answers, START_SECONDS, f"MariaDB answers; its log: {self.log_text()[-2000:]}")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log_text()[-4000:]
        words = [_find("mariadb-admin"), "--no-defaults", f"--socket={self.folder}/socket", "--user=root", "ping"]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def sql(self, statements: str, database: str = "mysql") -> str:
        """Run statements as root, and return what they print, without headings."""
        words = ["--no-defaults", f"--socket={self.folder}/socket", "--user=root", "-NB", database, "-e", statements]
        return self._run("mariadb", *words)

    def log_text(self) -> str:
        """The server's log so far."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self, *, remove: bool = True) -> None:
        """Stop the server at once, and remove its folder unless it shall start again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if remove:
            shutil.rmtree(self.folder)

    def _run(self, program: str, *words: str) -> str:
        done = subprocess.run([_find(program), *words], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{program} {words}: {done.stdout}{done.stderr}"
        return done.stdout


def _find(program: str) -> str:
    path = find_program(program)
    assert path is not None, f"{program} is not installed"
    return path
