"""MySQL's commands as they pass: what is held back, what goes on as it came, and what a server may ask for."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monoport.wire.mysql import sql
from monoport.wire.mysql.actions import Action, Order, Prepare, Query, Refused, Run, SendFile
from monoport.wire.mysql.commands import HOLD, Commands
from monoport.wire.mysql.packets import MOST, ProtocolError, packet, read_error, take
from monoport.wire.mysql.prepared import LAST, MAX_PREPARED
from monoport.wire.mysql.sql import Kill, ReadFile, Use, look
from monoport.wire.statement import MAX_STATEMENT, Statement

OK = packet(1, b"\0\0\0\2\0\0\0")


@dataclass
class Judge:
    """Allows the database `app`, features that are named, and threads 7 (really 70) and above 1000."""

    features: tuple[str, ...] = ()
    asked: list[object] = field(default_factory=list)

    def database(self, name: str) -> str:
        self.asked.append(name)
        return "" if name == "app" else f"{name} denied"

    def feature(self, name: str) -> str:
        return "" if name in self.features else f"{name} denied"

    def thread(self, number: int) -> int | None:
        return 70 if number == 7 else number if number > 1000 else None


@dataclass
class Heard:
    actions: list[Action]
    forward: bytes
    answer: bytes

    @property
    def error(self) -> tuple[int, str]:
        """Code and text of the answer."""
        found = take(self.answer)
        assert found is not None
        code, _, text = read_error(found[1])
        return code, text


def run(commands: Commands, *pieces: bytes) -> Heard:
    heard = Heard([], b"", b"")
    for piece in pieces:
        passing = commands.receive(piece)
        heard.actions += passing.actions
        heard.forward += b"".join(passing.forward)
        heard.answer += passing.answer
    return heard


def query(text: str) -> bytes:
    return packet(0, b"\3" + text.encode())


def statement(text: str) -> Statement:
    return Statement(text, len(text.encode()))


def singly(data: bytes) -> list[bytes]:
    return [data[place : place + 1] for place in range(len(data))]


@pytest.mark.parametrize("split", [False, True])
def test_a_statement_goes_on_as_it_came(split: bool) -> None:
    data = query("select 1")
    heard = run(Commands(Judge()), *(singly(data) if split else [data]))
    assert heard == Heard([Query(statement("select 1"))], data, b"")


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("use other", 1044, "other denied"),
        ("select 1; USE `other`", 1044, "other denied"),
        ("load data local infile 'x' into table t", 3948, "local_infile denied"),
        ("kill 8", 1094, "Unknown thread id: 8"),
        ("kill user alice", 1235, "KILL takes"),
        ("/*!999999 ' */ use app -- '", 1235, "too tangled"),
    ],
)
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("prepare", [b"\3", b"\x16"])
def test_a_refused_statement_is_told_in_place(text: str, code: int, says: str, split: bool, prepare: bytes) -> None:
    data = packet(0, prepare + text.encode())
    commands = Commands(Judge())
    heard = run(commands, *(singly(data) if split else [data]))
    assert heard.forward == b""
    assert heard.error[0] == code
    assert says in heard.error[1]
    assert heard.answer[3] == 1
    (refused,) = heard.actions
    assert isinstance(refused, Refused)
    assert refused.statement == statement(text)
    assert run(commands, query("select 2")).forward == query("select 2"), "the session goes on"


def test_a_refusal_behind_an_unanswered_command_ends_the_session() -> None:
    commands = Commands(Judge())
    with pytest.raises(ProtocolError, match="before the answer"):
        run(commands, query("select 1") + query("use other"))
    commands = Commands(Judge())
    run(commands, query("select 1"))
    assert commands.heard(OK) == OK
    assert run(commands, query("use other")).error[0] == 1044


def test_threads_get_the_servers_own_numbers() -> None:
    commands = Commands(Judge())
    assert run(commands, query("KILL  7 ; select 7; kill query 7")).forward == query(
        "KILL  70 ; select 7; kill query 70"
    )
    commands.heard(OK)
    assert run(commands, packet(0, b"\x0c\7\0\0\0")).forward == packet(0, b"\x0c" + (70).to_bytes(4, "little"))
    commands.heard(OK)
    assert run(commands, packet(0, b"\x0c\x08\0\0\0")).error == (1094, "Unknown thread id: 8")
    with pytest.raises(ProtocolError, match="process_kill of 3 bytes"):
        run(commands, packet(0, b"\x0c\7\0"))


def test_commands_that_are_no_statements() -> None:
    for payload, name, argument in (
        (b"\2app", "init_db", "app"),
        (b"\4t\0%", "field_list", "t %"),
        (b"\x0a", "process_info", ""),
        (b"\5app", "create_db", "app"),
    ):
        heard = run(Commands(Judge()), packet(0, payload))
        assert heard == Heard([Order(name, argument)], packet(0, payload), b"")
    for payload in (b"\x0e", b"\1", b"\x1b\0\0", b"\x09", b"\x1a\1\0\0\0", b"\x1c\1\0\0\0\1\0\0\0"):
        assert run(Commands(Judge()), packet(0, payload)) == Heard([], packet(0, payload), b"")
    for payload, code in ((b"\2other", 1044), (b"\6other", 1044), (b"\x11alice\0", 1235), (b"\x12\0", 1227)):
        heard = run(Commands(Judge()), packet(0, payload))
        assert (heard.forward, heard.error[0]) == (b"", code)
        assert "alice" not in str(heard.actions)
    replica = Commands(Judge(("replication",)))
    assert run(replica, packet(0, b"\x12binlog")).actions == [Order("binlog_dump", "binlog")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (packet(0, b""), "a command without a code"),
        (packet(0, b"\x20"), "command 0x20 is not offered"),
        (packet(0, b"-----BEGIN"), "command 0x2d is not offered"),
        (packet(1, b"\3select 1"), "packet number 1 at the beginning"),
        (packet(0, b"\x0ex"), "ping of 2 bytes"),
        (packet(0, b"\x09tab"), "statistics of 4 bytes"),
        (packet(0, b"\2" + b"x" * 5000), "init_db of more than 4096 bytes"),
        (packet(0, b"\x11" + b"x" * 70_000), "change_user of more than"),
        (packet(0, b"\x17\1\0"), "execute of 3 bytes"),
        (MOST.to_bytes(3, "little") + b"\0\3" + b"x" * (MOST - 1) + packet(2, b"x"), "packet number 2 where 1 was due"),
    ],
)
def test_what_breaks_the_protocol(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        run(Commands(Judge()), data)


def test_prepared_statements_are_known_by_the_number_that_the_server_gives() -> None:
    commands = Commands(Judge())
    heard = run(commands, packet(0, b"\x16select ?"))
    assert heard.actions == [Prepare(statement("select ?"))]
    reply = packet(1, b"\0" + (5).to_bytes(4, "little") + b"\1\0\1\0\0\0\0") + b"columns"
    assert b"".join(bytes(commands.heard(octet)) for octet in singly(reply)) == reply
    execute = packet(0, b"\x17\5\0\0\0\0\1\0\0\0")
    assert run(commands, execute) == Heard([Run(statement("select ?"), 5, 1)], execute, b"")
    commands.heard(OK)
    assert run(commands, packet(0, b"\xfa\5\0\0\0")).actions == [Run(statement("select ?"), 5, 1)]
    commands.heard(OK)
    assert run(commands, packet(0, b"\x18\5\0\0\0\0\0data")).actions == []
    last = packet(0, b"\x17" + LAST.to_bytes(4, "little"))
    assert run(commands, last).actions == [Run(statement("select ?"), LAST, 1)]
    commands.heard(OK)
    run(commands, packet(0, b"\x19\5\0\0\0"))
    assert run(commands, execute).actions == [Run(None, 5, None)]


def test_prepare_and_execute_in_one_breath() -> None:
    commands = Commands(Judge())
    both = packet(0, b"\x16select 1") + packet(0, b"\x17" + LAST.to_bytes(4, "little"))
    assert run(commands, both).actions == [Prepare(statement("select 1")), Run(statement("select 1"), LAST, None)]
    commands.heard(packet(1, b"\0" + (9).to_bytes(4, "little") + b"\0\0\0\0\0\0\0"))
    commands.heard(OK)
    assert run(commands, packet(0, b"\x17\x09\0\0\0")).actions == [Run(statement("select 1"), 9, 0)]
    run(commands, packet(0, b"\x1f"))
    assert run(commands, packet(0, b"\x17\x09\0\0\0")).actions == [Run(None, 9, None)]


def test_a_statement_that_was_not_prepared_gets_no_number() -> None:
    commands = Commands(Judge())
    run(commands, packet(0, b"\x16nonsense"))
    error = packet(1, b"\xff\x28\x04#42000nonsense")
    assert commands.heard(error) == error
    assert run(commands, packet(0, b"\x17\1\0\0\0")).actions == [Run(None, 1, None)]


def test_old_prepared_statements_are_forgotten_first() -> None:
    commands = Commands(Judge())
    text = "x" * (MAX_PREPARED // 8)
    for number in range(10):
        run(commands, packet(0, b"\x16" + text.encode()))
        commands.heard(packet(1, b"\0" + number.to_bytes(4, "little") + b"\0\0\0\0\0\0\0"))
    assert run(commands, packet(0, b"\x17\0\0\0\0")).actions == [Run(None, 0, None)]
    commands.heard(OK)
    (found,) = run(commands, packet(0, b"\x17\x09\0\0\0")).actions
    assert isinstance(found, Run)
    assert found.statement is not None


@pytest.mark.parametrize("code", [b"\3", b"\x17"])
def test_a_server_may_not_ask_for_a_file(code: bytes) -> None:
    commands = Commands(Judge())
    run(commands, packet(0, code + b"\1\0\0\0"))
    asks = packet(1, b"\xfb/etc/passwd")
    held = [commands.heard(octet) for octet in singly(asks)[:4]]
    assert held == [b""] * 4, "the client does not get to see it"
    with pytest.raises(ProtocolError, match="asked for a file"):
        commands.heard(asks[4:])


def test_what_looks_like_it_inside_a_result_is_none() -> None:
    commands = Commands(Judge())
    run(commands, query("select null"))
    first = packet(1, b"\1")
    assert commands.heard(first) == first
    row = packet(4, b"\xfb")
    assert commands.heard(row) == row


def test_the_clients_file_never_reaches_a_server_unless_a_role_says_so() -> None:
    upload = packet(2, b"secret\n") + packet(3, b"more") + packet(4, b"")
    commands = Commands(Judge())
    run(commands, query("select 1"))
    with pytest.raises(ProtocolError, match="packet number 2 at the beginning"):
        run(commands, upload)
    allowed = Commands(Judge(("local_infile",)), local_files=True)
    assert run(allowed, query("load data local infile 'x' into table t")).answer == b""
    asks = packet(1, b"\xfbx")
    assert allowed.heard(asks) == asks
    for pieces in ([upload], singly(upload)):
        assert run(allowed, *pieces) == Heard([SendFile()], upload, b"")
        allowed.heard(OK)
        assert run(allowed, query("select 1")).forward == query("select 1")
        allowed.heard(asks)
    with pytest.raises(ProtocolError, match="where 3 was due"):
        run(allowed, packet(2, b"x") + packet(5, b"y"))
    late = Commands(Judge(("local_infile",)))
    assert run(late, query("load data local infile 'x' into table t")).error == (
        3948,
        "files may be sent from the next login on",
    )


def test_a_role_that_is_taken_away_counts_at_once() -> None:
    commands = Commands(Judge(), local_files=True)
    assert run(commands, query("load data local infile 'x' into table t")).error == (3948, "local_infile denied")


def test_a_file_whose_packet_is_of_the_largest_size_does_not_end_there() -> None:
    commands = Commands(Judge(), local_files=True)
    whole = MOST.to_bytes(3, "little") + b"\2" + bytes(MOST)
    heard = run(commands, whole, packet(3, b""), packet(4, b"rest"), packet(5, b""))
    assert heard.actions == [SendFile()]
    assert run(commands, query("select 1")).actions == [Query(statement("select 1"))]


def test_long_statements_pass_as_they_come_and_end_with_their_last_byte() -> None:
    commands = Commands(Judge())
    text = b"insert " + b"x" * (MAX_STATEMENT + MOST)
    body = b"\3" + text
    data = MOST.to_bytes(3, "little") + b"\0" + body[:MOST] + packet(1, body[MOST:])
    first = run(commands, data[: HOLD + 5])
    assert first.actions == []
    assert first.forward == data[: HOLD + 5]
    rest = run(commands, *(data[place : place + 100_000] for place in range(HOLD + 5, len(data), 100_000)))
    assert first.forward + rest.forward == data
    (done,) = rest.actions
    assert isinstance(done, Query)
    assert (done.statement.length, done.statement.sha256) == (len(text), hashlib.sha256(text).hexdigest())
    assert commands.last == 1


@pytest.mark.parametrize("text", ["use other", "kill 7", "kill 8"])
def test_of_a_long_statement_that_is_refused_nothing_goes_on(text: str) -> None:
    commands = Commands(Judge())
    data = query(text + ";" + "x" * 200_000)
    heard = run(commands, *(data[place : place + 1000] for place in range(0, len(data), 1000)))
    assert heard.forward == b""
    assert heard.error[0] in (1044, 1094)
    assert run(commands, query("select 1")).forward == query("select 1")


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [
                query("select 1"), query("use app"), query("kill 7"), packet(0, b"\x0e"), packet(0, b"\2app"),
                packet(0, b"\x16select ?"), packet(0, b"\x17\1\0\0\0" + b"p" * 50),
                packet(0, b"\x18\1\0\0\0\0\0" + b"q" * 99),
            ]
        ),
        max_size=6,
    ),
    st.lists(st.integers(0, 400), max_size=12),
)  # fmt: skip
def test_every_split_does_the_same(packets: list[bytes], cuts: list[int]) -> None:
    data = b"".join(packets)
    places = sorted({min(cut, len(data)) for cut in cuts})
    pieces = [data[start:stop] for start, stop in zip([0, *places], [*places, len(data)], strict=True)]
    assert run(Commands(Judge()), *pieces) == run(Commands(Judge()), data)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=80)), max_size=12), st.booleans())
def test_garbage_from_either_side_ends_in_an_error_or_nothing(turns: list[tuple[bool, bytes]], files: bool) -> None:
    commands = Commands(Judge(), local_files=files)
    with suppress(ProtocolError):  # and nothing else
        for from_client, data in turns:
            passed = b"".join(commands.receive(data).forward) if from_client else commands.heard(data)
            assert len(passed) <= sum(len(each) for _, each in turns) + 8  # at most what came: 70 is longer than 7


# --- the text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("use app", [Use("app")]),
        ("USE `a``b`", [Use("a`b")]),
        ('use "app"', [Use("app")]),
        ("use app;", [Use("app")]),
        ("use", []),
        ("/* x */ use app", [Use("app")]),
        ("/*!50000use app*/", [Use("app")]),
        ("/*M! use app */", [Use("app")]),
        ("# c\nuse app -- d", [Use("app")]),
        ("--x use app", []),
        ("select 'use x'; use app", [Use("app")]),
        ("select 'a\\'; use x'; use app", [Use("app")]),
        ('select "it""s; use x"', []),
        ("select `;use x`", []),
        ("select 1 from t use index (i)", []),
        ("select user, because from uses", []),
        ("kill 5", [Kill(5, 5, 6)]),
        ("KILL HARD QUERY 12;", [Kill(12, 16, 18)]),
        ("kill soft connection 3", [Kill(3, 21, 22)]),
        ("kill query id 3", [Kill(None)]),
        ("kill 1+1", [Kill(None)]),
        ("kill " + "9" * 30, [Kill(None)]),
        ("load data local infile 'x'", [ReadFile()]),
        ("LOAD XML LOW_PRIORITY LOCAL INFILE 'x'", [ReadFile()]),
        ("load data infile 'local'", []),
        ("select local", []),
        ("", []),
        ("use \x00", [Use("\x00")]),
    ],
)
def test_what_is_looked_at_in_a_text(text: str, found: list[sql.Found]) -> None:
    assert look(text.encode()) == found


@pytest.mark.parametrize("piece", [b"'\\", b"'", b'"`', b"/*", b"`'\"", b"\\'", b"--", b"use ", b"';"])
def test_texts_made_to_be_slow_are_not(piece: bytes) -> None:
    text = b"use x;" + piece * (HOLD // len(piece))
    began = time.process_time()
    look(text)
    assert time.process_time() - began < 2


@given(st.binary(max_size=300))
def test_any_bytes_are_a_text(text: bytes) -> None:
    for found in look(b"use " + text):
        if isinstance(found, Kill) and found.thread is not None:
            assert (b"use " + text)[found.start : found.stop].isdigit()


def test_thousands_of_refusals_in_one_breath_cost_their_number() -> None:
    asked = packet(0, b"\x11x") * 131_072  # as four reads of a connection hold
    began = time.process_time()
    heard = Commands(Judge()).receive(asked)
    assert time.process_time() - began < 5
    assert len(heard.actions) == 131_072
