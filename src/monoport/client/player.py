"""Playing a recording on a terminal: keys in, recorded output out, and the terminal as it was afterwards.

Belongs here: raw mode, the keys and their meaning. Not here: which event is due (`playhead`), what of it may reach the
terminal (`terminaltext`).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, Protocol

from monoport.client.playhead import STEP, Due, Playhead
from monoport.client.replay import Recording
from monoport.client.terminaltext import CLEAR, Filter
from monoport.errors import Failure

KEYS = "space pauses, left and right move 5 s, , and . single events, + and - change speed, q ends"
_BURST = 64  # keys read at once, and the longest sequence of one
_SOON = 0.05  # seconds in which the rest of an arrow key comes; alone, Escape is a key that means nothing


class Terminal(Protocol):
    """Where a recording is played; times in seconds."""

    def write(self, text: str) -> None: ...
    def read(self, timeout: float) -> str: ...  # keys, "" after the time is over
    def clock(self) -> float: ...


def play(recording: Recording, playhead: Playhead, terminal: Terminal) -> None:
    """Play to the end, or until the user ends it; what the recording changed of the terminal is undone."""
    show = _Show(recording, terminal)
    try:
        _follow(playhead, show, terminal)
    finally:
        show.end()


def _follow(playhead: Playhead, show: _Show, terminal: Terminal) -> None:
    last = terminal.clock()
    show.draw(playhead.advance(0))
    while not playhead.over:
        keys = terminal.read(playhead.wait())
        now = terminal.clock()
        show.draw(playhead.advance(now - last))
        last = now
        if keys.startswith("\x1b") and len(keys) < len("\x1b[C"):
            keys += terminal.read(_SOON)
        for key in _split(keys):
            due = _press(playhead, key)
            if due is None:
                return
            show.draw(due)


class _Show:
    """What has been drawn, through a filter that begins anew where the screen does."""

    def __init__(self, recording: Recording, terminal: Terminal) -> None:
        self._recording, self._terminal, self._filter = recording, terminal, Filter()

    def draw(self, due: Due) -> None:
        if due.anew:
            self._terminal.write(self._filter.restore() + CLEAR)
            self._filter = Filter()
        for number in range(due.first, due.behind):
            event = self._recording.event(number)
            if event.kind == "o" and (text := self._filter.feed(event.data)):
                self._terminal.write(text)

    def end(self) -> None:
        self._terminal.write(self._filter.restore() + "\r\n")


def _press(playhead: Playhead, key: str) -> Due | None:
    """Do what a key means; None ends the replay."""
    nothing = Due(0, 0)
    match key:
        case "q" | "Q" | "\x03" | "\x04":
            return None
        case " ":
            playhead.paused = not playhead.paused
        case "\x1b[C" | "\x1bOC":
            return playhead.seek(STEP)
        case "\x1b[D" | "\x1bOD":
            return playhead.seek(-STEP)
        case ".":
            return playhead.step(1)
        case ",":
            return playhead.step(-1)
        case "+" | "=":
            playhead.faster(2)
        case "-":
            playhead.faster(0.5)
        case _ if key.isascii() and key.isdigit():
            return playhead.go(playhead.length * int(key) / 10)
        case _:
            return nothing
    return nothing


def _split(keys: str) -> Iterator[str]:
    """One key after the other; an arrow is three characters."""
    while keys:
        size = 3 if keys.startswith(("\x1b[", "\x1bO")) else 1
        yield keys[:size]
        keys = keys[size:]


class Tty:
    """The terminal of this process's standard input and output."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink

    def write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._sink, data) :]

    def read(self, timeout: float) -> str:
        if not select.select([self._source], [], [], timeout)[0]:
            return ""
        return os.read(self._source, _BURST).decode("utf-8", "replace") or "q"  # the terminal is gone

    def clock(self) -> float:
        return time.monotonic()


@contextmanager
def taken() -> Iterator[Tty]:
    """The terminal, raw, for as long as the block lasts; as it was afterwards, whatever ends the block.

    Raises:
        Failure: standard input or output is no terminal.
    """
    source, sink = sys.stdin.fileno(), sys.stdout.fileno()
    if not (os.isatty(source) and os.isatty(sink)):
        raise Failure("to play a recording takes a terminal; --format text or json prints it")
    sys.stdout.flush()
    before = termios.tcgetattr(source)
    handlers = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)}
    terminal = Tty(source, sink)
    try:
        tty.setraw(source)
        yield terminal
    finally:
        termios.tcsetattr(source, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _end(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
