"""`openssh: yes`: the real sshd of Debian behind an agent that only relays to it, and answers whom it may let in."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .clients import Client, program
from .cluster import Cluster, Daemon, Person, free_port, wait_until

CONFIG = "`tsh config >> ~/.ssh/config`, then "
SSHD = ": a host's own sshd as the node (`openssh: yes`)"
ROLES = """\
kind: role
version: v1
metadata: {name: legacy-only}
spec:
  allow: {logins: ['nobody'], node_labels: {host: legacy}}
---
kind: role
version: v1
metadata: {name: games-elsewhere}
spec:
  allow: {logins: ['games'], node_labels: {env: test}}
"""


@dataclass
class Sshd:
    """An sshd on loopback: its folder, port, agent, and process."""

    folder: Path
    port: int
    agent: Daemon
    program: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self.folder / "sshd.log").open("ab") as log:
            words = [self.program, "-D", "-e", "-f", self.folder / "sshd_config"]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(lambda: f"listening on 127.0.0.1 port {self.port}" in self.text().lower(), 15, self.text)

    def text(self) -> str:
        return (self.folder / "sshd.log").read_text()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture(scope="module")
def sshd(cluster: Cluster, login: str, need, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A node whose sessions sshd serves, as the printed recipe says."""
    program, folder, port = need("sshd"), tmp_path_factory.mktemp("sshd"), free_port()
    subprocess.run([need("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", folder / "host"], check=True)
    services = (
        "ssh_service:\n  enabled: yes\n  labels: {host: legacy}\n"
        f"  openssh: {{sshd_addr: '127.0.0.1:{port}', host_key: {folder}/host.pub}}\n"
    )
    agent = cluster.agent("legacy", "node", services)
    agent.start()
    written = cluster.root / "legacy/openssh"
    wait_until((written / "sshd.conf").exists, 15, "the settings for sshd")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # as sshd's service does
    (folder / "sshd_config").write_text(
        f"Include {written}/sshd.conf\nListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\n"
        f"UsePAM {'yes' if os.geteuid() == 0 else 'no'}\nPasswordAuthentication no\nLogLevel VERBOSE\n"
        "KbdInteractiveAuthentication no\nSubsystem sftp internal-sftp\n"
    )
    checked = subprocess.run([program, "-t", "-f", folder / "sshd_config"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    made = Sshd(folder, port, agent, program)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def user(alice: Person, sshd: Sshd) -> Person:
    """Alice, with the node in her list."""
    wait_until(lambda: "legacy" in alice.tsh("ls").stdout, 15, "the node in tsh ls")
    return alice


@pytest.fixture
def config(user: Person, folder: Path) -> Path:
    path = folder / "ssh_config"
    path.write_text(user.tsh("config").stdout)
    return path


def events(cluster: Cluster, type_: str) -> list[dict[str, object]]:
    rows = json.loads(cluster.tctl("events", "ls", "--format=json").stdout)
    return [row for row in rows if row["type"] == type_ and '"legacy"' in json.dumps(row)]


@pytest.mark.client(Client("tsh ssh", "ssh", f"`tsh ssh LOGIN@legacy`{SSHD}", program("tsh", "--version")))
def test_sessions_are_sshds_own(cluster: Cluster, user: Person, login: str, sshd: Sshd) -> None:
    done = user.tsh("ssh", f"{login}@legacy", "id -un; echo $SSH_CONNECTION; exit 3", code=3)
    name, connection = done.stdout.splitlines()
    assert name == login
    assert connection.endswith(f" 127.0.0.1 {sshd.port}")
    assert "Accepted publickey" in sshd.text()
    assert "ID alice@example.com" in sshd.text(), "the certificate is the user's own"
    started = wait_until(lambda: events(cluster, "session.start"), 10, "session.start in the audit log")
    assert (started[0]["user"], started[0]["login"], started[0]["kind"]) == ("alice@example.com", login, "openssh")
    ended = wait_until(lambda: events(cluster, "session.end"), 10, "session.end in the audit log")
    assert ended[0]["connection"] in {row["connection"] for row in started}


@pytest.mark.client(
    Client("OpenSSH sftp", "ssh", f"{CONFIG}`sftp LOGIN@legacy.example.com`{SSHD}", program("ssh", "-V"))
)
def test_sftp_and_ssh_by_the_configuration(user: Person, login: str, folder: Path, config: Path, need) -> None:
    (folder / "sent").write_bytes(os.urandom(400_000))
    batch = f"put {folder}/sent /tmp/legacy-{os.getpid()}\nget /tmp/legacy-{os.getpid()} {folder}/back\n"
    user.run(need("sftp"), "-F", config, "-b", "-", f"{login}@legacy.example.com", stdin=batch)
    assert (folder / "back").read_bytes() == (folder / "sent").read_bytes()
    done = user.run(need("ssh"), "-F", config, f"{login}@legacy.example.com", f"rm /tmp/legacy-{os.getpid()}")
    assert done.stderr == ""


def test_a_login_that_no_role_allows_here_is_refused_before_sshd(
    cluster: Cluster, user: Person, sshd: Sshd, config: Path, folder: Path, need
) -> None:
    """Carol's certificate holds both logins; only one of them is allowed on this node."""
    (folder / "roles.yaml").write_text(ROLES)
    cluster.tctl("create", folder / "roles.yaml")
    cluster.add_user("carol", "--roles=legacy-only,games-elsewhere")
    carol = cluster.person("carol")
    cluster.login(carol, "--no-ssh-setup")
    before = sshd.text().count("Connection from")
    done = carol.tsh("ssh", "games@legacy", "true", code=1)
    assert 'login "games" to node "legacy" denied' in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sshd.text().count("Connection from") == before
    # ssh -J says nothing of the login: sshd asks the agent, and is told no
    path = folder / "carol"
    path.write_text(carol.tsh("config").stdout)
    words = ["-F", path, "-J", f"localhost:{cluster.port}", "games@legacy.example.com", "true"]
    done = carol.run(need("ssh"), *words, code=255)
    assert "Permission denied (publickey)" in done.stderr
    denied = wait_until(lambda: events(cluster, "session.deny"), 10, "session.deny in the audit log")
    assert any(row.get("what") == "login" and row.get("login") == "games" for row in denied)


def test_sshd_lets_nobody_in_past_the_proxy(user: Person, login: str, sshd: Sshd, need) -> None:
    known = f"{user.home}/.tsh/keys/localhost/known_hosts"
    words = ["-F", "none", "-o", f"UserKnownHostsFile {known}", "-o", "HostKeyAlias legacy.example.com"]
    done = user.run(need("ssh"), *words, "-p", str(sshd.port), f"{login}@127.0.0.1", "true", code=255)
    assert "Permission denied" in done.stderr
    assert "waiting to log in" in sshd.agent.text()


def test_nor_while_the_same_user_has_a_session_through_it(user: Person, login: str, sshd: Sshd, need) -> None:
    """A login past the proxy would have no lease: neither a lock nor the certificate's end would close it."""
    known, keys = f"{user.home}/.tsh/keys/localhost/known_hosts", list(Path(user.home, ".tsh/keys").rglob("*-cert.pub"))
    shown = ["-o", f"CertificateFile {keys[0]}", "-i", str(keys[0]).removesuffix("-cert.pub")]
    words = ["-F", "none", "-o", f"UserKnownHostsFile {known}", "-o", "HostKeyAlias legacy.example.com", *shown]
    tsh = [f"{Path(os.sys.executable).parent}/tsh", "ssh", f"{login}@legacy", "echo begun; cat"]
    with subprocess.Popen(tsh, env=user.env(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdout.readline() == b"begun\n"
        past = ["-b", "127.0.0.2", "-p", str(sshd.port), f"{login}@127.0.0.1", "echo inside"]  # as from another host
        done = user.run(need("ssh"), *words, *past, code=None)
        session.stdin.close()
        assert (done.stdout, done.returncode) == ("", 255), sshd.text()
        assert "Permission denied" in done.stderr


def test_who_must_be_recorded_is_not_let_in_where_nothing_is(
    cluster: Cluster, login: str, sshd: Sshd, folder: Path
) -> None:
    role = "kind: role\nversion: v1\nmetadata: {name: taped}\nspec: {options: {record_session: strict}, "
    (folder / "taped.yaml").write_text(role + f"allow: {{logins: ['{login}'], node_labels: {{host: legacy}}}}}}\n")
    cluster.tctl("create", folder / "taped.yaml")
    cluster.add_user("trudy", "--roles=taped")
    trudy = cluster.person("trudy")
    cluster.login(trudy, "--no-ssh-setup")
    assert trudy.tsh("ssh", f"{login}@legacy", "echo inside", code=None).stdout == ""
    found = [one for one in events(cluster, "session.deny") if one["user"] == "trudy@example.com"]
    assert {one["rule"] for one in found} == {"role taped: options.record_session is strict"}
    lines = [line for line in sshd.agent.text().splitlines() if "sshd may not let in" in line]
    assert [line for line in lines if f"connection={found[0]['connection']}" in line]


def test_a_lock_ends_the_session(cluster: Cluster, login: str, sshd: Sshd, folder: Path) -> None:
    cluster.add_user("dora", "--roles=access", f"--logins={login}")
    dora = cluster.person("dora")
    cluster.login(dora, "--no-ssh-setup")
    words = [f"{Path(os.sys.executable).parent}/tsh", "ssh", f"{login}@legacy", "echo begun; cat"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, env=dora.env(), **pipes) as session:
        assert session.stdout.readline() == b"begun\n", session.stderr.read()
        cluster.tctl("lock", "--user=dora")
        assert session.wait(10) != 0
    done = dora.tsh("ssh", f"{login}@legacy", "true", code=None)
    assert done.returncode != 0


def test_a_host_with_another_cas_certificate_is_refused_by_the_client(
    user: Person, login: str, sshd: Sshd, folder: Path, config: Path, need
) -> None:
    keygen = need("ssh-keygen")
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / "ca"], check=True)
    subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", folder / "host"], check=True)
    names = "legacy,legacy.example.com"
    words = ["-q", "-s", folder / "ca", "-I", "forged", "-h", "-n", names, folder / "host.pub"]
    subprocess.run([keygen, *words], check=True)
    ours = (sshd.folder / "sshd_config").read_text()
    forged = f'HostCertificate "{folder}/host-cert.pub"\n' + ours.replace(f"{sshd.folder}/host", f"{folder}/host")
    sshd.stop()
    (sshd.folder / "sshd_config").write_text(forged)
    try:
        sshd.start()
        done = user.run(need("ssh"), "-F", config, f"{login}@legacy.example.com", "true", code=255)
        assert "Host key verification failed" in done.stderr
        assert user.tsh("ssh", f"{login}@legacy", "true", code=255).stderr
    finally:
        sshd.stop()
        (sshd.folder / "sshd_config").write_text(ours)
        sshd.start()


def test_an_sshd_that_is_down_is_one_clear_line(user: Person, login: str, sshd: Sshd) -> None:
    sshd.stop()
    try:
        done = user.tsh("ssh", f"{login}@legacy", "true", code=1)
        assert 'sshd of node "legacy" does not answer' in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    finally:
        sshd.start()


def test_the_recipe_is_printed(cluster: Cluster) -> None:
    printed = cluster.tctl("auth", "export", "--type=openssh").stdout
    assert "openssh: yes" in printed
    assert "sshd.conf" in printed
    assert cluster.tctl("auth", "export", "--type=user").stdout.split()[1] in printed
