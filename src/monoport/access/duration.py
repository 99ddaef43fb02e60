"""Lengths of time as people write them: `8h`, `1h30m`, `90s`.

Belongs here: reading and writing that form. Does not: instants, calendars, clocks.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_FORM: Final = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", re.ASCII)


def parse_duration(text: str) -> timedelta:
    """Return the length that `text` names: days, hours, minutes, seconds, in that order, each at most once.

    Raises:
        ValueError: if it has another form, or is zero.
    """
    found = _FORM.fullmatch(text)
    if found is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        length = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        if length:
            return length
    raise ValueError("expected a duration such as 8h, 30m or 1h30m")


def format_duration(length: timedelta) -> str:
    """Return `length`, whole seconds, in the form that `parse_duration` reads."""
    seconds = int(length.total_seconds())
    parts = ((seconds // 3600, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)
