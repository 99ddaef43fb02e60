"""The handlers of what agents open: reverse tunnels, and the dial-backs that were asked for over them.

Belongs here: joining a Connection to Tunnels. Not here: SSH, dialling.
"""

from __future__ import annotations

from monoport.proxy.connection import Connection, Refused
from monoport.routing.outcome import Refusal
from monoport.tunnel.dialback import Unexpected
from monoport.tunnel.proxy import Tunnels


class ReverseTunnels:
    """Serves connections that routing sent to the reverse tunnel.

    Args: the tunnels of this proxy.
    """

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels

    async def serve(self, connection: Connection) -> None:
        """Serve one agent's connection; it ends at the latest with the agent's certificate, or when it is locked."""
        await self._tunnels.serve(
            connection.stream, source=connection.source, connection=connection.id, identified=connection.identify
        )


class DialBacks:
    """Serves connections that routing sent to the dial-back that waits for their token.

    Args: the tunnels of this proxy.
    """

    def __init__(self, tunnels: Tunnels) -> None:
        self._tunnels = tunnels

    async def serve(self, connection: Connection) -> None:
        """Hand one agent's connection to whoever waits for it, and stay until it is over."""
        route, identity = connection.route, connection.identity
        assert route is not None
        assert identity is not None  # the route requires a host's certificate
        try:
            self._tunnels.dialled_back(route.target or "", identity, connection.stream)
        except Unexpected as error:
            raise Refused(Refusal("unexpected_dialback", str(error), rule=route.rule)) from error
        await connection.stream.wait_closed()
