"""Listings at a terminal are as wide as that; everywhere else, and when asked for, they show everything."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from monoport.cli.fitting import COMFORT, LEAST, Wish, fit
from monoport.cli.tables import Column, show

COLUMNS = [
    Column("Name", "name", "bold", whole=True),
    Column("Labels", "labels", rank=1),
    Column("Note", "note"),
    Column("Agent", "agent", rank=2, whole=True),
]
ROWS = [
    {"name": "one", "labels": "env=" + "x" * 30, "note": "漢字" * 12, "agent": "a" * 36},
    {"name": "another", "labels": "", "note": "short", "agent": "b" * 36},
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch, width, output="text", rows=ROWS):
    monkeypatch.setenv("COLUMNS", str(width))
    file = Terminal()
    show(rows, COLUMNS, output, file)
    assert "\x1b[" in file.getvalue()
    return Text.from_ansi(file.getvalue()).plain.splitlines()


def test_what_fits_is_shown_in_full_and_nothing_is_said(monkeypatch):
    plain = io.StringIO()
    show(ROWS, COLUMNS, "text", plain)
    assert drawn(monkeypatch, 200) == plain.getvalue().splitlines()


def test_the_least_important_column_is_left_out_first_and_named(monkeypatch):
    lines = drawn(monkeypatch, 80)
    assert lines[0].split() == ["Name", "Labels", "Note"]
    assert lines[-1] == "… left out: Agent; shortened: Note; --format=wide shows all"
    assert max(map(cell_len, lines)) <= 80
    assert "…" in lines[1]
    assert "…" not in lines[2]


def test_what_cannot_be_named_in_one_line_is_counted(monkeypatch):
    lines = drawn(monkeypatch, 60)
    assert lines[-1] == "… 1 column left out, 2 columns shortened; --format=wide shows all"


def test_wide_shows_everything_at_a_terminal_too(monkeypatch):
    assert drawn(monkeypatch, 40, "wide") == drawn(monkeypatch, 200)


def test_no_terminal_is_shown_everything_however_narrow_its_environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    file = io.StringIO()
    show(ROWS, COLUMNS, "text", file)
    assert "a" * 36 in file.getvalue()
    assert "…" not in file.getvalue()


@pytest.mark.parametrize("width", range(1, 60))
def test_no_width_is_too_narrow_to_be_drawn(monkeypatch, width):
    lines = drawn(monkeypatch, width)
    assert lines[1].startswith("one")
    assert len(lines) == 4


@given(
    st.lists(st.builds(Wish, st.integers(1, 90), st.integers(0, 4), st.booleans()), min_size=1, max_size=8),
    st.integers(1, 250),
)
def test_a_table_fits_wherever_it_can(wishes, room):
    widths = fit(wishes, room, 2)
    taken = sum(widths.values()) + 2 * (len(widths) - 1)
    assert list(widths) == sorted(widths)
    assert all(wishes[index].shortened(LEAST) <= width <= wishes[index].width for index, width in widths.items())
    gone = [wish for index, wish in enumerate(wishes) if index not in widths]
    assert all(wish.rank for wish in gone)
    assert all(wishes[index].rank <= min((wish.rank for wish in gone), default=9) for index in widths)
    if sum(wish.width for wish in wishes) + 2 * (len(wishes) - 1) <= room:
        assert widths == dict(enumerate(wish.width for wish in wishes)), "what fits is left alone"
    must = [wish.shortened(LEAST) for wish in wishes if not wish.rank]
    if must and sum(must) + 2 * (len(must) - 1) <= room:
        assert taken <= room
    if any(width < min(wishes[index].width, COMFORT) for index, width in widths.items()):
        assert not any(wishes[index].rank for index in widths), "nothing is cut short for what may be left out"
