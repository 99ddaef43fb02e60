"""A recording as a file to play or print: indexed once, read event by event, never whole in memory.

Belongs here: reading asciicast files. Not here: the format (`audit.asciicast`), where they come from (`recordings`).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import BinaryIO, Final, final

from monoport.audit.asciicast import MAX_LINE, CastError, Event, Header, decode_event, decode_header
from monoport.client.terminaltext import Filter

MAX_EVENTS: Final = 20_000_000  # 16 bytes of index each


@final
class Recording:
    """One recording in an open file, which stays the caller's to close.

    Raises:
        CastError: it is none.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.header: Header = decode_header(file.readline(MAX_LINE + 1))
        self.times, self._offsets = array("d"), array("Q")
        at = file.tell()
        while line := file.readline(MAX_LINE + 1):
            if not line.endswith(b"\n") and len(line) <= MAX_LINE:
                break  # torn: written by a program that was killed
            event = decode_event(line)
            if event.kind in "or":
                self.times.append(event.time)
                self._offsets.append(at)
            at += len(line)
            if len(self.times) > MAX_EVENTS:
                raise CastError(f"a recording of more than {MAX_EVENTS} events")

    def __len__(self) -> int:
        return len(self.times)

    def event(self, number: int) -> Event:
        """Return one output or resize."""
        self._file.seek(self._offsets[number])
        return decode_event(self._file.readline(MAX_LINE + 1))

    def events(self) -> Iterator[Event]:
        """Every event, inputs and remarks too, in order."""
        self._file.seek(0)
        self._file.readline(MAX_LINE + 1)
        while (line := self._file.readline(MAX_LINE + 1)).endswith(b"\n"):
            yield decode_event(line)

    def text(self) -> Iterator[str]:
        """What was on the terminal as lines of text, without what moved and coloured it."""
        screen = Filter(plain=True)
        for event in self.events():
            if event.kind == "o" and (found := screen.feed(event.data)):
                yield found
