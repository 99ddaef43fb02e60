"""Writing that is sure to be there afterwards: the part that files of events, of recordings and of uploads share.

Belongs here: single calls of the system, complete. Does not: which file, and when.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_all(file: int, data: bytes) -> None:
    """Write all of `data` to a descriptor; raises OSError, and part of it may be written then."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync(2) of a file does not; raises OSError."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
