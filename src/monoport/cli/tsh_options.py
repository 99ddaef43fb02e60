"""Options that several of tsh's commands take.

Belongs here: decorators. Imports nothing but click: ssh starts tsh once per connection.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def proxy_option(command: Command) -> Command:
    """Adds `--proxy`, for users with several."""
    option = click.option("--proxy", metavar="HOST:PORT", envvar="TSH_PROXY", help="Not the current proxy.")
    return option(command)


def format_option(command: Command) -> Command:
    """Adds `--format`, as `cli.tables` has it."""
    choice = click.Choice(("text", "wide", "json", "yaml"))
    option = click.option("--format", "output", type=choice, default="text", show_default=True, help="How to print.")
    return option(command)
