"""An SFTP server over two file descriptors, for one user: it runs in a child that has already become that user.

Belongs here: files. Not here: the codec (`wire.sftp`), who may start it (`session`). It runs without site-packages,
so it imports the standard library only; it is synchronous because it has one client and its work is the disk's.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import struct
from collections.abc import Callable, Iterator

from monoport.agents.node.entries import Entry, change, known, listing
from monoport.wire import sftp
from monoport.wire.sftp import Attributes, Fields, Reply, Request, SftpError, Status

MAX_HANDLES = 512  # open files and folders of one session; below the usual limit of 1024 descriptors
PAGE = 128  # names in one answer to READDIR: under half of a packet with the longest names
CHUNK = 262_144  # bytes read from the client at once: one whole packet

EXTENSIONS = (
    (b"posix-rename@openssh.com", b"1"),
    (b"statvfs@openssh.com", b"2"),
    (b"fstatvfs@openssh.com", b"2"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
    (b"lsetstat@openssh.com", b"1"),
    (b"limits@openssh.com", b"1"),
    (b"expand-path@openssh.com", b"1"),
)
_STATUS = {
    errno.ENOENT: Status.NO_SUCH_FILE,
    errno.ENOTDIR: Status.NO_SUCH_FILE,
    errno.ELOOP: Status.NO_SUCH_FILE,
    errno.EBADF: Status.NO_SUCH_FILE,
    errno.EACCES: Status.PERMISSION_DENIED,
    errno.EPERM: Status.PERMISSION_DENIED,
    errno.EFAULT: Status.PERMISSION_DENIED,
    errno.ENAMETOOLONG: Status.BAD_MESSAGE,
    errno.EINVAL: Status.BAD_MESSAGE,
    errno.ENOSYS: Status.OP_UNSUPPORTED,
}

_FLAGS = (
    (sftp.CREATE, os.O_CREAT),
    (sftp.TRUNCATE, os.O_TRUNC),
    (sftp.EXCLUSIVE, os.O_EXCL),
    (sftp.APPEND, os.O_APPEND),
)
CLOSED = -1  # no open file: the kernel answers EBADF


def serve(source: int, sink: int) -> None:
    """Answer SFTP requests from descriptor `source` on descriptor `sink` until the client ends; raises SftpError."""
    buffer = bytearray()
    server = Server()
    while data := os.read(source, CHUNK):
        buffer += data
        answers: list[bytes] = []
        while (found := sftp.split(buffer)) is not None:
            length = 4 + len(found)
            try:
                answers.append(server.answer(found))
            finally:
                found.release()
            del buffer[:length]
        _write(sink, b"".join(answers))


def _write(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sink, view) :]


class Server:
    """One client's open files and folders."""

    def __init__(self) -> None:
        self._files: dict[bytes, int] = {}
        self._folders: dict[bytes, Iterator[Entry]] = {}
        self._appending: set[bytes] = set()
        self._next = 0
        self._ready = False

    def answer(self, data: memoryview) -> bytes:
        """Return the answer to one packet; raises SftpError where the client is out of step."""
        fields = Fields(data)
        kind = fields.byte()
        if not self._ready:
            if kind != Request.INIT:
                raise SftpError("first packet is not INIT")
            self._ready = True
            return sftp.version(EXTENSIONS)
        number = fields.u32()
        handler = _HANDLERS.get(kind)
        if handler is None:
            return sftp.status(number, Status.OP_UNSUPPORTED)
        try:
            return handler(self, number, fields)
        except SftpError:
            return sftp.status(number, Status.BAD_MESSAGE)
        except OSError as error:
            return sftp.status(number, _STATUS.get(error.errno or 0, Status.FAILURE), error.strerror or "")
        except (ValueError, OverflowError):
            return sftp.status(number, Status.FAILURE)

    # files

    def open(self, number: int, fields: Fields) -> bytes:
        path, wanted, attrs = fields.text(), fields.u32(), fields.attributes()
        reads, writes = wanted & sftp.READ, wanted & sftp.WRITE
        flags = os.O_RDWR if reads and writes else os.O_WRONLY if writes else os.O_RDONLY
        for flag, meaning in _FLAGS:
            flags |= meaning if wanted & flag else 0
        self._room()
        mode = 0o666 if attrs.mode is None else attrs.mode & 0o7777
        file = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, mode)
        handle = self._handle()
        self._files[handle] = file
        if wanted & sftp.APPEND:
            self._appending.add(handle)
        return sftp.packet(Reply.HANDLE, number, sftp.string(handle))

    def close(self, number: int, fields: Fields) -> bytes:
        handle = bytes(fields.data())
        self._appending.discard(handle)
        if self._folders.pop(handle, None) is None:
            os.close(self._files.pop(handle, CLOSED))
        return sftp.status(number, Status.OK)

    def read(self, number: int, fields: Fields) -> bytes:
        file, offset, length = self._file(fields), fields.u64(), fields.u32()
        data = os.pread(file, min(length, sftp.MAX_DATA), offset)
        if not data and length:
            return sftp.status(number, Status.EOF)
        return sftp.packet(Reply.DATA, number, sftp.string(data))

    def write(self, number: int, fields: Fields) -> bytes:
        handle = bytes(fields.data())
        file, offset, data = self._files.get(handle, CLOSED), fields.u64(), fields.data()
        while data:
            count = os.write(file, data) if handle in self._appending else os.pwrite(file, data, offset)
            offset += count
            data = data[count:]
        return sftp.status(number, Status.OK)

    def fsync(self, number: int, fields: Fields) -> bytes:
        os.fsync(self._file(fields))
        return sftp.status(number, Status.OK)

    def _file(self, fields: Fields) -> int:
        return self._files.get(bytes(fields.data()), CLOSED)

    def _room(self) -> None:
        if len(self._files) + len(self._folders) >= MAX_HANDLES:
            raise OSError(errno.EMFILE, f"more than {MAX_HANDLES} files are open")

    def _handle(self) -> bytes:
        self._next += 1
        return self._next.to_bytes(8, "big")

    # attributes

    def stat(self, number: int, fields: Fields) -> bytes:
        return _attributes(number, os.stat(fields.text()))

    def lstat(self, number: int, fields: Fields) -> bytes:
        return _attributes(number, os.lstat(fields.text()))

    def fstat(self, number: int, fields: Fields) -> bytes:
        return _attributes(number, os.fstat(self._file(fields)))

    def setstat(self, number: int, fields: Fields) -> bytes:
        change(fields.text(), fields.attributes())
        return sftp.status(number, Status.OK)

    def lsetstat(self, number: int, fields: Fields) -> bytes:
        path, attrs = fields.text(), fields.attributes()
        if attrs.size is not None or (attrs.mode is not None and stat.S_ISLNK(os.lstat(path).st_mode)):
            return sftp.status(number, Status.OP_UNSUPPORTED)
        change(path, attrs, follow=False)
        return sftp.status(number, Status.OK)

    def fsetstat(self, number: int, fields: Fields) -> bytes:
        change(self._file(fields), fields.attributes())
        return sftp.status(number, Status.OK)

    def statvfs(self, number: int, fields: Fields) -> bytes:
        return _space(number, os.statvfs(fields.text()))

    def fstatvfs(self, number: int, fields: Fields) -> bytes:
        return _space(number, os.fstatvfs(self._file(fields)))

    # folders and names

    def opendir(self, number: int, fields: Fields) -> bytes:
        path = fields.text()
        self._room()
        found = listing(path)
        handle = self._handle()
        self._folders[handle] = found
        return sftp.packet(Reply.HANDLE, number, sftp.string(handle))

    def readdir(self, number: int, fields: Fields) -> bytes:
        folder = self._folders.get(bytes(fields.data()))
        if folder is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        page = list(itertools.islice(folder, PAGE))
        return sftp.names(number, page) if page else sftp.status(number, Status.EOF)

    def remove(self, number: int, fields: Fields) -> bytes:
        os.unlink(fields.text())
        return sftp.status(number, Status.OK)

    def mkdir(self, number: int, fields: Fields) -> bytes:
        path, attrs = fields.text(), fields.attributes()
        os.mkdir(path, 0o777 if attrs.mode is None else attrs.mode & 0o7777)
        return sftp.status(number, Status.OK)

    def rmdir(self, number: int, fields: Fields) -> bytes:
        os.rmdir(fields.text())
        return sftp.status(number, Status.OK)

    def realpath(self, number: int, fields: Fields) -> bytes:
        return _name(number, os.path.realpath(fields.text() or b"."))

    def expand_path(self, number: int, fields: Fields) -> bytes:
        return _name(number, os.path.realpath(os.path.expanduser(fields.text() or b".")))

    def rename(self, number: int, fields: Fields) -> bytes:
        old, new = fields.text(), fields.text()
        # version 3 says that an existing target is an error (section 6.5), which rename(2) does not
        if stat.S_ISDIR(os.lstat(old).st_mode):
            if os.path.lexists(new):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(old, new)
        else:
            os.link(old, new, follow_symlinks=False)
            os.unlink(old)
        return sftp.status(number, Status.OK)

    def posix_rename(self, number: int, fields: Fields) -> bytes:
        old, new = fields.text(), fields.text()
        os.rename(old, new)
        return sftp.status(number, Status.OK)

    def readlink(self, number: int, fields: Fields) -> bytes:
        return _name(number, os.readlink(fields.text()))

    def symlink(self, number: int, fields: Fields) -> bytes:
        target, link = fields.text(), fields.text()  # OpenSSH's order, the reverse of the draft's (its PROTOCOL, 4.1)
        os.symlink(target, link)
        return sftp.status(number, Status.OK)

    def hardlink(self, number: int, fields: Fields) -> bytes:
        old, new = fields.text(), fields.text()
        os.link(old, new, follow_symlinks=False)
        return sftp.status(number, Status.OK)

    def limits(self, number: int, _fields: Fields) -> bytes:
        sizes = struct.pack(">QQQQ", sftp.MAX_PACKET, sftp.MAX_DATA, sftp.MAX_DATA, MAX_HANDLES)
        return sftp.packet(Reply.EXTENDED_REPLY, number, sizes)

    def extended(self, number: int, fields: Fields) -> bytes:
        handler = _EXTENDED.get(fields.text())
        return handler(self, number, fields) if handler else sftp.status(number, Status.OP_UNSUPPORTED)


Handler = Callable[[Server, int, Fields], bytes]
_HANDLERS: dict[int, Handler] = {
    Request.OPEN: Server.open,
    Request.CLOSE: Server.close,
    Request.READ: Server.read,
    Request.WRITE: Server.write,
    Request.LSTAT: Server.lstat,
    Request.FSTAT: Server.fstat,
    Request.SETSTAT: Server.setstat,
    Request.FSETSTAT: Server.fsetstat,
    Request.OPENDIR: Server.opendir,
    Request.READDIR: Server.readdir,
    Request.REMOVE: Server.remove,
    Request.MKDIR: Server.mkdir,
    Request.RMDIR: Server.rmdir,
    Request.REALPATH: Server.realpath,
    Request.STAT: Server.stat,
    Request.RENAME: Server.rename,
    Request.READLINK: Server.readlink,
    Request.SYMLINK: Server.symlink,
    Request.EXTENDED: Server.extended,
}
_EXTENDED: dict[bytes, Handler] = {
    b"posix-rename@openssh.com": Server.posix_rename,
    b"statvfs@openssh.com": Server.statvfs,
    b"fstatvfs@openssh.com": Server.fstatvfs,
    b"hardlink@openssh.com": Server.hardlink,
    b"fsync@openssh.com": Server.fsync,
    b"lsetstat@openssh.com": Server.lsetstat,
    b"limits@openssh.com": Server.limits,
    b"expand-path@openssh.com": Server.expand_path,
}


def _attributes(number: int, found: os.stat_result) -> bytes:
    return sftp.packet(Reply.ATTRS, number, sftp.attributes(known(found)))


def _name(number: int, path: bytes) -> bytes:
    return sftp.names(number, [(path, path, Attributes())])


def _space(number: int, found: os.statvfs_result) -> bytes:
    """Answer in the order of OpenSSH's PROTOCOL, section 4.4."""
    flags = (1 if found.f_flag & os.ST_RDONLY else 0) | (2 if found.f_flag & os.ST_NOSUID else 0)
    values = (found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files)
    rest = (found.f_ffree, found.f_favail, found.f_fsid, flags, found.f_namemax)
    return sftp.packet(Reply.EXTENDED_REPLY, number, struct.pack(">11Q", *values, *rest))
