"""What a client asks of a server: its commands read as they pass, without holding up or copying bulk data.

Belongs here: framing, what is allowed in which order, which commands and statements are held back until a judge has
said yes, and the beginning of the server's replies as far as they matter: the number of a prepared statement, and a
wish for a file of the client's. What commands do, as values, is in `actions`.

A command is held back only until its first HOLD bytes have come; statements that are longer pass behind that as they
come, and end only with their last byte. Rows are never looked at.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import assert_never

from monoport.wire.mysql.actions import Action, Judge, Order, Prepare, Query, Refused, Run, SendFile
from monoport.wire.mysql.packets import ERR, HEADER, INFILE, MAX_OPENING, MOST, ProtocolError, error, packet
from monoport.wire.mysql.prepared import Prepared
from monoport.wire.mysql.sql import Kill, ReadFile, Unclear, Use, look
from monoport.wire.statement import Gathering, Statement, text

QUIT = 0x01  # the code of the command that ends a session
HOLD = 65_536  # bytes of a statement that are looked at for USE, KILL and LOCAL before anything of it goes on
MAX_SMALL = 4096  # bytes of a command that is not a statement: names and numbers
LOCAL_FILES, REPLICATION = "local_infile", "replication"  # names of `db_features` in roles


@dataclass(slots=True)
class Passing:
    """What became of some bytes: what they do, what goes on, what the client is told instead."""

    actions: list[Action] = field(default_factory=list)
    forward: list[bytes] = field(default_factory=list)
    answer: bytearray = field(default_factory=bytearray)  # grows by many: bytes would be copied for each


class _Mode(Enum):
    HELD = auto()  # nothing has gone on yet
    STREAMED = auto()  # goes on as it comes
    DROPPED = auto()  # was refused; the rest is thrown away
    FILE = auto()  # a file of the client's


class _Kind(Enum):
    BARE = auto()  # its code alone
    SMALL = auto()
    TEXT = auto()
    BULK = auto()  # passes as it comes; its statement's number is in the first bytes


@dataclass(frozen=True, slots=True)
class _Command:
    name: str
    kind: _Kind
    silent: bool = False  # the server says nothing to it
    feature: str = ""  # that a role must name
    shown: bool = False  # in the audit log, as an Order


_QUERY, _PREPARE, _EXECUTE, _LONG_DATA, _CLOSE, _BULK = 0x03, 0x16, 0x17, 0x18, 0x19, 0xFA
_INIT_DB, _CREATE_DB, _DROP_DB, _KILL, _CHANGE_USER, _RESET = 0x02, 0x05, 0x06, 0x0C, 0x11, 0x1F
_COMMANDS = {
    QUIT: _Command("quit", _Kind.SMALL, silent=True),
    _INIT_DB: _Command("init_db", _Kind.SMALL, shown=True),
    _QUERY: _Command("query", _Kind.TEXT),
    0x04: _Command("field_list", _Kind.SMALL, shown=True),
    _CREATE_DB: _Command("create_db", _Kind.SMALL, shown=True),
    _DROP_DB: _Command("drop_db", _Kind.SMALL, shown=True),
    0x07: _Command("refresh", _Kind.SMALL, shown=True),
    0x08: _Command("shutdown", _Kind.SMALL, shown=True),
    0x09: _Command("statistics", _Kind.BARE),
    0x0A: _Command("process_info", _Kind.BARE, shown=True),
    _KILL: _Command("process_kill", _Kind.SMALL, shown=True),
    0x0D: _Command("debug", _Kind.BARE, shown=True),
    0x0E: _Command("ping", _Kind.BARE),
    _CHANGE_USER: _Command("change_user", _Kind.SMALL),
    0x12: _Command("binlog_dump", _Kind.SMALL, feature=REPLICATION, shown=True),
    0x15: _Command("register_slave", _Kind.SMALL, feature=REPLICATION, shown=True),
    _PREPARE: _Command("prepare", _Kind.TEXT),
    _EXECUTE: _Command("execute", _Kind.BULK),
    _LONG_DATA: _Command("send_long_data", _Kind.BULK, silent=True),
    _CLOSE: _Command("close", _Kind.SMALL, silent=True),
    0x1A: _Command("reset", _Kind.SMALL),
    0x1B: _Command("set_option", _Kind.SMALL),
    0x1C: _Command("fetch", _Kind.SMALL),
    0x1E: _Command("binlog_dump_gtid", _Kind.SMALL, feature=REPLICATION, shown=True),
    _RESET: _Command("reset_connection", _Kind.BARE),
    _BULK: _Command("bulk_execute", _Kind.BULK),
}
_RUN = 5  # octets that a command on a prepared statement has at least: its code and the statement's number
_UNKNOWN = _Command("", _Kind.SMALL)


class Commands:
    """Reads a client's packets as they pass; `receive` and `heard` may be given any split of either side's bytes.

    Args:
        judge: decides what is held back.
        local_files: the session may send files of the client's, and the real server has been told so.
    """

    def __init__(self, judge: Judge, *, local_files: bool = False) -> None:
        self.quit = False  # the client has said that this is the end
        self._judge = judge
        self._local_files = local_files
        self._head = bytearray()
        self._ends_file = False  # the present packet is the empty one behind a file
        self._left = 0  # of the present packet
        self._size = 0  # of it as a whole; of MOST: the message goes on in the next one
        self._number = 0  # of the present packet
        self._code = -1  # of the present command, -1 between commands
        self._command = _UNKNOWN
        self._mode = _Mode.HELD
        self._held = bytearray()  # as it came, packet headers included
        self._payload = bytearray()  # of it, at most HOLD bytes
        self._gathering: Gathering | None = None  # of a statement longer than that
        self._refusal: tuple[int, str, str] | None = None  # of a command that is being thrown away
        self._prepared = Prepared()
        self._silent = False  # the server has not said anything yet to what went on last
        self._awaits: Statement | None = None  # whose number is to come
        self._reply: bytearray | None = None  # the beginning of the server's reply, while it matters

    @property
    def last(self) -> int:
        """The number of the last packet that came: an answer counts on from it."""
        return self._number

    def receive(self, data: bytes | memoryview) -> Passing:
        """Return what the commands do that `data` completes, in order, and what may go on.

        Raises ProtocolError; nothing of `data` must then reach the server.
        """
        passing = Passing()
        position, end = 0, len(data)
        while position < end:
            if not self._left:
                step = min(HEADER - len(self._head), end - position)
                self._head += data[position : position + step]
                position += step
                if len(self._head) < HEADER:
                    break
                self._open(passing)
            if step := min(self._left, end - position):
                self._piece(data[position : position + step], passing)
                self._left -= step
                position += step
            if not self._left and self._size < MOST:
                self._finish(passing)
        return passing

    def heard(self, data: bytes | memoryview) -> bytes | memoryview:
        """Take the server's bytes, and return those that may go on. Raises ProtocolError."""
        self._silent = False
        if self._reply is None:
            return data
        self._reply += data
        size = int.from_bytes(self._reply[:3], "little")
        # A number of a statement and of its parameters lies in the first nine octets of a reply.
        wanted = HEADER + min(size, 9 if self._awaits is not None else 1)
        if len(self._reply) < max(HEADER, wanted):
            return b""
        reply, self._reply = bytes(self._reply), None
        first = reply[HEADER] if size else ERR
        if self._awaits is not None:
            statement, self._awaits = self._awaits, None
            if first == 0 and size >= 9:
                number, parameters = int.from_bytes(reply[5:9], "little"), int.from_bytes(reply[11:13], "little")
                self._prepared.add(number, statement, parameters)
        elif first == INFILE and reply[3] == 1 and not self._local_files:
            raise ProtocolError("the server asked for a file of the client's machine")
        return reply

    # one packet

    def _open(self, passing: Passing) -> None:
        size, number = int.from_bytes(self._head[:3], "little"), self._head[3]
        following = (self._number + 1) & 0xFF
        if self._mode is _Mode.FILE or self._size == MOST:
            if number != following:
                raise ProtocolError(f"packet number {number} where {following} was due")
        elif number:
            # An answer to a server that wants a file: nothing else of a client's begins so.
            if not self._local_files:
                raise ProtocolError(f"packet number {number} at the beginning of a command")
            self._mode = _Mode.FILE
            passing.actions.append(SendFile())
        elif not size:
            raise ProtocolError("a command without a code")
        self._ends_file = self._mode is _Mode.FILE and not size and self._size < MOST
        self._number, self._left, self._size = number, size, size
        self._pass(bytes(self._head), passing)
        self._head.clear()

    def _piece(self, chunk: bytes | memoryview, passing: Passing) -> None:
        if self._mode is _Mode.FILE:
            passing.forward.append(bytes(chunk))
            return
        if self._code < 0:
            self._begin(chunk[0], passing)
        self._pass(chunk, passing)
        room = (HOLD if self._command.kind is not _Kind.BULK else _RUN) - len(self._payload)
        if room > 0:
            self._payload += chunk[:room]
        if self._gathering is not None:
            self._gathering.add(chunk)
        elif len(chunk) > room and self._command.kind is _Kind.TEXT:
            self._gathering = Gathering()
            self._gathering.add(bytes(self._payload[1:]))
            self._gathering.add(chunk[max(room, 0) :])
            self._decide(passing)
        if self._command.kind is _Kind.SMALL and len(self._payload) > self._limit():
            raise ProtocolError(f"{self._command.name} of more than {self._limit()} bytes")

    def _limit(self) -> int:
        return MAX_OPENING - 1 if self._code == _CHANGE_USER else MAX_SMALL

    def _begin(self, code: int, passing: Passing) -> None:
        command = _COMMANDS.get(code)
        if command is None:
            raise ProtocolError(f"command {code:#04x} is not offered here")
        if command.kind is _Kind.BARE and self._left != 1:
            raise ProtocolError(f"{command.name} of {self._left} bytes")
        self._code, self._command = code, command
        if command.kind is _Kind.BULK:
            self._release(passing)

    def _pass(self, raw: bytes | memoryview, passing: Passing) -> None:
        match self._mode:
            case _Mode.HELD:
                self._held += raw
            case _Mode.STREAMED | _Mode.FILE:
                passing.forward.append(bytes(raw))
            case _Mode.DROPPED:
                pass
            case unknown:
                assert_never(unknown)

    def _release(self, passing: Passing, instead: bytes = b"") -> None:
        """What was held goes on, and what follows of the command."""
        passing.forward.append(instead or bytes(self._held))
        self._held = bytearray()
        self._mode = _Mode.STREAMED

    def _refuse(self, code: int, state: str, reason: str) -> None:
        if self._silent:
            raise ProtocolError("a command that is refused, sent before the answer to the one before it")
        self._refusal = (code, state, reason)
        self._mode = _Mode.DROPPED
        self._held = bytearray()

    # one command

    def _decide(self, passing: Passing) -> None:
        """Whether a statement may go on, by its first HOLD bytes."""
        long = self._gathering is not None
        code, statement = bytes(self._payload[:1]), bytes(self._payload[1:])
        kills = []
        for found in look(statement):
            match found:
                case Use(database):
                    if reason := self._judge.database(database):
                        return self._refuse(1044, "42000", reason)
                case ReadFile():
                    reason = self._judge.feature(LOCAL_FILES)
                    if reason or not self._local_files:
                        return self._refuse(3948, "42000", reason or "files may be sent from the next login on")
                case Unclear():
                    return self._refuse(1235, "42000", "comments that only some servers read are too tangled here")
                case Kill(None):
                    return self._refuse(1235, "42000", "KILL takes a thread's number here, and nothing else")
                case Kill(number):
                    assert number is not None  # the case above
                    thread = self._judge.thread(number)
                    if thread is None or long:
                        return self._refuse(1094, "HY000", f"Unknown thread id: {number}")
                    kills.append((found, thread))
                case unknown:
                    assert_never(unknown)
        for kill, thread in reversed(kills):
            statement = statement[: kill.start] + str(thread).encode() + statement[kill.stop :]
        return self._release(passing, packet(0, code + statement) if kills else b"")

    def _finish(self, passing: Passing) -> None:
        if self._mode is _Mode.FILE:
            if self._ends_file:
                self._mode = _Mode.HELD
            return
        if self._command.kind is _Kind.TEXT:
            self._statement(passing)
        elif self._command.kind is _Kind.BULK:
            self._run(passing)
        else:
            self._small(passing)
        if self._refusal is not None:
            passing.answer += error(self._number + 1, *self._refusal)
        elif not self._command.silent:
            self._expect()
        self.quit = self.quit or self._code == QUIT
        self._code, self._command, self._mode, self._refusal = -1, _UNKNOWN, _Mode.HELD, None
        self._gathering = None
        self._payload = bytearray()

    def _expect(self) -> None:
        """Look at the beginning of the server's reply, unless it still owes another one."""
        if not self._silent and self._reply is None and self._code in (_QUERY, _PREPARE, _EXECUTE, _BULK):
            self._reply = bytearray()
            self._awaits = self._prepared.last[0] if self._code == _PREPARE else None
        self._silent = True

    def _statement(self, passing: Passing) -> None:
        if self._gathering is None:
            self._decide(passing)
            raw = self._payload[1:]
            statement = Statement(text(raw), len(raw))
        else:
            statement = self._gathering.whole()
        if self._refusal is not None:
            passing.actions.append(Refused(self._refusal[2], self._command.name, statement))
        elif self._code == _PREPARE:
            passing.actions.append(Prepare(statement))
            self._prepared.last = (statement, None)
        else:
            passing.actions.append(Query(statement))

    def _run(self, passing: Passing) -> None:
        if len(self._payload) < _RUN:
            raise ProtocolError(f"{self._command.name} of {len(self._payload)} bytes")
        if self._code == _LONG_DATA:
            return
        number = int.from_bytes(self._payload[1:5], "little")
        statement, parameters = self._prepared.find(number)
        passing.actions.append(Run(statement, number, parameters))

    def _small(self, passing: Passing) -> None:
        argument = bytes(self._payload[1:])
        name, instead = text(argument), b""
        match self._code:
            case code if code in (_INIT_DB, _CREATE_DB, _DROP_DB):
                if reason := self._judge.database(name):
                    self._refuse(1044, "42000", reason)
            case code if code == _CHANGE_USER:
                name = ""  # it holds what a plug-in made of a password
                self._refuse(1235, "42000", "the user cannot be changed within a session: connect anew")
            case code if code == _KILL:
                if len(argument) != 4:
                    raise ProtocolError(f"process_kill of {len(argument) + 1} bytes")
                number = int.from_bytes(argument, "little")
                name, thread = str(number), self._judge.thread(number)
                if thread is None or thread > 0xFFFFFFFF:
                    self._refuse(1094, "HY000", f"Unknown thread id: {number}")
                else:
                    instead = packet(0, bytes(self._payload[:1]) + thread.to_bytes(4, "little"))
            case code if code == _CLOSE and len(argument) == 4:
                self._prepared.remove(int.from_bytes(argument, "little"))
            case code if code == _RESET:
                self._prepared = Prepared()
        if self._command.feature and (reason := self._judge.feature(self._command.feature)):
            self._refuse(1227, "42000", reason)
        if self._refusal is not None:
            passing.actions.append(Refused(self._refusal[2], self._command.name))
            return
        if self._command.shown:
            passing.actions.append(Order(self._command.name, name.replace("\0", " ").strip()))
        self._release(passing, instead)
