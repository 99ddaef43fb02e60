"""Text from anyone, made safe for terminals, tables and one-line logs.

Belongs here: escaping. Does not: layout of tables (cli).
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` with everything that does not print escaped: controls, ANSI sequences, bidi marks, surrogates.

    A backslash is doubled only where something was escaped, so that ordinary paths stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
