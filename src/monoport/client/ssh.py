"""SSH through the proxy: one authenticated connection to its SSH side, and channels to nodes over it.

Belongs here: reaching a node, `tsh proxy ssh`. Does not belong here: the user's ssh program (openssh.py), the transport
(front.py). This is on the way of every ssh connection: nothing is imported that it does not need.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import asyncssh

from monoport.client.front import Front, origin
from monoport.client.names import Address
from monoport.client.profile import Profile, UserFiles
from monoport.client.stdio import StdioStream
from monoport.errors import Failure
from monoport.net.relay import relay
from monoport.tunnel.channel import ChannelSession, ChannelStream
from monoport.tunnel.link import AGENT_LOGIN, ALIVE, MISSED, TUNNEL_PACKET, WINDOW, ClientLink, algorithms, calling

FORM = (
    "tsh proxy ssh --user=LOGIN [--cluster=NAME] HOST[:PORT], "
    "as in: ssh -o 'ProxyCommand tsh proxy ssh --user=%r %h:%p' LOGIN@HOST"
)
SSH_PORT = 22  # what an SSH client means without a port; through the tunnel the node's own port is used anyway
OPEN_TIMEOUT = 30.0  # seconds for a channel: the proxy's dial through a tunnel has its own, shorter limit


@dataclass(frozen=True, slots=True)
class Target:
    """A node, a port, and the login that is wanted there."""

    host: str
    port: int
    login: str

    @classmethod
    def parse(cls, text: str, login: str) -> Self:
        """Reads `HOST:PORT` or `HOST`, as %h:%p of an ssh client.

        Raises:
            Failure: it is neither; the error shows the right form.
        """
        try:
            address = Address.parse(text, SSH_PORT, "node")
        except Failure as error:
            raise Failure(f"{error}: {FORM}") from None
        return cls(address.host, address.port, login)


def own_cluster(profile: Profile, cluster: str) -> None:
    """Raises Failure where `--cluster` names another cluster than the profile's: leaf clusters are not served yet."""
    if cluster and cluster != profile.cluster:
        raise Failure(f"cluster {cluster!r} cannot be reached through {profile.proxy}: only its own, {profile.cluster}")


@asynccontextmanager
async def proxy_link(front: Front, paths: UserFiles, login: str) -> AsyncIterator[ClientLink]:
    """An SSH connection to the proxy, authenticated by the user's certificate, its host certificate verified.

    Raises:
        Failure: not reached, not trusted, or refused.
    """
    profile = front.profile
    profile.check()
    options = client_options(profile, paths, login, profile.server_name)
    stream = await front.dial_ssh()
    peer = (profile.proxy.host, profile.proxy.port)
    try:
        async with calling(stream, options, ClientLink, peer) as link:
            link.set_extra_info(origin=origin(stream))
            yield link
    except asyncssh.PermissionDenied:
        raise Failure(f"{profile.proxy} refused your certificate, {profile.login_again()}") from None
    except asyncssh.HostKeyNotVerifiable as error:
        raise Failure(f"the SSH host certificate of {profile.proxy} does not verify: {error.reason}") from None
    except asyncssh.DisconnectError as error:
        raise Failure(f"{profile.proxy} ended the SSH connection: {error.reason}") from None
    except asyncssh.ChannelOpenError as error:
        raise Failure(error.reason) from None


def client_options(profile: Profile, paths: UserFiles, login: str, host: str) -> Any:
    """Of an SSH client that proves the user's certificate and verifies a host's for the name `host`.

    Raises:
        Failure: the login's files cannot be used.
    """
    try:
        pair = (str(paths.key), str(paths.ssh_certificate))
        trusted = [asyncssh.import_public_key(line) for line in profile.ssh_host_cas]
        return asyncssh.SSHClientConnectionOptions(
            host=host,
            port=profile.proxy.port,
            username=login or profile.user,
            client_keys=[pair],
            client_host_keysign=False,
            known_hosts=([], trusted, []),
            config=None,
            agent_path=None,
            gss_host=None,
            preferred_auth="publickey",
            login_timeout=AGENT_LOGIN,
            keepalive_interval=ALIVE,
            keepalive_count_max=MISSED,
            client_version="tsh",
            **algorithms(),
        )
    except (OSError, asyncssh.KeyImportError, ValueError) as error:
        raise Failure(f"your key or certificate cannot be used ({error}), {profile.login_again()}") from None


async def open_node(link: ClientLink, target: Target) -> ChannelStream:
    """A channel to the node, over which its own SSH is spoken end to end.

    Raises:
        Failure: refused, unknown, or down; the proxy's reason in one line.
    """
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            session = ChannelSession()
            await link.create_connection(
                lambda: session, target.host, target.port, window=WINDOW, max_pktsize=TUNNEL_PACKET
            )
            return session.stream
    except asyncssh.ChannelOpenError as error:
        named = target.host in error.reason
        raise Failure(error.reason if named else f"{target.host}: {error.reason}") from None
    except TimeoutError:
        raise Failure(f"{target.host}: no answer within {OPEN_TIMEOUT:g} s") from None


async def proxy_ssh(front: Front, paths: UserFiles, target: Target) -> None:
    """`tsh proxy ssh`: joins the node's channel to standard input and output, until either end has gone.

    Raises:
        Failure: the node cannot be reached.
    """
    async with (
        proxy_link(front, paths, target.login) as link,
        await open_node(link, target) as node,
        StdioStream() as local,
    ):
        await relay(local, node)
