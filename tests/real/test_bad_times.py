"""What must hold when things go wrong: kills, wrong tokens, locks, expiry, two of everything."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import BIN, Cluster, Daemon, Person, wait_until


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, login: str) -> Iterator[Cluster]:
    """A cluster of its own, because these tests kill it."""
    made = Cluster(tmp_path_factory.mktemp("hard"), "hard.example.com")
    try:
        made.front.start()
        made.add_user("alice", "--roles=access", f"--logins={login}")
        made.agent("node", "node", "ssh_service:\n  enabled: yes\n").start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def user(own: Cluster) -> Person:
    person = own.person("alice")
    own.login(person, "--no-ssh-setup")
    wait_until(lambda: "node" in person.tsh("ls").stdout, 15, "the node in tsh ls")
    return person


def config_error(tmp_path: Path, text: str) -> str:
    """The one line that `monoport start` prints for a wrong configuration."""
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    done = subprocess.run(
        [BIN / "monoport", "start", "-c", file], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: v3\nproxy_service:\n  enabled: yes\n  colour: red\n", "wrong.yaml:4:3"),
        ("version: v3\nproxy_service:\n  enabled: yes\n  public_addr: {a: 1}\n", "wrong.yaml:4"),
        ("version: v3\nproxy_service:\n  enabled: yes\n  https_keypairs: [{key_file: /no, cert_file: /no}]\n", "/no"),
        ("version: v1\nproxy_service:\n  enabled: yes\n", "v1"),
    ],
)
def test_wrong_configuration_is_one_line_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    assert says in config_error(tmp_path, text)


def test_two_daemons_on_one_data_folder_and_on_one_port(own: Cluster, tmp_path: Path) -> None:
    assert "in use" in config_error(tmp_path, own.config.read_text())
    other = own.config.read_text().replace(f"{own.root}/front", f"{tmp_path}/other")
    said = config_error(tmp_path, other)
    assert re.fullmatch(
        rf"monoport: \S+/wrong\.yaml:10:20: proxy_service\.web_listen_addr: 127\.0\.0\.1:{own.port} "
        r"cannot be listened on: it is in use; expected a free address .*\n",
        said,
    ), said


def test_wrong_password_and_unknown_user_read_the_same(own: Cluster) -> None:
    wrong = own.login(own.person("alice2"), "--no-ssh-setup", password="wrong", code=1)
    person = own.person("eve")
    unknown = own.login(person, "--no-ssh-setup", password="wrong", code=1)
    assert wrong.stderr == unknown.stderr
    assert len(unknown.stderr.strip().splitlines()) == 1
    assert not (person.home / ".tsh" / "keys").exists()


def test_wrong_pin_is_refused_before_the_password_goes_out(own: Cluster) -> None:
    person = own.person("dave")
    words = [f"--proxy=localhost:{own.port}", "--user=dave", f"--ca-pin=sha256:{'0' * 64}"]
    done = person.tsh("login", *words, stdin="x\n", code=1)
    assert "pin" in done.stderr
    logins = [
        event for event in json.loads(own.tctl("events", "ls", "--format=json").stdout) if event["type"] == "user.login"
    ]
    assert "dave" not in json.dumps(logins)


def ends_with(daemon: Daemon, says: str) -> None:
    """Run a daemon that cannot start and look for the reason in its log."""
    with daemon.log.open("wb") as log:
        code = subprocess.run(
            [BIN / "monoport", "start", "-c", daemon.config], stdout=log, stderr=log, timeout=60, check=False
        ).returncode
    assert code == 1, daemon.text()
    assert says in daemon.text(), daemon.text()
    assert "Traceback" not in daemon.text()


def test_a_token_of_the_wrong_type_is_named(own: Cluster) -> None:
    ends_with(own.agent("wrongtype", "db", "ssh_service:\n  enabled: yes\n"), "node")


def test_an_expired_token_is_named(own: Cluster) -> None:
    token = own.token("node", "--ttl=1s")
    daemon = own.agent("expired", "node", "ssh_service:\n  enabled: yes\n")
    text = daemon.config.read_text()
    daemon.config.write_text(
        "\n".join(
            line.split("token_name")[0] + f"token_name: {token['token']}" if "token_name" in line else line
            for line in text.splitlines()
        )
        + "\n"
    )
    wait_until(lambda: token["token"] not in own.tctl("tokens", "ls").stdout, 10, "the token to expire")
    ends_with(daemon, "token")


def test_kill_9_of_the_proxy_and_everything_is_back_within_15_seconds(own: Cluster, user: Person, login: str) -> None:
    own.tctl(
        "users", "add", "carol", "--roles=access", "--logins=carol", "--password-stdin", stdin="a password for carol\n"
    )
    own.front.kill()
    own.front.start()
    began = time.monotonic()
    assert "carol" in own.tctl("users", "ls").stdout, "what was acknowledged is there"
    wait_until(
        lambda: user.tsh("ssh", f"{login}@node", "echo back", code=None).stdout == "back\n", 15, "the node is back"
    )
    assert time.monotonic() - began < 15


def test_a_lock_ends_running_sessions_within_5_seconds(own: Cluster, user: Person, login: str) -> None:
    words = [BIN / "tsh", "ssh", f"{login}@node", "echo started; sleep 100"]
    with subprocess.Popen(words, env=user.env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"started\n"
        own.tctl("lock", "--user=alice", "--ttl=1m")
        began = time.monotonic()
        session.wait(10)
    assert session.returncode != 0
    assert time.monotonic() - began < 5
    refused = user.tsh("ssh", f"{login}@node", "true", code=None)
    assert refused.returncode != 0
    for lock in json.loads(own.tctl("get", "lock", "--format=json").stdout):
        own.tctl("rm", f"lock/{lock['metadata']['name']}")
    wait_until(lambda: user.tsh("ssh", f"{login}@node", "true", code=None).returncode == 0, 10, "access after the lock")


def test_an_expired_certificate_ends_its_session_within_5_seconds(own: Cluster, login: str) -> None:
    person = own.person("alice")
    own.login(person, "--no-ssh-setup")
    own.tctl("auth", "sign", "--user=alice", f"--out={person.home}/signed", "--ttl=8s")
    signed = sorted(path.name for path in (person.home / "signed").iterdir())
    assert any(name.endswith("-cert.pub") for name in signed), signed
    keys = person.home / ".tsh" / "keys" / "localhost"
    for name in ("alice", "alice-cert.pub", "alice-x509.pem"):
        (keys / name).write_bytes((person.home / "signed" / name).read_bytes())
    began = time.monotonic()
    done = person.tsh("ssh", f"{login}@node", "echo started; sleep 100", code=None)
    assert "started" in done.stdout
    assert done.returncode != 0
    assert time.monotonic() - began < 8 + 5 + 1


def hello(port: int, alpn: list[str], server_name: str = "localhost") -> ssl.SSLSocket:
    """A TLS connection that offers these ALPN names."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(alpn)
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname=server_name)


def test_unknown_and_unserved_alpn_get_alert_120_and_are_explained(own: Cluster) -> None:
    for name in ("nonsense/1", "teleport-desktop", "teleport-nothing"):
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            hello(own.port, [name])
    rows = json.loads(own.tctl("conns", "ls", "--format=json").stdout)
    reasons = " ".join(str(row.get("reason")) for row in rows)
    assert "nonsense/1" in reasons
    explained = own.tctl("route", "explain", "--sni", "localhost", "--alpn", "nonsense/1").stdout
    assert "unknown_alpn" in explained
    assert "reversetunnel" in own.tctl("route", "ls").stdout


def test_five_hundred_silent_handshakes_hold_nobody_up(own: Cluster, user: Person, login: str) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    first = outgoing.read()
    silent = [socket.create_connection(("127.0.0.1", own.port), 10) for _ in range(500)]
    for peer in silent:
        peer.sendall(first[:100] if peer.fileno() % 2 else first)
    assert user.tsh("ssh", f"{login}@node", "echo served").stdout == "served\n"
    for peer in silent:
        peer.settimeout(20)
        try:
            while peer.recv(65536):
                pass
        except ConnectionError:
            pass
        peer.close()
