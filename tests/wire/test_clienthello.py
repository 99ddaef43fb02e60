"""The ClientHello parser: real hellos, every length that can lie, every way of arriving, and garbage."""

import contextlib
import re
import ssl
import subprocess
from socket import create_server

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monoport.wire.clienthello import (
    MAX_EXTENSIONS,
    MAX_HELLO,
    MAX_PROTOCOLS,
    MAX_WALK,
    ClientHello,
    HelloError,
    missing,
    parse,
)

GREASE = b"\x0a\x0a"


def outcome(data: bytes) -> ClientHello | str | None:
    """What parse says; an error as its text."""
    try:
        return parse(data)
    except HelloError as error:
        return f"refused: {error}"


# Real hellos


@pytest.mark.parametrize("name", ["proxy.example.com", "grafana.example.teleport.sh", None])
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1"), ("teleport-proxy-ssh",), ("teleport-auth@example.com",)])
def test_a_hello_of_openssl(captured, name, alpn):
    data = captured(name, alpn)
    assert parse(data) == ClientHello(name, alpn, (0x304, 0x303), len(data))


def test_a_hello_of_tls_1_2(captured):
    data = captured("proxy.example.com", ("h2",), ssl.TLSVersion.TLSv1_2)
    assert parse(data) == ClientHello("proxy.example.com", ("h2",), (0x303,), len(data))


def test_a_hello_of_openssl_s_client(need):
    with create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = [need("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "Proxy.Example.COM."]
        client = subprocess.Popen(
            [*command, "-alpn", "postgresql"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        server.settimeout(30)
        stream, _ = server.accept()
        with stream:
            stream.settimeout(30)
            data = b""
            while (hello := parse(data)) is None:
                data += stream.recv(1)
        client.wait(30)
    assert (hello.server_name, hello.alpn, hello.size) == ("proxy.example.com", ("postgresql",), len(data))


def test_what_follows_the_hello_is_not_touched(captured):
    data = captured("a.example", ("h2",))
    assert parse(data + b"\x14\x03\x03\0\1\1early data") == parse(data)


# Ways of arriving


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 37, 100, 516])
def test_split_over_records_and_every_octet(captured, hellos, size):
    whole = captured("proxy.example.com", ("h2",))
    data = hellos.records(whole[5:], [size])
    assert parse(data) == ClientHello("proxy.example.com", ("h2",), (0x304, 0x303), len(data))
    assert {parse(data[:end]) for end in range(len(data))} == {None}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 37, 600])
def test_waiting_for_what_is_missing_reads_a_trickle_a_few_times(captured, hellos, size):
    data = hellos.records(captured("proxy.example.com", ("h2",))[5:], [size])
    have, reads = 1, 0
    while (hello := parse(data[:have])) is None:
        reads += 1
        least = missing(data[:have])
        assert all(parse(data[: have + more]) is None for more in range(0, least, max(1, least // 7)))
        have += least
    assert hello == parse(data)
    assert have == len(data), "never more than what is needed was waited for"
    assert reads <= 50


def test_every_octet_of_an_unsplit_hello(captured):
    data = captured("proxy.example.com", ("h2",))
    assert {parse(data[:end]) for end in range(len(data))} == {None}


def test_post_quantum_key_share(hellos):
    share = hellos.extension(51, (1184 + 6 + 38).to_bytes(2, "big") + bytes(1184 + 6 + 38))  # X25519MLKEM768 and X25519
    data = hellos.hello(hellos.sni(b"a.example"), share, hellos.alpn(b"h2"))
    assert len(data) > 1300
    assert parse(data) == ClientHello("a.example", ("h2",), (0x303,), len(data))
    one_by_one = hellos.records(data[5:], [1])
    assert parse(one_by_one) == ClientHello("a.example", ("h2",), (0x303,), len(one_by_one))


def test_a_hello_of_nearly_64_kib(hellos):
    data = hellos.hello(hellos.extension(21, bytes(65_400)), hellos.alpn(b"h2"))
    assert 65_400 < len(data) <= MAX_HELLO
    assert parse(data) == ClientHello(None, ("h2",), (0x303,), len(data))
    assert parse(data[:-1]) is None


def test_grease_is_kept_and_harmless(hellos):
    data = hellos.hello(
        hellos.extension(0x0A0A, b""),
        hellos.alpn(GREASE, b"h2"),
        hellos.versions(0x0A0A, 0x304),
        hellos.extension(0xFAFA, b"\0"),
    )
    assert parse(data) == ClientHello(None, ("\n\n", "h2"), (0x0A0A, 0x304), len(data))


def test_alpn_of_any_octets(hellos):
    assert parse(hellos.hello(hellos.alpn(bytes(range(1, 256))))).alpn == (bytes(range(1, 256)).decode("latin-1"),)


def test_a_hello_without_extensions(hellos):
    for extensions in (None, b""):
        data = hellos.records(hellos.message(hellos.body(extensions)))
        assert parse(data) == ClientHello(None, (), (0x303,), len(data))


# Records that are refused, as early as they can be


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x17", "record of type 23"),
        (b"\x17\x03\x01\x00\x10\x01", "record of type 23"),
        (b"\x16\x02", "version 2.x"),
        (b"\x16\x02\x00\x00\x10\x01", "version 2.x"),
        (b"\x16\x03\x01\x00\x00", "record of 0 octets"),
        (b"\x16\x03\x01\x40\x01", "record of 16385 octets"),
        (b"\x16\x03\x01\x40\x01\x01\x00\x3f\xfd", "record of 16385 octets"),
        (b"\x16\x03\x01\x00\x10\x02", "message of type 2"),
        (b"\x16\x03\x01\x00\x00\x01", "record of 0 octets"),
        (b"\x16\x03\x01\x00\x04\x01\x01\x00\x00", "ClientHello of 65540 octets, limit 65536"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x00\x00", "1 octets behind the ClientHello"),
        (b"\x16\x03\x01\x00\x02\x01\x00\x16\x03\x01\x00\x00", "record of 0 octets"),
        (b"\x16\x03\x01\x00\x02\x01\x00\x15", "record of type 21"),
        (b"\x16\x03\x01\x00\x02\x01\x00\x15\x03\x03\x00\x02", "record of type 21"),
        (b"\x16\x03\x01\x00\x04\x01\x00\x00\x00", "ClientHello of 0 octets is truncated"),
    ],
)
def test_records_that_are_refused(data, words):
    with pytest.raises(HelloError, match=re.escape(words)):
        parse(data)


def test_empty_records_between_fragments_are_refused(captured, hellos):
    message = captured("a.example")[5:]
    data = hellos.records(message[:100]) + b"\x16\x03\x01\x00\x00" + hellos.records(message[100:])
    with pytest.raises(HelloError, match="record of 0 octets"):
        parse(data)


@pytest.mark.parametrize(("size", "payload"), [(1, 2000), (40, 60_000), (200, 64_000)])
def test_a_hello_split_too_finely_for_its_size(hellos, size, payload):
    data = hellos.records(hellos.message(hellos.body(hellos.extension(21, bytes(payload)))), [size])
    with pytest.raises(HelloError, match="split too finely"):
        parse(data)
    step = size + 5
    records = next(end for end in range(step, len(data), step) if isinstance(outcome(data[:end]), str)) // step
    assert (records - 1) ** 2 * step <= MAX_WALK < records**2 * step


def test_64_kib_counts_what_is_on_the_wire(hellos):
    message = hellos.message(hellos.body(hellos.extension(21, bytes(65_400))))
    data = hellos.records(message, [1000])
    assert len(message) < MAX_HELLO < len(data)
    with pytest.raises(HelloError, match=f"limit {MAX_HELLO}"):
        parse(data)


# Lengths that lie inside the hello


def spoiled(hellos) -> dict[str, bytes]:
    """Bodies by what is wrong with them."""
    sni, alpn, versions, extension = hellos.sni, hellos.alpn, hellos.versions, hellos.extension
    many = b"".join(extension(1000 + number, b"") for number in range(MAX_EXTENSIONS + 1))
    start = hellos.body(None)
    return {
        "ClientHello of version 2.x": b"\x02" + hellos.body(b"")[1:],
        "is truncated": hellos.body(None)[:37],
        "session id of 33 octets": hellos.body(b"", session=bytes(33)),
        "session id of 255 octets": start[:34] + b"\xff" + start[35:],
        "session id of 32 octets": start[:34] + b"\x20" + bytes(33),
        "cipher suites of 0 octets": hellos.body(b"", suites=b""),
        "cipher suites of 3 octets": hellos.body(b"", suites=b"\x13\x01\x13"),
        "cipher suites of 65534 octets": start[:67] + b"\xff\xfe" + start[69:],
        "compression methods of 0 octets": hellos.body(b"", methods=b""),
        "compression methods of 9 octets": start[:-2] + b"\x09\x00",
        "length of the extensions is not": start + b"\x00",
        "length of the extensions is not that": start + b"\x00\x05" + extension(21, b""),
        "3 octets behind the last extension": hellos.body(extension(21, b"") + b"\0\0\0"),
        "extension 21 of 9 octets does not fit": hellos.body(b"\0\x15\0\x09"),
        "extension 0 appears twice": hellos.body(sni(b"a.example") + sni(b"b.example")),
        "extension 2570 appears twice": hellos.body(extension(0x0A0A, b"") * 2),
        f"{MAX_EXTENSIONS + 1} extensions, limit": hellos.body(many),
        "without a host name": hellos.body(sni(b"a.example", kind=1)),
        "server_name extension without": hellos.body(extension(0, b"")),
        "lengths in the server_name": hellos.body(extension(0, b"\0\x05\0\0\x01ab")),
        "in the server_name extension do not fit": hellos.body(extension(0, b"\0\x04\0\0\x02a")),
        "more than one name": hellos.body(extension(0, b"\0\x08" + b"\0\0\x01a" * 2)),
        "server_name: empty host name": hellos.body(sni(b".")),
        "server_name: illegal host name 'a..b'": hellos.body(sni(b"a..b")),
        "server_name: illegal host name 'a\\x00b'": hellos.body(sni(b"a\0b")),
        "server_name: host name of 254 octets": hellos.body(sni(b"a." * 127)[:-1] + b"a"),
        "server_name is not ASCII": hellos.body(sni("bücher.example".encode())),
        "length of the ALPN list": hellos.body(extension(16, b"")),
        "of the ALPN list does not fit": hellos.body(extension(16, b"\0\x05\x02h2")),
        "ALPN list is malformed": hellos.body(extension(16, b"\0\x03\x05h2")),
        "ALPN list is malformed or": hellos.body(extension(16, b"\0\x04\x02h2\0")),
        f"or longer than {MAX_PROTOCOLS}": hellos.body(alpn(*[b"x"] * (MAX_PROTOCOLS + 1))),
        "length of supported_versions": hellos.body(extension(43, b"")),
        "of supported_versions does not fit": hellos.body(extension(43, b"\x03\x03\x04\x03")),
        "supported_versions does not": hellos.body(versions(0x304) + b"")[:-3] + b"\x04\x03\x04",
    }


def test_lengths_that_lie(hellos):
    for words, body in spoiled(hellos).items():
        assert words in str(outcome(hellos.records(hellos.message(body)))), words
        assert words in str(outcome(hellos.records(hellos.message(body), [30, 7]))), words


def test_as_many_as_the_limits_allow(hellos):
    extensions = b"".join(hellos.extension(1000 + number, b"") for number in range(MAX_EXTENSIONS - 1))
    hello = parse(hellos.hello(extensions, hellos.alpn(*[b"x"] * MAX_PROTOCOLS)))
    assert hello.alpn == ("x",) * MAX_PROTOCOLS


# Properties

label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
names = st.lists(label, min_size=1, max_size=4).map(".".join)
protocols = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
sizes = st.lists(st.integers(1, 200), min_size=1, max_size=30).map(
    lambda some: [*some, 60]
)  # fine at first, then fit for any size


@settings(deadline=None)  # a shared machine, not the parser, decides how long an example takes
@given(name=names, offered=protocols, sizes=sizes, padding=st.integers(0, 3000), tail=st.binary(max_size=20))
def test_whole_and_split_say_the_same(hellos, name, offered, sizes, padding, tail):
    extensions = [hellos.sni(name.encode()), hellos.versions(0x304), hellos.extension(21, bytes(padding))]
    message = hellos.hello(*extensions, *([hellos.alpn(*offered)] if offered else []))[5:]
    data = hellos.records(message, sizes)
    wanted = ClientHello(name, tuple(octets.decode("latin-1") for octets in offered), (0x304,), len(data))
    assert parse(data + tail) == wanted
    step = max(1, len(data) // 50)
    assert {parse(data[:end]) for end in range(0, len(data), step)} == {None}


def settled(data: bytes) -> ClientHello | str | None:
    """What a client that sends one octet at a time is told first."""
    for end in range(len(data) + 1):
        if (said := outcome(data[:end])) is not None:
            return said
    return None


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"\x16\x03\x01" + tail))
@example(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00")
def test_garbage_never_raises_anything_else(data):
    said, slowly = outcome(data), settled(data)
    assert (said is None) == (slowly is None)
    assert isinstance(said, ClientHello) == isinstance(slowly, ClientHello)


@settings(max_examples=300)
@given(
    spots=st.lists(st.tuples(st.integers(0, 516), st.integers(0, 255)), min_size=1, max_size=5), cut=st.integers(0, 517)
)
def test_mutated_hellos_of_openssl(captured, spots, cut):
    data = bytearray(captured("proxy.example.com", ("h2", "http/1.1")))
    for position, octet in spots:
        data[position] = octet
    for mutated in (bytes(data), bytes(data[:cut])):
        said, slowly = outcome(mutated), settled(mutated)
        assert isinstance(said, str) == isinstance(slowly, str)
        if isinstance(said, ClientHello):
            assert said == slowly
            assert said.size <= len(mutated)


@settings(deadline=None)
@given(body=st.binary(max_size=400))
def test_any_body_in_right_records(hellos, body):
    one = outcome(hellos.records(hellos.message(body)))
    many = outcome(hellos.records(hellos.message(body), [9]))
    assert one is not None
    assert isinstance(one, str) == isinstance(many, str)
    assert one == many or isinstance(one, ClientHello)


def test_a_slow_client_costs_no_more_than_a_walk_over_records(hellos, monkeypatch):
    """Until the last octet is there, parse looks at record headers and never at the hello."""
    data = hellos.hello(hellos.extension(21, bytes(65_000)))
    looked = []
    monkeypatch.setattr("monoport.wire.clienthello._body", lambda *_: looked.append(1))
    for end in range(0, len(data), 97):
        assert parse(data[:end]) is None
    assert looked == []
    parse(data)
    assert looked == [1]


# What a TLS library reads from the same octets


def read_by_openssl(data: bytes) -> str | None:
    """The server name that OpenSSL finds, "refused" if it gets no further than the hello, None for none."""
    found: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _session, name, _context: found.append(name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(data)
    with contextlib.suppress(ssl.SSLError):
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    return found[0] if found else "refused"


@pytest.mark.parametrize("name", ["proxy.example.com", "Proxy.Example.com", None])
def test_openssl_finds_the_same_name(captured, name):
    data = captured(name, ("h2",))
    assert read_by_openssl(data) == name
    assert parse(data).server_name == (name and name.lower())


@settings(deadline=None)
@given(position=st.integers(0, 516), octet=st.integers(0, 255), size=st.integers(20, 600))
def test_no_octet_makes_openssl_read_another_name(captured, hellos, position, octet, size):
    mutated = bytearray(captured("proxy.example.com", ("h2",)))
    mutated[position] = octet
    data = (
        bytes(mutated)
        if mutated[:5] != captured("proxy.example.com", ("h2",))[:5]
        else hellos.records(bytes(mutated[5:]), [size])
    )
    ours = outcome(data)
    if isinstance(ours, ClientHello) and (theirs := read_by_openssl(data)) != "refused":
        assert ours.server_name == (theirs and theirs.lower())
