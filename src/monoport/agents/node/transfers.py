"""What an SFTP client does to files, read from the packets that pass: for the audit log.

Belongs here: requests, their answers, and what of them is worth an event. Pure. Not here: serving them (`files`, in a
child that the login user could tamper with, so it is not the one to report), keeping events (`session`).

Every request has one answer, in order; the codec is the child's own, so that both see the same requests.
"""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from monoport.wire import sftp
from monoport.wire.sftp import Attributes, Fields, Reply, Request, SftpError, Status

_FLAGS = (
    (sftp.READ, "read"),
    (sftp.WRITE, "write"),
    (sftp.APPEND, "append"),
    (sftp.CREATE, "create"),
    (sftp.TRUNCATE, "truncate"),
    (sftp.EXCLUSIVE, "exclusive"),
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing done to a file, or tried: the event's type and its fields."""

    type: str
    fields: dict[str, object]


@dataclass(slots=True)
class _File:
    """An open file and how many bytes of it went each way."""

    path: str
    read: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that waits for its answer: the operation it becomes, and what else depends on the answer."""

    operation: Operation | None = None
    opened: _File | None = None
    reading: _File | None = None
    writing: tuple[_File, int] | None = None


@dataclass(slots=True)
class Transfers:
    """One SFTP session.

    home: of the login user, where paths that are not absolute begin.
    """

    home: str
    _requests: bytearray = field(default_factory=bytearray)
    _answers: bytearray = field(default_factory=bytearray)
    _pending: deque[_Asked] = field(default_factory=deque)
    _open: dict[bytes, _File] = field(default_factory=dict)
    _begun: bool = False
    _broken: bool = False

    def asked(self, data: bytes) -> None:
        """Take what the client sends; where it is out of step, the child ends by itself."""
        if self._broken:
            return
        self._requests += data
        try:
            while (found := sftp.split(self._requests)) is not None:
                length = 4 + len(found)
                try:
                    self._pending.append(self._request(found))
                finally:
                    found.release()
                del self._requests[:length]
        except SftpError:
            self._broken = True
            self._requests.clear()

    def answered(self, data: bytes) -> list[Operation]:
        """Take what the server answers; returns what was done."""
        self._answers += data
        done: list[Operation] = []
        while (found := sftp.split(self._answers)) is not None:
            length = 4 + len(found)
            try:
                if self._pending and (operation := self._answer(self._pending.popleft(), Fields(found))) is not None:
                    done.append(operation)
            finally:
                found.release()
            del self._answers[:length]
        return done

    def ended(self) -> list[Operation]:
        """Return what was asked and had no answer when the client left, for it may be done, and what was open."""
        unanswered = [one.operation for one in self._pending if one.operation is not None]
        left = [Operation("sftp.close", _moved(file)) for file in self._open.values()]
        self._pending.clear()
        self._open.clear()
        return [
            Operation(one.type, {**one.fields, "result": result})
            for result, found in (("unanswered", unanswered), ("disconnected", left))
            for one in found
        ]

    # requests

    def _request(self, packet: memoryview) -> _Asked:
        fields = Fields(packet)
        kind = fields.byte()
        if not self._begun:
            self._begun = True
            return _Asked()
        try:
            fields.u32()
            reader = _READERS.get(kind)
            return reader(self, fields) if reader is not None else _Asked()
        except SftpError:  # the answer is an error too, and nothing is done
            return _Asked()

    def _path(self, path: bytes) -> str:
        return posixpath.join(self.home, path.decode("utf-8", "backslashreplace"))

    def _opening(self, fields: Fields) -> _Asked:
        path, wanted = self._path(fields.text()), fields.u32()
        flags = ",".join(name for flag, name in _FLAGS if wanted & flag)
        return _Asked(Operation("sftp.open", {"path": path, "flags": flags}), opened=_File(path))

    def _closing(self, fields: Fields) -> _Asked:
        file = self._open.pop(bytes(fields.data()), None)
        return _Asked(Operation("sftp.close", _moved(file)) if file is not None else None)

    def _reading(self, fields: Fields) -> _Asked:
        return _Asked(reading=self._open.get(bytes(fields.data())))

    def _writing(self, fields: Fields) -> _Asked:
        file, _offset, data = self._open.get(bytes(fields.data())), fields.u64(), fields.data()
        return _Asked(writing=(file, len(data)) if file is not None else None)

    def _one_path(self, what: str, fields: Fields) -> _Asked:
        return _Asked(Operation(f"sftp.{what}", {"path": self._path(fields.text())}))

    def _two_paths(self, what: str, fields: Fields) -> _Asked:
        old, new = self._path(fields.text()), self._path(fields.text())
        return _Asked(Operation(f"sftp.{what}", {"path": old, "target": new}))

    def _symlink(self, fields: Fields) -> _Asked:
        target, link = fields.text(), fields.text()
        shown = target.decode("utf-8", "backslashreplace")  # as it is written into the link
        return _Asked(Operation("sftp.symlink", {"path": self._path(link), "target": shown}))

    def _changing(self, fields: Fields) -> _Asked:
        path = self._path(fields.text())
        return _Asked(Operation("sftp.setstat", {"path": path, "changes": _changes(fields.attributes())}))

    def _changing_open(self, fields: Fields) -> _Asked:
        file = self._open.get(bytes(fields.data()))
        if file is None:
            return _Asked()
        return _Asked(Operation("sftp.setstat", {"path": file.path, "changes": _changes(fields.attributes())}))

    def _extended(self, fields: Fields) -> _Asked:
        reader = _EXTENDED.get(fields.text())
        return reader(self, fields) if reader is not None else _Asked()

    # answers

    def _answer(self, asked: _Asked, fields: Fields) -> Operation | None:
        kind = fields.byte()
        fields.u32()  # the request's number, or the version
        result = "ok"
        if kind == Reply.STATUS:
            code = fields.u32()
            result = Status(code).name.replace("_", " ").lower() if code in set(Status) else f"status {code}"
        elif kind == Reply.HANDLE and asked.opened is not None:
            self._open[bytes(fields.data())] = asked.opened
        elif kind == Reply.DATA and asked.reading is not None:
            asked.reading.read += len(fields.data())
        if asked.writing is not None and result == "ok":
            file, size = asked.writing
            file.written += size
        if asked.operation is None:
            return None
        return Operation(asked.operation.type, {**asked.operation.fields, "result": result})


def _moved(file: _File) -> dict[str, object]:
    return {"path": file.path, "bytes_read": file.read, "bytes_written": file.written}


def _changes(attrs: Attributes) -> str:
    """Return what is to be changed in a few words."""
    found = [f"size={attrs.size}"] if attrs.size is not None else []
    found += [f"mode={attrs.mode & 0o7777:04o}"] if attrs.mode is not None else []
    found += ["owner={}:{}".format(*attrs.owner)] if attrs.owner is not None else []
    found += ["times"] if attrs.times is not None else []
    return ",".join(found)


Reader = Callable[[Transfers, Fields], _Asked]


def _with_path(what: str) -> Reader:
    return lambda transfers, fields: transfers._one_path(what, fields)


def _with_paths(what: str) -> Reader:
    return lambda transfers, fields: transfers._two_paths(what, fields)


_READERS: dict[int, Reader] = {
    Request.OPEN: Transfers._opening,
    Request.CLOSE: Transfers._closing,
    Request.READ: Transfers._reading,
    Request.WRITE: Transfers._writing,
    Request.SETSTAT: Transfers._changing,
    Request.FSETSTAT: Transfers._changing_open,
    Request.OPENDIR: _with_path("list"),
    Request.REMOVE: _with_path("remove"),
    Request.MKDIR: _with_path("mkdir"),
    Request.RMDIR: _with_path("rmdir"),
    Request.RENAME: _with_paths("rename"),
    Request.SYMLINK: Transfers._symlink,
    Request.EXTENDED: Transfers._extended,
}
_EXTENDED: dict[bytes, Reader] = {
    b"posix-rename@openssh.com": _with_paths("rename"),
    b"hardlink@openssh.com": _with_paths("link"),
    b"lsetstat@openssh.com": Transfers._changing,
}
