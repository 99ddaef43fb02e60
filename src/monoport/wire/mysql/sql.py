"""What of a statement's text is looked at: USE, KILL, and reading files of the client.

Belongs here: finding these among the statements of one text, with where they stand. Does not belong here:
understanding SQL. A name like `database.table`, and whatever a procedure or PREPARE does, is the real server's to
allow: its GRANTs are what holds, and what is found here is refused early and told plainly.
"""

import re
from dataclasses import dataclass
from typing import TypeAlias

# Nearly every statement has none of these words and is not looked at further.
_WORTH_IT = re.compile(rb"(?<![a-z_$])(?:use|kill|local)(?![a-z0-9_$])", re.IGNORECASE)
_TOKEN = re.compile(
    rb"""
      (?P<skip> \s+ | \#[^\n]* | --(?=\s|\Z)[^\n]* | /\*!\d{0,6} | /\*M!\d{0,6} | \*/ | /\*.*?(?:\*/|\Z) )
    | (?P<quoted> `(?:[^`]|``)*+(?:`|\Z) | "(?:[^"\\]|\\.|""|\\\Z)*+(?:"|\Z) | '(?:[^'\\]|\\.|''|\\\Z)*+(?:'|\Z) )
    | (?P<end> ; )
    | (?P<word> [0-9A-Za-z_$\x80-\xff]+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)


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


Found: TypeAlias = Use | Kill | ReadFile


def look(text: bytes | bytearray) -> list[Found]:
    """Return what is to be looked at in a text, of one statement or of several."""
    if _WORTH_IT.search(text) is None:
        return []
    found: list[Found] = []
    statement: list[re.Match[bytes]] = []
    for token in _TOKEN.finditer(text):
        match token.lastgroup:
            case "skip":
                continue
            case "end":
                _judge(statement, found)
                statement = []
            case _:
                if len(statement) < 8:  # words of what is looked for; the rest of a long statement is not kept
                    statement.append(token)
    _judge(statement, found)
    return found


def _judge(statement: list[re.Match[bytes]], found: list[Found]) -> None:
    words = [token[0].lower() for token in statement]
    match words[:1]:
        case [b"use"] if len(words) > 1:
            found.append(Use(_name(statement[1])))
        case [b"kill"]:
            found.append(_kill(statement, words))
        case [b"load"] if b"local" in words[:4]:
            found.append(ReadFile())


def _kill(statement: list[re.Match[bytes]], words: list[bytes]) -> Kill:
    place = 1
    if words[place : place + 1] in ([b"hard"], [b"soft"]):
        place += 1
    if words[place : place + 1] in ([b"connection"], [b"query"]):
        place += 1
    if len(words) != place + 1 or not words[place].isdigit() or len(words[place]) > 20:
        return Kill(None)
    return Kill(int(words[place]), statement[place].start(), statement[place].end())


def _name(token: re.Match[bytes]) -> str:
    raw = token[0]
    if token.lastgroup == "quoted":
        quote = raw[:1]
        raw = raw[1:].removesuffix(quote).replace(quote * 2, quote)
    return raw.decode(errors="backslashreplace")
