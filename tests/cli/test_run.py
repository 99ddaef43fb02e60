"""The outer call: one line and an exit status for everything that can go wrong."""

import asyncio
import logging
import subprocess
import sys

import click
import pytest

from monoport.cli.run import Group, execute, run
from monoport.errors import Failure


def failing(error):
    @click.group("tool", cls=Group)
    def tool():
        """A tool."""

    @tool.group()
    def deep():
        """A group."""

    @deep.command()
    @click.option("--number", type=int)
    def fail(number):
        """A command."""
        raise error

    return tool


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Failure("one clear line"), "tool: one clear line"),
        (Failure("evil\x1b[2J\nsecond"), "tool: evil\\x1b[2J\\nsecond"),
        (ValueError("boom"), "tool: unexpected ValueError: boom (--debug shows where)"),
        (FileNotFoundError(2, "No such file", "/x/y"), "tool: /x/y: no such file"),
        (PermissionError(13, "Permission denied", "/x/y"), "tool: /x/y: permission denied"),
        (ConnectionRefusedError(111, "Connection refused"), "tool: connection refused"),
        (ExceptionGroup("g", [ValueError("noise"), ExceptionGroup("h", [Failure("inner")])]), "tool: inner"),
        (click.ClickException("said by click"), "tool: said by click"),
    ],
)
def test_an_error_is_one_line_and_status_1(capsys, error, line):
    assert execute(failing(error), ["deep", "fail"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", line + "\n")


@pytest.mark.parametrize(
    "arguments", [["deep", "fail", "--debug"], ["--debug", "deep", "fail"], ["deep", "--debug", "fail"]]
)
def test_debug_shows_the_traceback_wherever_it_stands(capsys, arguments):
    assert execute(failing(ValueError("boom")), arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("tool: unexpected ValueError: boom (--debug shows where)\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort(), asyncio.CancelledError()])
def test_ctrl_c_is_130_and_says_nothing(capsys, error):
    assert execute(failing(error), ["deep", "fail"]) == 130
    assert capsys.readouterr().err == ""


def test_wrong_arguments_are_one_line_that_names_the_help(capsys):
    assert execute(failing(Failure("x")), ["deep", "fail", "--number", "x"]) == 1
    assert capsys.readouterr().err == (
        "tool: Invalid value for '--number': 'x' is not a valid integer (see tool deep fail --help)\n"
    )
    assert execute(failing(Failure("x")), ["bogus"]) == 1
    assert capsys.readouterr().err == "tool: No such command 'bogus' (see tool --help)\n"


def test_the_status_is_what_the_command_returns():
    @click.command("tool")
    @click.pass_context
    def tool(context):
        context.exit(42)

    assert execute(tool, []) == 42
    assert execute(click.Command("tool", callback=lambda: 7), []) == 7
    assert execute(click.Command("tool", callback=lambda: "text"), []) == 0
    with pytest.raises(SystemExit) as ended:
        run(click.Command("tool", callback=lambda: 7), [])
    assert ended.value.code == 7


@pytest.mark.parametrize(
    ("words", "streams", "status", "said"),
    [
        ("login --proxy=localhost:1 --ca-pin=x", "<&-", 1, "tsh: 'x' is not a CA pin"),
        ("status", ">&-", 1, "tsh: not logged in"),
        ("--help", ">&-", 0, ""),
        ("status", "2>&-", 1, ""),
        ("--help", "> /dev/full", 1, "tsh: no space left on device\n"),
    ],
)
def test_missing_and_full_standard_streams_are_one_line_too(tmp_path, words, streams, status, said):
    command = f"exec {sys.executable} -m monoport.cli.tsh {words} {streams}"
    ended = subprocess.run(
        ["sh", "-c", command], env={"TSH_HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith(said)
    assert len(ended.stderr.splitlines()) <= 1


def test_what_the_client_notes_of_connections_is_shown_to_who_debugs(capsys):
    @click.group("tool", cls=Group)
    def tool():
        """A tool."""

    @tool.command()
    def joins():
        """A command."""
        logging.getLogger("monoport.client").debug("connection of %s joined", "127.0.0.1:1\x1b[2J")

    for arguments, said in ([], ""), (["--debug"], "connection of 127.0.0.1:1\\x1b[2J joined\n"), ([], ""):
        assert execute(tool, ["joins", *arguments]) == 0
        assert capsys.readouterr().err == said
