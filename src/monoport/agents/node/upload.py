"""Recordings on their way from this node to the auth service, until it has said that it keeps them.

Belongs here: order, parts, retry, and when the local file may go. Not here: files (`audit.recorder`), the API
(`auth.client`). A kill at any moment costs nothing but octets that are sent again: what is here is offered again, and
the auth service says how much of it it has.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from monoport.audit.log import Log
from monoport.audit.recorder import ENDED, Recordings, duration
from monoport.auth.calls import AuthError
from monoport.errors import Failure

PART: Final = 256 * 1024  # octets of one request, half of what the service takes
FIRST_DELAY: Final = 0.5  # seconds; the event that announces the session is usually on its way at the same time
LAST_DELAY: Final = 60.0  # seconds: recordings may be late, never lost
REFUSED: Final = frozenset({"access_denied", "exists"})  # what another try does not change
ASIDE: Final = ".refused"

_log = structlog.get_logger()


class State(Protocol):
    """What the auth service has of a recording."""

    @property
    def received(self) -> int: ...
    @property
    def kept(self) -> bool: ...


class Vault(Protocol):
    """Takes recordings; `auth.client.AuthClient` does."""

    async def recording_offer(self, recording: str, size: int, sha256: str, seconds: float) -> State: ...
    async def recording_append(self, recording: str, offset: int, data: bytes) -> State: ...
    async def recording_complete(self, recording: str, size: int, sha256: str, seconds: float) -> State: ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What is said of a recording before it is sent."""

    size: int
    sha256: str
    seconds: float


async def upload(
    recordings: Recordings,
    vault: Vault,
    audit: Log,
    *,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    rand: Callable[[], float] = random.random,
) -> None:
    """Send every recording that has ended, and those that end later, until cancelled.

    Args:
        recordings: where they are. vault: where they go. audit: hears of those that are refused for good.
        sleep, rand: pausing and jitter, so that tests need neither time nor luck.
    """
    failures = 0
    while True:
        recordings.news.clear()
        if not await _all(recordings, vault, audit):
            failures = 0
            await recordings.news.wait()
            continue
        failures += 1
        await sleep(min(LAST_DELAY, FIRST_DELAY * 2 ** min(failures, 16)) * (0.5 + rand() / 2))


async def _all(recordings: Recordings, vault: Vault, audit: Log) -> int:
    """Send every recording that has ended; returns how many must be tried again."""
    try:
        paths = recordings.ended()
    except OSError as error:
        _log.error("recordings cannot be listed", reason=str(error))
        return 1
    failed = 0
    for path in paths:
        try:
            await _one(recordings, vault, audit, path)
        except (Failure, OSError) as error:  # it holds up no other
            failed += 1
            reason = str(error) or type(error).__name__
            _log.warning("recording not uploaded yet", recording=path.name, reason=reason)
    return failed


async def _one(recordings: Recordings, vault: Vault, audit: Log, path: Path) -> None:
    """Send one recording and delete it here; raises Failure or OSError where it must be tried again."""
    recording = path.name.removesuffix(ENDED)
    try:
        await _send(vault, recording, path)
    except AuthError as error:
        if error.code not in REFUSED:
            raise
        await audit.emit("session.recording.failed", session=recording, reason=f"not taken: {error}")
        await asyncio.to_thread(path.rename, path.with_name(recording + ASIDE))
        _log.error("recording refused for good, and kept here", recording=recording, reason=str(error))
        return
    await recordings.remove(path)
    _log.info("recording uploaded", recording=recording)


async def _send(vault: Vault, recording: str, path: Path) -> None:
    facts = await asyncio.to_thread(_facts, path)
    state = await vault.recording_offer(recording, facts.size, facts.sha256, facts.seconds)
    if state.kept:
        return
    offset = state.received
    while offset < facts.size:
        data = await asyncio.to_thread(_part, path, offset)
        offset = (await vault.recording_append(recording, offset, data)).received
    done = await vault.recording_complete(recording, facts.size, facts.sha256, facts.seconds)
    if not done.kept:
        raise Failure("the auth service did not say that it keeps the recording")


def _facts(path: Path) -> Facts:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Facts(path.stat().st_size, digest, duration(path))


def _part(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PART)
