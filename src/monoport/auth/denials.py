"""What the audit log hears of a request that a rule refused.

Belongs here: the event `auth.deny`, and how many of them one caller can make. What is refused, the operations say, by
the rule that stands in their refusal; the caller is told what, and never the rule.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import structlog

from monoport.access.identity import Identity, Kind
from monoport.auth.refusals import Refusal
from monoport.errors import Failure

EVENTS = 50.0  # denials of one caller in a row that each get an event: a script that tries every database
REFILL = 1 / 60  # and per second: a locked agent asks again for days; those between are counted in the next event
CALLERS = 4096  # callers remembered; the one refused longest ago is forgotten first

_log = structlog.get_logger()


class Record(Protocol):
    """Keeps an audit event; `Service.record` is one."""

    def __call__(self, event_type: str, **fields: object) -> Awaitable[None]: ...


@dataclass(slots=True)
class _Caller:
    left: float
    at: float
    unrecorded: int = 0  # denials since the last event


class Denials:
    """Notes refusals by a rule, in the log all of them, in the audit log as many as its bounds allow.

    Args:
        record: keeps an event; one that ends in .deny does not fail while the audit log cannot be written.
        clock: monotonic seconds.
    """

    def __init__(self, record: Record, clock: Callable[[], float] = time.monotonic) -> None:
        self._record, self._clock = record, clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    async def note(self, caller: Identity, operation: str, denial: Refusal, asked: Mapping[str, object]) -> None:
        """Note that `caller` was refused `operation`, unless its refusal names no rule; never raises.

        Args:
            asked: what the request's path says. What the refusal itself is about counts more.
        """
        if not denial.rule:
            return
        who: dict[str, object] = {"user" if caller.kind is Kind.USER else "host_id": str(caller)}
        if caller.login_ip:
            who["login_ip"] = caller.login_ip
        fields = {**who, "operation": operation, **asked, **denial.about, "reason": str(denial), "rule": denial.rule}
        _log.info("refused", **fields)
        if denial.recorded:
            return
        denials = self._to_record(f"{caller.kind}:{caller}")
        if denials:
            try:
                await self._record("auth.deny", **fields, denials=denials)
            except Failure as error:
                _log.error("refusal not recorded", error=str(error))

    def _to_record(self, name: str) -> int:
        """How many denials of this caller an event should tell of now: 0 for none."""
        now = self._clock()
        caller = self._callers.setdefault(name, _Caller(EVENTS, now))
        self._callers.move_to_end(name)
        if len(self._callers) > CALLERS:
            self._callers.popitem(last=False)
        caller.unrecorded += 1
        caller.left, caller.at = min(EVENTS, caller.left + (now - caller.at) * REFILL), now
        if caller.left < 1:
            return 0
        caller.left -= 1
        denials, caller.unrecorded = caller.unrecorded, 0
        return denials
