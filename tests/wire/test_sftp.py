"""SFTP packets: whole, in pieces, and broken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monoport.wire import sftp
from monoport.wire.sftp import MAX_PACKET, MAX_PATH, Attributes, Fields, Reply, SftpError, Status

u32 = st.integers(0, 2**32 - 1)
attributes = st.builds(
    Attributes,
    size=st.none() | st.integers(0, 2**64 - 1),
    owner=st.none() | st.tuples(u32, u32),
    mode=st.none() | u32,
    times=st.none() | st.tuples(u32, u32),
)


@given(attributes)
def test_attributes_travel_unchanged(attrs):
    data = sftp.attributes(attrs)
    assert Fields(data).attributes() == attrs
    for length in range(len(data)):
        with pytest.raises(SftpError):
            Fields(data[:length]).attributes()


def test_times_beyond_the_protocol_are_cut():
    assert Fields(sftp.attributes(Attributes(times=(-5, 2**40)))).attributes().times == (0, 2**32 - 1)


def test_extended_attributes_are_passed_over():
    data = (0x8000_0004).to_bytes(4, "big") + (0o600).to_bytes(4, "big") + (1).to_bytes(4, "big")
    fields = Fields(data + sftp.string(b"name") + sftp.string(b"value") + b"\x07")
    assert fields.attributes() == Attributes(mode=0o600)
    assert fields.byte() == 7


@given(st.binary(max_size=200))
def test_any_fields_are_read_or_refused(data):
    for read in (Fields.byte, Fields.u32, Fields.u64, Fields.data, Fields.text, Fields.attributes):
        try:
            read(Fields(data))
        except SftpError:
            continue


@given(st.binary(min_size=1, max_size=50), st.binary(max_size=20))
def test_packets_are_split_where_they_end(body, rest):
    data = sftp.string(body) + rest
    assert bytes(sftp.split(bytearray(data)) or b"") == body
    assert all(sftp.split(bytearray(data[:length])) is None for length in range(4 + len(body)))


@pytest.mark.parametrize("length", [0, MAX_PACKET + 1, 2**32 - 1])
def test_lengths_out_of_bounds(length):
    with pytest.raises(SftpError, match="limit"):
        sftp.split(bytearray(length.to_bytes(4, "big")))


@pytest.mark.parametrize("path", [b"a\0b", b"x" * (MAX_PATH + 1)])
def test_strings_that_are_no_paths(path):
    with pytest.raises(SftpError):
        Fields(sftp.string(path)).text()


def test_replies():
    status = sftp.status(9, Status.NO_SUCH_FILE)
    fields = Fields(status)
    assert fields.u32() == len(status) - 4
    assert (fields.byte(), fields.u32(), fields.u32()) == (Reply.STATUS, 9, Status.NO_SUCH_FILE)
    assert (fields.text(), fields.text()) == (b"No such file", b"en")
    names = Fields(sftp.names(3, [(b"a", b"long a", Attributes(size=1)), (b"b", b"long b", Attributes())]))
    names.u32()
    assert (names.byte(), names.u32(), names.u32()) == (Reply.NAME, 3, 2)
    assert (names.text(), names.text(), names.attributes()) == (b"a", b"long a", Attributes(size=1))
    version = Fields(sftp.version([(b"x@y", b"1")]))
    version.u32()
    assert (version.byte(), version.u32(), version.text(), version.text()) == (Reply.VERSION, 3, b"x@y", b"1")
