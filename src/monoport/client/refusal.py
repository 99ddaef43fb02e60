"""Telling a client of a local proxy, in its own protocol, why it cannot be joined.

Belongs here: driving the protocol's front as the proxy would (`proxy/database.py`), as far as it takes for the client
to hear the reason. Does not belong here: what the reason is (localproxy.py), the words (`wire/<protocol>`).
"""

import asyncio
from collections.abc import Callable

from monoport.net.stream import Stream, linger
from monoport.wire.front import Cancel, Explaining, Front, Login, Secured, Send, Step, Why

PATIENCE = 3.0  # seconds for a client to say who it is, and again to ask for something: the proxy's own for the latter
MAX_READ = 131_072  # bytes that such a client may send in all: twice the longest opening there is
READ = 4096  # bytes of one read


async def tell(client: Stream, front: Front, reason: str) -> None:
    """Send a client the reason once it has opened its protocol, and let it read that; the caller closes.

    Args:
        client: its connection, of which nothing was read yet.
        front: a new one, of its protocol.
        reason: one line for people.

    Raises:
        ConnectionError: the client broke off.
    """
    bounded = _Bounded(client)
    last = await bounded.drive(front.begin(Secured.CERTIFIED), front.receive)
    if isinstance(last, Cancel):
        return  # nobody reads an answer to that
    client.send(front.refuse(Why.OFFLINE, reason))
    if isinstance(last, Login) and isinstance(front, Explaining):
        await bounded.drive(None, front.explain)
    linger(client)
    await client.wait_closed()


class _Bounded:
    """One client that is not going to be joined, and how much it has said."""

    def __init__(self, client: Stream) -> None:
        self._client = client
        self._left = MAX_READ

    async def drive(self, step: Step | None, receive: Callable[[bytes], Step | None]) -> Step | None:
        """Go on with the client until a step that ends it; None if it left, said too much, or was silent too long."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._drive(step, receive)
        except TimeoutError:
            return None

    async def _drive(self, step: Step | None, receive: Callable[[bytes], Step | None]) -> Step | None:
        while True:
            if step is None:
                data = await self._client.read(READ)
                self._left -= len(data)
                if not data or self._left < 0:
                    return None
                step = receive(data)
            elif isinstance(step, Send):
                await self._client.write(step.data)
                step = receive(b"")
            else:
                return step
