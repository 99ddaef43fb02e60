"""What a client runs, read from its messages: whole, split anywhere, and whatever the server made of them."""

import hashlib
import struct
import tracemalloc
from collections.abc import Callable
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from monoport.wire.postgres import statements
from monoport.wire.postgres.messages import ProtocolError, message
from monoport.wire.postgres.statements import (
    MAX_CANDIDATES,
    MAX_END,
    MAX_STATEMENT,
    Action,
    Call,
    CopyIn,
    Prepare,
    Query,
    Run,
    Statement,
    Statements,
    Terminate,
)

SYNC = message(b"S")
EXECUTE = message(b"E", b"\0\0\0\0\0")


def query(text: str) -> bytes:
    return message(b"Q", text.encode() + b"\0")


def parse(name: str, text: str, types: int = 0) -> bytes:
    return message(b"P", f"{name}\0{text}\0".encode() + struct.pack("!H", types) + b"\0\0\0\x17" * types)


def bind(name: str, portal: str = "", parameters: int = 0, formats: int = 0) -> bytes:
    head = f"{portal}\0{name}\0".encode() + struct.pack("!H", formats) + b"\0\1" * formats
    return message(b"B", head + struct.pack("!H", parameters) + b"\0\0\0\1x" * parameters + b"\0\0")


def close(name: str, kind: bytes = b"S") -> bytes:
    return message(b"C", kind + name.encode() + b"\0")


def statement(text: str) -> Statement:
    return Statement(text, len(text.encode()))


def long(text: str) -> Statement:
    """A statement of more than MAX_STATEMENT bytes, all ASCII."""
    end = text[statements.MAX_STATEMENT :][-statements.MAX_END :]
    return Statement(text[: statements.MAX_STATEMENT], len(text), end, hashlib.sha256(text.encode()).hexdigest())


def read(*messages: bytes) -> list[Action]:
    return Statements().receive(b"".join(messages))


SESSION = b"".join(
    [
        query("SELECT 1"),
        parse("s1", "SELECT $1", types=1),
        bind("s1", portal="p", parameters=1, formats=1),
        EXECUTE,
        message(b"D", b"Ss1\0"),
        message(b"H"),
        close("p", b"P"),
        SYNC,
        message(b"F", struct.pack("!I", 42) + b"\0\0\0\0\0\0"),
        query("COPY t FROM STDIN"),
        message(b"d", b"1\n"),
        message(b"d", b"2\n"),
        message(b"c"),
        query("COPY t FROM STDIN"),
        message(b"d", b"3\n"),
        message(b"f", b"no\0"),
        message(b"X"),
    ]
)
ACTIONS = [
    Query(statement("SELECT 1")),
    Prepare("s1", statement("SELECT $1")),
    Run((statement("SELECT $1"),), "s1", "p", 1),
    Call(42),
    Query(statement("COPY t FROM STDIN")),
    CopyIn(),
    Query(statement("COPY t FROM STDIN")),
    CopyIn(),
    Terminate(),
]


@given(st.lists(st.integers(0, len(SESSION)), max_size=20))
def test_every_split_reads_the_same(places: list[int]) -> None:
    cuts = sorted({0, len(SESSION), *places})
    machine = Statements()
    got = [action for a, b in pairwise(cuts) for action in machine.receive(SESSION[a:b])]
    assert got == ACTIONS


@given(st.lists(st.binary(max_size=300), max_size=60), st.lists(st.integers(0, 20_000), max_size=20))
def test_copy_data_of_any_size_is_passed_over_and_what_follows_is_read(rows: list[bytes], places: list[int]) -> None:
    copying = query("COPY t FROM STDIN") + b"".join(message(b"d", row) for row in rows)
    whole = copying + message(b"c") + query("SELECT 'behind'")
    cuts = sorted(min(place, len(whole)) for place in places)
    machine = Statements()
    found: list[Action] = []
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += machine.receive(memoryview(whole)[start:end])
    assert found == [
        Query(statement("COPY t FROM STDIN")), *([CopyIn()] if rows else []), Query(statement("SELECT 'behind'"))
    ]  # fmt: skip


@pytest.mark.parametrize("size", [3, 0x40000000])
def test_lengths_that_lie_inside_copy_data(size: int) -> None:
    machine = Statements()
    machine.receive(query("COPY t FROM STDIN") + message(b"d", b"1") + message(b"d", b"2"))
    with pytest.raises(ProtocolError, match=f"of {size} bytes"):
        machine.receive(message(b"d", b"3") + b"d" + struct.pack("!I", size) + b"xxxxxxxx")


def test_byte_by_byte_from_memoryviews() -> None:
    machine = Statements()
    view = memoryview(SESSION)
    assert [action for i in range(len(view)) for action in machine.receive(view[i : i + 1])] == ACTIONS


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_any_bytes_are_read_or_refused(chunks: list[bytes]) -> None:
    machine, refused = Statements(), ""
    try:
        for chunk in chunks:
            machine.receive(chunk)
    except ProtocolError as error:
        refused = str(error)
    assert not refused or refused.isprintable()


@pytest.mark.parametrize("more", [-1, 0, 1, 62, 63, 64, MAX_END - 1, MAX_END, MAX_END + 1, 300_000])
@pytest.mark.parametrize("step", [1 << 24, 65_537])
def test_long_statements_keep_beginning_end_length_and_hash(more: int, step: int) -> None:
    size = MAX_STATEMENT + more
    text = "x" * (size - 10) + "; commit;;"
    expected = long(text) if more > 0 else statement(text)
    assert expected.omitted == max(0, more - MAX_END)
    data = query(text) + parse("n", text, types=3) + bind("n") + SYNC
    machine = Statements()
    got = [one for start in range(0, len(data), step) for one in machine.receive(data[start : start + step])]
    assert got == [Query(expected), Prepare("n", expected), Run((expected,), "n", "", 0)]


def test_the_end_of_a_long_parse_may_be_its_last_byte_in_a_chunk_of_its_own() -> None:
    text = "y" * (MAX_STATEMENT + 200)
    data = parse("", text) + bind("")
    machine = Statements()
    end = data.index(b"\0", 6 + 10)
    got = machine.receive(data[:end]) + machine.receive(data[end : end + 1]) + machine.receive(data[end + 1 :])
    assert got == [Run((long(text),), "", "", 0)]


@pytest.mark.parametrize("make", [query, lambda text: parse("", text, types=9) + bind("")])
def test_nothing_hides_behind_a_megabyte_of_blanks(make: Callable[[str], bytes]) -> None:
    hidden = "drop table orders"
    one, other = (read(make("select 1;" + " " * (2 * MAX_STATEMENT) + tail))[0] for tail in (hidden, "x" * 17))
    found = one.statement if isinstance(one, Query) else one.candidates[0]  # type: ignore[union-attr]
    assert found.end.endswith(hidden)
    assert found.length == 9 + 2 * MAX_STATEMENT + len(hidden)
    assert found.omitted == found.length - MAX_STATEMENT - MAX_END
    assert one != other


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits so small that every way to split a message can be tried."""
    monkeypatch.setattr(statements, "MAX_STATEMENT", 12)
    monkeypatch.setattr(statements, "MAX_END", 5)
    monkeypatch.setattr(statements, "MAX_NAME", 3)
    kinds = {b"Q": (10_000, 13), b"P": (10_000, 16)}
    monkeypatch.setattr(statements, "_KINDS", {**statements._KINDS, **kinds})


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [11, 12, 13, 14, 16, 17, 18, 19, 30])
@pytest.mark.parametrize("name", ["", "n", "nnn"])
def test_long_statements_split_anywhere(size: int, name: str) -> None:
    text = "".join(chr(97 + n % 26) for n in range(size))
    data = query(text) + parse(name, text, types=2) + bind(name)
    expected = long(text) if size > 12 else statement(text)
    prepared = [Prepare(name, expected)] if name else []
    actions = [Query(expected), *prepared, Run((expected,), name, "", 0)]
    for cuts in combinations(range(1, len(data)), 2):
        machine = Statements()
        assert [one for a, b in pairwise((0, *cuts, len(data))) for one in machine.receive(data[a:b])] == actions
    machine = Statements()
    assert [one for n in range(len(data)) for one in machine.receive(data[n : n + 1])] == actions


def test_a_long_name_takes_no_statements_place() -> None:
    with pytest.raises(ProtocolError, match="name's end in its first 64 bytes"):
        read(parse("n" * MAX_STATEMENT, "drop table orders" * 10))


def test_a_huge_statement_is_never_held_in_memory() -> None:
    block, blocks = memoryview(b" " * 65_536), 1024
    machine = Statements()
    tracemalloc.start()
    try:
        machine.receive(b"Q" + struct.pack("!I", 4 + 65_536 * blocks + 5))
        for _ in range(blocks):
            assert machine.receive(block) == []
        (found,) = machine.receive(b"drop\0")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found, Query)
    assert found.statement.end.endswith(" drop")
    assert found.statement.sha256 == hashlib.sha256(bytes(block) * blocks + b"drop").hexdigest()
    assert peak < 5 * MAX_STATEMENT


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\0\0\0\x08\x04", "unknown type"),
        (b"p\0\0\0\x08", "unknown type"),
        (b"Q\0\0\0\3", "3 bytes"),
        (b"S" + struct.pack("!I", 10_001), "limit 10000"),
        (b"Q" + struct.pack("!I", 0x40000000), "limit 1073741823"),
        (message(b"Q", b"SELECT 1"), "not terminated"),
        (message(b"Q"), "not terminated"),
        (message(b"Q", b"x" * (MAX_STATEMENT + 500)), "query is not terminated"),
        (message(b"P", b"name"), "name's end"),
        (message(b"P", b"name\0SELECT"), "not terminated"),
        (message(b"P", b"n\0" + b"x" * (MAX_STATEMENT + 500)), "not terminated"),
        (message(b"P", b"n" * (MAX_STATEMENT + 500)), "name's end"),
        (message(b"B", b"portal"), "without names"),
        (message(b"B", b"portal\0name\0"), "without names"),
        (message(b"B", b"\0\0\0\2\0\0"), "parameter count"),
        (message(b"F", b"\0"), "without a function"),
    ],
)
def test_broken_messages(data: bytes, text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        read(data)


def test_encodings_other_than_utf8_lose_nothing() -> None:
    assert read(message(b"Q", b"SELECT '\xfc'\0")) == [Query(Statement("SELECT '\\xfc'", 10))]


def test_bytes_behind_a_querys_end_are_not_part_of_it() -> None:
    assert read(message(b"Q", b"SELECT 1\0DROP\0")) == [Query(statement("SELECT 1"))]  # the server refuses it whole


def test_names_are_cut_where_the_server_cuts_them() -> None:
    long = "n" * 70
    assert read(parse(long, "SELECT 1"), bind("n" * 63)) == [
        Prepare("n" * 63, statement("SELECT 1")),
        Run((statement("SELECT 1"),), "n" * 63, "", 0),
    ]


def test_unknown_names_run_something_unknown() -> None:
    assert read(bind("made by PREPARE")) == [Run((), "made by PREPARE", "", 0)]


def test_unnamed_statement_across_groups() -> None:
    a, b = statement("A"), statement("B")
    assert read(parse("", "A"), SYNC, parse("", "B"), SYNC, bind("")) == [Run((b,), "", "", 0)]
    # the second Parse may have been skipped: something before it in its group may have failed
    assert read(parse("", "A"), SYNC, EXECUTE, parse("", "B"), SYNC, bind("")) == [Run((b, a), "", "", 0)]
    assert read(parse("", "A"), SYNC, EXECUTE, parse("", "B"), bind("")) == [Run((b,), "", "", 0)]


def test_named_statement_may_be_the_older_one() -> None:
    a, b = statement("A"), statement("B")
    actions = read(parse("s", "A"), SYNC, parse("s", "B"), SYNC, bind("s"))
    assert actions[-1] == Run((b, a), "s", "", 0)
    actions = read(parse("s", "A"), SYNC, close("s"), SYNC, parse("s", "B"), SYNC, bind("s"))
    assert actions[-1] == Run((b,), "s", "", 0)
    actions = read(parse("s", "A"), SYNC, EXECUTE, close("s"), SYNC, parse("s", "B"), SYNC, bind("s"))
    assert actions[-1] == Run((b, a), "s", "", 0)
    assert read(parse("s", "A"), close("s"), bind("s"))[-1] == Run((), "s", "", 0)


def test_behind_copy_groups_are_not_trusted() -> None:
    a, b = statement("A"), statement("B")
    # Sync during COPY means nothing to the server, so the second Parse may have been swallowed by it
    actions = read(parse("", "A"), SYNC, query("copy t from stdin"), parse("", "B"), SYNC, bind(""))
    assert actions[-1] == Run((b, a), "", "", 0)


def test_forgotten_candidates_were_shown_before() -> None:
    others = [f"other {n}" for n in range(MAX_CANDIDATES)]
    machine = Statements()
    shown: list[Action] = machine.receive(parse("", "DROP TABLE t") + SYNC)
    for other in others:
        shown += machine.receive(EXECUTE + parse("", other) + SYNC)
    assert shown == [Prepare("", statement("DROP TABLE t"))]
    assert machine.receive(bind("")) == [Run(tuple(map(statement, reversed(others))), "", "", 0)]
    assert machine.receive(SYNC + EXECUTE + parse("", "last")) == []  # what falls out now has been shown by that Run


def test_many_named_statements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "MAX_KEPT", 1000)
    machine = Statements()
    for n in range(10):
        machine.receive(parse(f"s{n}", "x" * 100) + SYNC)
    assert machine.receive(bind("s0"))[0] == Run((), "s0", "", 0)
    assert machine.receive(bind("s9"))[0] == Run((statement("x" * 100),), "s9", "", 0)
    machine.receive(SYNC + parse("", "unnamed") + parse("huge", "y" * 2000))
    assert machine.receive(bind("huge"))[0] == Run((statement("y" * 2000),), "huge", "", 0)
    assert machine.receive(bind(""))[0] == Run((statement("unnamed"),), "", "", 0)
    machine.receive(parse("next", "z" * 100))
    assert machine.receive(bind("huge"))[0] == Run((), "huge", "", 0)


def test_names_in_one_group_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statements, "MAX_NAMES", 3)
    machine = Statements()
    machine.receive(parse("a", "1") + parse("b", "1") + parse("c", "1") + parse("c", "2"))
    with pytest.raises(ProtocolError, match="more than 3 prepared statements"):
        machine.receive(parse("d", "1"))


TEXTS = st.sampled_from([f"text {n}" for n in range(9)])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("parse"), st.sampled_from(["", "s"]), TEXTS, st.booleans()),
        st.tuples(st.just("bind"), st.sampled_from(["", "s"])),
        st.tuples(st.just("close"), st.sampled_from(["", "s"])),
        st.tuples(st.just("execute"), st.booleans()),
        st.tuples(st.just("sync")),
        st.tuples(st.just("sync")),
    ),
    max_size=30,
)


@given(OPERATIONS)
@example([("parse", "s", "text 0", False), ("sync",), ("parse", "s", "text 1", False), ("sync",), ("bind", "s")])
def test_whatever_fails_the_server_runs_nothing_that_is_not_shown(operations: list[tuple[object, ...]]) -> None:
    """A model of the server that decides freely what fails: what it runs is among the candidates."""
    machine = Statements()
    prepared: dict[object, object] = {}
    skipping = False
    seen: set[str] = set()
    for operation in operations:
        match operation:
            case ("parse", str(name), str(text), bool(fails)):
                actions = machine.receive(parse(name, text))
                if not skipping:
                    if not name:
                        prepared.pop("", None)
                    skipping = fails or name in prepared
                    if not skipping:
                        prepared[name] = text
            case ("bind", str(name)):
                actions = machine.receive(bind(name))
                assert isinstance(actions[-1], Run)
                candidates = [one.text for one in actions[-1].candidates]
                runs = None if skipping else prepared.get(name)
                if runs is not None:
                    assert runs in candidates or (len(candidates) == MAX_CANDIDATES and runs in seen)
                skipping = skipping or name not in prepared
            case ("close", str(name)):
                actions = machine.receive(close(name))
                if not skipping:
                    prepared.pop(name, None)
            case ("execute", bool(fails)):
                actions = machine.receive(EXECUTE)
                skipping = skipping or fails
            case _:
                actions = machine.receive(SYNC)
                skipping = False
        for action in actions:
            found = action.candidates if isinstance(action, Run) else [action.statement]  # type: ignore[union-attr]
            seen.update(one.text for one in found)
