"""The keys by which clients cancel what runs on another connection, as this proxy gave them out.

Belongs here: making, finding and forgetting keys, the limit on guessing them and on recording guesses. What a cancel
does is the agent's business. A key that is not known and a guess too many are the same to the one who sent it:
silence.
"""

import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from monoport.access.decide import Permit

GUESSES = 20.0  # unknown keys that one source may send at once: a program that cancels what has just ended
REFILL = 2.0  # and per second; 2**63 keys then outlast the sun
EVENTS = 50.0  # wrong keys in a row that each get an audit event: strangers can send them, and events are kept
EVENTS_REFILL = 1.0  # and per second, from all sources together; those between are counted in the next event
SOURCES = 4096  # sources remembered; the one heard of longest ago is forgotten first


@dataclass(frozen=True, slots=True)
class Key:
    """What a client must know to cancel: BackendKeyData's two fields."""

    process_id: int
    secret: bytes = field(repr=False)


@dataclass(slots=True)
class Live:
    """A session that may be cancelled once `permit`, what its own dial was allowed by, is there."""

    key: Key
    connection: str
    permit: Permit | None = None


class Cancels:
    """The live sessions of one proxy process by their cancel keys.

    Args:
        clock: monotonic seconds.
        random_bits, random_bytes: unguessable numbers and bytes.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        random_bits: Callable[[int], int] = secrets.randbits,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._clock = clock
        self._bits = random_bits
        self._bytes = random_bytes
        self._live: dict[int, Live] = {}
        self._guesses: OrderedDict[str, tuple[float, float]] = OrderedDict()  # source: (left, at)
        self._events = (EVENTS, clock())  # left, at
        self._unrecorded = 0  # wrong keys since the last event

    @contextmanager
    def open(self, connection: str) -> Iterator[Live]:
        """Hold a new key for one session while the body runs; it cancels nothing before `arm`."""
        process_id = 0
        while not process_id or process_id in self._live:
            process_id = self._bits(31)  # positive in clients that read a signed number
        live = Live(Key(process_id, b""), connection)
        self._live[process_id] = live
        try:
            yield live
        finally:
            del self._live[process_id]

    def arm(self, live: Live, secret_bytes: int) -> None:
        """Give a session's key a secret as long as its client can keep."""
        live.key = Key(live.key.process_id, self._bytes(secret_bytes))

    def find(self, process_id: int, secret: bytes, source: str) -> Live | None:
        """Return the session that this key cancels, or None; equal cost whether a number is known or not.

        A secret of four bytes also fits the first four of a longer one: that is what a client of protocol 3.2 was
        given where its server speaks only 3.0.
        """
        if not self._may_guess(source):
            return None
        live = self._live.get(process_id)
        held = live.key.secret if live is not None else b"\0" * len(secret)
        same = hmac.compare_digest(held[:4] if len(secret) == 4 else held, secret)
        if live is None or live.permit is None or not same:
            self._charge(source)
            return None
        return live

    def to_record(self) -> int:
        """Note a wrong key, and return how many an audit event should tell of now: 0 for none."""
        self._unrecorded += 1
        left, at = self._events
        left = min(EVENTS, left + (self._clock() - at) * EVENTS_REFILL)
        self._events = (left - 1 if left >= 1 else left, self._clock())
        if left < 1:
            return 0
        guesses, self._unrecorded = self._unrecorded, 0
        return guesses

    def _left(self, source: str) -> float:
        left, at = self._guesses.get(source, (GUESSES, self._clock()))
        return min(GUESSES, left + (self._clock() - at) * REFILL)

    def _may_guess(self, source: str) -> bool:
        return self._left(source) >= 1

    def _charge(self, source: str) -> None:
        self._guesses[source] = (self._left(source) - 1, self._clock())
        self._guesses.move_to_end(source)
        if len(self._guesses) > SOURCES:
            self._guesses.popitem(last=False)
