"""The handler of reverse tunnels: an agent's stream goes to `monoport.tunnel`, which authenticates it.

Belongs here: joining a Connection to Tunnels. Not here: SSH, dialling.
"""

from __future__ import annotations

from monoport.proxy.connection import Connection
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
