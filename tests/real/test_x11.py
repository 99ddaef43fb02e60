"""`tsh ssh -X` and `-Y`: a program of the node shows itself on the user's display, through the one port."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, Person, wait_until

ROLE = """\
kind: role
version: v1
metadata: {name: windows}
spec:
  allow: {node_labels: {env: test}, logins: ['{{internal.logins}}']}
  options: {permit_x11_forwarding: true}
"""
COOKIE = "a1" * 16
SHOW = 'xdpyinfo | grep -e "^name of display" -e dimensions; od -An -v -tx1 "$XAUTHORITY" | tr -d " \\n"'


@pytest.fixture
def screen(need, folder: Path) -> Iterator[dict[str, str]]:
    """A real X server of the user's, which takes one cookie: the variables that name it."""
    authority, number = folder / "authority", f":{300 + os.getpid() % 20_000}"
    subprocess.run([need("xauth"), "-q", "-f", authority, "add", number, ".", COOKIE], check=True, capture_output=True)
    ready, told = os.pipe()
    words = [need("Xvfb"), number, "-screen", "0", "640x480x8", "-nolisten", "tcp", "-auth", authority]
    with subprocess.Popen([*words, "-displayfd", str(told)], pass_fds=[told], stderr=subprocess.DEVNULL) as server:
        os.close(told)
        try:
            assert os.read(ready, 16), "it writes its number when it is ready"
            yield {"DISPLAY": number, "XAUTHORITY": str(authority)}
        finally:
            os.close(ready)
            server.terminate()


@pytest.fixture
def xena(cluster: Cluster, alice: Person, login: str, folder: Path) -> Person:
    """A user whose role grants displays; alice's, `access`, does not."""
    (folder / "role.yaml").write_text(ROLE)
    cluster.tctl("create", "-f", folder / "role.yaml")
    cluster.add_user("xena", "--roles=windows", f"--logins={login}")
    person = cluster.person("xena")
    cluster.login(person, "--no-ssh-setup")
    return person


def test_a_display_through_proxy_and_tunnel(
    cluster: Cluster, alice: Person, xena: Person, login: str, screen: dict[str, str], need
) -> None:
    need("xdpyinfo")
    options = ["-o", f"XAuthLocation={need('xauth')}"]
    for how in ("-Y", "-X"):
        done = xena.tsh("ssh", how, *options, f"{login}@node", SHOW, **screen)
        lines = done.stdout.splitlines()
        assert lines[0].split()[-1].startswith("localhost:1"), (how, lines, done.stderr)
        assert "640x480" in lines[1], (how, done.stderr)
        assert COOKIE not in lines[2], "the real cookie never comes to the node"
    assert xena.tsh("ssh", f"{login}@node", 'echo "[$DISPLAY]"', **screen).stdout == "[]\n", (
        "only where it is asked for"
    )
    assert alice.tsh("ssh", "-Y", *options, f"{login}@node", 'echo "[$DISPLAY]"', **screen).stdout == "[]\n"

    def audited(type_: str) -> list[dict[str, object]]:
        rows = json.loads(cluster.tctl("events", "ls", "--format=json", "--limit=1000").stdout)
        return [row for row in rows if row["type"] == type_ and row.get("kind", "x11") == "x11"]

    ended = wait_until(lambda: audited("port.close"), 10, "port.close in the audit log")
    assert {row["user"] for row in ended} == {"xena@example.com"}
    granted = audited("x11.forward")
    assert {row["rule"] for row in granted} == {"role windows: options.permit_x11_forwarding is true"}
    assert any(row["user"] == "alice@example.com" for row in audited("session.deny"))
