"""Dial-backs as the proxy sees them: data connections that an agent opens because the tunnel asked for them.

Belongs here: the tokens that are out, connections dialled ahead, and waiting for one. Not here: what is said on them
(`tunnel.dial`), the agent's side (`tunnel.agent`).

An order is a token, sent over one channel of the tunnel; the agent comes back with it in its SNI. A token stands for no
request in particular: whoever waits takes the next connection that arrives, so that a few can be dialled ahead and a
request need not wait for TCP and TLS. Where an agent does not come, the tunnel's channels serve instead.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable

import structlog

from monoport.net.stream import EndOfStream, Stream
from monoport.tunnel import dial
from monoport.wire.frame import FrameError

TOKEN_SECONDS = 10.0  # a token is good for this long, once
WAIT_SECONDS = 3.0  # for an agent to come; then a channel of the tunnel serves
FIRST_REST, LAST_REST = 2.0, 300.0  # seconds that an agent who did not come is not waited for, doubled each time
SPARES = 2  # connections dialled ahead of the next requests, while there are requests
SPARE_SECONDS = 60.0  # that they are kept after the last request
MAX_ORDERS = 256  # tokens of one tunnel that may be out at once

_log = structlog.get_logger()


class Unexpected(Exception):
    """A dial-back that nobody waits for; the text says why, and names no token."""


class Tokens:
    """Every token of this proxy that is out: 128 random bits each, good once, for TOKEN_SECONDS, for one host."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._out: dict[str, tuple[Orders, float]] = {}  # in the order in which they expire

    def __len__(self) -> int:
        return len(self._out)

    def issue(self, orders: "Orders") -> str:
        """Return a new token for these orders."""
        now = self._clock()
        while self._out and (oldest := next(iter(self._out.items())))[1][1] <= now:
            del self._out[oldest[0]]
        token = secrets.token_hex(16)
        self._out[token] = (orders, now + TOKEN_SECONDS)
        return token

    def redeem(self, token: str, host_id: str) -> "Orders":
        """Return whose order a token is, which is then used up; raises Unexpected: unknown, late, or another host's."""
        orders, until = self._out.pop(token, (None, 0.0))
        if orders is None:
            raise Unexpected("no dial-back is awaited under this token")
        if self._clock() >= until:
            raise Unexpected(f"the dial-back came more than {TOKEN_SECONDS:g} s after it was asked for")
        if orders.host_id != host_id:
            raise Unexpected(f"a dial-back of {orders.host_id} was awaited, {host_id} came")
        return orders


class Orders:
    """What one tunnel's agent was asked to dial, and what has come of it.

    Args: the agent's host id, the proxy's tokens, and a clock in seconds.
    """

    def __init__(self, host_id: str, tokens: Tokens, clock: Callable[[], float]) -> None:
        self.host_id = host_id
        self._tokens, self._clock = tokens, clock
        self._control: Stream | None = None
        self._out: deque[float] = deque()  # when the tokens expire that nobody has come with yet
        self._waiting: deque[asyncio.Future[Stream | None]] = deque()
        self._unreported = 0  # orders that may have failed: an agent has no more to say than that
        self._spares: deque[Stream] = deque()
        self._not_before, self._rest = 0.0, FIRST_REST
        self._cooling: asyncio.TimerHandle | None = None

    async def serve(self, control: Stream) -> None:
        """Send orders over `control`, and take its reports of failures, until it ends; raises FrameError."""
        self._control, self._unreported = control, 0
        try:
            while True:
                reason = await dial.failure(control)
                self._unreported -= 1
                if self._unreported < 0:
                    raise FrameError("more failures than orders")
                _log.info("the agent cannot dial back", host=self.host_id, reason=reason)
                if self._out:
                    self._out.popleft()
                self._give_up()
        except EndOfStream:
            pass
        finally:
            self._control = None
            self._give_up()
            self._drop_spares()

    async def connection(self, wanted_by: str) -> Stream | None:
        """Return a connection on which the agent awaits a preface; None where it does not come: use a channel.

        Args: the id of the connection that needs it, for the log.
        """
        if self._control is None:
            return None
        self._cool_later()
        while self._spares:
            spare = self._spares.popleft()  # the oldest: none of them grows old
            if not spare.lost:
                self._order()
                return spare
        if self._clock() < self._not_before:
            return None
        arrival: asyncio.Future[Stream | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(arrival)
        self._order()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await arrival
        except TimeoutError:
            _log.info("no dial-back in time", connection=wanted_by, host=self.host_id, seconds=WAIT_SECONDS)
            self._give_up()
            return None
        except asyncio.CancelledError:
            if arrival.done() and not arrival.cancelled() and (stream := arrival.result()) is not None:
                self._spares.append(stream)
            raise

    def arrived(self, stream: Stream) -> None:
        """Take a connection that was dialled back."""
        if self._out:
            self._out.popleft()
        self._not_before, self._rest = 0.0, FIRST_REST
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(stream)
                return
        if self._control is None or len(self._spares) >= SPARES:
            stream.close()
        else:
            self._spares.append(stream)

    def _order(self) -> None:
        """Ask for as many as are waited for and as may stand ready."""
        now = self._clock()
        while self._out and self._out[0] <= now:
            self._out.popleft()
        if self._control is None or now < self._not_before:
            return
        wanted = min(len(self._waiting) + SPARES - len(self._spares), MAX_ORDERS) - len(self._out)
        for _ in range(wanted):
            dial.order(self._control, self._tokens.issue(self))
            self._out.append(now + TOKEN_SECONDS)
            self._unreported += 1

    def _give_up(self) -> None:
        """Nobody comes: those who wait take a channel, and so does everyone for a while."""
        self._not_before, self._rest = self._clock() + self._rest, min(self._rest * 2, LAST_REST)
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _cool_later(self) -> None:
        """Drop the spares when SPARE_SECONDS have passed without a request."""
        if self._cooling is not None:
            self._cooling.cancel()
        self._cooling = asyncio.get_running_loop().call_later(SPARE_SECONDS, self._drop_spares)

    def _drop_spares(self) -> None:
        if self._cooling is not None:
            self._cooling.cancel()
            self._cooling = None
        spares, self._spares = self._spares, deque()
        for spare in spares:
            spare.close()


__all__ = ["FrameError", "Orders", "Tokens", "Unexpected"]
