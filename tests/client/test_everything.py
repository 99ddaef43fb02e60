"""`tsh proxy all`: every database of the user gets a local end, and what is wrong with one is said beside it."""

import asyncio
import os
import signal
import socket
from collections.abc import Mapping

import pytest

from monoport.access.resources import Database as Listed
from monoport.access.resources import parse_document
from monoport.client import databases
from monoport.client.everything import AGAIN, End, everything
from monoport.client.listening import PORTS, address_of, listen, stable_port
from monoport.client.names import Address
from monoport.client.profile import Home
from monoport.errors import Failure

from .conftest import Cas, server_context, signed_in
from .test_shell import ALPN, Database, database_login, upper


def listed(*names: str, down: bool = False) -> list[Listed]:
    return [
        parse_document(
            {
                "kind": "db",
                "version": "v1",
                "metadata": {"name": name},
                "spec": {
                    "protocol": "postgres",
                    "host_id": "h",
                    **({"state": "down", "problem": "no"} if down else {}),
                },
            }
        )  # type: ignore[misc]
        for name in names
    ]


def test_a_name_has_the_same_port_every_day_and_below_those_of_outgoing_connections() -> None:
    assert stable_port("example.com", "orders") == stable_port("example.com", "orders")
    found = {stable_port("example.com", f"db-{number}") for number in range(200)}
    assert len(found) > 190
    assert all(port in PORTS for port in found)
    assert stable_port("example.com", "orders") != stable_port("example.org", "orders")


def test_where_another_program_has_the_port_the_next_one_will_do_unless_it_was_asked_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Failure, match="address already in use"):
            listen(Address("127.0.0.1", port), lends_identity=True)
        found = listen(Address("127.0.0.1", port), lends_identity=True, or_next=True)
        assert port < address_of(found).port <= port + 32
        found[0].close()


async def test_every_database_gets_an_end_and_those_that_come_and_go_are_followed(
    home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = [*listed("orders", down=True), *listed("people")]
    looks = [listed("orders", "stock"), later, [], later]
    pauses: asyncio.Queue[None] = asyncio.Queue()
    seen: asyncio.Queue[Mapping[str, End]] = asyncio.Queue()

    async def sleep(seconds: float) -> None:
        assert seconds == AGAIN
        await pauses.get()

    async def there(*_: object) -> list[Listed]:
        found = looks.pop(0)
        if not found:
            raise Failure("alice@example.com is locked")
        return found

    async def show(ends: Mapping[str, End]) -> None:
        seen.put_nowait(ends)
        await asyncio.Event().wait()

    monkeypatch.setattr(databases, "databases", there)
    async with Database(upper).running(server_context(cas, alpn=ALPN)) as port:
        profile = signed_in(home, cas, port)
        for name in ("orders", "people"):
            database_login(home, cas, profile, name)

        async def borrow(*arguments: object) -> databases.Login:
            wanted = arguments[3]
            assert isinstance(wanted, databases.Wanted)
            found = databases.find(home, profile, wanted.name)
            if found is None:
                raise Failure(f"several users are allowed in {wanted.name}")
            return found

        monkeypatch.setattr(databases, "borrow", borrow)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(everything(home, profile, show, sleep=sleep))
            ends = await seen.get()
            orders = await opened(ends, "orders")
            assert "postgresql" in orders.use or "psql" in orders.use
            await problem(ends, "stock")
            assert ends["stock"].problem == "several users are allowed in stock"
            reader, writer = await asyncio.open_connection("127.0.0.1", int(orders.address.rpartition(":")[2]))
            writer.write(b"a")
            assert await reader.readexactly(1) == b"A"
            assert orders.connections == 1
            assert not orders.wrong
            pauses.put_nowait(None)
            await opened(ends, "people")
            assert "stock" not in ends
            pauses.put_nowait(None)
            while orders.wrong != "alice@example.com is locked":  # noqa: ASYNC110
                await asyncio.sleep(0)
            pauses.put_nowait(None)
            while "locked" in orders.wrong:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert ends["orders"] is orders, "what runs is left alone"
            assert (orders.wrong, orders.address != "") == ("down: no", True)
            writer.close()
            os.kill(os.getpid(), signal.SIGTERM)


async def opened(ends: Mapping[str, End], name: str) -> End:
    while not (name in ends and ends[name].address):  # noqa: ASYNC110  a turn of the loop at a time
        await asyncio.sleep(0)
    return ends[name]


async def problem(ends: Mapping[str, End], name: str) -> None:
    while not ends[name].problem:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_nothing_to_serve_is_said(home: Home, cas: Cas, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> list[Listed]:
        return []

    async def show(_: Mapping[str, End]) -> None:
        raise AssertionError

    monkeypatch.setattr(databases, "databases", nothing)
    with pytest.raises(Failure, match=r"there is no database in example\.com that you may use"):
        await everything(home, signed_in(home, cas, 1), show)
