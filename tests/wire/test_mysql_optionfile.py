"""Values in option files; tests/client/test_ways.py has MySQL's own program read them back."""

import pytest

from monoport.wire.mysql.optionfile import quoted


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("/home/alice/.tsh/keys/proxy.example.com/alice", "/home/alice/.tsh/keys/proxy.example.com/alice"),
        ("a#b", '"a#b"'),
        (" a ", '" a "'),
        ("o'neil", '"o\'neil"'),
        ('"a" \\n', '"\\"a\\" \\\\n"'),
    ],
)
def test_a_value_is_quoted_unless_it_is_plain(value: str, written: str) -> None:
    assert quoted(value) == written
