"""A statement's text as the audit log keeps it: whole up to a limit, else its beginning, its end and its hash.

Belongs here: that value and how it is gathered from pieces. Which octets are a statement, each protocol knows.
"""

from dataclasses import dataclass
from hashlib import sha256

MAX_STATEMENT = 1 << 20  # bytes of a statement's beginning that are kept
MAX_END = 1 << 16  # bytes of its end that are kept as well; what lies between is only counted and hashed


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement's text; one of more than MAX_STATEMENT bytes by its beginning, its end, and the hash of the whole.

    `length` is that of the whole in bytes; the last `length` - MAX_STATEMENT of them, at most MAX_END, are in `end`.
    """

    text: str
    length: int
    end: str = ""
    sha256: str = ""  # hex, of the whole; "" where `text` is the whole

    @property
    def omitted(self) -> int:
        """Bytes between `text` and `end` that are in neither."""
        return max(0, self.length - MAX_STATEMENT - MAX_END)


class Gathering:
    """A statement that comes in pieces, of which no more is kept than is shown."""

    __slots__ = ("_digest", "_end", "_head", "_length")

    def __init__(self) -> None:
        self._head = bytearray()
        self._end = bytearray()
        self._digest = sha256()
        self._length = 0

    def add(self, piece: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._length += len(piece)
        self._digest.update(piece)
        room = MAX_STATEMENT - len(self._head)
        if room > 0:
            self._head += piece[:room]
        if len(piece) > room:
            self._end += piece[max(room, 0) :][-MAX_END:]
            del self._end[:-MAX_END]

    def whole(self) -> Statement:
        """The statement, when the last piece has come."""
        if self._length <= MAX_STATEMENT:
            return Statement(text(self._head), self._length)
        return Statement(text(self._head), self._length, text(self._end), self._digest.hexdigest())


def text(raw: bytes | bytearray) -> str:
    """Return what `raw` says; the client's encoding may be another, and nothing may be lost."""
    return raw.decode(errors="backslashreplace")
