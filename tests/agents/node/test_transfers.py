"""What SFTP clients do to files, as the audit log hears it: read from the packets, whatever the client is like."""

from __future__ import annotations

import struct
import uuid
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.agents.node.files import Server
from monoport.agents.node.transfers import Operation, Transfers
from monoport.audit.spool import SpoolError
from monoport.wire import sftp
from monoport.wire.sftp import Attributes, Reply, Request

ALL = sftp.READ | sftp.WRITE | sftp.CREATE


def packet(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def ask(kind: int, number: int, *fields: bytes | int) -> bytes:
    parts = (sftp.string(one) if isinstance(one, bytes) else struct.pack(">I", one) for one in fields)
    return packet(struct.pack(">BI", kind, number) + b"".join(parts))


INIT = packet(struct.pack(">BI", Request.INIT, 3))
NOTHING = sftp.attributes(Attributes())


class Line:
    """A client, the real server, and the watcher between them."""

    def __init__(self, home: str) -> None:
        self.server, self.watch = Server(), Transfers(home)
        self.done: list[Operation] = []
        self.send(INIT)

    def send(self, data: bytes, *, pieces: int = 1 << 20, answer: bool = True) -> bytes:
        for start in range(0, len(data), pieces):
            self.watch.asked(data[start : start + pieces])
        buffer, answers = bytearray(data), b""
        while answer and (found := sftp.split(buffer)) is not None:
            size = 4 + len(found)
            answers += self.server.answer(found)
            found.release()
            del buffer[:size]
        for start in range(0, len(answers), pieces):
            self.done += self.watch.answered(answers[start : start + pieces])
        return answers

    def handle(self, answer: bytes) -> bytes:
        return answer[13:]

    @property
    def said(self) -> list[tuple[str, dict[str, object]]]:
        return [(one.type, one.fields) for one in self.done]


@pytest.mark.parametrize("pieces", [1, 7, 1 << 20])
def test_a_file_that_is_written_read_and_closed(tmp_path, pieces):
    line, path = Line(str(tmp_path)), bytes(tmp_path / "file")
    opened = line.send(packet(ask(Request.OPEN, 1, path, ALL)[4:] + NOTHING))
    handle = line.handle(opened)
    write = struct.pack(">BI", Request.WRITE, 2) + sftp.string(handle) + struct.pack(">Q", 0) + sftp.string(b"x" * 5000)
    line.send(packet(write), pieces=pieces)
    read = struct.pack(">BI", Request.READ, 3) + sftp.string(handle) + struct.pack(">QI", 0, 3000)
    line.send(packet(read) * 2, pieces=pieces)
    line.send(ask(Request.CLOSE, 4, handle), pieces=pieces)
    assert line.said == [
        ("sftp.open", {"path": str(tmp_path / "file"), "flags": "read,write,create", "result": "ok"}),
        ("sftp.close", {"path": str(tmp_path / "file"), "bytes_read": 6000, "bytes_written": 5000, "result": "ok"}),
    ]


def test_names_changes_and_their_results(tmp_path):
    line, home = Line(str(tmp_path)), str(tmp_path)
    for data in (
        packet(struct.pack(">BI", Request.MKDIR, 1) + sftp.string(bytes(tmp_path / "d")) + NOTHING),
        ask(Request.OPENDIR, 2, bytes(tmp_path / "d")),
        ask(Request.RENAME, 3, bytes(tmp_path / "d"), bytes(tmp_path / "e")),
        ask(Request.RMDIR, 4, bytes(tmp_path / "e")),
        ask(Request.REMOVE, 5, bytes(tmp_path / "none")),
        ask(Request.SYMLINK, 6, b"../../etc/passwd", bytes(tmp_path / "link")),
        ask(Request.EXTENDED, 7, b"posix-rename@openssh.com", bytes(tmp_path / "link"), bytes(tmp_path / "l2")),
        ask(Request.EXTENDED, 8, b"hardlink@openssh.com", bytes(tmp_path / "l2"), bytes(tmp_path / "l3")),
        packet(
            struct.pack(">BI", Request.SETSTAT, 9)
            + sftp.string(bytes(tmp_path))
            + sftp.attributes(Attributes(mode=0o40700))
        ),
        ask(Request.STAT, 10, b"/etc/passwd"),
        ask(Request.REALPATH, 11, b"."),
    ):
        answer = line.send(data)
        if answer[4] == Reply.HANDLE:
            line.send(ask(Request.READDIR, 11, line.handle(answer)))
            line.send(ask(Request.CLOSE, 12, line.handle(answer)))
    found = [(kind.removeprefix("sftp."), *fields.values()) for kind, fields in line.said]
    assert found == [
        ("mkdir", f"{home}/d", "ok"),
        ("list", f"{home}/d", "ok"),
        ("rename", f"{home}/d", f"{home}/e", "ok"),
        ("rmdir", f"{home}/e", "ok"),
        ("remove", f"{home}/none", "no such file"),
        ("symlink", f"{home}/link", "../../etc/passwd", "ok"),
        ("rename", f"{home}/link", f"{home}/l2", "ok"),
        ("link", f"{home}/l2", f"{home}/l3", "ok"),
        ("setstat", f"{home}", "mode=0700", "ok"),
    ]


def test_what_is_asked_and_not_answered_is_told_at_the_end(tmp_path):
    """A client that sends removals and goes at once must not be able to hide them."""
    line, path = Line("/home/alice"), bytes(tmp_path / "file")
    line.send(packet(ask(Request.OPEN, 1, path, ALL)[4:] + NOTHING))
    line.send(ask(Request.REMOVE, 2, b"a") + ask(Request.REMOVE, 3, b"/b\xff"), answer=False)
    assert [(one.type, one.fields["path"], one.fields["result"]) for one in line.watch.ended()] == [
        ("sftp.remove", "/home/alice/a", "unanswered"),
        ("sftp.remove", "/b\\xff", "unanswered"),
        ("sftp.close", str(tmp_path / "file"), "disconnected"),
    ]
    assert line.watch.ended() == []


def test_one_number_for_two_requests_confuses_nobody(tmp_path):
    line = Line(str(tmp_path))
    line.send(ask(Request.STAT, 7, b"/") + ask(Request.REMOVE, 7, b"none") + ask(Request.STAT, 7, b"/"))
    assert [one.fields["result"] for one in line.done] == ["no such file"]


requests = st.one_of(
    st.binary(max_size=40).map(lambda body: packet(bytes((Request.OPEN,)) + body)),
    st.builds(ask, st.sampled_from([*Request]), st.integers(0, 9), st.binary(max_size=20), st.binary(max_size=20)),
)


@given(st.lists(requests, max_size=20), st.integers(1, 50))
def test_every_request_has_one_answer_whatever_it_is(sent, pieces):
    """As long as that holds, an answer is never taken for another request's."""
    watch = Transfers("/h")
    watch.asked(INIT)
    data = b"".join(sent)
    for start in range(0, len(data), pieces):
        watch.asked(data[start : start + pieces])
    assert len(watch._pending) == 1 + len(sent)
    answers = sftp.version([]) + b"".join(sftp.status(0, sftp.Status.OK) for _ in sent)
    for start in range(0, len(answers), pieces):
        watch.answered(answers[start : start + pieces])
    assert watch.ended() == []


@given(st.binary(max_size=100))
def test_bytes_that_are_out_of_step_do_no_harm(data):
    watch = Transfers("/h")
    watch.asked(data)
    watch.asked(data)


async def test_sftp_over_ssh_is_in_the_audit_log_before_the_client_hears_of_it(world):
    async with world.connected() as client, client.start_sftp_client() as files:
        home = await files.getcwd()
        async with files.open("notes", "wb") as file:
            await file.write(b"x" * 100_000)
        assert [one["path"] for one in world.events("sftp.open")] == [f"{home}/notes"]
        (closed,) = world.events("sftp.close")
        assert (closed["bytes_written"], closed["result"]) == (100_000, "ok")
        with pytest.raises(asyncssh.SFTPNoSuchFile):
            await files.remove("none")
        (failed,) = world.events("sftp.remove")
        assert (failed["path"], failed["result"]) == (f"{home}/none", "no such file")
        await files.remove("notes")
        start = world.events("sftp.start")[0]
        assert {one["session"] for one in world.events("sftp.remove")} == {start["session"]}
        assert {"connection", "user", "login", "source", "node"} <= failed.keys()


async def test_a_session_ends_when_what_it_does_cannot_be_kept(world, monkeypatch):
    made = Path(f"/tmp/monoport-unkept-{uuid.uuid4()}")
    emit = world.audit.emit

    async def full(type_: str, /, **fields: object) -> None:
        if type_ == "sftp.mkdir":
            raise SpoolError("the audit log is full")
        await emit(type_, **fields)

    monkeypatch.setattr(world.audit, "emit", full)
    async with world.connected() as client:
        with pytest.raises((asyncssh.SFTPError, asyncssh.ConnectionLost)):
            async with client.start_sftp_client() as files:
                await files.mkdir(str(made))
        assert "audit log is full" in str((await world.event("session.end"))["exit"])
    made.rmdir()  # noqa: ASYNC240  it was done; nobody was told
