"""`scripts/packages` on a machine that lacks nearly everything: named for people, an error in CI."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ..conftest import require  # noqa: TID252 # tests are no package

SCRIPT = Path(__file__).parents[2] / "scripts" / "packages"


@pytest.mark.parametrize(("ci", "code"), [({}, 0), ({"CI": "1"}, 1)])
def test_what_is_missing_is_an_error_only_in_ci(tmp_path: Path, ci: dict[str, str], code: int) -> None:
    for program in ("sh", "ls", "tr", "sort", "sed"):
        (tmp_path / program).symlink_to(require(program))
    done = subprocess.run([SCRIPT], env={"PATH": str(tmp_path), **ci}, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    named, command = done.stderr.splitlines()
    assert named.startswith("Missing for the tests with real servers and clients: ")
    assert {"curl", "openssh-client", "rsync"} < set(command.removeprefix("    sudo apt-get install ").split())
