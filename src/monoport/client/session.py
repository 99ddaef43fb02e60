"""A login from beginning to end, as `tsh login`, `logout` and `status` mean it.

Belongs here: defaults, and everything around the login itself. Does not belong here: the login (login.py), printing.
"""

import getpass
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from monoport.access.duration import parse_duration
from monoport.auth.authorities import pin
from monoport.auth.messages import MAX_TTL
from monoport.client import databases, files, putty, sshsetup
from monoport.client.busy import Busy, quiet
from monoport.client.login import Request, Warn, login
from monoport.client.names import Address
from monoport.client.profile import Home, Profile
from monoport.errors import Failure


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user typed; None or empty where nothing."""

    proxy: str | None
    user: str | None
    ca_pin: str = ""
    insecure: bool = False
    ttl: str | None = None
    ssh_setup: bool = True


async def sign_in(
    home: Home,
    wanted: Wanted,
    password: Callable[[], str],
    warn: Warn,
    *,
    environment: Mapping[str, str] = os.environ,
    busy: Busy = quiet,
) -> Profile:
    """Logs in, renews what earlier logins at this proxy left, and sets plain ssh up unless told not to.

    Args:
        home: where to write.
        wanted: as typed; what is missing comes from the profile.
        password: called once, when the server has been verified.
        warn: called with one line for each thing that the user should know.
        environment: for `~` and the agent.
        busy: announces what takes a while.

    Raises:
        Failure: not logged in, and nothing was changed.
    """
    files.check_writable(home.path)
    known = _known(home, wanted.proxy)
    if wanted.proxy is not None:
        address = Address.parse(wanted.proxy)
    elif known is not None:
        address = known.proxy
    else:
        raise Failure("where? tsh login --proxy=HOST:PORT --user=NAME")
    user = wanted.user or (known.user if known else getpass.getuser())
    request = Request(address, user, wanted.ca_pin, wanted.insecure, _seconds(wanted.ttl))
    profile = await login(home, request, password, warn, busy)
    try:
        with busy("renewing your database logins"):
            await databases.renew(home, profile, warn)
    except Failure as error:
        warn(f"your database logins were not renewed: {error}")
    putty.renew(home, profile, environment)
    if wanted.ssh_setup:
        await _ssh_setup(home, profile, warn, environment)
    return profile


def _known(home: Home, proxy: str | None) -> Profile | None:
    host = Address.parse(proxy).host if proxy is not None else home.current()
    return home.load(host) if host else None


def _seconds(ttl: str | None) -> int:
    if ttl is None:
        return 0
    try:
        seconds = max(1, int(parse_duration(ttl).total_seconds()))
    except ValueError as error:
        raise Failure(f"--ttl {ttl}: {error}") from None
    if seconds > MAX_TTL:
        raise Failure(f"--ttl {ttl}: expected at most {MAX_TTL // 3600}h, and your roles set the real limit")
    return seconds


async def _ssh_setup(home: Home, profile: Profile, warn: Warn, environment: Mapping[str, str]) -> None:
    try:
        if not await sshsetup.set_up(home, profile, environment, warn):
            warn("no ssh-agent is running: `tsh ssh` works, plain ssh needs an agent or the output of `tsh config`")
    except (Failure, OSError) as error:
        warn(f"plain ssh is not set up: {error}")


async def sign_out(home: Home, profile: Profile, warn: Warn, environment: Mapping[str, str] = os.environ) -> None:
    """Removes the login's files, the agent's key and the known_hosts line."""
    try:
        await sshsetup.tear_down(home, profile, environment)
    except (Failure, OSError) as error:
        warn(f"what `tsh login` set up for plain ssh is still there: {error}")
    putty.tear_down(home, profile, environment)
    home.forget(profile)


def describe(home: Home, profile: Profile, now: datetime | None = None) -> dict[str, Any]:
    """A login as one row of `tsh status`."""
    at = now or datetime.now(UTC)
    return {
        "proxy": str(profile.proxy),
        "user": profile.user,
        "cluster": profile.cluster,
        "current": home.current() == profile.proxy.host,
        "expires": profile.expires,
        "expired": profile.left(at) <= 0,
        "roles": list(databases.identity(home, profile).roles),
        "logins": list(profile.logins),
        "databases": [each.destination.name for each in databases.logins(home, profile) if each.good(at)],
        "ca_pin": [pin(pem) for pem in profile.host_cas],
        "certificates": str(home.keys(profile).folder),
    }
