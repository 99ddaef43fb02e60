"""What a client runs: its messages read as they pass, without holding up or copying bulk data.

Belongs here: framing of the client's messages behind the opening, and which statement a Bind runs. What the audit log
makes of it lives in the agent.

A Bind names a prepared statement, and whether an earlier Parse of that name took effect only the server knows: after an
error it skips everything up to Sync. So a Bind yields every statement that its name may stand for: exactly one where
both came in the same group of messages, or where Parse was the first of its group and so cannot have been skipped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import TypeAlias

from monoport.wire.postgres.messages import MAX_NAME, ProtocolError
from monoport.wire.statement import MAX_END, MAX_STATEMENT, Statement
from monoport.wire.statement import text as _text

MAX_HEADER = 1 << 18  # bytes of a Bind kept to reach its parameter count: two names and 65,535 format codes
MAX_KEPT = 4 << 20  # bytes of prepared statements remembered per session; older ones are then known by name only
MAX_NAMES = 65_536  # prepared statements in one group of messages
MAX_CANDIDATES = 4  # statements that one name may stand for
ENTRY = 200  # bytes that a remembered statement costs beside its text

_LARGE = 0x3FFFFFFF  # the server's own limits of a message: PQ_LARGE_MESSAGE_LIMIT
_SMALL = 10_000  # and PQ_SMALL_MESSAGE_LIMIT
_COPY_DATA = 0x64  # "d"
_HEAD = Struct("!cI")
_U16 = Struct("!H")
_U32 = Struct("!I")


@dataclass(frozen=True, slots=True)
class Query:
    """A simple query: one string, possibly of several statements."""

    statement: Statement


@dataclass(frozen=True, slots=True)
class Prepare:
    """A statement got a name, under which it can be run later."""

    name: str
    statement: Statement


@dataclass(frozen=True, slots=True)
class Run:
    """A prepared statement was bound: from here on its functions may run, whether or not Execute follows."""

    candidates: tuple[Statement, ...]  # newest first; () if the name is not one that this client prepared
    name: str
    portal: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function was called by its object id."""

    function: int


@dataclass(frozen=True, slots=True)
class CopyIn:
    """The client begins to send data for a COPY … FROM STDIN."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """The client says goodbye."""


Action: TypeAlias = Query | Prepare | Run | Call | CopyIn | Terminate

# type byte: (limit of the message, bytes of its body that are kept)
_KINDS: dict[bytes, tuple[int, int]] = {
    b"Q": (_LARGE, MAX_STATEMENT + 1),
    b"P": (_LARGE, MAX_STATEMENT + MAX_NAME + 1),
    b"B": (_LARGE, MAX_HEADER),
    b"F": (_LARGE, 4),
    b"d": (_LARGE, 0),
    b"C": (_SMALL, _SMALL),
    b"E": (_SMALL, 0),
    b"D": (_SMALL, 0),
    b"H": (_SMALL, 0),
    b"S": (_SMALL, 0),
    b"X": (_SMALL, 0),
    b"c": (_SMALL, 0),
    b"f": (_SMALL, 0),
}


class Statements:
    """Reads a client's messages as they pass; `receive` may be given any split of them."""

    __slots__ = ("_body", "_copying", "_head", "_keep", "_kind", "_left", "_names", "_rest", "_size")

    def __init__(self) -> None:
        self._head = bytearray()
        self._body = bytearray()
        self._kind = b""
        self._size = 0  # of the body
        self._left = 0  # of it, not yet seen
        self._keep = 0
        self._rest: _Rest | None = None  # of a statement that does not fit into the body
        self._copying = False
        self._names = _Names()

    def receive(self, data: bytes | memoryview) -> list[Action]:
        """Return what the client did with the messages that `data` completes, in order.

        Raises ProtocolError; the bytes must then not reach the server.
        Source: PostgreSQL documentation, "Message Formats".
        """
        actions: list[Action] = []
        position, end = 0, len(data)
        while position < end:
            if self._left:
                step = min(self._left, end - position)
                if self._keep:
                    self._collect(data[position : position + step])
                self._left -= step
                position += step
            elif self._copying and not self._head and data[position] == _COPY_DATA and end - position >= 5:
                position = self._skip_copy(data, position, end)
                continue
            elif self._head or end - position < 5:
                step = min(5 - len(self._head), end - position)
                self._head += data[position : position + step]
                position += step
                if len(self._head) < 5:
                    break
                self._open(*_HEAD.unpack(self._head))
                self._head.clear()
            else:
                self._open(*_HEAD.unpack_from(data, position))
                position += 5
            if not self._left:
                self._finish(actions)
        return actions

    def _skip_copy(self, data: bytes | memoryview, position: int, end: int) -> int:
        """Go over the messages of COPY data that begin in `data`, and return where they end there.

        Some clients send one for each row: nothing but their lengths is looked at.
        """
        length_at = _U32.unpack_from
        begin = -1
        while end - position >= 5 and data[position] == _COPY_DATA:
            begin = position
            size = length_at(data, position + 1)[0]
            if not 4 <= size <= _LARGE:
                raise ProtocolError(f"message {b'd'!r} of {size} bytes, limit {_LARGE}")
            position += 1 + size
        if position > end:
            self._open(b"d", length_at(data, begin + 1)[0])
            self._left = position - end
            position = end
        return position

    def _open(self, kind: bytes, size: int) -> None:
        limit, keep = _KINDS.get(kind, (0, 0))
        if not limit:
            raise ProtocolError(f"message of unknown type {kind!r}")
        if not 4 <= size <= limit:
            raise ProtocolError(f"message {kind!r} of {size} bytes, limit {limit}")
        self._kind, self._size, self._left, self._keep = kind, size - 4, size - 4, keep
        self._rest = None
        self._body.clear()

    def _collect(self, chunk: bytes | memoryview) -> None:
        room = self._keep - len(self._body)
        if room > 0:
            self._body += chunk[:room]
        if len(chunk) > room and self._kind in (b"Q", b"P"):
            if self._rest is None:
                self._rest = _Rest(self._body, self._text_start())
            self._rest.add(chunk[max(room, 0) :])

    def _text_start(self) -> int:
        """Where the statement begins in a body that is full: a long name must not take its place."""
        if self._kind == b"Q":
            return 0
        end = self._body.find(b"\0", 0, MAX_NAME + 1)
        if end < 0:
            raise ProtocolError(f"long Parse without a name's end in its first {MAX_NAME + 1} bytes")
        return end + 1

    def _statement(self, start: int) -> Statement | None:
        """The text that begins at `start` of the body, None if it has no end."""
        end = self._body.find(b"\0", start)
        if end >= 0:
            kept, length, tail, digest = self._body[start:end], end - start, bytearray(), None
        elif self._rest is not None and self._rest.ended:
            kept, tail, digest = self._body[start:], self._rest.tail, self._rest.digest
            length = len(kept) + self._rest.length
        else:
            return None
        if length <= MAX_STATEMENT:
            return Statement(_text(kept), length)
        last = (kept[MAX_STATEMENT:] + tail)[-MAX_END:]
        return Statement(_text(kept[:MAX_STATEMENT]), length, _text(last), (digest or sha256(kept)).hexdigest())

    def _finish(self, actions: list[Action]) -> None:
        finish = _FINISH.get(self._kind)
        if finish is not None:
            finish(self, actions)
        if self._kind not in (b"d", b"H", b"S"):
            self._copying = False
        if len(self._body) > MAX_HEADER:
            self._body = bytearray()  # give a large buffer back

    def _query(self, actions: list[Action]) -> None:
        statement = self._statement(0)
        if statement is None:
            raise ProtocolError("query is not terminated")
        self._names.saw(statement)
        actions.append(Query(statement))

    def _parse(self, actions: list[Action]) -> None:
        end = self._body.find(b"\0")
        if end < 0:
            raise ProtocolError("Parse without a name's end")
        name = _name(self._body[:end])
        statement = self._statement(end + 1)
        if statement is None:
            raise ProtocolError("statement is not terminated")
        self._names.saw(statement)
        actions.extend(Prepare("", forgotten) for forgotten in self._names.parse(name, statement))
        if name:
            actions.append(Prepare(name, statement))

    def _bind(self, actions: list[Action]) -> None:
        portal, _, rest = self._body.partition(b"\0")
        name, end, rest = rest.partition(b"\0")
        if not end or len(rest) < 2:
            raise ProtocolError("Bind without names and format codes")
        formats = _U16.unpack_from(rest)[0]
        if len(rest) < 4 + 2 * formats:
            raise ProtocolError("Bind without a parameter count")
        parameters = _U16.unpack_from(rest, 2 + 2 * formats)[0]
        actions.append(Run(self._names.bind(_name(name)), _name(name), _name(portal), parameters))

    def _close(self, actions: list[Action]) -> None:
        if self._body[:1] == b"S":
            self._names.close(_name(self._body[1:].partition(b"\0")[0]))

    def _call(self, actions: list[Action]) -> None:
        if len(self._body) < 4:
            raise ProtocolError("FunctionCall without a function")
        actions.append(Call(_U32.unpack_from(self._body)[0]))

    def _copy(self, actions: list[Action]) -> None:
        self._names.unsettle()
        if not self._copying:
            self._copying = True
            actions.append(CopyIn())

    def _sync(self, actions: list[Action]) -> None:
        self._names.sync()

    def _unsettle(self, actions: list[Action]) -> None:
        self._names.unsettle()

    def _terminate(self, actions: list[Action]) -> None:
        actions.append(Terminate())


_FINISH: dict[bytes, Callable[[Statements, list[Action]], None]] = {
    b"Q": Statements._query,
    b"P": Statements._parse,
    b"B": Statements._bind,
    b"C": Statements._close,
    b"F": Statements._call,
    b"d": Statements._copy,
    b"S": Statements._sync,
    b"E": Statements._unsettle,
    b"D": Statements._unsettle,
    b"c": Statements._unsettle,
    b"f": Statements._unsettle,
    b"X": Statements._terminate,
}


class _Rest:
    """What does not fit into the body of a message's text: counted and hashed up to its end, the last bytes kept."""

    __slots__ = ("digest", "ended", "length", "tail")

    def __init__(self, body: bytearray, start: int) -> None:
        self.ended = body.find(b"\0", start) >= 0  # then it fits, and something else follows
        self.length = 0
        self.tail = bytearray()
        self.digest = sha256() if self.ended else sha256(memoryview(body)[start:])

    def add(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes of the message; those behind the text's end are none of it."""
        if self.ended:
            return
        data = bytes(chunk)
        end = data.find(b"\0")
        if end >= 0:
            self.ended = True
            data = data[:end]
        self.length += len(data)
        self.digest.update(data)
        self.tail += data[-MAX_END:]
        del self.tail[:-MAX_END]


class _Names:
    """Which statements a prepared statement's name may stand for."""

    __slots__ = ("_copies", "_group", "_group_kept", "_kept", "_settled", "_sure", "_unseen")

    def __init__(self) -> None:
        self._settled: dict[str, tuple[Statement, ...]] = {}  # may hold since an earlier group; newest first
        self._group: dict[str, tuple[Statement, ...]] = {}  # hold if the group has gone well so far
        self._sure = True  # the next message cannot be skipped by the server
        self._copies = False  # COPY was seen: Sync during COPY means nothing, so groups are no longer known
        self._kept = self._group_kept = 0  # bytes in _settled and in _group
        self._unseen: list[Statement] = []  # unnamed ones of _settled that no action has shown yet

    def saw(self, statement: Statement) -> None:
        """Note a statement's text: behind a COPY, groups of messages are no longer known."""
        self._copies = self._copies or bool(statement.omitted) or "copy" in (statement.text + statement.end).lower()
        self._sure = self._sure and not self._copies

    def parse(self, name: str, statement: Statement) -> list[Statement]:
        """Note a Parse, and return unnamed statements that are forgotten now but might still run, never yet shown."""
        older = () if self._sure and not name else self._settled.get(name, ())
        newer = (statement, *(one for one in older if one != statement))[:MAX_CANDIDATES]
        self._settle(name, newer)
        self._in_group(name, (statement,))
        self._sure = False
        if name:
            return []
        lost = [one for one in self._unseen if one in older and one not in newer]
        self._unseen = [one for one in self._unseen if one in newer and one != statement] + [statement]
        return lost

    def bind(self, name: str) -> tuple[Statement, ...]:
        """Return what `name` may stand for."""
        self._sure = False
        found = self._group.get(name)
        if found is None:
            found = self._settled.get(name, ())
        if not name:
            self._unseen = [one for one in self._unseen if one not in found]
        return found

    def close(self, name: str) -> None:
        if self._sure:
            self._settle(name, ())
        self._in_group(name, ())

    def sync(self) -> None:
        self._group.clear()
        self._group_kept = 0
        self._sure = not self._copies

    def unsettle(self) -> None:
        """Note a message that may fail, so that the server skips what follows."""
        self._sure = False

    def _in_group(self, name: str, statements: tuple[Statement, ...]) -> None:
        if len(self._group) >= MAX_NAMES and name not in self._group:
            raise ProtocolError(f"more than {MAX_NAMES} prepared statements without Sync")
        self._group_kept += _cost(statements) - _cost(self._group.pop(name, ()))
        self._group[name] = statements
        if self._group_kept > MAX_KEPT:
            for older in self._group:
                if older not in ("", name):
                    self._group[older] = ()  # known by name only: its Prepare has been shown
            self._group_kept = sum(map(_cost, self._group.values()))

    def _settle(self, name: str, statements: tuple[Statement, ...]) -> None:
        self._kept += _cost(statements) - _cost(self._settled.pop(name, ()))
        if statements:
            self._settled[name] = statements
        while self._kept > MAX_KEPT:
            oldest = next((one for one in self._settled if one not in ("", name)), None)
            if oldest is None:
                break
            self._kept -= _cost(self._settled.pop(oldest))


def _cost(statements: tuple[Statement, ...]) -> int:
    return sum(len(statement.text) + len(statement.end) + ENTRY for statement in statements)


def _name(raw: bytes | bytearray) -> str:
    return _text(raw[:MAX_NAME])  # where the server cuts it
