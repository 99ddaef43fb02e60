"""The first exchange on a dialled stream: the proxy's preface, the agent's answer, bounded in bytes and time.

Belongs here: both sides of that exchange and of the orders for dial-backs, and their errors. Not here: opening the
stream, serving it.
A handler of `agent.Agent` reads the preface it is given, then either calls `accept` once and goes on with the
resource's bytes, or raises `DialRefused`, which the agent turns into the answer.
"""

import asyncio
import re

from monoport.errors import Failure
from monoport.net.stream import Stream
from monoport.tunnel.preface import (
    MAX_FIELD,
    Accepted,
    Answer,
    Preface,
    Refused,
    answer_object,
    preface_object,
    read_answer,
    read_preface,
)
from monoport.wire import frame
from monoport.wire.frame import FrameError

PREFACE_SECONDS = 10.0  # both ends are machines on an open tunnel; the agent may have to reach its resource first
TOKEN = re.compile("[0-9a-f]{32}")  # 128 random bits, as they stand in an SNI
NOT_SERVED = "not_served"  # the agent does not have this resource: another tunnel of the host may
UNAVAILABLE = "unavailable"  # it has, but cannot reach it just now
DENIED = "denied"  # the agent's own decision; asking elsewhere would be asking twice


class DialError(Failure):
    """The resource was not reached; the text is one line for the user, `code` is for machines."""

    def __init__(self, text: str, code: str = UNAVAILABLE) -> None:
        super().__init__(text)
        self.code = code


class DialRefused(Failure):
    """Raised by an agent's handler before it accepts: the text travels to the proxy and on to the user."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


async def ask(stream: Stream, preface: Preface, seconds: float = PREFACE_SECONDS) -> Answer:
    """Send `preface` and return the agent's answer.

    Raises FrameError for an answer that is none, TimeoutError after `seconds`, ConnectionError.
    """
    async with asyncio.timeout(seconds):
        await stream.write(frame.encode(preface_object(preface)))
        return read_answer(await _object(stream))


async def receive(stream: Stream, seconds: float = PREFACE_SECONDS) -> Preface:
    """Return the preface that the proxy sends first; raises FrameError, TimeoutError, ConnectionError."""
    async with asyncio.timeout(seconds):
        return read_preface(await _object(stream))


async def accept(stream: Stream) -> None:
    """Tell the proxy that the resource's bytes follow."""
    await stream.write(frame.encode(answer_object(Accepted())))


async def refuse(stream: Stream, code: str, reason: str) -> None:
    """Tell the proxy that nothing follows, and why."""
    await stream.write(frame.encode(answer_object(Refused(code, reason))))


def order(control: Stream, token: str) -> None:
    """Ask the agent, over the channel of orders, for a dial-back under `token`."""
    control.send(frame.encode({"dial": token}))


async def ordered(control: Stream) -> str:
    """Return the token of the next order; raises FrameError, ConnectionError (EndOfStream when there is no more)."""
    token = (await _object(control)).get("dial")
    if not isinstance(token, str) or not TOKEN.fullmatch(token):
        raise FrameError("an order is one token of 32 hexadecimal digits")
    return token


def failed(control: Stream, reason: str) -> None:
    """Tell the proxy that an order cannot be met."""
    control.send(frame.encode({"failed": reason[:MAX_FIELD]}))


async def failure(control: Stream) -> str:
    """Return why the next order failed that did; raises as `ordered`."""
    reason = (await _object(control)).get("failed")
    if not isinstance(reason, str) or len(reason) > MAX_FIELD:
        raise FrameError("a failed order has a reason")
    return reason


async def _object(stream: Stream) -> dict[str, object]:
    length = frame.size(await stream.read_exactly(frame.HEADER))
    return frame.body(await stream.read_exactly(length))


__all__ = [
    "DENIED",
    "NOT_SERVED",
    "UNAVAILABLE",
    "DialError",
    "DialRefused",
    "FrameError",
    "accept",
    "ask",
    "failed",
    "failure",
    "order",
    "ordered",
    "receive",
    "refuse",
]
