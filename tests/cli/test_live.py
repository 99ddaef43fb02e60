"""The table of `tsh proxy all` on a terminal of its own, and its lines where there is none."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from rich.text import Text

from monoport.cli import live
from monoport.client.everything import End
from monoport.client.localproxy import LocalProxy, Wrapping

ERASED = re.compile(r"\r(?:\x1b\[2K(?:\x1b\[1A)?)+")  # the table is gone and the next one comes
HEAD = ["Database", "Protocol", "Listening on", "Connections", "State"]
PATIENCE = 20.0  # seconds for what takes milliseconds


class Screen:
    """The other side of a terminal of 30 lines of 120 columns, which is standard output meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop, self._more = asyncio.get_running_loop(), asyncio.Event()
        self._seen = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
        self._file = os.fdopen(slave, "w", encoding="utf-8")
        monkeypatch.setattr(sys, "stdout", self._file)
        for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "120"), ("LINES", "30")):
            monkeypatch.setenv(name, value)  # rich asks standard input's terminal for its size first, where it is one
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        self._reader = threading.Thread(target=self._read)  # so that no write ever waits for this loop
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while data := os.read(self._master, 65_536):
                self._seen += data
                self._loop.call_soon_threadsafe(self._more.set)

    def close(self) -> None:
        self._file.close()
        self._reader.join(PATIENCE)
        os.close(self._master)

    def raw(self) -> str:
        """The last table that is whole, with what colours it and with lines that came above it; "" if none is yet."""
        *whole, _ = ERASED.split(self._seen.decode(errors="replace").replace("\r\n", "\n"))
        return whole[-1] if whole else ""

    async def says(self, line: str) -> None:
        """Wait until a line has come, which stays above all tables."""
        while f"{line}\n" not in self.seen:
            self._more.clear()
            await self._more.wait()

    @property
    def seen(self) -> str:
        """All that has come, without what colours it."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._seen.decode(errors="replace").replace("\r\n", "\n"))

    async def shows(self, true: Callable[[list[str]], bool]) -> list[str]:
        """The lines of a table of which this is true."""
        while True:
            self._more.clear()
            lines = [line.rstrip() for line in Text.from_ansi(self.raw()).plain.splitlines()]
            if true(lines):
                return lines
            await self._more.wait()


@asynccontextmanager
async def followed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Screen, dict[str, End]]]:
    """A screen, and what the table on it follows."""
    monkeypatch.setattr(live, "TICK", 0.001)
    screen, ends = Screen(monkeypatch), dict[str, End]()
    try:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            with live.shown("databases of example.com, as alice") as show:
                drawing = group.create_task(show(ends))
                yield screen, ends
                drawing.cancel()
    finally:
        screen.close()


def has(*parts: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(all(part in line for part in parts) for line in lines)


async def test_a_table_follows_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with followed(monkeypatch) as (screen, ends):
        ends["stock"] = stock = End("stock", "MySQL")
        title, head, row = (await screen.shows(has("stock")))[:3]
        assert title == "databases of example.com, as alice; whoever connects here acts as you; Ctrl-C ends it"
        assert re.split(r" {2,}", head) == HEAD
        assert row.split() == ["stock", "MySQL", "opening", "0"]

        proxy = LocalProxy(Wrapping(None, "teleport-mysql", None), [], pytest.fail, joined=3)  # type: ignore[arg-type]
        stock.address, stock.use, stock._proxy = "127.0.0.1:20001", "mariadb --port=20001", proxy
        await screen.shows(has("stock", "127.0.0.1:20001", " 3"))
        stock.state = "down: cannot be reached"
        await screen.shows(has("stock", "127.0.0.1:20001", " 3  down: cannot be reached"))
        assert "\x1b[31mdown: cannot be reached" in screen.raw(), "in red"
        stock.state = "up"
        await screen.shows(has("stock", "127.0.0.1:20001", " 3  up"))

        ends["orders"] = End("orders", "PostgreSQL", problem="which user? \x1b[2Jname one")
        lines = await screen.shows(has("orders"))
        assert [line.split()[0] for line in lines[2:4]] == ["orders", "stock"], "by name"
        assert lines[2].split()[:3] == ["orders", "PostgreSQL", "-"]
        assert "\x1b[31mwhich user? \\x1b[2Jname one" in screen.raw(), "in red, and nothing that steers the terminal"

        del ends["stock"]
        await screen.shows(lambda lines: has("orders")(lines) and not has("stock")(lines))


async def test_a_line_to_paste_stands_above_the_table_once_and_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    use = "mongosh " + "".join(f"{number:04}" for number in range(60))  # twice as wide as the terminal
    async with followed(monkeypatch) as (screen, ends):
        ends["papers"] = papers = End("papers", "MongoDB", "127.0.0.1:20002", use)
        await screen.says(f"papers  {use}")
        papers.state = "up"
        await screen.shows(has("papers", "127.0.0.1:20002", " 0  up"))
        papers.use = "mongosh --port=20002"  # somebody else now, by a new login
        await screen.says("papers  mongosh --port=20002")
        assert screen.seen.count(use) == 1


async def test_without_a_terminal_each_change_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "TICK", 0.001)
    ends = {"stock": End("stock", "MySQL")}
    said = ""

    async def says(line: str, times: int = 1) -> None:
        nonlocal said
        while said.count(f"{line}\n") < times:
            said += capsys.readouterr().out
            await asyncio.sleep(0)

    with live.shown("unused") as show:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            showing = group.create_task(show(ends))
            ends["orders"] = End("orders", "PostgreSQL", problem="no\x1b")
            await says("orders  PostgreSQL  not open  no\\x1b")
            ends["stock"].state = "down: not yet"
            ends["stock"].use = "mariadb"
            ends["stock"].address = "127.0.0.1:1"
            await says("stock  MySQL  127.0.0.1:1  mariadb")
            await says("stock  MySQL  127.0.0.1:1  down: not yet")
            ends["stock"].state = "down: cannot be reached"
            await says("stock  MySQL  127.0.0.1:1  down: cannot be reached")
            ends["stock"].state = "up"
            await says("stock  MySQL  127.0.0.1:1  mariadb", times=2)
            del ends["stock"]
            await says("stock  is gone")
            showing.cancel()
    assert said.count("stock  MySQL") == 4
