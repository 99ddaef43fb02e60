"""Files as SFTP shows and changes them: attributes, and the long names of listings.

Belongs here: stat, and what `ls -l` prints. Not here: requests and handles (`files`). Standard library only, as there.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator

from monoport.wire.sftp import Attributes

HALF_A_YEAR = 15_778_800  # seconds, after which `ls -l` shows the year

Entry = tuple[bytes, bytes, Attributes]


def known(found: os.stat_result) -> Attributes:
    """Return what SFTP tells of a file."""
    return Attributes(
        found.st_size, (found.st_uid, found.st_gid), found.st_mode, (int(found.st_atime), int(found.st_mtime))
    )


def change(target: bytes | int, attrs: Attributes, *, follow: bool = True) -> None:
    """Apply attributes in the order that leaves times right; raises OSError at the first that fails."""
    follow = follow or isinstance(target, int)
    if attrs.size is not None:
        os.truncate(target, attrs.size)
    if attrs.mode is not None:
        os.chmod(target, attrs.mode & 0o7777)
    if attrs.owner is not None:
        os.chown(target, *attrs.owner, follow_symlinks=follow)
    if attrs.times is not None:
        os.utime(target, attrs.times, follow_symlinks=follow)


def listing(path: bytes) -> Iterator[Entry]:
    """Return a folder's entries, "." and ".." first; raises OSError at once where it cannot be read."""
    found = os.scandir(path)
    return _entries(path, found)


def _entries(path: bytes, folder: Iterator[os.DirEntry[bytes]]) -> Iterator[Entry]:
    for name in (b".", b".."):
        yield _entry(name, os.lstat(os.path.join(path, name)))
    for found in folder:
        try:
            yield _entry(found.name, found.stat(follow_symlinks=False))
        except FileNotFoundError:  # removed while we list: it is not there
            continue


def _entry(name: bytes, found: os.stat_result) -> Entry:
    """Return one entry with its long form, as `ls -l` writes it (section 7)."""
    when = time.localtime(found.st_mtime)
    shown = time.strftime("%b %e %H:%M" if abs(time.time() - found.st_mtime) < HALF_A_YEAR else "%b %e  %Y", when)
    long = (
        f"{stat.filemode(found.st_mode)} {found.st_nlink:4d} {_user(found.st_uid):<8} {_group(found.st_gid):<8} "
        f"{found.st_size:8d} {shown} "
    )
    return name, long.encode() + name, known(found)


@functools.lru_cache(maxsize=1024)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@functools.lru_cache(maxsize=1024)
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
