"""The rule for texts with places to fill in."""

import pytest

from monoport.client.filling import fill, needed, optional

VALUES = {"host": "h", "port": "1", "name": "", "odd": "{host}[x]"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{host}:{port}", "h:1"),
        ("{host}/[{name}]?x", "h/?x"),
        ("{host}[:{port}][/{name}]", "h:1"),
        ("{host}[ --port={port} --name={name}]", "h"),
        ("{odd}[{odd}]", "{host}[x]{host}[x]"),
        ("--name={name}", "--name="),
    ],
)
def test_a_part_in_brackets_is_left_out_where_one_of_its_values_is_empty(text: str, filled: str) -> None:
    assert fill(text, VALUES) == filled


def test_what_a_text_needs_is_what_stands_outside_of_brackets() -> None:
    assert list(needed("{host}:{port}[/{name}]")) == ["host", "port"]
    assert list(optional("{host}:{port}[/{name}][?{odd}]")) == ["name", "odd"]


@pytest.mark.parametrize("text", ["{nothing}", "[{nothing}]"])
def test_a_place_for_what_there_is_not_is_an_error(text: str) -> None:
    with pytest.raises(KeyError):
        fill(text, VALUES)
