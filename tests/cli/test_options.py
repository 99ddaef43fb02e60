"""Option types that several commands take."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from monoport.cli.options import names_option


@click.command()
@names_option("--db")
@names_option("--roles", default="access")
@names_option("--set-roles", default=None)
def shown(**values: object) -> None:
    click.echo(repr(values))


@pytest.mark.parametrize(
    ("words", "db"),
    [
        ([], ()),
        (["--db=a,b"], ("a", "b")),
        (["--db=a", "--db=b"], ("a", "b")),
        (["--db=a, b,,a", "--db", "c"], ("a", "b", "c")),
        (["--db="], ()),
    ],
)
def test_names_add_up(words, db):
    assert f"'db': {db!r}" in CliRunner().invoke(shown, words).output


@pytest.mark.parametrize(
    ("words", "roles", "told"),
    [
        ([], ("access",), None),
        (["--roles=dev", "--set-roles=a"], ("dev",), ("a",)),
        (["--roles=", "--set-roles="], (), ()),
    ],
)
def test_what_is_not_given(words, roles, told):
    said = CliRunner().invoke(shown, words).output
    assert f"'roles': {roles!r}" in said
    assert f"'set_roles': {told!r}" in said


def test_the_default_is_shown():
    assert "[default: access]" in CliRunner().invoke(shown, ["--help"]).output
