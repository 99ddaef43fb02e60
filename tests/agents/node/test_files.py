"""The SFTP server, request by request."""

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.agents.node.files import MAX_HANDLES, PAGE, Server, serve
from monoport.wire import sftp
from monoport.wire.sftp import Attributes, Fields, Reply, Request, SftpError, Status, string

NOTHING = sftp.attributes(Attributes())


class Client:
    """Asks a server directly, without descriptors between."""

    def __init__(self) -> None:
        self.server = Server()
        hello = Fields(self.server.answer(memoryview(bytes((Request.INIT,)) + (3).to_bytes(4, "big"))))
        hello.u32()
        assert (hello.byte(), hello.u32()) == (Reply.VERSION, 3)

    def ask(self, kind: int, *fields: bytes) -> tuple[int, Fields]:
        answer = Fields(self.server.answer(memoryview(bytes((kind,)) + (7).to_bytes(4, "big") + b"".join(fields))))
        answer.u32()
        found = answer.byte()
        assert answer.u32() == 7
        return found, answer

    def status(self, kind: int, *fields: bytes) -> Status:
        found, answer = self.ask(kind, *fields)
        assert found == Reply.STATUS
        return Status(answer.u32())

    def handle(self, kind: int, *fields: bytes) -> bytes:
        found, answer = self.ask(kind, *fields)
        assert found == Reply.HANDLE
        return string(bytes(answer.data()))

    def open(self, path, flags: int, attrs: bytes = NOTHING) -> bytes:
        return self.handle(Request.OPEN, path_of(path), u32(flags), attrs)

    def extended(self, name: bytes, *fields: bytes) -> tuple[int, Fields]:
        return self.ask(Request.EXTENDED, string(name), *fields)


def path_of(path) -> bytes:
    return string(os.fsencode(path))


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


@pytest.fixture
def client() -> Client:
    return Client()


def test_the_first_packet_must_be_init():
    with pytest.raises(SftpError, match="INIT"):
        Server().answer(memoryview(bytes((Request.STAT,)) + u32(1) + string(b"/")))


def test_writing_reading_and_the_end(client, tmp_path):
    handle = client.open(
        tmp_path / "f", sftp.WRITE | sftp.CREATE | sftp.TRUNCATE, sftp.attributes(Attributes(mode=0o640))
    )
    assert client.status(Request.WRITE, handle, u64(3), string(b"defg")) is Status.OK
    assert client.status(Request.WRITE, handle, u64(0), string(b"abc")) is Status.OK
    assert client.extended(b"fsync@openssh.com", handle)[1].u32() == Status.OK
    assert client.status(Request.CLOSE, handle) is Status.OK
    assert client.status(Request.CLOSE, handle) is Status.NO_SUCH_FILE
    assert client.status(Request.WRITE, handle, u64(0), string(b"x")) is Status.NO_SUCH_FILE
    assert (tmp_path / "f").read_bytes() == b"abcdefg"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    handle = client.open(tmp_path / "f", sftp.READ)
    found, answer = client.ask(Request.READ, handle, u64(2), u32(100))
    assert (found, bytes(answer.data())) == (Reply.DATA, b"cdefg")
    assert client.status(Request.READ, handle, u64(7), u32(1)) is Status.EOF
    found, answer = client.ask(Request.FSTAT, handle)
    assert (found, answer.attributes().size) == (Reply.ATTRS, 7)


def test_appending_ignores_offsets(client, tmp_path):
    (tmp_path / "f").write_bytes(b"one")
    handle = client.open(tmp_path / "f", sftp.WRITE | sftp.APPEND)
    assert client.status(Request.WRITE, handle, u64(0), string(b"two")) is Status.OK
    assert (tmp_path / "f").read_bytes() == b"onetwo"


def test_exclusive_creation(client, tmp_path):
    (tmp_path / "f").touch()
    flags = u32(sftp.WRITE | sftp.CREATE | sftp.EXCLUSIVE)
    assert client.status(Request.OPEN, path_of(tmp_path / "f"), flags, NOTHING) is Status.FAILURE


def test_open_handles_are_limited(client, tmp_path):
    (tmp_path / "f").touch()
    for _ in range(MAX_HANDLES):
        client.open(tmp_path / "f", sftp.READ)
    assert client.status(Request.OPEN, path_of(tmp_path / "f"), u32(sftp.READ), NOTHING) is Status.FAILURE
    assert client.status(Request.OPENDIR, path_of(tmp_path)) is Status.FAILURE
    for file in client.server._files.values():
        os.close(file)


def test_attributes_are_changed(client, tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    os.symlink("f", tmp_path / "l")
    change = sftp.attributes(Attributes(size=2, mode=0o600, times=(1_000, 2_000)))
    assert client.status(Request.SETSTAT, path_of(tmp_path / "f"), change) is Status.OK
    found = (tmp_path / "f").stat()
    assert (found.st_size, stat.S_IMODE(found.st_mode), found.st_atime, found.st_mtime) == (2, 0o600, 1_000, 2_000)
    handle = client.open(tmp_path / "f", sftp.READ | sftp.WRITE)
    assert client.status(Request.FSETSTAT, handle, sftp.attributes(Attributes(size=1, mode=0o400))) is Status.OK
    times = sftp.attributes(Attributes(times=(5, 6)))
    found_type, answer = client.extended(b"lsetstat@openssh.com", path_of(tmp_path / "l"), times)
    assert (found_type, answer.u32()) == (Reply.STATUS, Status.OK)
    assert os.lstat(tmp_path / "l").st_mtime == 6
    assert (tmp_path / "f").stat().st_mtime != 6
    refused = client.extended(b"lsetstat@openssh.com", path_of(tmp_path / "l"), sftp.attributes(Attributes(mode=0o777)))
    assert refused[1].u32() == Status.OP_UNSUPPORTED


def test_listing_comes_in_pages_with_long_names(client, tmp_path):
    for number in range(PAGE):
        (tmp_path / f"f{number:03}").touch()
    os.symlink("nowhere", tmp_path / "dangling")
    handle = client.handle(Request.OPENDIR, path_of(tmp_path))
    names: dict[bytes, bytes] = {}
    while True:
        found, answer = client.ask(Request.READDIR, handle)
        if found == Reply.STATUS:
            assert answer.u32() == Status.EOF
            break
        count = answer.u32()
        assert 0 < count <= PAGE
        for _ in range(count):
            name, long = bytes(answer.data()), bytes(answer.data())
            names[name] = long
            answer.attributes()
    assert len(names) == PAGE + 3
    assert names[b"dangling"].startswith(b"lrwxrwxrwx")
    assert names[b"."].startswith(b"drwx")
    assert client.status(Request.CLOSE, handle) is Status.OK
    assert client.status(Request.READDIR, handle) is Status.NO_SUCH_FILE


def test_folders_links_and_names(client, tmp_path):
    assert client.status(Request.MKDIR, path_of(tmp_path / "d"), NOTHING) is Status.OK
    assert client.status(Request.MKDIR, path_of(tmp_path / "d"), NOTHING) is Status.FAILURE
    (tmp_path / "d" / "f").write_bytes(b"f")
    (tmp_path / "g").write_bytes(b"g")
    assert client.status(Request.RMDIR, path_of(tmp_path / "d")) is Status.FAILURE
    rename = (path_of(tmp_path / "g"), path_of(tmp_path / "d" / "f"))
    assert client.status(Request.RENAME, *rename) is Status.FAILURE  # version 3: the target must not exist
    assert client.extended(b"posix-rename@openssh.com", *rename)[1].u32() == Status.OK
    assert (tmp_path / "d" / "f").read_bytes() == b"g"
    assert client.status(Request.RENAME, path_of(tmp_path / "d" / "f"), path_of(tmp_path / "h")) is Status.OK
    assert client.status(Request.RENAME, path_of(tmp_path / "d"), path_of(tmp_path / "e")) is Status.OK
    (tmp_path / "x").mkdir()
    assert client.status(Request.RENAME, path_of(tmp_path / "e"), path_of(tmp_path / "x")) is Status.FAILURE
    assert (
        client.extended(b"hardlink@openssh.com", path_of(tmp_path / "h"), path_of(tmp_path / "i"))[1].u32() == Status.OK
    )
    assert (tmp_path / "i").stat().st_nlink == 2
    assert client.status(Request.SYMLINK, string(b"h"), path_of(tmp_path / "l")) is Status.OK
    _, answer = client.ask(Request.READLINK, path_of(tmp_path / "l"))
    assert (answer.u32(), answer.text()) == (1, b"h")
    _, answer = client.ask(Request.REALPATH, path_of(tmp_path / "x" / ".." / "l"))
    assert (answer.u32(), answer.text()) == (1, os.fsencode(tmp_path / "h"))
    assert client.ask(Request.LSTAT, path_of(tmp_path / "l"))[1].attributes().mode == 0o120777
    assert client.ask(Request.STAT, path_of(tmp_path / "l"))[1].attributes().size == 1
    assert client.status(Request.REMOVE, path_of(tmp_path / "l")) is Status.OK
    assert client.status(Request.STAT, path_of(tmp_path / "l")) is Status.NO_SUCH_FILE
    assert client.status(Request.STAT, path_of(tmp_path / "h" / "deeper")) is Status.NO_SUCH_FILE
    assert client.status(Request.STAT, string(b"x" * 300)) is Status.BAD_MESSAGE


def test_extensions(client, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    found, answer = client.extended(b"limits@openssh.com")
    assert (found, answer.u64(), answer.u64()) == (Reply.EXTENDED_REPLY, sftp.MAX_PACKET, sftp.MAX_DATA)
    found, answer = client.extended(b"statvfs@openssh.com", path_of(tmp_path))
    assert found == Reply.EXTENDED_REPLY
    assert answer.u64() == os.statvfs(tmp_path).f_bsize
    handle = client.open(tmp_path / "f", sftp.WRITE | sftp.CREATE)
    assert client.extended(b"fstatvfs@openssh.com", handle)[0] == Reply.EXTENDED_REPLY
    found, answer = client.extended(b"expand-path@openssh.com", string(b"~/f"))
    assert (answer.u32(), answer.text()) == (1, os.fsencode(tmp_path / "f"))
    assert client.extended(b"unknown@example.com")[1].u32() == Status.OP_UNSUPPORTED


@pytest.mark.parametrize("kind", [0, 2, 21, 199, 255])
def test_unknown_requests(client, kind):
    assert client.status(kind) is Status.OP_UNSUPPORTED


@pytest.mark.parametrize("kind", [kind for kind in Request if kind is not Request.INIT])
def test_requests_that_end_inside_a_field(client, kind):
    assert client.status(kind, b"\0\0\0\x09") is Status.BAD_MESSAGE
    assert client.status(kind) is Status.BAD_MESSAGE


def test_descriptors_in_pieces_and_together(tmp_path):
    theirs_in, ours_in = os.pipe()
    ours_out, theirs_out = os.pipe()
    init = string(bytes((Request.INIT,)) + u32(3))
    asked = init + b"".join(string(bytes((Request.STAT,)) + u32(number) + path_of(tmp_path)) for number in range(3))
    os.write(ours_in, asked)
    os.close(ours_in)
    serve(theirs_in, theirs_out)
    os.close(theirs_out)
    answer = bytearray(os.read(ours_out, 1 << 20))
    kinds = []
    while (found := sftp.split(answer)) is not None:
        kinds.append(found[0])
        length = 4 + len(found)
        found.release()
        del answer[:length]
    assert kinds == [Reply.VERSION, *[Reply.ATTRS] * 3]
    os.close(theirs_in)
    os.close(ours_out)


LOOKING = (
    *(
        Request[name]
        for name in ("CLOSE", "READ", "LSTAT", "FSTAT", "OPENDIR", "READDIR", "REALPATH", "STAT", "READLINK")
    ),
    0,
    99,
    255,
)


@given(st.lists(st.tuples(st.sampled_from(LOOKING), st.binary(max_size=60)), max_size=8))
def test_any_requests_are_answered_one_by_one(asked):
    client = Client()
    for number, (kind, fields) in enumerate(asked):
        answer = Fields(client.server.answer(memoryview(bytes((kind,)) + number.to_bytes(4, "big") + fields)))
        assert answer.u32() > 0
        assert answer.byte() in set(Reply)
        assert answer.u32() == number
