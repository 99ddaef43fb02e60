"""Listings and what they let through to a terminal."""

import io
import json
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from monoport.cli.tables import Column, ago, cell, document, plain, printable, show, size

COLUMNS = [Column("Name", "name", "bold"), Column("Labels", "labels"), Column("Note", "note")]
ROWS = [
    {"name": "one", "labels": {"env": "prod", "a": "b"}, "note": "x"},
    {"name": "漢字", "labels": {}, "note": None},
    {"name": "a longer name", "labels": {"k": "v"}, "note": "evil\x1b[2J\u202e"},
]


def shown(rows, output="text"):
    file = io.StringIO()
    show(rows, COLUMNS, output, file)
    return file.getvalue()


def test_a_table_is_aligned_also_for_wide_characters_and_has_no_colours_outside_a_terminal():
    lines = shown(ROWS).splitlines()
    assert lines == [
        "Name           Labels        Note",
        "one            a=b,env=prod  x",
        "漢字",
        "a longer name  k=v           evil\\x1b[2J\\u202e",
    ]


def test_an_empty_listing_has_its_head_in_text_and_is_an_empty_list_otherwise():
    assert shown([]) == "Name  Labels  Note\n"
    assert json.loads(shown([], "json")) == []
    assert YAML(typ="safe").load(shown([], "yaml")) == []


def test_a_reader_who_has_left_ends_a_listing_as_it_ends_everything_else():
    class Left(io.StringIO):
        def write(self, _text):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        show(ROWS, COLUMNS, file=Left())


def test_lists_within_a_cell_are_told_apart():
    assert cell({"logins": ["root", "ann"], "db_names": ["*"]}) == "db_names=* logins=root,ann"


def test_a_long_line_is_neither_cut_nor_wrapped():
    assert "x" * 5000 in shown([{"name": "x" * 5000}])


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_json_and_yaml_hold_every_value_and_nothing_that_steers(output):
    text = shown(ROWS, output)
    parsed = json.loads(text) if output == "json" else YAML(typ="safe").load(text)
    assert parsed == ROWS
    assert text.isascii()
    assert "\x1b" not in text


@given(st.text())
def test_printable_prints_and_stays_one_line(text):
    safe = printable(text)
    assert all(char.isprintable() or unicodedata.category(char) == "Zs" for char in safe)
    assert shown([{"name": text}]).count("\n") == 2


def test_times_are_in_utc_and_lengths_and_sizes_are_short():
    when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))
    assert cell(when) == "2030-01-02 01:04:05 UTC"
    assert plain({"t": when, "s": {"b", "a"}}) == {"t": "2030-01-02T01:04:05Z", "s": ["a", "b"]}
    assert [ago(s) for s in (-1, 42, 190, 7500, 273_900)] == ["0s", "42s", "3m10s", "2h05m", "3d04h"]
    assert ago(timedelta(minutes=1)) == "1m00s"
    assert [size(n) for n in (0, 512, 1536, 5 * 1024**3)] == ["0 B", "512 B", "1.5 KiB", "5.0 GiB"]
    assert (cell(True), cell(False), cell(None), cell(["a", "b"])) == ("yes", "no", "", "a,b")


def test_documents_keep_the_order_of_their_keys():
    assert document({"kind": "role", "a": datetime(2030, 1, 1, tzinfo=UTC).isoformat()}, "yaml").startswith(
        "kind: role\n"
    )
