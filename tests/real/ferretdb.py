"""A MongoDB server for tests: FerretDB with its SQLite backend, in a temporary folder, on a free port of loopback.

Belongs here: starting and stopping it. `scripts/ferretdb` has built it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from ..conftest import fetched  # noqa: TID252 # tests are no package
from .cluster import free_port, wait_until


class FerretServer:
    """One server on 127.0.0.1 that takes TLS only, and client certificates of one CA only.

    Args:
        certificate, key: of the server, PEM. authorities: CAs of the clients that it takes, PEM.
        password: of the user `alice`, if users have to prove one by SCRAM besides; "": no user is asked for.
    """

    def __init__(self, certificate: str, key: str, authorities: str, password: str = "") -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="monoport-mongo-"))
        for name, text in (("server.crt", certificate), ("server.key", key), ("clients.crt", authorities)):
            (self._folder / name).write_text(text)
            (self._folder / name).chmod(0o600)
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @classmethod
    def from_files(cls, prefix: Path, password: str = "") -> FerretServer:
        """Use what `tctl auth sign --format=db --out=PREFIX` wrote."""
        return cls(*(Path(f"{prefix}.{end}").read_text() for end in ("crt", "key", "cas")), password)

    @property
    def log(self) -> str:
        """What the server has said so far."""
        return (self._folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it and wait until it listens."""
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        words = [
            "--handler=sqlite", f"--sqlite-url=file:{data}/", f"--state-dir={self._folder}", "--telemetry=disable",
            "--debug-addr=-", "--listen-addr=", f"--listen-tls=127.0.0.1:{self.port}",
            f"--listen-tls-cert-file={self._folder}/server.crt", f"--listen-tls-key-file={self._folder}/server.key",
            f"--listen-tls-ca-file={self._folder}/clients.crt",
        ]  # fmt: skip
        if self._password:
            words += ["--test-enable-new-auth", "--setup-database=admin", "--setup-username=alice"]
            words.append(f"--setup-password={self._password}")
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [fetched("ferretdb/ferretdb"), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_until(self._listens, 30, f"a MongoDB server on port {self.port}")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self, *, remove: bool = True) -> None:
        """Stop the server, and remove its folder unless it shall start again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if remove:
            shutil.rmtree(self._folder)
