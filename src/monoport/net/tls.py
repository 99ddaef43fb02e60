"""TLS over any stream, TLS itself included.

Belongs here: the record layer's pump between an `ssl.MemoryBIO` pair and a Stream, its handshake and its ends.
Does not belong here: which context a connection gets (`proxy.contexts`), what a certificate means (`access`).

All connections of a loop share one pair of BIOs and one plaintext buffer. Both BIOs are empty whenever control
leaves this module: OpenSSL moves a partial record into the connection's own buffer before it asks for more, and
what it writes is taken out at once. So ciphertext of one connection can never wait where another would find it;
`_Engine.enter` makes sure of it all the same.
"""

from __future__ import annotations

import ssl

from monoport.errors import Failure
from monoport.net.reactor import Reactor
from monoport.net.stream import CHUNK, INBOX, ClosedError, Data, Stream, TruncatedError, linger
from monoport.net.wakeup import Wakeup

RECORD = 16384  # the most plaintext in one record, RFC 8446 section 5.1
UNASKED = 4096  # bytes OpenSSL may owe the peer (tickets, KeyUpdate answers) before they are sent unasked


class TlsError(Failure, ConnectionError):
    """TLS failed; the text says how, in OpenSSL's name for it."""


class HandshakeError(TlsError):
    """The handshake failed: what the peer offered or proved was not accepted, by it or by us."""


class HandshakeCut(HandshakeError):
    """The peer ended the connection in the middle of the handshake, without an alert."""


class _Engine:
    """What the TLS connections of one loop share."""

    __slots__ = ("incoming", "outgoing", "plains")

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.plains = [self.make()]  # those in use are not here: whoever is told reads on while TLS within is read

    @staticmethod
    def make() -> memoryview:
        """Return another buffer for plaintext."""
        return memoryview(bytearray(CHUNK + RECORD))

    def enter(self) -> None:
        """Empty both BIOs of what a failed operation may have left."""
        if self.incoming.pending:
            self.incoming.read()
        if self.outgoing.pending:
            self.outgoing.read()


class TlsStream(Stream):
    """TLS over `raw`, which it owns; made by `serve_tls` and `connect_tls`."""

    __slots__ = (
        "_behind",
        "_engine",
        "_established",
        "_handshake",
        "_held",
        "_left",
        "_notified",
        "_peer_ended",
        "_peer_gone",
        "_raw",
        "_server",
        "_ssl",
    )

    def __init__(self, raw: Stream, context: ssl.SSLContext, server_side: bool, server_hostname: str | None) -> None:
        super().__init__(raw.loop)
        reactor = Reactor.of(raw.loop)
        engine = reactor.shared
        if type(engine) is not _Engine:
            engine = reactor.shared = _Engine()
        self._engine = engine
        self._raw = raw
        self._ssl = context.wrap_bio(engine.incoming, engine.outgoing, server_side, server_hostname)
        self._server = server_side
        self._established = False
        self._notified = False  # our close_notify has been sent
        self._peer_ended = False  # the peer's close_notify has been read
        self._peer_gone = False  # and then its end of the stream underneath
        self._behind = b""  # what came between the two
        self._left = False  # the stream underneath goes on without us
        self._held = b""  # records that need not go out before the next ones do
        self._handshake: Wakeup | None = None

    @property
    def raw(self) -> Stream:
        """The stream underneath."""
        return self._raw

    @property
    def waiting(self) -> int:
        return self._raw.waiting + len(self._held)

    @property
    def ended(self) -> bool:
        return self._peer_ended

    @property
    def peer_certificate(self) -> bytes | None:
        """The peer's verified certificate, DER; None if it sent none or none was asked for."""
        return self._ssl.getpeercert(binary_form=True) if self._ssl.context.verify_mode else None

    @property
    def shown_certificate(self) -> bytes | None:
        """The certificate that the peer has shown, DER, verified or not: it says nothing of who the peer is."""
        return self._ssl.getpeercert(binary_form=True)

    @property
    def selected_alpn(self) -> str | None:
        """The protocol both sides agreed on."""
        return self._ssl.selected_alpn_protocol()

    @property
    def version(self) -> str | None:
        """The protocol version, such as `TLSv1.3`."""
        return self._ssl.version()

    async def handshake(self) -> None:
        """Shake hands; raises HandshakeError, or the raw stream's own error. The stream is lost then."""
        wakeup = self._handshake = Wakeup(self.loop)
        self._raw.start(self)
        if not self._server and not self._lost:
            self._engine.enter()
            self._advance()
        try:
            if not self._established and not self._lost:
                await wakeup
        except BaseException:
            self.abort()
            raise
        finally:
            self._handshake = None
        if not self._established:
            raise self._error or ClosedError("the connection was closed during the handshake")

    # from the stream underneath: these four make it a Receiver

    def data_received(self, data: bytes | memoryview) -> None:
        """Decrypt all of `data`, then deliver what came out in one piece."""
        if self._lost:
            return
        if self._peer_ended:
            self._keep(data)
            return
        engine = self._engine
        engine.enter()
        engine.incoming.write(data)
        if not self._established:
            self._advance()
            if not self._established:
                return
        if engine.incoming.pending or self._ssl.pending():
            self._read()
        if engine.outgoing.pending:
            self._hold(engine.outgoing.read())
        self._wake()

    def eof_received(self) -> None:
        """The transport below ended: clean only after close_notify."""
        if self._peer_ended or self._lost:
            self._peer_gone = True
            return
        error: Exception = TruncatedError("the peer ended the connection without close_notify")
        if not self._established:
            error = HandshakeCut("TLS handshake failed: the peer ended the connection in the middle of it")
        self.abort(error)

    def connection_lost(self, error: Exception | None) -> None:
        """The stream below is gone."""
        self._finish(error)

    def resume_writing(self) -> None:
        """There is room below again."""
        self._room_again()

    # records

    def _advance(self) -> None:
        """Take the handshake as far as the bytes that are here allow."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._transmit()
        except ssl.SSLError as error:
            self._refuse(HandshakeError(f"TLS handshake failed: {_reason(error)}"))
        else:
            self._established = True
            # A TLS 1.3 server owes its client nothing but tickets now: they ride with the first record.
            if not self._server or self._ssl.version() != "TLSv1.3":
                self._transmit()

    def _read(self) -> None:
        plains = self._engine.plains
        plain = plains.pop() if plains else self._engine.make()
        try:
            self._read_into(plain)
        finally:
            plains.append(plain)

    def _read_into(self, plain: memoryview) -> None:
        engine = self._engine
        read, incoming, pending = self._ssl.read, engine.incoming, self._ssl.pending
        held: list[bytes] = []
        filled = 0
        try:
            while True:
                got = int(read(RECORD, plain[filled:] if filled else plain))
                if not got:
                    self._peer_ended = True
                    break
                filled += got
                if not incoming.pending and not pending():
                    break
                if filled > CHUNK:  # nobody may be called before the BIO is dry: it is everyone's
                    held.append(bytes(plain[:filled]))
                    filled = 0
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_ended = True
        except ssl.SSLError as error:
            self._refuse(TlsError(f"TLS failed: {_reason(error)}"))
            return
        if engine.outgoing.pending:
            self._hold(engine.outgoing.read())
        if self._peer_ended and incoming.pending:
            self._keep(incoming.read())
        if held:
            self._receiver.data_received(b"".join(held) + plain[:filled])
        elif filled:
            self._receiver.data_received(plain[:filled])
        if self._peer_ended and not self._lost:
            self._receiver.eof_received()

    def _keep(self, data: bytes | memoryview) -> None:
        """Bytes behind the peer's close_notify: they are for whoever goes on underneath, see `leave`."""
        self._behind += data
        if len(self._behind) > INBOX:
            self.abort(TlsError("TLS failed: the peer goes on behind its end"))

    def _hold(self, records: bytes) -> None:
        self._held += records
        if len(self._held) > UNASKED:
            records, self._held = self._held, b""
            if not self._raw.send(records):
                self.abort(TlsError("TLS failed: the peer asks for key updates and does not read them"))

    def _transmit(self) -> bool:
        outgoing = self._engine.outgoing
        if not outgoing.pending:
            return True
        records = outgoing.read()
        if self._held:
            records, self._held = self._held + records, b""
        return self._raw.send(records)

    def _refuse(self, error: Exception) -> None:
        """End after an error of TLS itself, whose alert OpenSSL has just written."""
        self._transmit()
        self._finish(error)
        linger(self._raw)

    def _wake(self) -> None:
        wakeup = self._handshake
        if wakeup is not None:
            self._handshake = None
            wakeup.wake()

    def _finish(self, error: Exception | None) -> None:
        super()._finish(error)
        self._wake()

    # to the stream underneath

    def send(self, data: Data) -> bool:
        if self._notified or self._lost or not data:
            return True
        self._engine.enter()
        write = self._ssl.write
        try:
            sent = write(data)
            if sent < len(data):
                view = memoryview(data)
                while sent < len(data):
                    sent += write(view[sent:])
        except ssl.SSLError as error:
            self.loop.call_soon(self._refuse, TlsError(f"TLS failed: {_reason(error)}"))
            return True
        return self._transmit()

    def send_eof(self) -> None:
        """Send close_notify. The incoming BIO is dry, so SSL_shutdown finds nothing that it could swallow."""
        if self._notified or self._lost or not self._established:
            return
        self._notified = True
        self._engine.enter()
        try:
            self._ssl.unwrap()
        except ssl.SSLError:  # it wants to read the peer's close_notify too; that direction may still go on
            pass
        self._transmit()

    def leave(self) -> Stream:
        """End TLS, whose peer has ended it (`read` gave b""), and return the stream underneath for what follows.

        Both ends must expect it: close_notify ends the protected bytes of a direction, and the transport may go on
        (RFC 8446 section 6.1). This stream remains the owner of the one underneath: closing it closes that. It knows
        nothing any more of certificates and protocols.
        Raises ClosedError, RuntimeError where the peer has not ended.
        """
        if self._lost:
            raise self._error or ClosedError("the connection was closed before TLS was left")
        if not self._peer_ended or self._inbox().data:
            raise RuntimeError("TLS can be left at its end only")
        self.send_eof()
        if self._lost:
            raise self._error or ClosedError("the connection was closed before TLS was left")
        self._raw.recall(self._behind, ended=self._peer_gone)
        self._behind = b""
        self._finish(None)
        self._left = True
        del self._ssl  # it would hold as much as an idle connection for as long as the bytes underneath go on
        return self._raw

    @property
    def lost(self) -> bool:
        return self._raw.lost if self._left else self._lost

    async def wait_closed(self) -> None:
        await super().wait_closed()
        if self._left:
            await self._raw.wait_closed()

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()

    def close(self) -> None:
        self.send_eof()
        self._raw.close()

    def abort(self, error: Exception | None = None) -> None:
        if self._left:
            self._raw.abort(error)
        elif not self._lost:
            self._raw.abort(error)
            self._finish(error or ClosedError("the connection was aborted on this side"))


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    return (error.reason or str(error)).lower().replace("_", " ")


async def serve_tls(raw: Stream, context: ssl.SSLContext, *, alpn: str | None = None) -> TlsStream:
    """Shake hands as the server; with `alpn`, exactly that protocol must have been agreed on (RFC 7301).

    Raises HandshakeError. `raw` belongs to the result, and is ended if there is none.
    """
    stream = TlsStream(raw, context, True, None)
    await stream.handshake()
    if alpn is not None and stream.selected_alpn != alpn:
        chosen = stream.selected_alpn
        stream.close()
        raise HandshakeError(f"TLS handshake failed: routed as {alpn}, but the agreed protocol is {chosen}")
    return stream


async def connect_tls(raw: Stream, context: ssl.SSLContext, *, server_hostname: str | None) -> TlsStream:
    """Shake hands as the client, checking `server_hostname` as the context says; raises HandshakeError."""
    stream = TlsStream(raw, context, False, server_hostname)
    await stream.handshake()
    return stream
