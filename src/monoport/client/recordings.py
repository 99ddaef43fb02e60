"""Recordings from the user's side: which there are, and one of them as a local file.

Belongs here: asking the auth service, and checking what it sent. Not here: playing (`player`), printing.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from monoport.access.duration import parse_duration
from monoport.auth.messages import Recording, RecordingPage
from monoport.client.profile import Home
from monoport.errors import Failure

PAGE = 500  # asked for at once
_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.ASCII)


class Source(Protocol):
    """Who has recordings; `auth.client.AuthClient` does."""

    async def recordings_list(
        self, *, user: str = "", node: str = "", since: str = "", limit: int = 100, before: str | None = None
    ) -> RecordingPage: ...
    async def recording(self, recording: str) -> Recording: ...
    def recording_content(self, recording: str) -> AsyncGenerator[bytes, None]: ...


async def listing(
    source: Source, cluster: str, *, user: str = "", node: str = "", since: str = "", limit: int = 100
) -> list[dict[str, Any]]:
    """Recordings that the caller may see as rows, those that began last first.

    Args:
        user: "alice" or "alice@cluster". node: its name or id. since: a length of time such as 8h or 7d, or a date.
    """
    whose = f"{user}@{cluster}" if user and "@" not in user else user
    begun = instant(since, datetime.now(UTC)).isoformat(timespec="microseconds") if since else ""
    found: list[Recording] = []
    position = None
    while len(found) < limit:
        count = min(PAGE, limit - len(found))
        page = await source.recordings_list(user=whose, node=node, since=begun, limit=count, before=position)
        found += page.recordings
        position = page.next
        if position is None:
            break
    return [one.model_dump() for one in found]


def instant(text: str, now: datetime) -> datetime:
    """The instant that `--since` means, in UTC; raises Failure."""
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Failure(f"--since {text!a}: expected a time such as 8h or 7d, or a date such as 2030-01-31") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


async def fetch(source: Source, recording: str, file: BinaryIO) -> None:
    """Write one recording to a file, and check that it is the one that was kept; raises Failure."""
    known = await source.recording(recording)
    digest, size = hashlib.sha256(), 0
    async with aclosing(source.recording_content(recording)) as octets:
        async for chunk in octets:
            digest.update(chunk)
            size += len(chunk)
            if size > known.size:
                break
            file.write(chunk)
    if (size, digest.hexdigest()) != (known.size, known.sha256):
        raise Failure(f"recording {recording} did not come as it was kept: {size} of {known.size} octets, or changed")


def local(name: str) -> Path | None:
    """The file that a name means, None if it is the id of a recording."""
    return None if _ID.fullmatch(name) else Path(name)


async def opened(home: Home, proxy: str | None, name: str) -> BinaryIO:
    """A recording to read, a local file or one of the cluster's; raises Failure."""
    if (path := local(name)) is not None:
        if not path.is_file():
            raise Failure(f"{name}: no such file, and not the id of a recording (tsh recordings ls)")
        return path.open("rb")
    from monoport.client.authapi import auth_client  # noqa: PLC0415 - not on the way of a local file

    file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        async with auth_client(home, home.choose(proxy)) as client:
            await fetch(client, name, file)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
