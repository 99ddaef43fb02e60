"""An SSH client over any stream, authenticated by a user's certificate.

Belongs here: signing in, and the channel to a node. Does not belong here: how the stream got to where it leads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncssh

from monoport.net.stream import Stream
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.link import ClientLink, calling

from .cluster import PUBLIC, User


@asynccontextmanager
async def signed_in(stream: Stream, user: User, *, login: str = "-", host: str = PUBLIC) -> AsyncIterator[ClientLink]:
    """SSH on `stream`, as `ssh -o 'StrictHostKeyChecking yes' login@host` with the cluster's host CA in known_hosts."""
    key = asyncssh.import_private_key(user.key.private)
    certificate = asyncssh.import_certificate(user.certificates.ssh_certificate)
    trusted = [asyncssh.import_public_key(line) for line in user.certificates.cas.ssh_host]
    options = asyncssh.SSHClientConnectionOptions(
        config=None,
        host=host,
        username=login,
        client_keys=[(key, certificate)],
        known_hosts=([], trusted, []),
        agent_path=None,
    )
    async with calling(stream, options, ClientLink, (host, 22)) as link:
        yield link


async def channel(link: ClientLink, node: str) -> Stream:
    """What `ssh -W node:22 proxy` opens; raises asyncssh.ChannelOpenError."""
    session = ChannelSession()
    await link.create_connection(lambda: session, node, 22, encoding=None)
    return session.stream
