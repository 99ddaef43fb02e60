"""The agent's end of a reverse tunnel: dial out, prove who we are, serve what the proxy dials, come back when cut.

Belongs here: the tunnel's life. Not here: the resources behind it (a handler serves each stream).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncssh
import structlog

from monoport.access.identity import ClusterCas
from monoport.errors import Failure
from monoport.net.stream import EndOfStream, Stream
from monoport.routing.names import DIAL
from monoport.tunnel import dial, link
from monoport.tunnel.admission import LISTENER
from monoport.tunnel.channel import ChannelSession
from monoport.tunnel.dial import DialRefused, FrameError
from monoport.tunnel.preface import Kind as Wanted
from monoport.tunnel.preface import Preface
from monoport.tunnel.proxy import CHANNELS, MISSED, keepalive
from monoport.tunnel.reach import Proxy, ProxyClient, ProxyLink, dial_tls

FIRST_DELAY = 0.5  # seconds: the first pause is drawn from 0 to this
LAST_DELAY = 5.0  # seconds: with a proxy that restarts in a few, agents are back within 15
SPARE_SECONDS = 300.0  # that a connection dialled ahead may wait: the proxy drops spares long before
STEADY = 10.0  # seconds that a tunnel must have lasted for the pauses to start small again

Handler = Callable[[Preface, Stream], Awaitable[None]]

_log = structlog.get_logger()
_HOST_CERTIFICATES = ["ecdsa-sha2-nistp256-cert-v01@openssh.com", "ssh-ed25519-cert-v01@openssh.com"]


class Agent:
    """Holds one tunnel to a proxy open and serves what the proxy dials through it.

    Args:
        proxy: where to.
        host_id: who we are; the name in our host certificate.
        host: our key and host certificate, asked for on every connection since certificates are renewed.
        cas: the cluster's CAs, asked for likewise.
        handler: serves one dialled stream: calls `dial.accept`, or raises `DialRefused` before that.
        connect: opens the transport; TLS to the proxy's port by default.
        dial_back: opens a TLS connection to the proxy under this server name, showing our certificate; None: everything
            goes through the tunnel.
        sleep, rand, clock, now: pauses, jitter, seconds and UTC time, so that tests need neither patience nor luck.
    """

    def __init__(
        self,
        proxy: Proxy,
        host_id: str,
        host: Callable[[], link.HostKey],
        cas: Callable[[], ClusterCas],
        handler: Handler,
        *,
        connect: Callable[[], Awaitable[Stream]] | None = None,
        dial_back: Callable[[str], Awaitable[Stream]] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._proxy, self._host_id, self._host, self._cas, self._handler = proxy, host_id, host, cas, handler
        self._connect = connect or (lambda: dial_tls(proxy, cas()))
        self._dial_back = dial_back
        self._sleep, self._rand, self._clock, self._now = sleep, rand, clock, now
        self._channels = 0
        self.connected = asyncio.Event()  # set while the proxy can dial us

    async def run(self) -> None:
        """Keep the tunnel open until cancelled; every break is followed by a longer, fully jittered pause."""
        log = _log.bind(proxy=f"{self._proxy.host}:{self._proxy.port}", host=self._host_id)
        failures = 0
        async with asyncio.TaskGroup() as group:  # streams outlive their tunnel by what it takes to end a session
            while True:
                failures = 0 if await self._once(group, log) >= STEADY else failures + 1
                await self._sleep(self._rand() * min(LAST_DELAY, FIRST_DELAY * 2.0 ** min(failures, 8)))

    async def _once(self, group: asyncio.TaskGroup, log: structlog.typing.FilteringBoundLogger) -> float:
        """Return how many seconds a tunnel was open before it broke; 0 where none was."""
        began = self._clock()
        try:
            await self._tunnel(group, log)
            log.warning("tunnel closed by the proxy")
        except (Failure, asyncssh.Error, asyncssh.ChannelListenError, OSError, ValueError) as error:
            log.warning("tunnel lost", error=str(error) or type(error).__name__)
        finally:
            lasted = self._clock() - began if self.connected.is_set() else 0.0
            self.connected.clear()
        return lasted

    async def _tunnel(self, group: asyncio.TaskGroup, log: structlog.typing.FilteringBoundLogger) -> None:
        stream = await self._connect()
        owner = ProxyClient(self._cas(), self._proxy, self._now)
        peer = (self._proxy.host, self._proxy.port)
        async with link.calling(stream, self._options(owner), ProxyLink, peer) as made:

            def opened() -> ChannelSession:
                return self._opened(group, log)

            made.set_keepalive(keepalive(self._rand), MISSED)
            await made.create_unix_server(
                opened, LISTENER, encoding=None, window=link.WINDOW, max_pktsize=link.TUNNEL_PACKET
            )
            log.info("tunnel open")
            self.connected.set()
            await made.wait_closed()

    def _options(self, owner: ProxyClient) -> Any:
        return asyncssh.SSHClientConnectionOptions(
            client_factory=lambda: owner,
            config=None,
            host=self._proxy.host,
            port=self._proxy.port,
            username=self._host_id,
            known_hosts=([], [], []),  # no file's: `ProxyLink` decides
            server_host_key_algs=_HOST_CERTIFICATES,
            client_host_keysign=False,
            client_host_keys=[self._host().pair()],
            client_host=self._host_id,
            client_username=self._host_id,
            host_based_auth=True,
            public_key_auth=False,
            password_auth=False,
            kbdint_auth=False,
            client_keys=None,
            agent_path=None,
            gss_host=None,
            login_timeout=link.AGENT_LOGIN,
            client_version="monoport",
            **link.algorithms(),
        )

    def _opened(self, group: asyncio.TaskGroup, log: structlog.typing.FilteringBoundLogger) -> ChannelSession:
        if self._channels >= CHANNELS:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, f"more than {CHANNELS} connections")
        session = ChannelSession()
        self._channels += 1
        session.when_gone(self._one_less)
        group.create_task(self._serve(session, group, log))
        return session

    def _one_less(self) -> None:
        self._channels -= 1

    async def _serve(
        self, session: ChannelSession, group: asyncio.TaskGroup, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        try:
            async with asyncio.timeout(dial.PREFACE_SECONDS):
                await session.opened.wait()
        except TimeoutError:
            log.info("dialled stream ended", error="it was never opened")
            session.stream.abort()
            return
        await self._answer(session.stream, dial.PREFACE_SECONDS, group, log)

    async def _answer(
        self, stream: Stream, seconds: float, group: asyncio.TaskGroup, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        """Serve what the proxy asks for on `stream`, within `seconds`."""
        try:
            preface = await dial.receive(stream, seconds)
            log = log.bind(connection=preface.connection)
            await self._handle(preface, stream, group, log)
            stream.close()
        except (FrameError, TimeoutError, OSError, asyncssh.Error) as error:
            log.info("dialled stream ended", error=str(error) or type(error).__name__)
            stream.abort()
        except Exception:  # one stream's fault must not end the tunnel that others use
            log.exception("serving a dialled stream failed")
            stream.abort()

    async def _handle(
        self,
        preface: Preface,
        stream: Stream,
        group: asyncio.TaskGroup,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        try:
            if preface.host_id != self._host_id:
                raise DialRefused(dial.NOT_SERVED, "another host was asked for")
            if preface.kind is Wanted.ORDERS:
                await self._take_orders(stream, group, log)
            else:
                await self._handler(preface, stream)
        except DialRefused as refused:
            await dial.refuse(stream, refused.code, str(refused))

    # dial-backs

    async def _take_orders(
        self, control: Stream, group: asyncio.TaskGroup, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        """Dial the proxy whenever it says so, until the channel ends."""
        if self._dial_back is None:
            raise DialRefused(dial.NOT_SERVED, "this agent does not dial back")
        await dial.accept(control)
        try:
            while True:
                token = await dial.ordered(control)
                group.create_task(self._come(self._dial_back, token, control, group, log))
        except EndOfStream:
            pass

    async def _come(
        self,
        dial_back: Callable[[str], Awaitable[Stream]],
        token: str,
        control: Stream,
        group: asyncio.TaskGroup,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:
        """Dial back under one token and serve what is asked for there; the proxy hears of a failure at once."""
        if self._channels >= CHANNELS:
            dial.failed(control, f"more than {CHANNELS} connections")
            return
        self._channels += 1
        try:
            try:
                stream = await dial_back(f"{token}.{DIAL}")
            except (Failure, OSError) as error:
                log.warning("dial-back failed", error=str(error) or type(error).__name__)
                dial.failed(control, str(error) or type(error).__name__)
                return
            await self._answer(stream, SPARE_SECONDS, group, log)
        finally:
            self._channels -= 1
