"""The prepared statements of a session, so that the audit log can name what is run by number.

Belongs here: remembering them, within a bound. Reading packets is in `commands`.
"""

from collections import OrderedDict

from monoport.wire.statement import Statement

MAX_PREPARED = 4 << 20  # bytes of prepared statements remembered per session; older ones are then known by number only
ENTRY = 200  # bytes that a remembered statement costs beside its text
LAST = 0xFFFFFFFF  # the number by which MariaDB's clients run what they have prepared last


class Prepared:
    """Which statement a number stands for; the one unused for longest is forgotten first."""

    __slots__ = ("_kept", "_size", "last")

    def __init__(self) -> None:
        self._kept: OrderedDict[int, tuple[Statement, int]] = OrderedDict()
        self._size = 0
        self.last: tuple[Statement | None, int | None] = (None, None)

    def add(self, number: int, statement: Statement, parameters: int) -> None:
        """The server calls a statement so, which has so many parameters."""
        self.remove(number)
        self._kept[number] = self.last = (statement, parameters)
        self._size += _cost(statement)
        while self._size > MAX_PREPARED and len(self._kept) > 1:
            self.remove(next(iter(self._kept)))

    def find(self, number: int) -> tuple[Statement | None, int | None]:
        """Return the statement and how many parameters it has; None and None where it is not known."""
        if number == LAST:
            return self.last
        if number not in self._kept:
            return None, None
        self._kept.move_to_end(number)
        return self._kept[number]

    def remove(self, number: int) -> None:
        """Forget a statement."""
        if number in self._kept:
            self._size -= _cost(self._kept.pop(number)[0])


def _cost(statement: Statement) -> int:
    return len(statement.text) + len(statement.end) + ENTRY
