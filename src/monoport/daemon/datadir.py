"""The data folder of one daemon: made private, held by one process at a time.

Belongs here: where the daemon's files are and who holds them. Does not belong here: what is in them.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from monoport.errors import Failure


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Paths of one daemon's files below `root`."""

    root: Path

    @property
    def identity(self) -> Path:
        """Folder of this host's certificates and keys."""
        return self.root / "identity"

    @property
    def spool(self) -> Path:
        """Folder of audit events that auth has not acknowledged yet."""
        return self.root / "spool"

    @property
    def recordings(self) -> Path:
        """Folder of this node's recordings that auth has not acknowledged yet."""
        return self.root / "spool" / "recordings"

    @property
    def socket(self) -> Path:
        """Unix socket on which `tctl` asks this daemon for connections and routes."""
        return self.root / "daemon.sock"


def open_data_directory(root: Path) -> tuple[DataDirectory, int]:
    """Make the folder private to this user and lock it for this process.

    Returns the folder and the descriptor that holds the lock: keep it open as long as the daemon lives.
    Raises Failure when the folder cannot be made, belongs to another user, or another daemon holds it.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid != os.geteuid():
            raise Failure(
                f"data folder {root} belongs to another user (uid {root.stat().st_uid}), not to uid {os.geteuid()}"
            )
        root.chmod(0o700)
        for folder in (root / "identity", root / "spool"):
            folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failure(f"data folder {root} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise Failure(f"data folder {root} is in use by another monoport daemon (process {holder})") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)
    return DataDirectory(root), lock
