"""The outermost call of every command: errors become one line and an exit status.

Belongs here: what happens around a command. What a command does, it does itself.
"""

import asyncio
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, TypeVar

import click

from monoport.cli.tables import printable
from monoport.errors import Failure
from monoport.net import eventloop

Result = TypeVar("Result")

_DEBUG = "monoport.debug"
INTERRUPTED = 128 + signal.SIGINT  # what a shell reports for a command that Ctrl-C ended


class Group(click.Group):
    """A click group whose commands, at every depth, take `--debug`."""

    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(_debug_option())

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        if not isinstance(cmd, Group):
            cmd.params.append(_debug_option())
        super().add_command(cmd, name)


def _debug_option() -> click.Option:
    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            root = context.find_root()
            root.meta[_DEBUG] = True
            root.call_on_close(_noting())

    what = "Show the traceback of an error, and each connection of a local port."
    return click.Option(["--debug"], is_flag=True, expose_value=False, callback=remember, help=what)


def _noting() -> Callable[[], None]:
    """Show what the client notes for who debugs, until what is returned is called."""
    log, lines = logging.getLogger("monoport.client"), _Lines()
    log.addHandler(lines)
    log.setLevel(logging.DEBUG)

    def undo() -> None:
        log.removeHandler(lines)
        log.setLevel(logging.NOTSET)

    return undo


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def run(command: click.Command, arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command to its exit status; never returns and never shows a traceback without `--debug`.

    Args:
        command: the click command; its name is the program's.
        arguments: without the program's name; those of the process if not given.
    """
    _open_closed()
    status = execute(command, sys.argv[1:] if arguments is None else arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        # Nobody is told that the reader left (`| head`). The interpreter's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        gone = isinstance(error, BrokenPipeError)
        status = status or (128 + signal.SIGPIPE if gone else _report(command.name or "monoport", error, debug=False))
    sys.exit(status)


def _open_closed() -> None:
    """Gives closed standard streams (`<&-`) /dev/null: the next socket would take their numbers."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


def execute(command: click.Command, arguments: Sequence[str]) -> int:
    """Runs a command and returns its exit status, having printed one line on stderr if it failed."""
    name = command.name or "monoport"
    context: click.Context | None = None
    try:
        context = command.make_context(name, list(arguments))
        with context:
            result = command.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show(sys.stderr)
        return 2
    except (KeyboardInterrupt, click.Abort, asyncio.CancelledError):
        return INTERRUPTED
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except Exception as error:  # noqa: BLE001 - the last line of defence is the point of this function
        return _report(name, error, debug=_debug_wanted(context, arguments))


def wait(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine to its end, for commands that talk to services."""
    return eventloop.run(coroutine)


def warn(text: str) -> None:
    """One line on stderr that nothing in it can break up."""
    click.echo(printable(text), err=True)


def _debug_wanted(context: click.Context | None, arguments: Sequence[str]) -> bool:
    return bool(context.meta.get(_DEBUG)) if context is not None else "--debug" in arguments


def _report(name: str, error: Exception, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    warn(f"{name}: {_describe(_innermost(error))}")
    return 1


def _innermost(error: BaseException) -> BaseException:
    """The first error inside nested groups: what a TaskGroup wrapped is what the user must read."""
    while isinstance(error, BaseExceptionGroup):
        failures = error.subgroup(Failure)
        error = (failures or error).exceptions[0]
    return error


def _describe(error: BaseException) -> str:
    match error:
        case Failure():
            return str(error)
        case click.UsageError():
            hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
            return error.format_message().rstrip(".") + hint
        case click.ClickException():
            return error.format_message()
        case FileNotFoundError() if error.filename:
            return f"{error.filename}: no such file"
        case PermissionError() if error.filename:
            return f"{error.filename}: permission denied"
        case OSError() if error.strerror:
            return f"{error.strerror.lower()}" + (f": {error.filename}" if error.filename else "")
        case _:
            return f"unexpected {type(error).__name__}: {error} (--debug shows where)"
