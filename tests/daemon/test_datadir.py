"""The data folder: private, one daemon's at a time, and what is wrong with it in one line."""

import os
import stat
from pathlib import Path

import pytest

from monoport.daemon.datadir import open_data_directory
from monoport.errors import Failure


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_and_kept_private(tmp_path: Path) -> None:
    root = tmp_path / "var" / "lib" / "monoport"
    data, lock = open_data_directory(root)
    os.close(lock)
    assert [mode(path) for path in (root, data.identity, data.spool, root / "lock")] == [0o700, 0o700, 0o700, 0o600]
    assert (root / "lock").read_text() == f"{os.getpid()}\n"

    root.chmod(0o755)
    _, lock = open_data_directory(root)
    os.close(lock)
    assert mode(root) == 0o700


def test_a_second_daemon_is_told_which_process_holds_it(tmp_path: Path) -> None:
    _, lock = open_data_directory(tmp_path)
    try:
        with pytest.raises(Failure) as refused:
            open_data_directory(tmp_path)
    finally:
        os.close(lock)
    assert str(refused.value) == (
        f"data folder {tmp_path} is in use by another monoport daemon (process {os.getpid()})"
    )
    _, lock = open_data_directory(tmp_path)  # the first has gone, however it did
    os.close(lock)


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(Failure, match=rf"^data folder {tmp_path} belongs to another user \(uid \d+\), not to uid \d+$"):
        open_data_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_what_is_no_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"^data folder .* cannot be used: (File exists|Not a directory)$"):
        open_data_directory(tmp_path / "file" / below)


def test_a_lock_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(Failure, match="cannot be used: Is a directory"):
        open_data_directory(tmp_path)
