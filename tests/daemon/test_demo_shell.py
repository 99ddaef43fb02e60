"""The shell of `monoport demo --check`: lines build on each other, and one that misbehaves is told from the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monoport.daemon.demo.shell import MAX_OUTPUT, Done, Shell
from monoport.errors import Failure

SECONDS = 30.0


def test_a_line_finds_what_the_lines_before_it_left() -> None:
    with Shell(os.environ) as shell:
        assert shell.run("export HERE=there; cd /", SECONDS) == Done(0, "")
        assert shell.run('echo "$HERE $PWD"', SECONDS) == Done(0, "there /\n")
        assert shell.run("cat; echo over >&2", SECONDS) == Done(0, "over\n")
        assert shell.run("false", SECONDS) == Done(1, "")
        assert shell.run("false | cat", SECONDS) == Done(1, "")
        assert shell.run("printf 'no line feed'", SECONDS) == Done(0, "no line feed")


def test_a_line_that_ends_the_shell_and_what_comes_after_it() -> None:
    with Shell(os.environ) as shell:
        done = shell.run("echo last words; exit 3", SECONDS)
        assert done.status is None
        assert "last words" in done.output
        assert shell.run("true", SECONDS).status is None


def test_a_line_without_end_is_ended_with_the_shell(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    with Shell(os.environ) as shell:
        done = shell.run(f"echo begun; echo $$ > {tmp_path}/pid; cat {tmp_path}/never", 0.5)
        assert done.status is None
        assert done.output == "no end within 0.5 s: begun\n"
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_output_is_bounded() -> None:
    with Shell(os.environ) as shell:
        done = shell.run("cat /dev/zero", SECONDS)
        assert done == Done(None, f"more than {MAX_OUTPUT} bytes of output")


def test_without_bash_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Failure, match="bash cannot be started"):
        Shell(os.environ)
