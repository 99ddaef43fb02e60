"""Real database servers for the benchmarks, each in a folder of its own on loopback.

Each lets in `demo` by certificate over TLS, as agents come, and in plaintext whom HAProxy brings, which speaks no
protocol's request for TLS. Belongs here: making, starting and stopping MariaDB and FerretDB; the demonstration has
PostgreSQL.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import rivals

START_SECONDS = 60.0
ROWS = 10_000  # of the table that is read by key
DOCUMENTS = 100  # of the collection: FerretDB reads all of it for each
FERRETDB = rivals.HERE.parent / ".clients/ferretdb/ferretdb"
TABLES = f"""
create database demo;
use demo;
create user demo@'%' require x509; grant all on demo.* to demo@'%';
create user plain@'%'; grant all on demo.* to plain@'%';
create table points (id int primary key, text varchar(40) not null);
insert into points select seq, md5(seq) from seq_1_to_{ROWS};
"""


def until(true: Callable[[], bool], what: str) -> None:
    """Wait for something that is soon so."""
    deadline = time.monotonic() + START_SECONDS
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: waited {START_SECONDS:g} s for {what}")
        time.sleep(0.05)


class MariaDb:
    """A MariaDB with a table of points; `prefix` is what `tctl auth sign --format=db` wrote."""

    def __init__(self, prefix: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-my-"))
        self.port = self.plain = rivals.free_ports(1)
        account = []
        for end in ("crt", "key", "cas"):
            shutil.copy(f"{prefix}.{end}", self.folder / f"server.{end}")
        if os.geteuid() == 0:
            account, owner = ["--user=mysql"], pwd.getpwnam("mysql")
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        data = f"--datadir={self.folder}/data"
        kind = "--auth-root-authentication-method=normal"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", data, kind, "--skip-test-db", *account],
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        words = [
            "--no-defaults", *account, data, f"--socket={self.folder}/socket", f"--port={self.port}",
            "--bind-address=127.0.0.1", "--skip-name-resolve", f"--pid-file={self.folder}/pid",
            f"--ssl-cert={self.folder}/server.crt", f"--ssl-key={self.folder}/server.key",
            f"--ssl-ca={self.folder}/server.cas",
        ]  # fmt: skip
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(["/usr/sbin/mariadbd", *words], stdout=log, stderr=log)
        until(lambda: self._sql("select 1"), "MariaDB")
        if not self._sql(TABLES):
            raise SystemExit(f"bench: MariaDB's tables were not made: {(self.folder / 'log').read_text()[-500:]}")

    def _sql(self, text: str) -> bool:
        words = ["mariadb", "--no-defaults", f"--socket={self.folder}/socket", "--user=root", "-e", text]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def stop(self) -> None:
        """End it and remove its folder."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder)


class MongoDb:
    """A FerretDB, which takes TLS with client certificates on `port` and plaintext on `plain`."""

    def __init__(self, prefix: Path) -> None:
        if not FERRETDB.exists():
            raise SystemExit("bench: no MongoDB server: make packages")
        self.folder = Path(tempfile.mkdtemp(prefix="bench-mongo-"))
        self.port, self.plain = rivals.free_ports(1), rivals.free_ports(1)
        (self.folder / "data").mkdir()
        words = [
            "--handler=sqlite", f"--sqlite-url=file:{self.folder}/data/", f"--state-dir={self.folder}",
            "--telemetry=disable", "--debug-addr=-", "--log-level=error", f"--listen-addr=127.0.0.1:{self.plain}",
            f"--listen-tls=127.0.0.1:{self.port}", f"--listen-tls-cert-file={prefix}.crt",
            f"--listen-tls-key-file={prefix}.key", f"--listen-tls-ca-file={prefix}.cas",
        ]  # fmt: skip
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen([str(FERRETDB), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        rivals.wait(self.plain, self._process, self.folder / "log")

    def stop(self) -> None:
        """End it and remove its folder."""
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder)
