"""Listings: rows of values as an aligned table, JSON or YAML.

Belongs here: how rows look. What the rows are, the commands decide; what a terminal has room for, `fitting`. Everything
that reaches a terminal goes through `printable`, since most of it was typed by somebody else. The libraries that draw
are imported when they are needed: ssh starts `tsh proxy ssh` once per connection, and it prints nothing.
"""
# ruff: noqa: PLC0415

import json
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from io import StringIO
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from monoport.cli.fitting import Wish, fit

if TYPE_CHECKING:
    from rich.text import Text

Row = Mapping[str, Any]
Command = TypeVar("Command", bound=Callable[..., Any])

TABLES = ("text", "wide")  # as a table; in full everywhere, or cut to the width of a terminal
FORMATS = (*TABLES, "json", "yaml")
MARK = "…"  # ends a cell that is not shown in full
GAP = "  "  # two blanks: one is easily lost in proportional fonts of bug reports

# Control, format (bidirectional overrides hide in it), surrogate, private use, unassigned, line, paragraph separator.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a listing: its title, the row's key, and the rich style it has at a terminal.

    Where a terminal is too narrow for all, columns are left out, the highest rank first and those of rank 0 never, and
    those that are not `whole` are shortened.
    """

    title: str
    key: str
    style: str = ""
    rank: int = 0
    whole: bool = False


def printable(text: object) -> str:
    """The text with everything that could steer a terminal written as a visible escape.

    Args:
        text: anything; its `str()` is taken.
    """
    return "".join(_escape(char) if unicodedata.category(char) in _UNPRINTABLE else char for char in str(text))


def _escape(char: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    if named is not None:
        return named
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def cell(value: object) -> str:
    """One value as the text of a table cell: lists joined with commas, maps as key=value, times in UTC."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        case str():
            return printable(value)
        case Mapping():
            lists = any(isinstance(item, Iterable) and not isinstance(item, str) for item in value.values())
            between = " " if lists else ","
            return between.join(f"{printable(key)}={cell(item)}" for key, item in sorted(value.items()))
        case Iterable():
            return ",".join(cell(item) for item in value)
        case _:
            return printable(value)


def ago(age: timedelta | float) -> str:
    """A length of time (seconds or timedelta) in its two largest units: 42s, 3m10s, 2h05m, 4d03h."""
    seconds = max(0, int(age.total_seconds() if isinstance(age, timedelta) else age))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 86_400}d{seconds % 86_400 // 3600:02d}h"


def size(octets: int) -> str:
    """A number of octets with a binary unit: 512 B, 1.5 KiB."""
    amount = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def format_option(command: Command) -> Command:
    """Adds `--format text|wide|json|yaml`, passed to the command as `output`."""
    option = click.option(
        "--format", "output", type=click.Choice(FORMATS), default="text", show_default=True, help="How to print."
    )
    return option(command)


def show(rows: Sequence[Row], columns: Sequence[Column], output: str = "text", file: TextIO | None = None) -> None:
    """Prints a listing: a table of the columns, or every key of every row as a JSON or YAML list.

    At a terminal a table is no wider than that, unless "wide" is asked for.

    Args:
        rows: the values, one mapping per line.
        columns: what the table shows; json and yaml ignore it.
        output: one of FORMATS.
        file: where to print, standard output if not given.
    """
    target = sys.stdout if file is None else file
    if output in TABLES:
        _print_table(rows, columns, target, full=output == "wide")
    else:
        target.write(document([plain(row) for row in rows], output))


def document(value: object, output: str) -> str:
    """A plain value as one JSON or YAML text, in ASCII so that nothing in it can steer a terminal."""
    if output == "json":
        return json.dumps(value, indent=2, ensure_ascii=True) + "\n"
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.allow_unicode = False
    yaml.width = 4096  # long certificates and lists stay on their line, so that grep finds them
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = StringIO()
    yaml.dump(value, text)
    return text.getvalue()


def plain(value: object) -> Any:
    """The value in the types JSON knows: times in ISO 8601, tuples and sets as lists."""
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return str(value)
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date():
            return value.isoformat()
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted(plain(item) for item in value)
        case Iterable():
            return [plain(item) for item in value]
        case _:
            return str(value)


def _print_table(rows: Sequence[Row], columns: Sequence[Column], file: TextIO, *, full: bool) -> None:
    from rich.cells import cell_len
    from rich.console import Console

    terminal = file.isatty()
    cells = [[cell(row.get(column.key)) for column in columns] for row in rows]
    natural = [
        max([cell_len(column.title), *(cell_len(line[index]) for line in cells)])
        for index, column in enumerate(columns)
    ]
    widths, room = dict(enumerate(natural)), shutil.get_terminal_size().columns
    if terminal and not full:
        wishes = [Wish(width, one.rank, one.whole) for width, one in zip(natural, columns, strict=True)]
        widths = fit(wishes, room, len(GAP))
    drawn = StringIO()  # written by us: where the reader has left, rich would exit with status 1
    console = Console(file=drawn, force_terminal=terminal or None, highlight=False, markup=False, emoji=False)

    def put(line: Sequence[str], styles: Sequence[str]) -> None:
        chosen = [(_shortened(line[index], width), styles[index], width) for index, width in widths.items()]
        console.print(_line(*zip(*chosen, strict=True)), soft_wrap=True)

    put([column.title for column in columns], ["bold"] * len(columns))
    for line in cells:
        put(line, [column.style for column in columns])
    if left := _left_out(columns, natural, widths, room):
        console.print(left, style="dim", soft_wrap=True)
    file.write(drawn.getvalue())


def _left_out(columns: Sequence[Column], natural: Sequence[int], widths: Mapping[int, int], room: int) -> str:
    """What a table does not show, in one line, by name if there is room; empty if it shows everything."""
    gone = [column.title for index, column in enumerate(columns) if index not in widths]
    short = [columns[index].title for index, width in widths.items() if width < natural[index]]
    found = [(titles, verb) for titles, verb in ((gone, "left out"), (short, "shortened")) if titles]
    if not found:
        return ""
    end = "; --format=wide shows all"
    named = f"{MARK} " + "; ".join(f"{verb}: {', '.join(titles)}" for titles, verb in found) + end
    counted = (f"{len(titles)} column{'s' if len(titles) > 1 else ''} {verb}" for titles, verb in found)
    return named if len(named) <= room else f"{MARK} " + ", ".join(counted) + end


def _shortened(text: str, width: int) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + MARK


def _line(cells: Sequence[str], styles: Sequence[str], widths: Sequence[int]) -> "Text":
    from rich.cells import cell_len
    from rich.text import Text

    line = Text()
    for index, (text, style, width) in enumerate(zip(cells, styles, widths, strict=True)):
        if index:
            line.append(GAP)
        line.append(text, style=style or None)
        if index < len(cells) - 1:
            line.append(" " * (width - cell_len(text)))
    line.rstrip()
    return line
