"""What of a statement's text is looked at: USE, KILL, and reading files of the client.

Belongs here: finding these among the statements of one text, with where they stand. Does not belong here:
understanding SQL. A name like `database.table`, and whatever a procedure or PREPARE does, is the real server's to
allow: its GRANTs are what holds, and what is found here is refused early and told plainly.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

# Nearly every statement has none of these words and is not looked at further.
_WORTH_IT = re.compile(rb"(?<![a-z_$])(?:use|kill|local)(?![a-z0-9_$])", re.IGNORECASE)
# Blanks and the end of `--` are the server's: control characters are some, and so is 0xA0 in latin1, where it does not
# follow another octet of a longer character.
_TOKEN = re.compile(
    rb"""
      (?P<skip> [\s\xa0]+ | \#[^\n]* | --(?=[\x00-\x20\x7f\xa0]|\Z)[^\n]* )
    | (?P<begin> /\*M?!\d{0,6} )
    | (?P<close> \*/ )
    | (?P<comment> /\*.*?(?:\*/|\Z) )
    | (?P<quoted> `(?:[^`]|``)*+(?:`|\Z) | "(?:[^"\\]|\\.|""|\\\Z)*+(?:"|\Z) | '(?:[^'\\]|\\.|''|\\\Z)*+(?:'|\Z) )
    | (?P<end> ; )
    | (?P<word> (?:[0-9A-Za-z_$]|[\x80-\x9f\xa1-\xff]\xa0?)+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_FIRST = (b"use", b"load")
_LOOKED_AT = 8  # words of what is looked for; the rest of a long statement, or of one comment in it, is not kept
_MOST = 64  # words of one statement, comments that only some servers read included


@dataclass(frozen=True, slots=True)
class Use:
    """A statement that makes another database the session's own."""

    database: str


@dataclass(frozen=True, slots=True)
class Kill:
    """A statement that stops another thread; `thread` is None where it is not named by a plain number.

    start, stop: where the number stands in the text.
    """

    thread: int | None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class ReadFile:
    """A statement for which the server asks the client for one of its files."""


@dataclass(frozen=True, slots=True)
class Unclear:
    """A text that servers read in more ways than can be looked at."""


Found: TypeAlias = Use | Kill | ReadFile | Unclear


@dataclass(frozen=True, slots=True)
class _Token:
    """raw: as it stands in the text. run: the comment it is in that only some servers read, 0 for none."""

    kind: str
    raw: bytes
    start: int
    run: int

    @property
    def word(self) -> bytes:
        return self.raw.lower() if self.kind == "word" else b""


def look(text: bytes | bytearray) -> list[Found]:
    """Return what is to be looked at in a text, of one statement or of several.

    What stands in `/*! ... */` some servers read and others do not: it is looked at both ways.
    """
    if _WORTH_IT.search(text) is None:
        return []
    found: list[Found] = []
    statement: list[_Token] = []
    kept: Counter[int] = Counter()  # tokens of the statement by the comment they are in
    before, run, runs = b"", 0, 0
    for match in _TOKEN.finditer(text):
        kind, raw = match.lastgroup or "", match[0]
        if kind == "begin":
            runs += 1
            run = run or runs
        elif kind == "close":
            run = 0
        elif run and kind in ("skip", "quoted") and b"*/" in raw:
            return [Unclear()]  # where the comment ends depends on whether it is read
        elif kind == "end":
            if run and any(one.run != run and one.word in _FIRST for one in statement):
                return [Unclear()]  # where the statement ends does
            found += _judged(statement)
            statement, kept = [], Counter()
        elif kind not in ("skip", "comment"):
            token = _Token(kind, raw, match.start(), run)
            if token.word == b"use" and before == b"for":  # SET STATEMENT ... FOR USE
                found += _judged(statement)
                statement, kept = [], Counter()
            if token.word == b"kill" and before not in (b".", b"@") and statement:
                found.append(Kill(None))  # a reserved word: in a compound statement, behind SET STATEMENT ... FOR
            if kept[run] < _LOOKED_AT:
                if len(statement) == _MOST and kept[0] < 2:
                    return [Unclear()]
                kept[run] += 1
                statement.append(token)
            before = token.word or raw
    return found + _judged(statement)


def _judged(statement: Sequence[_Token]) -> list[Found]:
    """What a statement may be: by its first word, which is any that only comments come before."""
    found: list[Found] = []
    for number, token in enumerate(statement):
        if all(one.run not in (0, token.run) for one in statement[:number]):
            found += _judge(statement[number:])
        if not token.run:
            break
    return found


def _judge(statement: Sequence[_Token]) -> list[Found]:
    words = [token.raw.lower() for token in statement]
    match words[:1]:
        case [b"use"]:
            return [Use(_name(token)) for token in _next(statement)]
        case [b"kill"]:
            return [_kill(statement, words) if not any(token.run for token in statement) else Kill(None)]
        case [b"load"] if b"local" in words[:_LOOKED_AT]:
            return [ReadFile()]
    return []


def _next(statement: Sequence[_Token]) -> list[_Token]:
    """Which tokens may be the one behind the first."""
    found: list[_Token] = []
    runs = {statement[0].run} - {0}
    for token in statement[1:]:
        if token.run == 0 or token.run == statement[0].run:
            return [*found, token]
        if token.run not in runs:
            runs.add(token.run)
            found.append(token)
    return found


def _kill(statement: Sequence[_Token], words: list[bytes]) -> Kill:
    place = 1
    if words[place : place + 1] in ([b"hard"], [b"soft"]):
        place += 1
    if words[place : place + 1] in ([b"connection"], [b"query"]):
        place += 1
    if len(words) != place + 1 or not words[place].isdigit() or len(words[place]) > 20:
        return Kill(None)
    number = statement[place]
    return Kill(int(number.raw), number.start, number.start + len(number.raw))


def _name(token: _Token) -> str:
    raw = token.raw
    if token.kind == "quoted":
        quote = raw[:1]
        raw = raw[1:].removesuffix(quote).replace(quote * 2, quote)
    return raw.decode(errors="backslashreplace")
