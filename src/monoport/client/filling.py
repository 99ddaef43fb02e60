"""Texts with places to fill in, as protocols' descriptions hold them.

Belongs here: the one rule for them. {name} is the place of a value; a part in [square brackets] is left out where one
of its values is empty. Does not belong here: which values there are (ways.py, shell.py), quoting (the description).
"""

import re
from collections.abc import Iterable, Mapping
from string import Formatter

_OPTIONAL = re.compile(r"\[([^\[\]]*)\]")


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its values. Raises KeyError: it names one that there is not."""
    return _OPTIONAL.sub(lambda part: part[1] if all(values[name] for name in _names(part[1])) else "", text).format(
        **values
    )


def needed(text: str) -> Iterable[str]:
    """The names of the values that the text cannot be without."""
    return _names(_OPTIONAL.sub("", text))


def optional(text: str) -> Iterable[str]:
    """The names of the values that are left out where they are empty."""
    return (name for part in _OPTIONAL.findall(text) for name in _names(part))


def _names(text: str) -> Iterable[str]:
    return (name for _, name, _, _ in Formatter().parse(text) if name)
