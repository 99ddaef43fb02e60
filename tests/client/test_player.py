"""Playing a recording: keys, what is drawn when, and the terminal as it was, whatever ended the replay."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from monoport.audit.asciicast import CastError, Event, Header, encode_event, encode_header
from monoport.client.player import play
from monoport.client.playhead import Playhead
from monoport.client.replay import Recording

TSH = Path(sys.executable).with_name("tsh")
EVIL = "\x1b[c\x1b]0;evil\x07\x05"


def cast(*events: tuple[float, str, str], title: str = "alice@example.com as root on web") -> bytes:
    head = encode_header(Header(80, 24, 1_900_000_000, {"id": "x"}, title))
    return head + b"".join(encode_event(Event(*event)) for event in events)  # type: ignore[arg-type]


def counted(count: int, every: float = 1.0) -> bytes:
    return cast(*((n * every, "o", f"<{n}>") for n in range(count)))


class Terminal:
    """A terminal whose time is the test's: a key comes at its moment, and waiting takes no time at all."""

    def __init__(self, *keys: tuple[float, str]) -> None:
        self.now = 0.0
        self._keys = list(keys)
        self.drawn: list[tuple[float, str]] = []

    def write(self, text: str) -> None:
        self.drawn.append((round(self.now, 3), text))

    def read(self, timeout: float) -> str:
        if self._keys and self._keys[0][0] <= self.now + timeout:
            at, key = self._keys.pop(0)
            self.now = max(self.now, at)
            return key
        assert timeout < 3600, "it waits for a key that never comes"
        self.now += timeout
        return ""

    def clock(self) -> float:
        return self.now


def played(data: bytes, *keys: tuple[float, str], **how: float) -> list[tuple[float, str]]:
    """What was drawn and when, without the end that undoes everything."""
    terminal = Terminal(*keys)
    recording = Recording(io.BytesIO(data))
    play(recording, Playhead(recording.times, **how), terminal)
    *drawn, (_, last) = terminal.drawn
    assert last.endswith("\x1b>\r\n")
    assert "\x1b[0m" in last
    return drawn


def test_everything_comes_at_its_time_and_only_what_draws():
    data = cast(
        (0.0, "o", f"a{EVIL}"), (1.5, "o", "\x1b[1mb"), (2.0, "i", "secret"), (2.0, "r", "10x10"), (4.0, "o", "c")
    )
    assert played(data) == [(0.0, "a"), (1.5, "\x1b[1mb"), (4.0, "c")]


def test_speed_and_the_longest_pause():
    assert [at for at, _ in played(counted(3, 10.0), speed=2.0)] == [0.0, 5.0, 10.0]
    assert [at for at, _ in played(counted(3, 100.0), idle=2.0)] == [0.0, 2.0, 4.0]
    assert [at for at, _ in played(counted(3), (0.5, "+"))] == [0.0, 0.75, 1.25]
    assert [at for at, _ in played(counted(3), (0.5, "-"))] == [0.0, 1.5, 3.5]


def test_space_pauses_and_goes_on():
    assert [at for at, _ in played(counted(3), (0.5, " "), (60.5, " "))] == [0.0, 61.0, 62.0]


@pytest.mark.parametrize("key", ["q", "Q", "\x03", "\x04"], ids=ascii)
def test_q_and_ctrl_c_end_it(key):
    assert [text for _, text in played(counted(100), (2.5, key))] == ["<0>", "<1>", "<2>"]


@pytest.mark.parametrize("right", ["\x1b[C", "\x1bOC"], ids=ascii)
def test_right_shows_what_it_passes_at_once(right):
    drawn = played(counted(10), (1.0, right))
    assert [at for at, _ in drawn] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0]


def test_left_draws_anew_from_the_beginning():
    drawn = played(counted(8), (6.0, "\x1b[D"), (6.0, "q"))
    texts = [text for _, text in drawn]
    clear = next(number for number, text in enumerate(texts) if text.endswith("\x1b[H\x1b[2J"))
    assert texts[clear + 1 :] == ["<0>", "<1>"]


def test_single_events_digits_and_keys_that_mean_nothing():
    drawn = played(counted(10), (0.5, "."), (0.5, ".x\x1b[A"), (0.5, ","), (0.5, "q"))
    assert [text for _, text in drawn if text.startswith("<")] == ["<0>", "<1>", "<2>", "<0>", "<1>"]
    drawn = played(counted(11), (0.5, "5"), (0.6, "q"))
    assert drawn[-1] == (0.5, "<5>")


def test_an_arrow_in_pieces_is_still_one():
    drawn = played(counted(10), (1.0, "\x1b"), (1.01, "[C"), (1.02, "q"))
    assert drawn[-1][1] == "<6>"


def test_the_terminal_is_brought_back_when_the_recording_is_broken():
    data = cast((0.0, "o", "\x1b[?1049h")) + b"nonsense\n"
    with pytest.raises(CastError):
        Recording(io.BytesIO(data))
    file = io.BytesIO(cast((0.0, "o", "\x1b[?1049h"), (9.0, "o", "x")))
    recording, terminal = Recording(file), Terminal()
    file.seek(-8, io.SEEK_END)
    file.write(b"nonsense")  # after it was read once: the disk, or somebody at the file
    with pytest.raises(CastError):
        play(recording, Playhead(recording.times, 1e3), terminal)
    assert terminal.drawn[-1][1].startswith("\x1b[?1049l")


def test_a_torn_end_is_left_out_and_a_long_line_refused():
    assert len(Recording(io.BytesIO(counted(3)[:-4]))) == 2
    with pytest.raises(CastError, match="limit"):
        Recording(io.BytesIO(counted(1) + b'[1, "o", "' + b"x" * (2 << 20) + b'"]\n'))


# --- the command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.cast").write_bytes(
        cast(
            (0.0, "o", f"one{EVIL}\r\n"), (0.5, "i", "x"), (1.0, "o", "\x1b[31mtwo\x1b[0m\r\n"), (3600.0, "o", "three")
        )
    )
    return tmp_path


def tsh(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run([TSH, *words], cwd=folder, env=environment, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_where_there_is_no_terminal_its_text_is_printed(folder: Path) -> None:
    for words in (("play", "a.cast"), ("play", "--format", "text", "a.cast")):
        done = tsh(folder, *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "one\ntwo\nthree\n", "")


def test_json_is_all_of_it_in_ascii(folder: Path) -> None:
    done = tsh(folder, "play", "--format=json", "./a.cast")
    assert done.stdout.isascii()
    assert "\x1b" not in done.stdout
    found = json.loads(done.stdout)
    assert (found["width"], found["title"], found["session"]) == (80, "alice@example.com as root on web", {"id": "x"})
    assert found["events"][0] == [0.0, "o", f"one{EVIL}\r\n"]
    assert [kind for _, kind, _ in found["events"]] == ["o", "i", "o", "o"]


def test_what_cannot_be_played_is_one_line(folder: Path) -> None:
    (folder / "b.cast").write_text('{"version": 1}\n')
    assert tsh(folder, "play", "none.cast").stderr == (
        "tsh: none.cast: no such file, and not the id of a recording (tsh recordings ls)\n"
    )
    assert tsh(folder, "play", "b.cast").stderr == "tsh: asciicast version 1: only version 2 is played\n"
    assert "Invalid value for '--speed'" in tsh(folder, "play", "--speed=0", "a.cast").stderr
    done = tsh(folder, "play", "0b5fd6f3-0a8e-4c1e-9a55-5d1f5a3c7e21")
    assert done.stderr == "tsh: not logged in: tsh login --proxy=HOST:PORT --user=NAME\n"


class Played:
    """`tsh play` at a terminal of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "xterm"}
        self.process = subprocess.Popen(
            [TSH, "play", *words], cwd=folder, env=environment, stdin=self.slave, stdout=self.slave, stderr=self.slave,
            start_new_session=True,
        )  # fmt: skip
        self.seen = b""

    def until(self, text: bytes) -> None:
        deadline = time.monotonic() + 60
        while text not in self.seen:
            assert select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.master, 65_536)

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self) -> int:
        status = self.process.wait(60)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65_536)
        return status

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before


@pytest.fixture
def play_at(folder: Path) -> Iterator[object]:
    running: list[Played] = []

    def start(*words: str) -> Played:
        running.append(Played(folder, *words))
        return running[-1]

    yield start
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one.master)
        os.close(one.slave)


def test_at_a_terminal_it_plays_and_ends_by_itself(play_at) -> None:
    one = play_at("--idle=0.01", "a.cast")
    assert one.end() == 0
    text = one.seen.decode()
    assert "alice@example.com as root on web: space pauses" in text
    assert "recorded on 80x24, this terminal has" in text
    assert "one\r\n\x1b[31mtwo\x1b[0m\r\nthree" in text
    assert "\x1b[c" not in text
    assert "evil" not in text
    assert one.restored


@pytest.mark.parametrize("how", ["q", "ctrl-c", "SIGTERM", "SIGHUP"])
def test_however_it_ends_the_terminal_is_as_before(play_at, how: str) -> None:
    one = play_at("a.cast")
    one.until(b"one\r\n")
    assert not one.restored
    match how:
        case "q":
            one.press(b"q")
        case "ctrl-c":
            one.press(b"\x03")
        case _:
            one.process.send_signal(getattr(signal, how))
    assert one.end() == (0 if how in {"q", "ctrl-c"} else 128 + getattr(signal, how))
    assert one.restored
    assert one.seen.endswith(b"\x1b>\r\n")
    assert b"three" not in one.seen


def test_seeking_with_real_keys_reaches_the_end_of_an_hour(play_at) -> None:
    one = play_at("a.cast")
    one.until(b"one\r\n")
    one.press(b"9")
    one.until(b"two")
    one.press(b" ")
    one.press(b".")
    one.until(b"three")
    one.press(b"q")
    assert one.end() == 0
    assert one.restored
