"""The agent's password file."""

from __future__ import annotations

from pathlib import Path

import pytest

from monoport.agents.database.passwords import MAX_FILE, PasswordError, password


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "passwords"
    found.write_bytes(b"# of the test server\n\nalice:a:b \r\n#bob:x\nreader:\n")
    found.chmod(0o600)
    return found


def test_each_user_has_a_line(file: Path) -> None:
    assert password(file, "alice") == "a:b "
    assert password(file, "reader") == ""
    for other in ("bob", "#bob", "# of the test server", "mallory", ""):
        with pytest.raises(PasswordError, match="no line for this database user"):
            password(file, other)


def test_a_file_that_others_may_read_is_not_used(file: Path) -> None:
    file.chmod(0o640)
    with pytest.raises(PasswordError, match="expected mode 0600"):
        password(file, "alice")


def test_a_file_that_cannot_be_used_says_why_and_nothing_of_its_content(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PasswordError, match="No such file"):
        password(tmp_path / "gone", "alice")
    for content, says in ((b"alice:\xff", "not UTF-8"), (b"x" * (MAX_FILE + 1), "larger than")):
        file.write_bytes(content)
        with pytest.raises(PasswordError, match=says) as raised:
            password(file, "alice")
        assert raised.value.__cause__ is None
