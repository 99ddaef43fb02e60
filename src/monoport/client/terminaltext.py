"""Recorded terminal output made safe for a viewer's terminal: only what draws passes.

Belongs here: the control sequences that a recording may contain and what becomes of each. Pure. Not here: timing
(`playhead`), keys and the terminal itself (`player`).

Whoever was recorded chose these bytes, and whoever plays them sits at another terminal. Some sequences make a terminal
answer as if its user had typed (device and mode reports, answerback, the title); others write its clipboard, print,
resize it or change what its keys send. So this is a list of what is let through, and everything else is left out: a
sequence that no list has heard of cannot do harm. Source: xterm's ctlseqs, ECMA-48 sections 5 and 8.3.
"""

from __future__ import annotations

import re
from typing import Final, final

MAX_SEQUENCE: Final = 256  # characters between CSI and its end; a long SGR has forty
_C0: Final = frozenset("\x07\b\t\n\v\f\r\x0e\x0f")  # bell, movement, character sets; ENQ asks for the answerback
_C1: Final = {"\x84": "D", "\x85": "E", "\x88": "H", "\x8d": "M", "\x8e": "N", "\x8f": "O"}  # their 7-bit forms
_STRINGS: Final = {"\x90": "P", "\x98": "X", "\x9d": "]", "\x9e": "^", "\x9f": "_"}
_ESCAPES: Final = frozenset("78DEHMNOc=>")  # cursor, lines, tab stop, single shifts, reset, keypad
_DESIGNATE: Final = frozenset("()*+-./#")  # character sets, and DECALN and line sizes behind #
_CSI: Final = frozenset("@ABCDEFGHIJKLMPSTXZ`abdefgmrsu")  # movement, erasing, scrolling, colours, margins, tabs
_MODES: Final = frozenset(("4",))  # insert; line feed would change what Enter sends
_PRIVATE_MODES: Final = frozenset(  # cursor keys stay as they are; no mouse, focus or paste reports
    ("5", "6", "7", "12", "25", "47", "1047", "1048", "1049", "2026")
)
_PLAIN: Final = re.compile(r"[^\x00-\x1f\x7f-\x9f]+")

_ALTERNATE: Final = frozenset(("47", "1047", "1049"))
_PARAMETERS: Final = re.compile(r"(?:[0-9]{0,5}[;:])*[0-9]{0,5}")  # a repetition of a billion would hold a terminal up

# What undoes what may be let through: margins, modes, character sets, colours, the cursor's shape.
_RESTORE: Final = "\x1b[!p\x1b[?5l\x1b[?7h\x1b[?25h\x1b[?2026l\x1b(B\x0f\x1b[0m\x1b[0 q\x1b>"
_LEAVE: Final = "\x1b[?1049l"  # the other screen; elsewhere it would move the cursor
CLEAR: Final = "\x1b[H\x1b[2J"


@final
class Filter:
    """Takes a terminal's output in any pieces.

    Args:
        plain: give the text alone, without anything that moves or colours.
    """

    def __init__(self, *, plain: bool = False) -> None:
        self._plain_only = plain
        self._state = self._ground
        self._kept = ""  # of a sequence, behind its introducer
        self._alternate = False

    def restore(self) -> str:
        """Return what brings a terminal back from everything that was let through so far."""
        leave, self._alternate = _LEAVE if self._alternate else "", False
        return leave + _RESTORE

    def feed(self, text: str) -> str:
        """Return what of `text` may be written; a sequence that is not whole yet waits for the rest."""
        found: list[str] = []
        at = 0
        while at < len(text):
            if self._state == self._ground and (run := _PLAIN.match(text, at)):
                found.append(run[0])
                at = run.end()
                continue
            found.append(self._state(text[at]))
            at += 1
        return "".join(found)

    def _ground(self, char: str) -> str:
        self._kept = ""
        if char == "\x1b":
            self._state = self._escape
        elif char == "\x9b":
            self._state = self._csi
        elif char in _STRINGS:
            self._state = self._string
        elif self._plain_only:
            return char if char in "\n\t" or char >= "\xa0" or " " <= char < "\x7f" else ""
        elif char in _C1:
            return f"\x1b{_C1[char]}"
        elif char in _C0 or char >= "\xa0" or " " <= char < "\x7f":
            return char
        return ""

    def _escape(self, char: str) -> str:
        self._state = self._ground
        if char == "[":
            self._state = self._csi
        elif char in _STRINGS.values():
            self._state = self._string
        elif char in _DESIGNATE:
            self._kept = char
            self._state = self._designate
        elif " " <= char <= "/":
            self._state = self._other
        elif char < " " or char >= "\x80":
            return self._ground(char)
        elif char in _ESCAPES:
            return self._drawn(f"\x1b{char}")
        return ""

    def _designate(self, char: str) -> str:
        self._state = self._ground
        if "0" <= char <= "~":
            return self._drawn(f"\x1b{self._kept}{char}")
        return self._ground(char) if char < " " or char >= "\x80" else ""

    def _other(self, char: str) -> str:
        """Inside an escape with intermediates that nobody needs; it ends with the first that is none."""
        if not " " <= char <= "/":
            self._state = self._ground
            if char < " " or char >= "\x80":
                return self._ground(char)
        return ""

    def _csi(self, char: str) -> str:
        if " " <= char <= "?":
            if len(self._kept) <= MAX_SEQUENCE:
                self._kept += char
            return ""
        kept, self._state = self._kept, self._ground
        if char < " " or char >= "\x7f":
            return self._ground(char)
        allowed = _allowed(kept, char)
        if allowed is None:
            return ""
        if char in "hl" and not _ALTERNATE.isdisjoint(allowed.removeprefix("?").split(";")):
            self._alternate = char == "h"
        return self._drawn(f"\x1b[{allowed}{char}")

    def _string(self, char: str) -> str:
        """Inside OSC, DCS, APC, PM or SOS, all of which are left out: titles, clipboard, requests, images."""
        if char == "\x1b":  # the end, or another sequence: both begin like this
            self._state = self._escape
        elif char in "\x07\x18\x1a\x9c":
            self._state = self._ground
        elif char == "\n":  # one without an end would hide what comes behind it
            self._state = self._ground
            return char
        return ""

    def _drawn(self, sequence: str) -> str:
        return "" if self._plain_only else sequence


def _allowed(kept: str, final: str) -> str | None:
    """The parameters with which CSI may be written, None if it may not be."""
    if len(kept) > MAX_SEQUENCE:
        return None
    if final in "hl":
        private = kept.startswith("?")
        modes = [mode for mode in kept.removeprefix("?").split(";") if mode in (_PRIVATE_MODES if private else _MODES)]
        return ("?" if private else "") + ";".join(modes) if modes else None
    if final == "q" and re.fullmatch(r"[0-6]? ", kept):  # the cursor's shape
        return kept
    if final == "p" and kept == "!":  # soft reset
        return kept
    if final in "JK" and re.fullmatch(r"\?[0-9]?", kept):  # selective erase
        return kept
    return kept if final in _CSI and _PARAMETERS.fullmatch(kept) else None
