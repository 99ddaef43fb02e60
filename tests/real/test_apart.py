"""A cluster whose auth service runs alone: proxies join by it, and by each other, with tokens of type proxy."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from .cluster import BIN, Cluster, Daemon, Person, free_port, wait_until


class Apart(Cluster):
    """The auth service in a daemon of its own, which listens for it alone; proxies in others."""

    def __init__(self, root) -> None:
        super().__init__(root, "apart.example.com")
        self.auth_port, self.second_port = free_port(), free_port()
        self.config.write_text(
            f"version: v3\n"
            f"teleport:\n  nodename: front\n  data_dir: {root}/front\n"
            f"auth_service:\n  enabled: yes\n  cluster_name: {self.name}\n  listen_addr: 127.0.0.1:{self.auth_port}\n"
        )

    def proxy(self, name: str, port: int, way: str, *, node: bool = False) -> Daemon:
        """A proxy, or one with a node beside it, that joins with a token; `way` says by whom. Not started yet."""
        token = self.token("proxy,node" if node else "proxy")
        config = self.root / f"{name}.yaml"
        config.write_text(
            f"version: v3\n"
            f"teleport:\n  nodename: {name}\n  data_dir: {self.root}/{name}\n  {way}\n"
            f"  ca_pin: {token['ca_pin']}\n  join_params: {{token_name: {token['token']}}}\n"
            f"proxy_service:\n  enabled: yes\n  web_listen_addr: 127.0.0.1:{port}\n"
            f"  public_addr: ['localhost:{port}']\n"
            f"ssh_service:\n  enabled: {'yes' if node else 'no'}\n"
        )
        return self.daemon(config)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, login: str) -> Iterator[Apart]:
    made = Apart(tmp_path_factory.mktemp("apart"))
    try:
        made.front.start()
        made.add_user("alice", "--roles=access", f"--logins={login}")
        made.proxy("first", made.port, f"auth_server: 127.0.0.1:{made.auth_port}", node=True).start()
        yield made
    finally:
        made.stop()


def served(apart: Apart, login: str, node: str, port: int) -> Person:
    """Somebody who signs in at that proxy and reaches the node beside it."""
    person = apart.person("alice")
    apart.login(person, "--no-ssh-setup", port=port)
    wait_until(lambda: node in person.tsh("ls").stdout, 15, f"{node} in tsh ls")
    assert person.tsh("ssh", f"{login}@{node}", "id -un").stdout == f"{login}\n"
    return person


def test_a_proxy_joins_by_the_auth_service_and_serves(apart: Apart, login: str) -> None:
    served(apart, login, "first", apart.port)


def test_a_second_proxy_joins_by_the_first_and_serves_likewise(apart: Apart, login: str) -> None:
    """Agents join through it, hold their tunnels to it, and are reached there."""
    apart.proxy("second", apart.second_port, f"proxy_server: localhost:{apart.port}").start()
    agent = apart.agent("behind", "node", "ssh_service:\n  enabled: yes\n")
    text = agent.config.read_text()
    agent.config.write_text(text.replace(f"localhost:{apart.port}", f"localhost:{apart.second_port}"))
    agent.start()
    person = served(apart, login, "behind", apart.second_port)
    assert "first" in person.tsh("ls").stdout, "it knows the whole cluster"


def test_what_tctl_prints_for_a_proxy_names_the_auth_service(apart: Apart) -> None:
    said = apart.tctl("tokens", "add", "--type=proxy").stdout
    assert f"auth_server: AUTH.EXAMPLE.COM:{apart.auth_port}" in said


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("token_name: ", "token"),
        ("ca_pin: sha256:", "has another CA than ca_pin says"),
    ],
)
def test_a_proxy_with_a_wrong_token_or_pin_ends_with_one_line(apart: Apart, wrong: str, says: str) -> None:
    daemon = apart.proxy("stranger", free_port(), f"auth_server: 127.0.0.1:{apart.auth_port}")
    text = daemon.config.read_text()
    daemon.config.write_text(re.sub(rf"({wrong})\w{{8}}", r"\g<1>00000000", text))
    assert daemon.config.read_text() != text
    done = subprocess.run(
        [BIN / "monoport", "start", "-c", daemon.config], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("monoport: this host cannot join as proxy: "), done.stderr
    assert says in last
