"""Recordings on their way from this node to the auth service, until it has said that it keeps them.

Belongs here: order, parts, retry, when the local file may go, and when trying again is no use. Not here: files
(`audit.recorder`), the API (`auth.client`). A kill at any moment costs nothing but octets that are sent again: what is
here is offered again, and the auth service says how much of it it has.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import structlog

from monoport.audit.asciicast import MAX_LINE, CastError, decode_header
from monoport.audit.log import Log
from monoport.audit.recorder import Recordings, duration, noted_hash
from monoport.auth.calls import AuthError
from monoport.errors import Failure

PART: Final = 256 * 1024  # octets of one request, half of what the service takes
FIRST_DELAY: Final = 0.5  # seconds; the event that announces the session is usually on its way at the same time
LAST_DELAY: Final = 60.0  # seconds: recordings may be late, never lost
REFUSED: Final = frozenset({"access_denied", "exists"})  # what another try does not change
UNFIT: Final = "bad_request"  # not what was offered, or no recording: the way may have damaged it, or it is so here
SAID: Final = ("user", "login", "node", "hostname", "connection", "source")  # of the session, in a recording's header
TRIES: Final = 3  # of one that is unfit; each sends all of it

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


class DamagedError(Failure):
    """The file is not what was written."""


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
    unfit: Counter[str] = Counter()
    while True:
        recordings.news.clear()
        if not await _all(recordings, vault, audit, unfit):
            failures = 0
            await recordings.news.wait()
            continue
        failures += 1
        await sleep(min(LAST_DELAY, FIRST_DELAY * 2 ** min(failures, 16)) * (0.5 + rand() / 2))


async def _all(recordings: Recordings, vault: Vault, audit: Log, unfit: Counter[str]) -> int:
    """Send every recording that has ended; returns how many must be tried again."""
    try:
        paths = recordings.ended()
    except OSError as error:
        _log.error("recordings cannot be listed", reason=str(error))
        return 1
    failed = 0
    for path in paths:
        try:
            await _one(recordings, vault, audit, unfit, path)
        except (Failure, OSError) as error:  # it holds up no other
            failed += 1
            reason = str(error) or type(error).__name__
            _log.warning("recording not uploaded yet", recording=path.name, reason=reason)
    return failed


async def _one(recordings: Recordings, vault: Vault, audit: Log, unfit: Counter[str], path: Path) -> None:
    """Send one recording and delete it here; raises Failure or OSError where it must be tried again."""
    recording = path.stem
    try:
        await _send(vault, recording, path)
    except DamagedError as error:
        await _put_aside(recordings, audit, path, str(error))
    except AuthError as error:
        unfit[recording] += error.code == UNFIT
        if error.code not in REFUSED and unfit[recording] < TRIES:
            raise
        await _put_aside(recordings, audit, path, f"not taken: {error}")
    else:
        await recordings.remove(path)
        _log.info("recording uploaded", recording=recording)
    del unfit[recording]


async def _put_aside(recordings: Recordings, audit: Log, path: Path, reason: str) -> None:
    facts = await asyncio.to_thread(_whose, path)
    await audit.emit("session.recording.failed", **facts, session=path.stem, reason=reason)
    await asyncio.to_thread(recordings.put_aside, path)
    _log.error("recording not sent any more, and kept here", recording=path.stem, reason=reason)


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


def _whose(path: Path) -> dict[str, str]:
    """What the recording itself says of its session, {} where that cannot be read."""
    try:
        with path.open("rb") as file:
            said = decode_header(file.readline(MAX_LINE)).session
    except (OSError, CastError):
        return {}
    return {name: said[name] for name in SAID if name in said}


def _facts(path: Path) -> Facts:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    noted = noted_hash(path)
    if noted and noted != digest:
        raise DamagedError("damaged on the node's disk: its SHA-256 is not that of what was written")
    return Facts(path.stat().st_size, digest, duration(path))


def _part(path: Path, offset: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(PART)
