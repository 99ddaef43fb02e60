"""kill -9 at any moment: what was acknowledged is there after the next start, which needs no hand."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from monoport.audit.events import Event
from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient, unix
from monoport.auth.keys import Credentials
from monoport.auth.local import LocalAuth

from .conftest import fast_hasher

ROUNDS = 20
WRITES = 3  # acknowledged in each round at least, before the process is killed at a random moment of those after it

# Writes roles and events one after the other and says after each that it was acknowledged, until it is killed.
VICTIM = textwrap.dedent("""
    import asyncio, sys
    from datetime import UTC, datetime, timedelta
    from pathlib import Path
    from argon2 import PasswordHasher
    from monoport.access.identity import Identity, Kind
    from monoport.access.resources import parse_document
    from monoport.audit.events import EventIds, make
    from monoport.auth import messages
    from monoport.auth.local import LocalAuth

    async def main(folder, start):
        hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        async with await LocalAuth.open(Path(folder), "example.com", hasher=hasher) as auth:
            async with asyncio.TaskGroup() as group:
                group.create_task(auth.run())
                await auth.ready.wait()
                expires = datetime.now(UTC) + timedelta(hours=1)
                admin = Identity(Kind.HOST, "admin.local", "example.com", roles=("admin",), expires=expires)
                node = Identity(Kind.HOST, "node-1", "example.com", roles=("node",), expires=expires)
                ids = EventIds(lambda: datetime.now(UTC))
                number = start
                while True:
                    name = f"r{number}"
                    document = {"kind": "role", "version": "v1", "metadata": {"name": name}, "spec": {}}
                    await auth.administration.create(admin, parse_document(document), False)
                    user = messages.NewUser(name=f"u{number}", roles=(name,), password="long enough")
                    await auth.administration.users_add(admin, user)
                    event = make(ids, "session.start", {"n": number})
                    await auth.service.emit(node, [event])
                    print(number, event.id, flush=True)
                    number += 1

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
""")


def killed_after_some_writes(folder: Path, start: int, after: float) -> dict[int, str]:
    """Runs the victim, kills it so many seconds after its first writes, and returns what it had acknowledged.

    Returns: the number of each round of writes, and the id of the event that a node handed over in it.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(folder), str(start)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    with process, process.stdout:
        lines = [process.stdout.readline() for _ in range(WRITES)]
        timer = threading.Timer(after, process.kill)
        timer.start()
        lines += [line for line in process.stdout if line.endswith("\n")]
        timer.join()
    assert process.returncode == -9
    pairs = (line.split() for line in lines)
    return {int(number): event_id for number, event_id in pairs}


async def test_acknowledged_writes_survive_kill_9_in_a_loop(tmp_path, clock):
    await survive(tmp_path, clock, ROUNDS, random.Random(7))


@pytest.mark.soak
async def test_acknowledged_writes_survive_a_thousand_kills(tmp_path, clock):
    await survive(tmp_path, clock, 1000, random.Random())


async def survive(folder: Path, clock: Any, rounds: int, chance: random.Random) -> None:
    acknowledged: dict[int, str] = {}
    authorities = set()
    for _ in range(rounds):
        # what the kill left unacknowledged may be there or not: go on well behind it
        start = max(acknowledged) + 10 if acknowledged else 0
        acknowledged |= killed_after_some_writes(folder, start, chance.uniform(0.0, 0.05))
        authorities.add(TrustedCas.from_json((folder / "cas.json").read_text()).host)
    assert len(authorities) == 1, "the CAs stayed the same"
    roles, users, events = await read_back(folder, clock)
    created = {str(event.fields.get("name")) for event in events}
    assert {"access", "editor", "auditor"} <= roles
    assert {f"r{number}" for number in acknowledged} <= roles
    assert {f"u{number}" for number in acknowledged} <= users
    assert {f"{kind}{number}" for number in acknowledged for kind in "ru"} <= created
    assert set(acknowledged.values()) <= {event.id for event in events}
    assert len(acknowledged) >= rounds * WRITES


async def read_back(folder: Path, clock: Any) -> tuple[set[str], set[str], list[Event]]:
    """Names of roles and users, and every audit event, after an ordinary start."""
    local = await LocalAuth.open(folder, "example.com", now=clock, hasher=fast_hasher())
    async with local, asyncio.TaskGroup() as group:
        running = group.create_task(local.run())
        await local.ready.wait()
        paths = (folder / "identity" / name for name in ("admin.crt", "admin.key"))
        certificate, key = (path.read_text() for path in paths)
        async with AuthClient(unix(folder / "auth.sock"), Credentials(certificate, key, local.cas)) as admin:
            roles = {one.name for one in await admin.list("role")}
            users = {one.name for one in await admin.users_list()}
            page = await admin.events_list(1000)
            events = list(page.events)
            while page.next is not None:
                page = await admin.events_list(1000, page.next)
                events += page.events
        running.cancel()
    return roles, users, events
