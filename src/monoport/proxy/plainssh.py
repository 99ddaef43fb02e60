"""SSH without TLS, as old clients and agents speak it: who has come is known only when they have signed in.

Belongs here: letting users and agents sign in to one port. Not here: what either may do then. From the moment that
their certificate is proven they are served as if ALPN had said who comes: by `ssh`, or by `tunnel.proxy`.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace

import asyncssh

from monoport.proxy.connection import Connection
from monoport.proxy.ssh import SshProxy, UserLink, Users, attend
from monoport.routing.outcome import Kind
from monoport.tunnel import link
from monoport.tunnel.admission import AgentLink, AgentServer
from monoport.tunnel.proxy import Tunnels


class PlainSsh:
    """Serves connections that routing sent to SSH: users by the SSH proxy and, where there is no TLS, agents too.

    Users prove their certificate as a key (RFC 4252 section 7), agents theirs as a host (section 9); a certificate
    of the one kind is refused where the other is asked for.

    Args:
        users: the SSH proxy.
        agents: the tunnels of this proxy.
    """

    def __init__(self, users: SshProxy, agents: Tunnels) -> None:
        self._users, self._agents = users, agents

    async def serve(self, connection: Connection) -> None:
        """Serve one connection to its end."""
        if connection.route is not None and connection.route.tls is not None:
            await self._users.serve(connection)  # its ALPN name is that of users alone
            return
        source = connection.source
        options = self._users.options()
        options.trust_client_host = True  # as for agents behind TLS: the name in the certificate counts
        async with self._users.answering(connection) as user:
            either = _Either(user, self._agents.answering(connection.id, source))
            async with link.serving(connection.stream, options, _EitherLink, either, source) as made:
                if made.proven is not either.agent:
                    await attend(made, connection)
                    return
                connection.state = Kind.TUNNEL
                if connection.route is not None:
                    connection.route = replace(connection.route, kind=Kind.TUNNEL)
                identified = connection.identify
                await self._agents.hold(
                    made, either.agent, source=source, connection=connection.id, identified=identified
                )


class _Either(asyncssh.SSHServer):
    """Answers until somebody has signed in: both may try, and nothing else is asked for by then."""

    def __init__(self, user: Users, agent: AgentServer) -> None:
        self.user, self.agent = user, agent

    def public_key_auth_supported(self) -> bool:
        return True

    def host_based_auth_supported(self) -> bool:
        return True


class _EitherLink(UserLink, AgentLink):
    """A connection that belongs to `_Either` until a certificate is proven, then to the user's or the agent's server.

    Each try is made as on a connection of that kind alone. asyncssh asks the owner alone what may be opened, so that
    what is left after the login is what there would be behind TLS.
    """

    proven: asyncssh.SSHServer | None = None

    async def validate_public_key(self, username: str, key_data: bytes, msg: bytes, signature: bytes) -> bool:
        either = self.get_owner()
        if not isinstance(either, _Either):
            return False
        trying = super().validate_public_key(username, key_data, msg, signature)
        return await self._tried(either, either.user, trying, asked=not msg)

    async def validate_host_based_auth(  # noqa: PLR0917  (asyncssh's own signature)
        self, username: str, key_data: bytes, client_host: str, client_username: str, msg: bytes, signature: bytes
    ) -> bool:
        either = self.get_owner()
        if not isinstance(either, _Either):
            return False
        trying = super().validate_host_based_auth(username, key_data, client_host, client_username, msg, signature)
        return await self._tried(either, either.agent, trying, asked=False)

    async def _tried(self, either: _Either, owner: asyncssh.SSHServer, trying: Awaitable[bool], *, asked: bool) -> bool:
        """Whether a try succeeds, made as `owner`, whose the connection is if it does; `asked`: whether it would."""
        self._owner = owner
        held = False
        try:
            held = await trying
        finally:
            if held and not asked:
                self.proven = owner
            else:
                self._owner = either
        return held
