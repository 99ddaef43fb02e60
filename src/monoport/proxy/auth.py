"""The auth service behind the one port: bytes passed through untouched.

Belongs here: dialling the cluster's own auth service and joining the two. Does not belong here: TLS and who may call;
both are between the client and the auth service. Other clusters' names are refused by routing.
"""

import asyncio
from collections.abc import Awaitable, Callable

from monoport.errors import Failure
from monoport.net.relay import relay
from monoport.net.stream import Stream
from monoport.proxy.connection import Connection, Refused
from monoport.routing.outcome import Refusal
from monoport.wire import alert

DIAL_SECONDS = 10.0  # the auth service is beside us or one hop away; a client waits 15 s for TLS
IDLE_SECONDS = 600.0  # watches speak every 10 s and pooled connections are reused within minutes


class AuthService:
    """Serves connections of Kind.AUTH.

    dial: opens a connection to the cluster's auth service, before TLS.
    """

    def __init__(self, dial: Callable[[], Awaitable[Stream]]) -> None:
        self._dial = dial

    async def serve(self, connection: Connection) -> None:
        """Join the client with the auth service until both have ended; raises Refused when it cannot be reached."""
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                server = await self._dial()
        except (OSError, TimeoutError, Failure) as error:
            reason = f"auth service unreachable: {str(error) or f'no connection in {DIAL_SECONDS:g} s'}"
            raise Refused(Refusal("auth_unreachable", reason, alert.fatal(alert.INTERNAL_ERROR))) from error
        async with server:
            await relay(connection.stream, server, idle=IDLE_SECONDS, meter=connection.meter)
