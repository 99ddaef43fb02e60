"""kill -9 at any moment: what was acknowledged is there after the next start, which needs no hand."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from monoport.auth.authorities import TrustedCas
from monoport.auth.client import AuthClient, unix
from monoport.auth.keys import Credentials
from monoport.auth.local import LocalAuth

from .conftest import fast_hasher

ROUNDS = 6
WRITES = 5  # acknowledged in each round before the process is killed in the middle of the next

# Writes roles and events one after the other and says after each that it was acknowledged, until it is killed.
VICTIM = textwrap.dedent("""
    import asyncio, sys
    from datetime import UTC, datetime, timedelta
    from pathlib import Path
    from argon2 import PasswordHasher
    from monoport.access.identity import Identity, Kind
    from monoport.access.resources import parse_document
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
                number = start
                while True:
                    name = f"r{number}"
                    document = {"kind": "role", "version": "v1", "metadata": {"name": name}, "spec": {}}
                    await auth.administration.create(admin, parse_document(document), False)
                    user = messages.NewUser(name=f"u{number}", roles=(name,), password="long enough")
                    await auth.administration.users_add(admin, user)
                    print(number, flush=True)
                    number += 1

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
""")


def killed_after_some_writes(folder: Path, start: int) -> list[int]:
    """Runs the victim, kills it, and returns the numbers of the writes that it had acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(folder), str(start)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout is not None
    with process, process.stdout:
        acknowledged = [int(process.stdout.readline()) for _ in range(WRITES)]
        process.kill()
        acknowledged += [int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    assert process.returncode == -9
    return acknowledged


async def test_acknowledged_writes_survive_kill_9_in_a_loop(tmp_path, clock):
    acknowledged: list[int] = []
    authorities = set()
    for _ in range(ROUNDS):
        # what the kill left unacknowledged may be there or not: go on well behind it
        acknowledged += killed_after_some_writes(tmp_path, acknowledged[-1] + 10 if acknowledged else 0)
        authorities.add(TrustedCas.from_json((tmp_path / "cas.json").read_text()).host)
    assert len(authorities) == 1, "the CAs stayed the same"
    roles, users, created = await read_back(tmp_path, clock)
    assert {"access", "editor", "auditor"} <= roles
    assert {f"r{number}" for number in acknowledged} <= roles
    assert {f"u{number}" for number in acknowledged} <= users
    assert {f"{kind}{number}" for number in acknowledged for kind in "ru"} <= created
    assert len(acknowledged) >= ROUNDS * WRITES


async def read_back(folder: Path, clock: Any) -> tuple[set[str], set[str], set[str]]:
    """Names of roles and users, and of what the audit log says was created, after an ordinary start."""
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
        running.cancel()
    assert page.next is None
    return roles, users, {str(event.fields["name"]) for event in page.events}
