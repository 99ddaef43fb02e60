"""What the roles ask to be recorded of a session's terminal, and the session's hold on its recording.

Belongs here: strict and best effort, and what the audit log hears of it. Not here: files (`audit.recorder`), the
session's life (`session`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from monoport.access.resources import Recording
from monoport.audit.asciicast import MAX_SIDE, Header
from monoport.audit.log import Log
from monoport.audit.recorder import Recorder, RecordingError, Recordings

USUAL = (80, 24)  # columns and rows of a client that says none
FACTS = ("user", "login", "node", "hostname", "connection", "source")  # of the session, in the recording's header
MAX_TITLE = 200  # characters


@dataclass(frozen=True, slots=True)
class Policy:
    """What the permit says of recording, and where recordings are kept; None where they cannot be."""

    mode: Recording = Recording.OFF
    input: bool = False
    recordings: Recordings | None = None


class Tape:
    """One session's recording.

    Args: what is asked, where events go and what they all say, the log, and what to call when it has failed.
    """

    def __init__(
        self,
        policy: Policy,
        audit: Log,
        facts: Mapping[str, Any],
        log: structlog.typing.FilteringBoundLogger,
        failed: Callable[[], object],
    ) -> None:
        self._policy, self._audit, self._facts, self._log, self._wake = policy, audit, facts, log, failed
        self._recorder: Recorder | None = None
        self._size = USUAL
        self._told = False
        self.failure = ""  # why nothing is recorded any more

    @property
    def ends_session(self) -> str:
        """Why the session may not go on, "" if it may."""
        return self.failure if self._policy.mode is Recording.STRICT else ""

    @property
    def outcome(self) -> str:
        """For the event of the session's end: off, kept, or why not."""
        return self.failure or ("kept" if self._policy.mode is not Recording.OFF else "off")

    async def start(self, session: str, size: tuple[int, int], term: str, command: str | None) -> None:
        """Begin to record.

        Raises:
            RecordingError: that is not possible, and the roles are strict.
        """
        if self._policy.mode is Recording.OFF:
            return
        header = self._header(session, size, term, command)
        self._size = (header.width, header.height)
        try:
            if self._policy.recordings is None:
                raise RecordingError("the session cannot be recorded: this node keeps no recordings")
            self._recorder = await self._policy.recordings.begin(header, self._failed)
        except RecordingError as error:
            self._failed(str(error))
            await self.report()
            if self.ends_session:
                raise

    def _header(self, session: str, size: tuple[int, int], term: str, command: str | None) -> Header:
        facts = {"id": session} | {name: str(self._facts.get(name, "")) for name in FACTS}
        columns, rows = _sides(size)
        title = f"{facts['user']} as {facts['login']} on {facts['hostname']}"[:MAX_TITLE]
        return Header(columns, rows, int(time.time()), facts, title, command, term)

    def output(self, data: bytes, room: Callable[[], object]) -> bool:
        """Keep what the terminal said; False: stop until `room` is called."""
        if self._recorder is None:
            return True
        self._recorder.output(data)
        return not self._recorder.wait_for_room(room)

    def input(self, data: bytes) -> None:
        """Keep what the user typed, where the roles say so."""
        if self._recorder is not None and self._policy.input:
            self._recorder.input(data)

    def resize(self, columns: int, rows: int) -> None:
        """Keep the terminal's size where it is a new one."""
        size = _sides((columns, rows))
        if self._recorder is not None and size != self._size:
            self._size = size
            self._recorder.resize(*size)

    async def finish(self, remark: str) -> None:
        """End the recording, with a remark why where the session was ended."""
        if self._recorder is not None:
            if remark:
                self._recorder.mark(remark)
            await self._recorder.finish()
        await self.report()

    async def report(self) -> None:
        """Tell the audit log of a failure, once."""
        if self.failure and not self._told:
            self._told = True
            mode = self._policy.mode.value
            await self._audit.emit("session.recording.failed", **self._facts, reason=self.failure, record_session=mode)

    def _failed(self, reason: str) -> None:
        self.failure = reason
        strict = self._policy.mode is Recording.STRICT
        self._log.error("session is not recorded", reason=reason, goes_on=not strict)
        self._wake()


def _sides(size: tuple[int, int]) -> tuple[int, int]:
    columns, rows = (min(side, MAX_SIDE) or usual for side, usual in zip(size, USUAL, strict=True))
    return columns, rows
