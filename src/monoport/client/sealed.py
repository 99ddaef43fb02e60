"""Our own clients' end of a sealed session: TLS to the agent, through a proxy that can no longer read it.

Belongs here: the opening, which the proxy still reads, the handshake behind it, believing the agent. Does not belong
here: asking for it (localproxy.py), the proxy's part (`tunnel.sealing`).

The bytes of the database's protocol go on where they stopped: whoever speaks it on the local side notices nothing.
"""

import asyncio
import os
import ssl

from cryptography import x509

from monoport.access.identity import IdentityError, Kind, from_x509
from monoport.auth.authorities import TrustedCas
from monoport.client.front import Credentials, client_context
from monoport.client.profile import Profile
from monoport.errors import Failure
from monoport.net.meter import Meter
from monoport.net.relay import relay, relay_until_end
from monoport.net.stream import Stream
from monoport.net.tls import HandshakeCut, TlsError, TlsStream, connect_tls
from monoport.tunnel.sealing import BINDING

ROLE = "db"  # of the hosts that serve databases
SHAKING = 10.0  # seconds for the handshake with the agent


def agent_context(profile: Profile, credentials: Credentials) -> ssl.SSLContext:
    """A context for the handshake with an agent, which has no name that we could know: see `check_agent`.

    Raises Failure.
    """
    context = client_context(profile.host_cas, credentials)
    context.check_hostname = False
    return context


async def relay_sealed(
    local: Stream, remote: TlsStream, context: ssl.SSLContext, profile: Profile, meter: Meter
) -> None:
    """Carry one session from its opening to its end.

    Args: the client of this machine, our TLS to the proxy, `agent_context`, whose cluster it is, and what counts.
    Raises Failure: what is at the other end is no agent that may serve databases. TlsError.
    """
    binding = os.urandom(BINDING)
    if not await relay_until_end(local, remote, meter=meter, closing=binding):
        return
    try:
        async with asyncio.timeout(SHAKING):
            agent = await connect_tls(remote.leave(), context, server_hostname=None)
    except TimeoutError:
        raise Failure(f"the agent of the database did not shake hands within {SHAKING:g} s") from None
    except ConnectionError as error:
        if isinstance(error, TlsError) and not isinstance(error, HandshakeCut):
            raise
        local.close()  # the session was refused: the proxy said so before its end, and there is no agent
        return
    async with agent:
        check_agent(agent.peer_certificate, profile)
        agent.send(binding)
        await relay(local, agent, meter=meter)


def check_agent(certificate: bytes | None, profile: Profile) -> None:
    """Raise Failure unless this certificate, DER, is that of a host of the cluster that serves databases."""
    cas = TrustedCas(cluster=profile.cluster, host=profile.host_cas)
    try:
        identity = from_x509(x509.load_der_x509_certificate(certificate or b""), cas)
    except (ValueError, IdentityError) as error:
        raise Failure(f"the agent of the database cannot be believed: {error}") from None
    if identity.kind is not Kind.HOST or ROLE not in identity.roles:
        raise Failure(f"the agent of the database cannot be believed: {identity} serves none")
