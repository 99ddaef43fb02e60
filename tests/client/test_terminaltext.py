"""What of a recording reaches a viewer's terminal: what draws, and nothing that answers, writes elsewhere or stays."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.client.terminaltext import Filter

# A sequence that a terminal answers, or that reaches beyond its screen; each must leave nothing behind.
DANGEROUS = {
    "device attributes": "\x1b[c",
    "device attributes, explicit": "\x1b[0c",
    "secondary attributes": "\x1b[>c",
    "tertiary attributes": "\x1b[=c",
    "DECID": "\x1bZ",
    "status report": "\x1b[5n",
    "cursor report": "\x1b[6n",
    "private report": "\x1b[?6n",
    "answerback": "\x05",
    "report title": "\x1b[21t",
    "report size": "\x1b[18t",
    "resize window": "\x1b[8;200;200t",
    "mode request": "\x1b[?2004$p",
    "settings request": "\x1bP$q\"p\x1b\\",
    "termcap request": "\x1bP+q544e\x1b\\",
    "version": "\x1b[>0q",
    "keyboard request": "\x1b[?u",
    "keyboard flags": "\x1b[>1u",
    "keys of xterm": "\x1b[>4;2m",
    "checksum request": "\x1b[1;1;1;1;9;9*y",
    "terminal parameters": "\x1b[0x",
    "locator": "\x1b[1'|",
    "graphics request": "\x1b[?1;1;0S",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "clipboard request": "\x1b]52;c;?\x1b\\",
    "title": "\x1b]0;rm -rf /\x07",
    "title, 8 bits": "\x9d0;x\x9c",
    "colour request": "\x1b]11;?\x07",
    "notification": "\x1b]9;hello\x07",
    "hyperlink": "\x1b]8;;http://evil.example/\x1b\\",
    "image": "\x1b_Gf=100;AAAA\x1b\\",
    "privacy message": "\x1b^x\x1b\\",
    "tmux title": "\x1bkx\x1b\\"[:2],
    "printer": "\x1b[5i",
    "private printer": "\x1b[?4i",
    "mouse": "\x1b[?1000h",
    "mouse, many": "\x1b[?1002;1006;1015h",
    "focus": "\x1b[?1004h",
    "paste": "\x1b[?2004h",
    "line feed mode": "\x1b[20h",
    "cursor keys": "\x1b[?1h",
    "8-bit controls": "\x1b G",
    "other character encoding": "\x1b%@",
    "macro": "\x1b[1*z",
    "endless repetition": "a\x1b[999999999b"[1:],
    "attributes, 8 bits": "\x9bc",
    "attributes in pieces": "\x1b[\x1b[c",
    "attributes behind a string": "\x1b]0;x\x1b[c",
    "attributes behind a control": "\x1b\x1b[c",
}  # fmt: skip
HARMLESS = [
    "plain text, žluť 漢字 🙂\r\n",
    "\x1b[1;31mred\x1b[0m",
    "\x1b[38;5;200mx",
    "\x1b[38:2::1:2:3mx",
    "\x1b[2J\x1b[H",
    "\x1b[10;20H",
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
    "\x1b[4h",
    "\x1b(0lqk\x1b(B",
    "\x1b7\x1b8",
    "\x1b[3;20r",
    "\x1bM",
    "\x1b[2 q",
    "\b \b\t\a",
    "\x1b[!p",
    "\x1b[?1J",
    "\x1b=",
    "\x1bc",
]


@pytest.mark.parametrize("sequence", DANGEROUS.values(), ids=DANGEROUS)
def test_what_a_terminal_would_answer_or_keep_is_left_out(sequence):
    assert Filter().feed(f"before{sequence}after") in {"beforeafter", "before"}
    assert Filter().feed(sequence + "\x1b\\\x07.").rstrip("\x07").endswith(".")
    one = Filter()
    assert "".join(one.feed(char) for char in f"before{sequence}") == "before"


@pytest.mark.parametrize("text", HARMLESS, ids=ascii)
def test_what_draws_passes_however_it_is_split(text):
    assert Filter().feed(text) == text
    one = Filter()
    assert "".join(one.feed(char) for char in text) == text


def test_of_several_modes_the_harmless_stay():
    assert Filter().feed("\x1b[?1049;1000;2004;25h") == "\x1b[?1049;25h"
    assert Filter().feed("\x1b[4;20h") == "\x1b[4h"
    assert Filter().feed("\x1b[" + "1;" * 200 + "m!") == "!"
    assert Filter().feed("\x85a\x8db\x84c\x80d") == "\x1bEa\x1bMb\x1bDcd"


@pytest.mark.parametrize("begin", ["\x1b]0;", "\x1bP", "\x1b_", "\x1b^", "\x1bX", "\x9d"], ids=ascii)
def test_nobody_hides_the_rest_of_a_session_in_a_string_without_an_end(begin):
    assert Filter().feed(f"{begin}hidden\nrm -rf /") == "\nrm -rf /"
    assert Filter(plain=True).feed(f"{begin}hidden\nrm -rf /") == "\nrm -rf /"


def test_the_other_screen_is_left_only_by_who_is_on_it():
    one = Filter()
    assert "1049" not in one.restore()
    one.feed("\x1b[?1049h")
    assert one.restore().startswith("\x1b[?1049l")
    assert "1049" not in one.restore()
    one.feed("\x1b[?47h\x1b[?47l")
    assert "1049" not in one.restore()


pieces = st.one_of(
    st.text(st.characters(max_codepoint=0xFF), max_size=8),
    st.sampled_from([*DANGEROUS.values(), *HARMLESS, "\x1b", "\x1b[", "\x1b]", "\x1bP", "\x9b", ";", "?", "c", "n"]),
)
ALLOWED = re.compile(
    r"[^\x00-\x1f\x7f-\x9f]+|[\x07-\x0f]|\x1b[78DEHMNOc=>]|\x1b[()*+\-./#][0-~]"
    r"|\x1b\[(?:[0-9;:]*[@A-HI-MPSTXZ`abdefgmrsu]|\??[0-9;]+[hl]|\?[0-9]?[JK]|!p|[0-6]? q)"
)


@given(st.lists(pieces, max_size=30))
def test_everything_that_passes_is_of_the_list(parts):
    one = Filter()
    found = "".join(map(one.feed, parts))
    at = 0
    while at < len(found):
        match = ALLOWED.match(found, at)
        assert match is not None, ascii(found[at : at + 20])
        at = match.end()
    assert not re.search(r"\x1b\[[?>=]?[0-9;]*[cn]|\x05|\x1bZ|\x1b[\]P_^X]", found)
    assert found == Filter().feed("".join(parts))
    assert Filter().feed(found) == found


@given(st.lists(pieces, max_size=20))
def test_plain_text_has_nothing_that_steers(parts):
    found = Filter(plain=True).feed("".join(parts))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", found)
