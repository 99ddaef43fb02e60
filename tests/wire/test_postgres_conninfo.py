"""Values in libpq's connection strings, read back by libpq itself."""

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire.postgres.conninfo import quoted


@pytest.mark.parametrize(
    ("value", "written"),
    [("db.example.com", "db.example.com"), ("", "''"), ("o'neil", r"'o\'neil'"), ("a b", "'a b'"), ("\\", r"'\\'")],
)
def test_what_is_not_plain_stands_in_quotes(value: str, written: str) -> None:
    assert quoted(value) == written


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_libpq_reads_back_what_was_quoted(value: str) -> None:
    assert psycopg.conninfo.conninfo_to_dict(f"user={quoted(value)} dbname=x") == {"user": value, "dbname": "x"}
