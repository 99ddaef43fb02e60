"""Keeping one database login good for as long as a local proxy uses it.

Belongs here: when to renew, what is said when that fails, and noticing that the user has logged in anew or out.
Does not belong here: how a certificate is got (databases.py), connections (localproxy.py).
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from monoport.client import databases
from monoport.client.profile import Home, Profile
from monoport.errors import Failure

LOOK = 15.0  # seconds between looks at the login's files: how soon a new `tsh login` is noticed
LEAD = timedelta(minutes=5)  # before its end a certificate is renewed; a third of its life if that is less
RETRY = (15.0, 300.0)  # seconds until a renewal that failed is tried again: the first time, and at most
SLACK = timedelta(seconds=30)  # a certificate that would last so little longer is not worth asking for


def _utc() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True)
class Keeper:
    """Renews one login in place; connections that are running go on with the certificate that they began with.

    Args:
        home, profile: the user's login. login: to a database.
        adopt: called with the profile when the user has logged in anew.
        report: called with one line when something is wrong, and when it is right again.
        now, sleep: UTC, and pausing.
    """

    home: Home
    profile: Profile
    login: databases.Login
    adopt: Callable[[Profile], None]
    report: Callable[[str], None]
    now: Callable[[], datetime] = _utc
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _lead: timedelta = field(init=False)
    _stamp: int = 0
    _pause: float = 0.0  # until the next try after a failure, 0 when the last one worked
    _again: datetime | None = None
    _told: datetime | None = None  # the end of the login that the user has been told of

    def __post_init__(self) -> None:
        self._measure()
        self._stamp = self._stamped()

    async def run(self) -> None:
        """Looks after the login until cancelled.

        Raises:
            Failure: the user has logged out.
        """
        while True:
            await self.sleep(LOOK)
            await self.look()

    def check(self) -> None:
        """Raises Failure if a connection that begins now has no certificate that is good."""
        if self.login.expires <= self.now():
            self._read_again()
        if self.login.expires <= self.now():
            raise Failure(f"your certificate for database {self._name} has expired, {self.profile.login_again()}")

    async def look(self) -> None:
        """Does what is due now.

        Raises:
            Failure: the user has logged out.
        """
        renewed = self._notice_login()
        self._read_again()
        now = self.now()
        due = self.login.expires - now <= self._lead or (renewed and self._longer())
        if not due or (self._again is not None and now < self._again and not renewed):
            return
        if not self._longer():
            self._tell_of_the_end()
            return
        try:
            self.login = await databases.reissue(self.home, self.profile, self.login)
        except Failure as error:
            self._failed(error)
            return
        self._measure()
        self._stamp = self._stamped()
        self._again = None
        if self._pause:
            self._pause = 0.0
            self.report(f"the certificate for database {self._name} is renewed, until {_clock(self.login.expires)}")

    @property
    def _name(self) -> str:
        return self.login.destination.name

    def _longer(self) -> bool:
        """Whether a new certificate would last longer: none outlives the login."""
        return self.profile.expires - self.login.expires > SLACK

    def _measure(self) -> None:
        self._lead = min(LEAD, (self.login.expires - self.now()) / 3)

    def _notice_login(self) -> bool:
        """Whether the same user has logged in anew since the last look."""
        found = self.home.load(self.profile.proxy.host)
        if found is None:
            raise Failure(f"you have logged out of {self.profile.cluster}")
        if found == self.profile or (found.user, found.cluster) != (self.profile.user, self.profile.cluster):
            return False
        self.profile = found
        self.adopt(found)
        return True

    def _read_again(self) -> None:
        """Takes what `tsh login` or `tsh db login` has written meanwhile."""
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        found = databases.read_login(self.profile, self.login.credentials)
        if found is not None and found.destination.name == self._name:
            self.login = found
            self._measure()

    def _stamped(self) -> int:
        path = self.login.credentials.certificate
        try:
            return path.stat().st_mtime_ns
        except FileNotFoundError:
            raise Failure(f"you have logged out of database {self._name}") from None

    def _tell_of_the_end(self) -> None:
        if self._told != self.profile.expires:
            self._told = self.profile.expires
            self.report(
                f"your login ends at {_clock(self.profile.expires)}; to go on here, {self.profile.login_again()}"
            )

    def _failed(self, error: Failure) -> None:
        least, most = RETRY
        self._pause = min(most, self._pause * 2 or least)
        self._again = self.now() + timedelta(seconds=self._pause)
        until = _clock(self.login.expires)
        self.report(
            f"the certificate for database {self._name} was not renewed: {error}; "
            f"it is good until {until}, next try in {self._pause:.0f} s"
        )


def _clock(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%H:%M:%S} UTC"
