"""What a login changes outside TSH_HOME so that a plain `ssh` works: the running agent, one line of known_hosts.

Belongs here: the agent, and both together. Does not belong here: `tsh config` (sshconfig.py), connections.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import assert_never

import asyncssh

from monoport.client.knownhosts import MARK, forget_hosts, trust_hosts, user_known_hosts
from monoport.client.profile import Home, Profile
from monoport.client.vouching import Verdict, verdict
from monoport.errors import Failure

AGENT_TIMEOUT = 5.0  # seconds; an agent that asks its user for confirmation does so on use, not when a key is added


async def set_up(home: Home, profile: Profile, environment: Mapping[str, str], tell: Callable[[str], None]) -> bool:
    """Makes plain `ssh` work: the cluster's CA in the user's known_hosts, key and certificate in the running agent.

    Args:
        home, profile: the login.
        environment: for `~` and the agent.
        tell: called with one line where ssh's trust in the CA is not what the proxy's name alone implies.

    Returns:
        False if no agent is running, so that only known_hosts was changed.

    Raises:
        Failure: an agent is running and refuses.
    """
    _trust(home, profile, environment, tell)
    return await add_to_agent(home, profile, environment)


def _trust(home: Home, profile: Profile, environment: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """Puts the CA into known_hosts where something vouches for it, else removes what an earlier login put there."""
    cluster, proxy = profile.cluster, profile.proxy.host
    path = user_known_hosts(environment)
    otherwise = "`tsh ssh` works, plain ssh needs the output of `tsh config`"
    match verdict(profile):
        case Verdict.RELATED:
            trust_hosts(home, path, profile)
        case Verdict.PINNED:
            trust_hosts(home, path, profile)
            tell(f"ssh now trusts the CA of {cluster} for all *.{cluster}: --no-ssh-setup leaves {path} alone")
        case Verdict.UNVERIFIED:
            _distrust(home, profile, environment)
            tell(f"with --insecure nothing vouches for {cluster}: its CA was not put into {path}; {otherwise}")
        case Verdict.UNRELATED:
            _distrust(home, profile, environment)
            tell(f"no --ca-pin vouches for {cluster} at {proxy}: its CA was not put into {path}; {otherwise}")
        case Verdict.BROAD:
            _distrust(home, profile, environment)
            tell(f"{cluster} is too broad a name: its CA was not put into {path}; {otherwise}")
        case other:
            assert_never(other)


def _distrust(home: Home, profile: Profile, environment: Mapping[str, str]) -> None:
    """Removes the cluster's line unless another profile vouches for it."""
    others = (each for each in home.profiles() if each.proxy.host != profile.proxy.host)
    same = (verdict(each) for each in others if each.cluster == profile.cluster)
    if not any(each in {Verdict.RELATED, Verdict.PINNED} for each in same):
        forget_hosts(home, user_known_hosts(environment), profile.cluster)


async def tear_down(home: Home, profile: Profile, environment: Mapping[str, str]) -> None:
    """Removes from both what `set_up` added; known_hosts keeps the line while another profile needs it."""
    _distrust(home, profile, environment)
    await remove_from_agent(home, profile, environment)


async def add_to_agent(home: Home, profile: Profile, environment: Mapping[str, str]) -> bool:
    """Adds key and certificate to the running ssh-agent, for as long as the certificate lasts.

    Returns:
        False if no agent is running.

    Raises:
        Failure: an agent is running and refuses.
    """
    paths = home.keys(profile)
    pair = asyncssh.load_keypairs([(str(paths.key), str(paths.ssh_certificate))])[0]
    pair.set_comment(_comment(profile))
    lifetime = int(profile.left(datetime.now(UTC)))

    async def change(agent: asyncssh.SSHAgentClient) -> None:
        await _drop(agent, profile)
        await agent.add_keys([pair], lifetime=max(1, lifetime))

    return await _with_agent(environment, change)


async def remove_from_agent(home: Home, profile: Profile, environment: Mapping[str, str]) -> bool:
    """Removes what this login added to the running ssh-agent; returns False if no agent is running."""
    path = home.keys(profile).ssh_certificate
    ours = asyncssh.read_certificate(path).public_data if path.is_file() else None

    async def change(agent: asyncssh.SSHAgentClient) -> None:
        await _drop(agent, profile, ours)

    return await _with_agent(environment, change)


async def _with_agent(
    environment: Mapping[str, str], change: Callable[[asyncssh.SSHAgentClient], Awaitable[None]]
) -> bool:
    path = environment.get("SSH_AUTH_SOCK")
    if not path:
        return False
    agent = asyncssh.SSHAgentClient(path)
    try:
        async with asyncio.timeout(AGENT_TIMEOUT), agent:
            try:
                await agent.connect()
            except OSError:
                return False  # a variable left over from an agent that is gone
            await change(agent)
    except TimeoutError:
        raise Failure(f"the ssh-agent at {path} did not answer within {AGENT_TIMEOUT:g} s") from None
    except ValueError as error:
        raise Failure(f"the ssh-agent at {path} refused: {error}") from None
    return True


async def _drop(agent: asyncssh.SSHAgentClient, profile: Profile, certificate: bytes | None = None) -> None:
    """Removes what is marked as this user's; where a certificate is given, only that one."""
    marked = [key for key in await agent.get_keys() if key.get_comment() == _comment(profile)]
    ours = [key for key in marked if certificate in (None, key.public_data)]
    if ours:
        await agent.remove_keys(ours)


def _comment(profile: Profile) -> str:
    return f"{MARK}{profile.user}@{profile.cluster}"
