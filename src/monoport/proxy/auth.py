"""The auth service behind the one port: bytes passed through untouched.

Belongs here: dialling the cluster's own auth service and joining the two. Does not belong here: TLS and who may call;
both are between the client and the auth service. Other clusters' names are refused by routing.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from monoport.net.relay import relay
from monoport.net.stream import Stream
from monoport.proxy.connection import Connection
from monoport.wire import alert

DIAL_SECONDS = 10.0  # the auth service is beside us or one hop away; a client waits 15 s for TLS
IDLE_SECONDS = 600.0  # watches speak every 10 s and pooled connections are reused within minutes

_log = structlog.get_logger()


class AuthService:
    """Serves connections of Kind.AUTH.

    dial: opens a connection to the cluster's auth service, before TLS.
    """

    def __init__(self, dial: Callable[[], Awaitable[Stream]]) -> None:
        self._dial = dial

    async def serve(self, connection: Connection) -> None:
        """Join the client with the auth service until both have ended."""
        client = connection.stream
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                server = await self._dial()
        except (OSError, TimeoutError) as error:
            reason = str(error) or f"no connection in {DIAL_SECONDS:g} s"
            _log.error("auth service unreachable", connection=connection.id, error=reason)
            await client.write(alert.fatal(alert.INTERNAL_ERROR))
            client.close()
            return
        async with server:
            await relay(client, server, idle=IDLE_SECONDS, meter=connection.meter)
