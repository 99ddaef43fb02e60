"""The agent's side of MySQL's opening, towards a real server: TLS, then a login by certificate or by password.

Belongs here: the order of the messages and what plug-ins want. Whose certificate or password it is, the engine knows.
"""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from monoport.net.stream import Stream
from monoport.net.tls import connect_tls
from monoport.wire.mysql import proof
from monoport.wire.mysql.handshake import (
    CLEAR,
    FAST_OK,
    FULL,
    MORE,
    NATIVE,
    SHA2,
    SWITCH,
    Answer,
    Greeting,
    ServerRefusal,
    read_greeting,
    read_switch,
)
from monoport.wire.mysql.packets import ERR, HEADER, MAX_OPENING, OK, Capability, ProtocolError, packet, read_error

MAX_TURNS = 8  # messages of plug-ins in one login; the longest known takes three


class NoTls(Exception):
    """The server does not offer TLS."""


class Unproven(Exception):
    """The server asks for something that the agent has not got, or does not tell to this server."""


@dataclass(frozen=True, slots=True)
class Secret:
    """What proves who the database user is beside the certificate.

    password: None where there is none. verified: TLS has proven the server's name, so that it may be told the password
    itself.
    """

    password: bytes | None = field(default=None, repr=False)
    verified: bool = True


async def read_packet(stream: Stream) -> tuple[int, bytes]:
    """Read one packet of the opening: its number and payload. Raises ProtocolError, ConnectionError."""
    head = await stream.read_exactly(HEADER)
    size = int.from_bytes(head[:3], "little")
    if size > MAX_OPENING:
        raise ProtocolError(f"packet of {size} bytes, limit {MAX_OPENING}")
    return head[3], await stream.read_exactly(size) if size else b""


@dataclass(frozen=True, slots=True)
class Secure:
    """TLS to a real server that has greeted: what it said, what it is asked for, and the number of the last packet."""

    stream: Stream
    greeting: Greeting
    answer: Answer
    number: int


async def secured(raw: Stream, ask: Callable[[Greeting], Answer], context: ssl.SSLContext, name: str) -> Secure:
    """Read the greeting, ask for TLS and shake hands.

    Args:
        ask: what the server is asked for, without plug-in and proof. Servers take what it can do from the request for
            TLS, which goes out before they have proven their name; who the user is goes out behind that.
        name: in the server's certificate.
    Raises ServerRefusal, ProtocolError, ConnectionError, NoTls; what `ask` raises.
    """
    number, payload = await read_packet(raw)
    greeting = read_greeting(payload)
    if not greeting.capabilities & Capability.SSL:
        raise NoTls
    answer = ask(greeting)
    answer = replace(answer, capabilities=answer.capabilities | Capability.SSL)
    await raw.write(packet(number + 1, answer.encode(tls_request=True)))
    return Secure(await connect_tls(raw, context, server_hostname=name), greeting, answer, number + 1)


async def log_in(secure: Secure, secret: Secret) -> bytes:
    """Log in inside TLS and return the payload of the server's OK.

    Raises ServerRefusal: it said no. Unproven, ProtocolError, ConnectionError.
    """
    server, greeting, answer, number = secure.stream, secure.greeting, secure.answer, secure.number
    plugin = greeting.plugin if greeting.plugin in (NATIVE, SHA2) else NATIVE
    shown = replace(answer, plugin=plugin, proof=_proof(plugin, greeting.nonce, secret))
    number += 1
    await server.write(packet(number, shown.encode()))
    for _ in range(MAX_TURNS):
        came, payload = await read_packet(server)
        if came != (number + 1) & 0xFF:
            raise ProtocolError(f"packet number {came} where {(number + 1) & 0xFF} was due")
        number = came
        first = payload[0] if payload else ERR
        if first == OK:
            return payload
        if first == ERR:
            raise ServerRefusal(*read_error(payload))
        if payload == bytes((MORE, FAST_OK)):
            continue  # the proof was enough, and OK comes next
        if first == SWITCH:
            plugin, nonce = read_switch(payload)
            said = _proof(plugin, nonce, secret)
        elif payload == bytes((MORE, FULL)) and plugin == SHA2:
            said = _told(plugin, secret)
        else:
            raise Unproven(f"asks for {plugin} authentication")
        number += 1
        await server.write(packet(number, said))
    raise ProtocolError(f"no end of the login within {MAX_TURNS} messages")


def _proof(plugin: str, nonce: bytes, secret: Secret) -> bytes:
    """What a plug-in says first: without a password that is nothing, whatever the plug-in."""
    if secret.password is None:
        return b""
    if plugin == NATIVE:
        return proof.native(secret.password, nonce)
    if plugin == SHA2:
        return proof.caching_sha2(secret.password, nonce)
    if plugin == CLEAR:
        return _told(plugin, secret)
    raise Unproven(f"asks for {plugin} authentication")


def _told(plugin: str, secret: Secret) -> bytes:
    if secret.password is None:
        raise Unproven(f"asks for a password ({plugin})")
    if not secret.verified:
        raise Unproven(f"wants the password itself ({plugin}), and tls.mode insecure does not prove who asks")
    return secret.password + b"\0"
