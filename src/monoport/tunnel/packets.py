"""The packets that carry bulk, channel data under AES-GCM, without the copies that asyncssh makes of each.

Belongs here: how such a packet is made and read (RFC 4253 section 6, RFC 4254 section 5.2, RFC 5647), and how much may
wait in a connection, where asyncssh sets no bound. Not here: other packets and ciphers, the login, the exchange of
keys. Whatever is not a channel's data, in the middle of an open connection, is left to asyncssh, errors above all.
"""

from __future__ import annotations

import os
import time
from typing import Any

import asyncssh
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_EXTENDED_DATA, MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.encryption import Encryption, GCMEncryption
from asyncssh.packet import String, UInt32
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TAG = 16  # octets of AES-GCM's proof behind each packet
LENGTH = 4  # octets of a packet's length, which is not encrypted
HEAD = 10  # octets before the data: length of the padding, type, channel, length of the data
SEQUENCES = 0xFFFFFFFF  # a packet's sequence number begins anew behind this one, RFC 4253 section 6.4
INVOCATIONS = 0xFFFFFFFFFFFFFFFF  # the part of the nonce that counts, RFC 5647 section 7.1
DEFERRED = 65_536  # packets that may wait for new keys: answers, windows and ends of some ten thousand channels
BURST = 64  # packets of one channel in one turn of the loop: of 32 KiB each, a dozen at most wait
AHEAD = 65_536  # octets beyond a whole packet that may have come while the one before it is dealt with
CRUMBS = 4096  # octets up to which small pieces that wait become one


class Gcm(GCMEncryption):
    """AES-GCM of one direction: asyncssh's, with the key set up once instead of for each packet."""

    def __init__(self, theirs: GCMEncryption) -> None:
        cipher = theirs._cipher
        super().__init__(cipher)
        self._aead = AESGCM(cipher._key)
        self._fixed, self._count = cipher._iv[:4], int.from_bytes(cipher._iv[4:], "big")

    def _nonce(self) -> bytes:
        return self._fixed + self._count.to_bytes(8, "big")

    def advance(self) -> None:
        """The packet with the present nonce is done; no other may use it."""
        self._count = self._count + 1 & INVOCATIONS

    def seal(self, length: bytes, packet: bytes) -> bytes:
        """Return a packet, encrypted, with the proof behind it."""
        sealed = self._aead.encrypt(self._nonce(), packet, length)
        self.advance()
        return sealed

    def open(self, length: bytes | memoryview, sealed: bytes | memoryview) -> bytes | None:
        """Return the next packet, None if it is not what the peer has sealed; it is read again until `advance`."""
        try:
            return self._aead.decrypt(self._nonce(), sealed, length)
        except InvalidTag:
            return None

    # as asyncssh calls it

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        return header + self.seal(header, packet), b""

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        opened = self.open(first[:header_len], b"".join((first[header_len:], rest, mac)))
        self.advance()
        return opened


def _quicker(encryption: Encryption | None) -> Encryption | None:
    return Gcm(encryption) if type(encryption) is GCMEncryption else encryption


class Packets(asyncssh.connection.SSHConnection):
    """Mixed into asyncssh's connections: the data of channels that `quick` has prepared takes the short way."""

    _held_up = False  # too much has come to be taken now

    @property
    def _send_encryption(self) -> Any:
        return self.__dict__.get("_sealing")

    @_send_encryption.setter
    def _send_encryption(self, value: Encryption | None) -> None:
        self.__dict__["_sealing"] = _quicker(value)

    @property
    def _recv_encryption(self) -> Any:
        return self.__dict__.get("_opening")

    @_recv_encryption.setter
    def _recv_encryption(self, value: Encryption | None) -> None:
        self.__dict__["_opening"] = _quicker(value)

    # from the peer

    def _recv_data(self) -> None:
        """Take what came. What comes while a packet is still dealt with, a login above all, waits in the stream."""
        super()._recv_data()
        transport: Any = self._transport
        too_much = len(self._inpbuf) > self._max_recv_pktlen + AHEAD
        if transport is not None and too_much is not self._held_up:
            self._held_up = too_much
            transport.pause_reading() if too_much else transport.resume_reading()

    def _recv_pkthdr(self) -> bool:
        if self._auth_complete and self._auth_final and not self._decompressor and not self._take_data():
            return False
        return self._transport is not None and bool(self._inpbuf) and bool(super()._recv_pkthdr())

    def _take_data(self) -> bool:
        """Take packets from the beginning of what came, as long as they are data of quick channels.

        Return whether the next one is for asyncssh. It is not while only a part of it is there: asyncssh would keep
        that part, and a packet that it has begun cannot take the short way.
        """
        came, position = self._inpbuf, 0
        try:
            with memoryview(came) as view:
                while self._transport is not None and isinstance(cipher := self._recv_encryption, Gcm):
                    size = int.from_bytes(view[position : position + LENGTH], "big")
                    end = position + LENGTH + size + TAG
                    if end > len(view) and size <= self._max_recv_pktlen:
                        return False
                    if not HEAD < size <= self._max_recv_pktlen:
                        return True
                    packet = cipher.open(view[position : position + LENGTH], view[position + LENGTH : end])
                    channel = self._bound_for(packet) if packet is not None else None
                    if packet is None or channel is None:
                        return True
                    cipher.advance()
                    self._recv_seq = self._recv_seq + 1 & SEQUENCES
                    position = end
                    channel._accept_data(packet[HEAD : -packet[0]])
                return True
        finally:
            self._inpbuf = came[position:]

    def _bound_for(self, packet: bytes) -> Any:
        """The quick channel that a packet has data for; None if it is for asyncssh, to handle or to refuse."""
        if packet[1] != MSG_CHANNEL_DATA:
            return None
        channel: Any = self._channels.get(int.from_bytes(packet[2:6], "big"))
        size = int.from_bytes(packet[6:HEAD], "big")
        if not getattr(channel, "quick", False) or HEAD + size + packet[0] != len(packet) or not packet[0]:
            return None
        return channel if channel._recv_state == "open" and size <= channel._recv_window else None

    # to the peer

    def may_send_data(self) -> bool:
        """Whether data may be sent now, and the short way."""
        return (
            isinstance(self._send_encryption, Gcm)
            and self._auth_complete
            and self._kex_complete
            and not self._compressor
            and self._transport is not None
        )

    def _keys_are_old(self) -> bool:
        by_time = bool(self._rekey_seconds) and time.monotonic() >= self._rekey_time
        return by_time or self._rekey_bytes_sent >= self._rekey_bytes

    def changes_keys(self) -> bool:
        """Whether data waits for new keys, which are asked for here where it is time."""
        if self._auth_complete and self._kex_complete and self._keys_are_old():
            self._send_kexinit()
            self._kexinit_sent = True
        return not self._kex_complete

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        super().send_packet(pkttype, *args, handler=handler)
        if len(self._deferred_packets) > DEFERRED:  # the answers to a peer that asks and asks, and never ends it
            self._force_close(asyncssh.ProtocolError("too much waits for the end of a key exchange"))

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        for channel in tuple(self._channels.values()):
            if getattr(channel, "quick", False) and channel._send_buf:
                channel._flush_send_buf()

    def send_data(self, channel: int, data: memoryview) -> None:
        """Send one packet of a channel's data; only where `may_send_data` has just said so.

        channel: the peer's number of it. data: no more than it has room for.
        """
        transport: Any = self._transport
        padding = -(self._send_enchdrlen + HEAD - 1 + len(data)) % self._send_blocksize
        if padding < 4:
            padding += self._send_blocksize
        head = bytes((padding, MSG_CHANNEL_DATA)) + channel.to_bytes(4, "big") + len(data).to_bytes(4, "big")
        packet = b"".join((head, data, os.urandom(padding)))
        length = len(packet).to_bytes(LENGTH, "big")
        sealed = self._send_encryption.seal(length, packet)
        self._send_seq = self._send_seq + 1 & SEQUENCES
        self._rekey_bytes_sent += len(packet)
        transport.write(length)
        transport.write(sealed)


def quick(channel: Any) -> None:
    """Have a channel's data take the short way, and no packet of it described for a log that nobody reads.

    What is kept with the channel: `goes_on`, whether a further turn of the loop is to send the rest; `taken`, octets
    that were handed on and that the peer has not been told of.
    """
    channel.quick, channel.goes_on = True, False
    channel.log_sent_packet = channel.log_received_packet = _described_nowhere
    channel.taken = channel._init_recv_window - channel._recv_window - sum(len(data) for data, _ in channel._recv_buf)
    channel._accept_data = lambda data, kind=None: _accept(channel, data, kind)
    channel._deliver_data = lambda data, kind: _deliver(channel, data, kind)
    channel._flush_send_buf = lambda: _flush(channel)


def _accept(channel: Any, data: bytes, kind: int | None) -> None:
    """Take data, putting crumbs that wait together.

    asyncssh keeps each piece, and takes it from the front of a list of all: a window of single octets, which a peer may
    send while nobody reads, would cost 26 MB, and four seconds in one turn of the loop.
    """
    waits = channel._recv_buf
    if waits and channel._recv_paused and channel._send_state not in {"close_pending", "closed"}:
        last, last_kind = waits[-1]
        if kind == last_kind and len(last) + len(data) <= CRUMBS:
            channel._recv_window -= len(data)
            waits[-1] = (last + data, kind)
            return
    type(channel)._accept_data(channel, data, kind)


def _deliver(channel: Any, data: bytes, kind: int | None) -> None:
    """Hand data on, and let the peer send as much again as was handed on: half a window at a time.

    asyncssh opens the whole window with any piece, whatever waits behind it: to a reader that takes a piece now and
    then, a peer could send without end.
    """
    channel.taken += len(data)
    if channel.taken > channel._init_recv_window // 2:
        channel.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(channel.taken))
        channel._recv_window += channel.taken
        channel.taken = 0
    if channel._session is not None:
        channel._session.data_received(data, kind)


def _flush(channel: Any) -> None:
    """Send what waits in a channel, as far as its window goes: what asyncssh's own method of that name does.

    While keys are exchanged it waits here, where it holds back who writes: asyncssh would put it into a list without
    limit, and a peer that begins an exchange and never ends it could have all memory. And only so many packets go in
    one turn of the loop: a peer may want them of a single octet each.
    """
    link = channel._conn
    for _ in range(BURST):
        if not channel._send_buf or not channel._send_window or link is None:
            type(channel)._flush_send_buf(channel)  # what follows the last byte: room, the end, the close
            return
        if link.changes_keys():
            break
        _send(channel, link)
    else:
        if not channel.goes_on:
            channel.goes_on = True
            channel._loop.call_soon(_go_on, channel)
    channel._pause_resume_writing()


def _go_on(channel: Any) -> None:
    channel.goes_on = False
    if channel._conn is not None:
        _flush(channel)


def _send(channel: Any, link: Packets) -> None:
    """Send one packet of what waits."""
    waiting, kind = channel._send_buf[0]
    size = min(len(waiting), channel._send_window, channel._send_pktsize)
    channel._send_buf_len -= size
    channel._send_window -= size
    with memoryview(waiting) as view:
        if kind is not None:  # what a program says on its standard error
            channel.send_packet(MSG_CHANNEL_EXTENDED_DATA, UInt32(kind), String(bytes(view[:size])))
        elif link.may_send_data():
            link.send_data(channel._send_chan, view[:size])
        else:
            channel.send_packet(MSG_CHANNEL_DATA, String(bytes(view[:size])))
    if size == len(waiting):
        del channel._send_buf[0]
    else:
        del waiting[:size]


def _described_nowhere(*_packet: object) -> None:
    return None
