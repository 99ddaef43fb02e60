"""Start-up parameters on one bounded line."""

from hypothesis import given
from hypothesis import strategies as st

from monoport.audit.startup import LIMIT, shown


def test_everything_ordinary_is_shown_as_it_is():
    sent = {"application_name": "psql", "options": "-c role=admin"}
    assert shown(sent) == 'options="-c role=admin" application_name="psql"'
    assert shown({}) == ""


def test_what_does_not_print_is_escaped():
    assert shown({"application_name": 'a"\n\x1b[2J\u202e'}) == r'application_name="a\"\n\u001b[2J\u202e"'


def test_neither_padding_nor_other_parameters_hide_the_options():
    line = shown({"application_name": "x" * 5000, "options": "-c a=1" + " " * 4000 + "-c role=admin"})
    assert line.startswith('options="-c a=1 ')
    assert '-c role=admin" application_name=' in line
    assert "characters]" in line
    line = shown({**{f"p{n}": "" for n in range(900)}, "options": "-c role=admin"})
    assert line.startswith('options="-c role=admin" p0=""')
    assert line.endswith("[885 more]")


@given(st.dictionaries(st.text(), st.text(max_size=3000), max_size=40))
def test_any_parameters_make_one_bounded_ascii_line(parameters):
    line = shown(parameters)
    assert len(line) <= LIMIT
    assert line.isascii()
    assert line.isprintable()
