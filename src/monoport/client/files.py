"""Private files: written whole or not at all, readable by their owner only.

Belongs here: how a file of the user's is replaced. Does not belong here: which files there are.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monoport.errors import Failure

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


def make_folder(folder: Path) -> None:
    """Creates the folder and its parents, 0700 each; those that exist stay as they are. Raises Failure at a file."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
        except FileExistsError:
            raise Failure(f"{each} is a file: expected a folder") from None


def check_writable(folder: Path) -> None:
    """Raises Failure if the folder can be neither written nor made."""
    there = str(folder)
    while not os.path.isdir(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    if not os.access(there, os.W_OK | os.X_OK):
        raise Failure(f"cannot write to {folder}: set TSH_HOME to a folder of yours")


def replace(path: Path, content: bytes, mode: int = PRIVATE_FILE) -> None:
    """Puts the content at the path in one step: readers see the old file or the new one, never a part.

    Args:
        path: a symbolic link is followed, so that a linked file stays linked.
        content: the whole file.
        mode: permission bits.
    """
    target = Path(os.path.realpath(path))
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def remove(path: Path) -> None:
    """Removes a file that may already be gone."""
    path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes what is in the folder; the others wait for it.

    Args:
        folder: created if it is not there.
    """
    make_folder(folder)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
