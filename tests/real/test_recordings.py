"""Recorded sessions through the one port: written as they go, there after kills, listed, played, in the audit log."""

from __future__ import annotations

import json
import os
import pty
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, Daemon, Person, wait_until

TERMINAL = ("-tt", "-o", "LogLevel=ERROR")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, login: str) -> Iterator[Cluster]:
    """A cluster of its own, because these tests kill it."""
    made = Cluster(tmp_path_factory.mktemp("recorded"), "recorded.example.com")
    try:
        made.front.start()
        made.add_user("alice", "--roles=access", f"--logins={login}")
        made.add_user("bob", "--roles=access", f"--logins={login}")
        made.add_user("carol", "--roles=auditor")
        made.agent("node", "node", "ssh_service:\n  enabled: yes\n").start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def node(own: Cluster) -> Daemon:
    return own.daemons[-1]


@pytest.fixture(scope="module")
def person(own: Cluster) -> Person:
    made = own.person("alice")
    own.login(made, "--no-ssh-setup")
    wait_until(lambda: "node" in made.tsh("ls").stdout, 15, "the node in tsh ls")
    return made


def listed(person: Person, *words: str) -> list[dict]:
    return json.loads(person.tsh("recordings", "ls", "--format=json", *words).stdout)


def recorded(own: Cluster, person: Person, login: str, command: str) -> dict:
    """Run a command at a terminal and return its recording, once it has arrived."""
    before = {one["id"] for one in listed(person)}
    person.tsh("ssh", *TERMINAL, f"{login}@node", command, code=None)

    def new() -> dict | None:
        return next((one for one in listed(person) if one["id"] not in before), None)

    return wait_until(new, 20, f"the recording in tsh recordings ls; log: {own.daemons[-1].text()[-2000:]}")


def test_a_session_is_listed_and_played(own: Cluster, person: Person, login: str) -> None:
    found = recorded(own, person, login, "echo over the wall; printf '\\033]0;evil\\007\\033[c'")
    assert (found["user"], found["login"], found["node"]) == ("alice@recorded.example.com", login, "node")
    assert person.tsh("play", found["id"]).stdout == "over the wall\n"
    text = person.tsh("recordings", "ls", "--user=alice", "--node=node", "--since=1h").stdout
    head, *rows = text.splitlines()
    assert head.split() == ["Id", "User", "Login", "Node", "Started", "Length", "Size"]
    assert any(found["id"] in row for row in rows)
    assert len({len(row.split("  ")[0]) for row in rows}) == 1
    types = [one["type"] for one in json.loads(own.tctl("events", "ls", "--format=json").stdout)]
    assert {"recording.uploaded", "recording.accessed"} <= set(types)


def test_megabytes_are_played_whole(own: Cluster, person: Person, login: str, folder: Path) -> None:
    found = recorded(own, person, login, "seq 300000")
    assert found["size"] > 2_000_000
    for _ in range(4):
        assert person.tsh("play", found["id"]).stdout.split() == [str(number) for number in range(1, 300_001)]
    own.tctl("recordings", "export", found["id"], "--out", folder / "whole.cast")
    assert (folder / "whole.cast").stat().st_size == found["size"]


def test_others_see_nothing_and_auditors_everything(own: Cluster, person: Person, login: str) -> None:
    found = recorded(own, person, login, "echo private")
    bob, carol = own.person("bob"), own.person("carol")
    own.login(bob, "--no-ssh-setup")
    own.login(carol, "--no-ssh-setup")
    assert listed(bob) == []
    assert bob.tsh("play", found["id"], code=1).stderr == f"tsh: no recording {found['id']}\n"
    assert bob.tsh("recordings", "ls", "--user=alice", code=1).stderr.startswith(
        "tsh: cannot list recordings of others"
    )
    assert found["id"] in {one["id"] for one in listed(carol, "--user=alice")}
    assert carol.tsh("play", found["id"]).stdout == "private\n"


def test_an_administrator_exports_and_deletes(own: Cluster, person: Person, login: str, folder: Path) -> None:
    found = recorded(own, person, login, "echo kept")
    file = folder / "one.cast"
    own.tctl("recordings", "export", found["id"], "--out", file)
    assert json.loads(file.read_text().splitlines()[0])["session"]["id"] == found["id"]
    assert person.tsh("play", file).stdout == "kept\n"
    assert "exists" in own.tctl("recordings", "export", found["id"], "--out", file, code=1).stderr
    assert own.tctl("recordings", "rm", found["id"]).stdout == f"recording {found['id']} deleted\n"
    assert found["id"] not in own.tctl("recordings", "ls").stdout
    assert own.tctl("recordings", "rm", found["id"], code=1).stderr == f"tctl: no recording {found['id']}\n"


def test_what_was_seen_is_there_after_kill_minus_9(own: Cluster, node: Daemon, person: Person, login: str) -> None:
    before = {one["id"] for one in listed(person)}
    pid, master = pty.fork()
    if pid == 0:
        os.execvpe("tsh", ["tsh", "ssh", f"{login}@node"], person.env())
    shown = b""

    def seen(what: bytes) -> bool:
        nonlocal shown
        if select.select([master], [], [], 0)[0]:
            shown += os.read(master, 4096)
        return what in shown

    os.write(master, b"echo before the ki''ll\n")
    wait_until(lambda: seen(b"before the kill"), 20, "the remote shell's answer")
    folder = own.root / "node" / "spool" / "recordings"

    def written() -> bool:
        return any(b"before the kill" in one.read_bytes() for one in folder.glob("*.cast.part"))

    wait_until(written, 5, "the recording on the node's disk")
    node.kill()
    os.close(master)
    os.waitpid(pid, 0)
    own.front.kill()  # and the auth service, before anything was uploaded
    own.front.start()
    node.start()
    found = wait_until(
        lambda: next((one for one in listed(person) if one["id"] not in before), None), 30, "the recording at auth"
    )
    document = json.loads(person.tsh("play", "--format=json", found["id"]).stdout)
    assert "before the kill" in "".join(data for _, kind, data in document["events"] if kind == "o")
    assert document["events"][-1][1:] == ["m", "the node's agent was stopped here"]
    wait_until(lambda: list(folder.iterdir()) == [], 10, "the node has forgotten it")


def test_what_scp_did_is_in_the_audit_log(own: Cluster, person: Person, login: str, folder: Path) -> None:
    sent = folder / "sent"
    sent.write_bytes(b"x" * 100_000)
    remote = f"/tmp/monoport-recorded-{os.getpid()}"
    person.tsh("scp", sent, f"{login}@node:{remote}")
    person.tsh("ssh", f"{login}@node", f"rm {remote}")

    def closed() -> list[dict]:
        found = json.loads(own.tctl("events", "ls", "--type=sftp.close", "--format=json").stdout)
        return [one for one in found if one["path"] == remote]

    (event,) = wait_until(closed, 10, "the event of the copy")
    assert (event["bytes_written"], event["result"], event["user"]) == (100_000, "ok", "alice@recorded.example.com")


def test_a_strict_role_lets_nobody_in_unrecorded(own: Cluster, node: Daemon, person: Person, login: str) -> None:
    role = own.root / "strict.yaml"
    role.write_text(
        "kind: role\nversion: v1\nmetadata: {name: access}\nspec:\n"
        "  allow: {logins: ['{{internal.logins}}'], node_labels: {'*': '*'}}\n"
        "  options: {record_session: strict}\n"
    )
    own.tctl("create", "--force", role)
    folder = own.root / "node" / "spool" / "recordings"
    wait_until(lambda: list(folder.iterdir()) == [], 10, "the node has uploaded everything")
    folder.rmdir()

    def refused() -> bool:  # as soon as the node has heard of the new role
        done = person.tsh("ssh", *TERMINAL, f"{login}@node", "echo inside", code=None)
        return (
            done.returncode == 254 and "inside" not in done.stdout and "cannot be recorded" in done.stderr + done.stdout
        )

    wait_until(refused, 20, "a session that cannot be recorded is refused")
    folder.mkdir(mode=0o700)
    assert "inside" in person.tsh("ssh", *TERMINAL, f"{login}@node", "echo inside").stdout
