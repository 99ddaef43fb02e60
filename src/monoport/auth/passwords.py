"""Passwords: hashing, and guessing made slow and fruitless.

Belongs here: argon2id, the limit on how many verifications run at once, and the lock after failures, which a restart
does not lift. Who may log in and what they get, `users` and `service` decide. Known and unknown names go the same way,
through the same work, writes included.
"""

import asyncio
import hashlib
import json
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
from monoport.auth.storage.interface import NotFoundError, Storage
from monoport.errors import Failure

Result = TypeVar("Result")

PREFIX = "/failed-logins/"
MAX_FAILURES = 5  # then the account locks: room for typing errors, none for guessing
# From the last failure: guessing has at most 720 tries a day, fewer if it stops before the lock; short enough to wait.
LOCK_TIME = timedelta(minutes=10)
AT_ONCE = max(1, (os.cpu_count() or 1) // 2)  # verifications running, 64 MiB each: logins get half of the cores
MAX_WAITING = 64  # a few seconds of queue; whoever comes later is told at once
MIN_LENGTH = 8  # NIST SP 800-63B section 5.1.1.2
MAX_LENGTH = 1024  # octets; hashing cost must not depend on what a stranger sends
MAX_TRACKED = 10_000  # names whose failures are remembered; forgetting one costs an attacker 10 000 slow tries


@dataclass(slots=True)
class _Tries:
    failures: int = 0
    last: datetime | None = None  # failure
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Passwords:
    """Hashes and verifies passwords, a few at a time, and counts failures per name.

    Args:
        now: the time, aware, UTC.
        storage: where failures are kept, each until LOCK_TIME after the last of its name.
        hasher: argon2id with time and memory of RFC 9106 section 4 (second choice), on one core, if not given.
    """

    def __init__(self, now: Callable[[], datetime], storage: Storage, hasher: PasswordHasher | None = None) -> None:
        self._now = now
        self._storage = storage
        self._hasher = hasher or PasswordHasher(parallelism=1)
        self._dummy: str | None = None
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._tries: OrderedDict[str, _Tries] = OrderedDict()  # by key
        self._loaded = False
        self._loading = asyncio.Lock()
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
            key = _key(name)
            tries = await self._remember(key)
            async with tries.turn:  # one try at a time for a name, so that a burst cannot outrun the counter
                return await self._try(key, tries, password, stored)

    async def _try(self, key: str, tries: _Tries, password: str, stored: str | None) -> str | None:
        if tries.last is not None and self._now() >= tries.last + LOCK_TIME:
            tries.failures, tries.last = 0, None
        if tries.failures >= MAX_FAILURES:
            minutes = int(LOCK_TIME.total_seconds() // 60)
            raise LoginLocked(f"too many failed logins: this account is locked for up to {minutes} minutes")
        if not await self._verify(stored, password):
            tries.failures, tries.last = tries.failures + 1, self._now()
            kept = {"failures": tries.failures, "last": tries.last.isoformat()}
            await self._storage.put(key, json.dumps(kept).encode(), tries.last + LOCK_TIME)
            raise WrongPassword
        if tries.failures:
            tries.failures, tries.last = 0, None
            await self._drop(key)
        if stored is not None and self._hasher.check_needs_rehash(stored):
            return await self._work(lambda: self._hasher.hash(password))
        return None

    async def forgive(self, name: str) -> None:
        """Unlocks a name, as an administrator's reset does."""
        key = _key(name)
        self._tries.pop(key, None)
        await self._drop(key)

    async def _remember(self, key: str) -> _Tries:
        await self._load()
        tries = self._tries.setdefault(key, _Tries())
        self._tries.move_to_end(key)
        while len(self._tries) > MAX_TRACKED:
            oldest, forgotten = self._tries.popitem(last=False)
            if forgotten.failures:
                await self._drop(oldest)
        return tries

    async def _load(self) -> None:
        """Once, what was kept by the process before this one."""
        async with self._loading:
            if self._loaded:
                return
            kept = [(item.key, json.loads(item.value)) for item in await self._storage.range(PREFIX)]
            for key, value in sorted(kept, key=lambda one: str(one[1]["last"])):
                self._tries[key] = _Tries(value["failures"], datetime.fromisoformat(value["last"]))
            self._loaded = True

    async def _drop(self, key: str) -> None:
        try:
            await self._storage.delete(key)
        except NotFoundError:
            pass  # it has expired, or there was none

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


def _key(name: str) -> str:
    """Where failures of a name are kept: what a stranger calls himself need not be a key, nor short."""
    return PREFIX + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
