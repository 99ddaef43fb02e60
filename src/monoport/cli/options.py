"""Option types that several commands take: comma-separated names, traits, lengths of time.

Belongs here: turning an argument into a value, with an error that says what is expected.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from monoport.access.duration import parse_duration


class Names(click.ParamType[tuple[str, ...]]):
    """Comma-separated names, blanks around them dropped."""

    name = "names"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        """The names; an empty text is none."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(name.strip() for name in str(value).split(",") if name.strip()))


class Duration(click.ParamType[timedelta]):
    """A length of time such as 30m, 8h or 1h30m."""

    name = "duration"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> timedelta:
        """The length; fails with what is expected."""
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(f"{str(value)!a}: {error}", parameter, context)


class Trait(click.ParamType[tuple[str, tuple[str, ...]]]):
    """One trait with its values: KEY=V1,V2; KEY= has none."""

    name = "trait"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[str, tuple[str, ...]]:
        """Name and values; fails with what is expected."""
        if isinstance(value, tuple):
            return value
        key, equals, values = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"{str(value)!a}: expected KEY=V1,V2", parameter, context)
        return key.strip(), NAMES.convert(values, parameter, context)


NAMES = Names()
TRAIT = Trait()
DURATION = Duration()

Command = TypeVar("Command", bound=Callable[..., Any])


def names_option(*flags: str, default: str | None = "", **words: Any) -> Callable[[Command], Command]:
    """An option that takes comma-separated names, and more of them each time that it is given.

    Args: as of `click.option`; with a `default` of None the command is told so when nothing was given.
    """

    def joined(
        _context: click.Context, _parameter: click.Parameter, given: tuple[tuple[str, ...], ...]
    ) -> tuple[str, ...] | None:
        if not given and default is None:
            return None
        return tuple(dict.fromkeys(name for names in given for name in names))

    shown = (default,) if default else None
    return click.option(
        *flags, type=NAMES, multiple=True, callback=joined, default=shown, show_default=bool(shown), **words
    )
