"""Where a proxy steps aside: the bytes of a sealed session, from its opening on, are between the user and the agent.

Belongs here: both sides of that step on a dialled stream. Not here: the TLS within that follows (`client.sealed`,
`agents.sealed`), what came before it (`tunnel.dial`).

The proxy knows a session's opening, by which it decides. Then it ends its TLS with the client, hands the agent what
the client said so far, as one frame, and ends the TLS of a dial-back too: from there on it joins two sockets, through
which the client shakes hands with the agent. A channel of the tunnel has no TLS of its own to end.

The last words of a client before its close_notify, behind the opening, are BINDING random bytes, and they are its first
within the new TLS. Between the two nothing on the network is protected: without them, whoever stands there could join
one session of a user's with the agent of another, where the opening said something else.
"""

from monoport.net.stream import Stream
from monoport.net.tls import TlsStream
from monoport.wire.frame import HEADER, FrameError

BINDING = 32  # bytes: nobody guesses them
MAX_OPENING = 65_536  # bytes that a client may have said before the proxy steps aside; openings have a few hundred


async def step_aside(client: TlsStream, server: Stream, opening: bytes) -> tuple[Stream, Stream]:
    """The proxy's side: return what is left of both streams, to be joined; they still belong to those given.

    opening: what goes to the agent of what the client has said. Raises FrameError, ConnectionError.
    """
    client.send_eof()
    while more := await client.read():
        opening += more
        if len(opening) > MAX_OPENING:
            raise FrameError(f"its client said over {MAX_OPENING} bytes before")
    await server.write(len(opening).to_bytes(HEADER) + opening)
    return client.leave(), await _below(server)


async def stepped_aside(stream: Stream) -> tuple[bytes, Stream]:
    """The agent's side: return the opening, and the stream on which the client will shake hands.

    Raises FrameError, ConnectionError.
    """
    size = int.from_bytes(await stream.read_exactly(HEADER))
    if not 0 < size <= MAX_OPENING:
        raise FrameError(f"an opening of {size} bytes, limit {MAX_OPENING}")
    opening = await stream.read_exactly(size)
    return opening, await _below(stream)


async def _below(stream: Stream) -> Stream:
    """End a dial-back's TLS with the other side, which does the same."""
    if not isinstance(stream, TlsStream):
        return stream
    stream.send_eof()
    if await stream.read(1):
        raise FrameError("more came than an opening")
    return stream.leave()
