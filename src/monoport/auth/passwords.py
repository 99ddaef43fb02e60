"""Passwords: hashing, and guessing made slow and fruitless.

Belongs here: argon2id, the limit on how many verifications run at once, and the lock after failures. Who may log in and
what they get, `users` and `service` decide. Known and unknown names go the same way, through the same work.
"""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from monoport.auth.refusals import Invalid, LoginLocked, TooBusy, WrongPassword
from monoport.errors import Failure

Result = TypeVar("Result")

MAX_FAILURES = 5  # then the account locks (issue 2)
LOCK_TIME = timedelta(minutes=10)  # slows guessing to 720 tries a day; short enough to wait out
AT_ONCE = max(1, (os.cpu_count() or 1) // 2)  # verifications running, 64 MiB each: logins get half of the cores
MAX_WAITING = 64  # a few seconds of queue; whoever comes later is told at once
MIN_LENGTH = 8  # NIST SP 800-63B section 5.1.1.2
MAX_LENGTH = 1024  # octets; hashing cost must not depend on what a stranger sends
MAX_TRACKED = 10_000  # names whose failures are remembered; forgetting one costs an attacker 10 000 slow tries


@dataclass(slots=True)
class _Tries:
    failures: int = 0
    locked_until: datetime | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Passwords:
    """Hashes and verifies passwords, a few at a time, and counts failures per name.

    Args:
        now: the time, aware, UTC.
        hasher: argon2id with time and memory of RFC 9106 section 4 (second choice), on one core, if not given.
    """

    def __init__(self, now: Callable[[], datetime], hasher: PasswordHasher | None = None) -> None:
        self._now = now
        self._hasher = hasher or PasswordHasher(parallelism=1)
        self._dummy: str | None = None
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._tries: OrderedDict[str, _Tries] = OrderedDict()
        self.verifications = 0

    async def hash(self, password: str) -> str:
        """The PHC string of a new password; raises Invalid if it is too short or too long."""
        if len(password) < MIN_LENGTH:
            raise Invalid(f"the password is too short: {len(password)} characters, at least {MIN_LENGTH} are needed")
        if len(password.encode()) > MAX_LENGTH:
            raise Invalid(f"the password is too long: at most {MAX_LENGTH} octets")
        with self._queued():
            return await self._work(lambda: self._hasher.hash(password))

    async def check(self, name: str, password: str, stored: str | None) -> str | None:
        """Verifies a password in the same way whether or not the name exists.

        Args:
            name: what failures are counted under.
            password: as it came from the client.
            stored: the PHC string, None for an unknown user or one without a password.

        Returns:
            A new PHC string where the parameters have been raised since, else None.

        Raises:
            WrongPassword, LoginLocked, TooBusy.
        """
        with self._queued():  # before it is remembered: who is turned away here has not paid for a place in memory
            tries = self._remember(name)
            async with tries.turn:  # one try at a time for a name, so that a burst cannot outrun the counter
                return await self._try(tries, password, stored)

    async def _try(self, tries: _Tries, password: str, stored: str | None) -> str | None:
        if tries.locked_until is not None:
            if self._now() < tries.locked_until:
                minutes = int(LOCK_TIME.total_seconds() // 60)
                raise LoginLocked(f"too many failed logins: this account is locked for up to {minutes} minutes")
            tries.failures, tries.locked_until = 0, None
        if not await self._verify(stored, password):
            tries.failures += 1
            if tries.failures >= MAX_FAILURES:
                tries.locked_until = self._now() + LOCK_TIME
            raise WrongPassword
        tries.failures = 0
        if stored is not None and self._hasher.check_needs_rehash(stored):
            return await self._work(lambda: self._hasher.hash(password))
        return None

    def forgive(self, name: str) -> None:
        """Unlocks a name, as an administrator's reset does."""
        self._tries.pop(name, None)

    def _remember(self, name: str) -> _Tries:
        tries = self._tries.setdefault(name, _Tries())
        self._tries.move_to_end(name)
        while len(self._tries) > MAX_TRACKED:
            self._tries.popitem(last=False)
        return tries

    async def _verify(self, stored: str | None, password: str) -> bool:
        if self._dummy is None:
            self._dummy = await self._work(lambda: self._hasher.hash("no one has this password"))
        fits = len(password.encode(errors="replace")) <= MAX_LENGTH
        against, tried = stored or self._dummy, password if fits else ""
        self.verifications += 1

        def verify() -> bool:
            try:
                return self._hasher.verify(against, tried)
            except VerifyMismatchError:
                return False

        try:
            matches = await self._work(verify)
        except (InvalidHashError, VerificationError) as error:
            raise Failure("the stored password cannot be read: reset it with tctl users reset") from error
        return matches and stored is not None and fits

    async def _work(self, work: Callable[[], Result]) -> Result:
        async with self._slots:
            return await asyncio.to_thread(work)

    @contextmanager
    def _queued(self) -> Iterator[None]:
        if self._waiting >= MAX_WAITING:
            raise TooBusy("too many logins at once: try again in a few seconds")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
