"""One session channel: a shell, a command or SFTP, on a terminal or on pipes, as the login user.

Belongs here: the life of one child behind one channel. Not here: whether the user may (`server`), forwarding.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import termios
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncssh
import structlog

from monoport.agents.node import child, environment, terminal
from monoport.agents.node.account import Account, may_transfer
from monoport.agents.node.process import Child
from monoport.agents.node.pump import Sink, Source
from monoport.agents.node.recorded import Policy, Tape
from monoport.agents.node.transfers import Operation, Transfers
from monoport.audit.log import Log
from monoport.errors import Failure
from monoport.tunnel.link import ServerLink
from monoport.tunnel.packets import quick

PIPE = 262_144  # bytes of a child's pipe: fewer wake-ups than 64 KiB, and the limit of what waits in a direction
MAX_TERM = 64  # characters of a terminal's name; terminfo's longest are thirty
# RFC 4254 section 6.10, less those that a client has no business with
SIGNALS = ("ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2")
_BREAK = 0  # tcsendbreak's usual length


@dataclass(slots=True)
class Host:
    """What the sessions of one connection share.

    facts: connection, user, source, login and node, for every event. start: runs a coroutine in the connection's group.
    forwarded: what the programs of a session, by its channel, must know of what is forwarded to them. policy: what is
    recorded of a terminal that begins now. cut: the connection is gone. decided: it is known whether that was because
    the permit has ended.
    """

    account: Account
    audit: Log
    facts: Mapping[str, Any]
    source: tuple[str, int]
    start: Callable[[Coroutine[Any, Any, None]], object]
    log: structlog.typing.FilteringBoundLogger
    forwarded: Callable[[object], Mapping[str, str]]
    policy: Callable[[], Policy]
    ending: str = ""  # why the permit has ended, once it has
    cut: bool = False
    decided: asyncio.Event = field(default_factory=asyncio.Event)


class Session(asyncssh.SSHServerSession[bytes]):
    """What asyncssh calls for one session channel."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._channel: asyncssh.SSHServerChannel[bytes] | None = None
        self._term = ""
        self._master = self._slave = -1
        self._child: Child | None = None
        self._stdin: Sink | None = None
        self._sources: list[Source] = []
        self._early = b""  # came before the child was there
        self._eof = False
        self._full = False
        self._size: terminal.Size = (0, 0, 0, 0)
        self._tape: Tape | None = None
        self._transfers: Transfers | None = None
        self._holding = False  # an answer waits until what it says was done is in the audit log
        self._facts: Mapping[str, Any] = {}
        self._unkept = ""  # why that could not be kept
        self._running = 0  # outputs that have not ended
        self._cut = False  # the channel is gone
        self._news = asyncio.Event()  # the child, an output or the channel has ended

    # from asyncssh

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan
        quick(chan)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cut = True
        self._news.set()

    def pty_requested(self, term_type: str, term_size: terminal.Size, term_modes: Mapping[int, int]) -> bool:
        try:
            self._master, self._slave = terminal.open_terminal(term_size, term_modes)
        except (OSError, termios.error) as error:
            self._host.log.warning("no terminal", error=str(error))
            return False
        self._size = term_size
        # a client without TERM wants its terminal too
        self._term = term_type if term_type.isprintable() and 0 < len(term_type) <= MAX_TERM else "dumb"
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._master >= 0:
            self._size = (width, height, pixwidth, pixheight)
            terminal.resize(self._master, self._size)
            if self._tape is not None:
                self._tape.resize(width, height)

    def shell_requested(self) -> bool:
        return self._begin("shell", None)

    def exec_requested(self, command: str) -> bool:
        words = command.split(" ", 8)  # scp's own flags come first
        copies = words[0] == "scp" and not {"-t", "-f"}.isdisjoint(words)
        return self._begin("scp" if copies else "exec", command)

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == "sftp" and self._begin("sftp", None)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._tape is not None:
            self._tape.input(data)
        if self._transfers is not None:
            self._transfers.asked(data)
        if self._stdin is None:
            self._early += data
            self._pause()
        elif not self._stdin.write(data):
            self._pause()

    def eof_received(self) -> bool:
        self._eof = True
        # a terminal has no end of input but the character for it, which the client sends where it means it
        if self._stdin is not None and not self._term:
            self._stdin.end()
        return True

    def signal_received(self, signame: str) -> None:
        if self._child is not None and signame in SIGNALS:
            group = os.tcgetpgrp(self._master) if self._master >= 0 else None
            self._child.signal_group(getattr(signal, f"SIG{signame}"), group)

    def break_received(self, msec: int) -> bool:
        if self._master < 0:
            return False
        termios.tcsendbreak(self._master, _BREAK)
        return True

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if not self._holding:
            for source in self._sources:
                source.resume()

    def resume_reading(self) -> None:
        """The recording has room again."""
        if not self._full:
            self.resume_writing()

    def _pause(self) -> None:
        if self._channel is not None and not self._cut:
            self._channel.pause_reading()

    def _more(self) -> None:
        if self._channel is not None and not self._cut:
            self._channel.resume_reading()

    # the child

    def _begin(self, kind: str, command: str | None) -> bool:
        if kind == "sftp" and not may_transfer(self._host.account.shell):
            self._host.log.info("sftp refused", reason="the login's shell is not in /etc/shells")
            return False
        if kind == "sftp":
            self._transfers = Transfers(self._host.account.home)
        self._host.start(self._run(kind, command))
        return True

    async def _run(self, kind: str, command: str | None) -> None:
        """Start the child, wait for its end, and say what it was; every step is recorded before the next."""
        host = self._host
        session = str(uuid.uuid4())
        facts = {**host.facts, "session": session, "kind": kind, "command": command, "terminal": bool(self._term)}
        tape = Tape(host.policy(), host.audit, facts, host.log, self._news.set) if self._term else None
        event = f"{kind}.start" if kind in {"sftp", "scp"} else "session.start"
        started = asyncio.get_running_loop().time()
        end = "not started"
        try:
            await host.audit.emit(event, **facts)
            self._facts = facts
            if tape is not None:
                await tape.start(session, self._size[:2], self._term, command)
                tape.resize(*self._size[:2])
                tape.input(self._early)
                self._tape = tape
            self._child = self._spawn("sftp" if kind == "sftp" else "run", command)
            end = await self._until_over(self._child)
        except (OSError, ValueError, Failure) as error:
            host.log.error("session not started", error=str(error))
            self._say(f"monoport: {error}\n", child.FAILED)
        finally:
            self._close()
            if self._child is not None:
                self._child.forget()
            if self._transfers is not None:
                await self._keep(self._transfers.ended(), facts)
            kept: dict[str, str] = {}
            if tape is not None:
                await tape.finish(host.ending and f"session ended: {host.ending}")
                kept = {"recording": tape.outcome}
            seconds = round(asyncio.get_running_loop().time() - started, 3)
            await host.audit.emit("session.end", **facts, **kept, exit=end, seconds=seconds)

    def _spawn(self, task: str, command: str | None) -> Child:
        """Start the child and join it to the channel; raises OSError or ValueError."""
        account = self._host.account
        order = child.Order(
            task,
            account.login,
            account.uid,
            account.gid,
            account.home,
            account.shell,
            bool(self._term),
            command,
            self._environment(),
        )
        if self._term:
            found = Child(order, self._slave, self._slave, self._slave)
            os.close(self._slave)
            self._slave = -1
            self._stdin = Sink(os.dup(self._master), self._more)
            self._attach(os.dup(self._master), None)
        else:
            found = self._spawn_on_pipes(order)
        early, self._early = self._early, b""
        if not early or self._stdin is None or self._stdin.write(early):
            self._more()
        if self._eof:
            self.eof_received()
        return found

    def _spawn_on_pipes(self, order: child.Order) -> Child:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        ours_err, theirs_err = os.pipe()
        for end in (ours_in, ours_out):
            _widen(end)
        try:
            found = Child(order, theirs_in, theirs_out, theirs_err)
        except BaseException:
            for end in (ours_in, ours_out, ours_err):
                os.close(end)
            raise
        finally:
            for end in (theirs_in, theirs_out, theirs_err):
                os.close(end)
        self._stdin = Sink(ours_in, self._more)
        self._attach(ours_out, None)
        self._attach(ours_err, asyncssh.EXTENDED_DATA_STDERR)
        return found

    def _attach(self, descriptor: int, datatype: int | None) -> None:
        self._running += 1
        self._sources.append(Source(descriptor, lambda data: self._output(data, datatype), self._one_quiet))

    def _one_quiet(self) -> None:
        self._running -= 1
        self._news.set()

    def _output(self, data: bytes, datatype: int | None) -> bool:
        channel = self._channel
        if channel is None or self._cut or channel.is_closing():
            return True
        if self._transfers is not None and datatype is None and (done := self._transfers.answered(data)):
            self._holding = True
            self._host.start(self._answer_kept(done, data))
            return False
        return self._write(data, datatype)

    async def _answer_kept(self, done: Sequence[Operation], answer: bytes) -> None:
        """Answer the client when what was done is in the audit log; where it cannot be, the session ends."""
        try:
            await self._keep(done, self._facts)
        except Failure as error:
            self._unkept = str(error)
            self._news.set()
            return
        self._holding = False
        if self._write(answer, None):
            self.resume_reading()

    async def _keep(self, done: Iterable[Operation], facts: Mapping[str, Any]) -> None:
        known = {name: value for name, value in facts.items() if name not in {"kind", "command", "terminal"}}
        for operation in done:
            await self._host.audit.emit(operation.type, **known, **operation.fields)

    def _write(self, data: bytes, datatype: int | None) -> bool:
        channel = self._channel
        if channel is None or self._cut or channel.is_closing():
            return True
        room = self._tape is None or self._tape.output(data, self.resume_reading)
        channel.write(data, datatype)
        if self._full or not room:
            return False
        link = channel.get_connection()
        if isinstance(link, ServerLink) and link.blocked:
            link.when_writable(self.resume_writing)
            return False
        return True

    async def _until_over(self, running: Child) -> str:
        """Wait for the child's end or the channel's, and return how it ended, for the record."""
        running.exited.add_done_callback(lambda _ended: self._news.set())
        while not self._cut:
            self._news.clear()
            if running.exited.done():
                if self._term:  # what went to the background may hold the terminal open for ever
                    for source in self._sources:
                        source.drain()
                if not self._running:
                    return self._tell(running.exited.result())
            if self._tape is not None:
                await self._tape.report()
            if reason := self._unkept or (self._tape.ends_session if self._tape is not None else ""):
                return await self._end_unrecorded(running, reason)
            await self._news.wait()
        return await self._hang_up(running)

    async def _hang_up(self, running: Child) -> str:
        """The channel is gone: as sshd, hang up; where the permit has ended, leave nothing running."""
        self._close()
        if self._host.cut and not self._host.ending:
            running.signal_all(signal.SIGHUP)
            await self._host.decided.wait()
        if self._host.ending:
            await running.end()
        else:
            await running.hang_up()
        return self._host.ending or "disconnected"

    async def _end_unrecorded(self, running: Child, reason: str) -> str:
        """The roles let nothing happen that is not recorded: end everything, and say why in one line."""
        self._close()
        self._say(f"\r\nsession ended: {reason}\r\n", child.FAILED)
        await running.end()
        return reason

    def _tell(self, found: os.waitid_result) -> str:
        """Tell the client how the child ended; return it in words."""
        channel = self._channel
        assert channel is not None
        channel.write_eof()
        if found.si_code == os.CLD_EXITED:
            channel.exit(found.si_status)
            return str(found.si_status)
        name = signal.Signals(found.si_status).name.removeprefix("SIG")
        channel.exit_with_signal(name, found.si_code == os.CLD_DUMPED)
        return f"signal {name}"

    def _say(self, text: str, status: int) -> None:
        channel = self._channel
        if channel is not None and not channel.is_closing():
            channel.write_stderr(text.encode())
            channel.exit(status)

    def _close(self) -> None:
        """Close every descriptor that is still open; a terminal's last one hangs up what runs on it."""
        for source in self._sources:
            source.close()
        if self._stdin is not None:
            self._stdin.close()
        for descriptor in (self._master, self._slave):
            if descriptor >= 0:
                os.close(descriptor)
        self._master = self._slave = -1

    def _environment(self) -> dict[str, str]:
        asked = self._channel.get_environment() if self._channel is not None else {}
        found = environment.of(self._host.account, self._host.source) | environment.accepted(asked)
        if self._term:
            found |= {"TERM": self._term, "SSH_TTY": os.ttyname(self._slave)}
        return found | dict(self._host.forwarded(self._channel))


def _widen(pipe: int) -> None:
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    except OSError:  # the user's total is spent (pipe(7)): a narrow pipe works too
        return
