"""Logging in to a real server: what its plug-ins may ask for, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from monoport.agents.database.mysql_login import MAX_TURNS, Secret, Secure, Unproven, log_in, read_packet
from monoport.net.memory import pair
from monoport.wire.mysql import proof
from monoport.wire.mysql.front import ANNOUNCED
from monoport.wire.mysql.handshake import (
    CLEAR,
    NATIVE,
    NONCE,
    SHA2,
    Answer,
    Greeting,
    ServerRefusal,
    read_answer,
    switch,
)
from monoport.wire.mysql.packets import MAX_OPENING, Capability, ProtocolError, packet

OK = b"\0\0\0\2\0\0\0"
FLAGS = Capability.PROTOCOL_41 | Capability.SECURE_CONNECTION | Capability.PLUGIN_AUTH
ONCE, TWICE = b"n" * NONCE, b"m" * NONCE
PASSWORD = Secret(b"secret")


async def login(
    says: Sequence[bytes], secret: Secret = PASSWORD, plugin: str = NATIVE, first: int = 3
) -> tuple[bytes, list[bytes]]:
    """Log in to a server that says these payloads, each when it has heard one; what it heard, and the outcome."""
    near, far = pair()
    heard: list[bytes] = []

    async def server() -> None:
        number = first
        heard.append((await read_packet(far))[1])
        for payload in says:
            await far.write(packet(number, payload))
            number += 1
            if payload[:1] == b"\xfe" or payload == b"\1\4":
                came, said = await read_packet(far)
                heard.append(said)
                number = came + 1
        far.close()

    secure = Secure(near, Greeting("8.4", 1, ONCE, ANNOUNCED, plugin), Answer(FLAGS, "alice"), 1)
    outcome: bytes | Exception
    async with asyncio.TaskGroup() as group:
        playing = group.create_task(server())
        try:
            outcome = await log_in(secure, secret)
        except (ServerRefusal, Unproven, ProtocolError, ConnectionError) as error:
            outcome = error
        playing.cancel()
        near.abort()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome, heard


async def test_without_a_password_nothing_is_proven_whatever_the_plug_in() -> None:
    for plugin in (NATIVE, SHA2, "auth_gssapi_client"):
        payload, heard = await login([OK], Secret(), plugin)
        assert payload == OK
        assert read_answer(heard[0], inside=True).proof == b""
    _, heard = await login([switch("unix_socket", b""), OK], Secret())
    assert heard[1] == b""


async def test_a_password_is_proven_to_the_plug_in_that_asks() -> None:
    _, heard = await login([OK])
    assert read_answer(heard[0], inside=True).proof == proof.native(b"secret", ONCE)
    _, heard = await login([switch(SHA2, TWICE), b"\1\3", OK])
    assert heard[1] == proof.caching_sha2(b"secret", TWICE)
    _, heard = await login([switch(NATIVE, TWICE), OK], plugin=SHA2)
    assert read_answer(heard[0], inside=True).proof == proof.caching_sha2(b"secret", ONCE)
    assert heard[1] == proof.native(b"secret", TWICE)


async def test_the_password_itself_goes_only_to_a_server_that_has_proven_its_name() -> None:
    _, heard = await login([b"\1\4", OK], plugin=SHA2)
    assert heard[1] == b"secret\0"
    _, heard = await login([switch(CLEAR, b""), OK])
    assert heard[1] == b"secret\0"
    for says in (b"\1\4", switch(CLEAR, b"")):
        with pytest.raises(Unproven, match="does not prove who asks"):
            await login([says], Secret(b"secret", verified=False), SHA2)
    with pytest.raises(Unproven, match="asks for a password"):
        await login([b"\1\4"], Secret(), SHA2)


@pytest.mark.parametrize(
    ("says", "error", "reason"),
    [
        ([b"\xff\x15\x04#28000Access denied"], ServerRefusal, "Access denied"),
        ([switch("client_ed25519", ONCE)], Unproven, "asks for client_ed25519"),
        ([b"\1\4"], Unproven, "asks for mysql_native_password"),
        ([b"\xfe"], ProtocolError, r"before 4\.1"),
        ([b""], ProtocolError, "no ERR"),
        ([b"\1\3"] * (MAX_TURNS + 1), ProtocolError, f"within {MAX_TURNS} messages"),
        ([b"x" * (MAX_OPENING + 1)], ProtocolError, f"limit {MAX_OPENING}"),
        ([], ConnectionError, ""),
    ],
)
async def test_what_ends_a_login(says: list[bytes], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason or None):
        await login(says)


async def test_packets_out_of_order() -> None:
    with pytest.raises(ProtocolError, match="packet number 9 where 3 was due"):
        await login([OK], first=9)
