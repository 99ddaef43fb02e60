"""`tsh` as a user types it: what there is, one clear line for every error, passwords, formats."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from monoport.client.profile import Home

from .conftest import Cas, database_login, signed_in

TSH = Path(sys.executable).with_name("tsh")


def tsh(home: Home, *words: str, send: bytes = b"") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home.path.parent), "TSH_HOME": str(home.path)}
    done = subprocess.run([TSH, *words], input=send, env=environment, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def commands(text: str) -> list[str]:
    return [line.split()[0] for line in text.split("Commands:")[1].splitlines() if line[:2] == "  " and line[2] != " "]


def test_help_lists_what_is_there_and_nothing_else(home: Home) -> None:
    assert commands(tsh(home, "--help").stdout) == [
        "config", "db", "login", "logout", "ls", "play", "proxy", "recordings", "scp", "ssh", "status",
    ]  # fmt: skip
    assert commands(tsh(home, "db", "--help").stdout) == ["config", "connect", "env", "login", "logout", "ls"]
    assert commands(tsh(home, "proxy", "--help").stdout) == ["all", "db", "ssh"]


def test_help_says_what_there_is_for_which_protocol(home: Home) -> None:
    config, env = tsh(home, "db", "config", "--help").stdout, tsh(home, "db", "env", "--help").stdout
    assert "MongoDB     there is none, use tsh proxy db" in config
    assert "~/.my.cnf, used as: mariadb --defaults-group-suffix=_NAME" in config
    assert "~/.pg_service.conf, used as: psql service=NAME" in config
    assert "PostgreSQL  PGHOST, PGPORT, " in env
    assert "MySQL       there is none, use tsh proxy db" in env


WITHOUT_LOGIN = [
    ("ls",),
    ("status",),
    ("logout",),
    ("config",),
    ("ssh", "alice@node"),
    ("scp", "a", "alice@node:b"),
    ("proxy", "ssh", "--user=alice", "node:22"),
    ("proxy", "db", "orders"),
    ("recordings", "ls"),
    ("db", "ls"),
    ("db", "login", "orders"),
    ("db", "logout"),
    ("db", "connect", "orders"),
    ("db", "env", "orders"),
    ("db", "config", "orders"),
]


@pytest.mark.parametrize("words", WITHOUT_LOGIN, ids=" ".join)
def test_without_a_login_every_command_says_how_to_log_in(home: Home, words: tuple[str, ...]) -> None:
    done = tsh(home, *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "tsh: not logged in: tsh login --proxy=HOST:PORT --user=NAME\n"


@pytest.mark.parametrize(
    "words",
    [("ls",), ("ssh", "alice@node"), ("scp", "a", "alice@node:b"), ("db", "ls"), ("db", "login", "orders")],
    ids=" ".join,
)
def test_an_ended_login_is_one_line_with_the_command_to_renew_it(home: Home, cas: Cas, words: tuple[str, ...]) -> None:
    signed_in(home, cas, 3080, lasts=timedelta(seconds=-1))
    done = tsh(home, *words)
    assert done.returncode == 1
    assert done.stderr.endswith("log in again: tsh login --proxy=localhost:3080 --user=alice\n")
    assert len(done.stderr.splitlines()) == 1


def test_status_in_every_format(home: Home, cas: Cas) -> None:
    profile = signed_in(home, cas, 3080)
    database_login(home, cas, profile, "orders")
    text = tsh(home, "status").stdout
    assert "alice@example.com" in text
    assert "localhost:3080" in text
    assert "sha256:" in text
    (row,) = json.loads(tsh(home, "status", "--format=json").stdout)
    assert (row["user"], row["cluster"], row["databases"], row["expired"]) == (
        "alice",
        "example.com",
        ["orders"],
        False,
    )
    assert "user: alice" in tsh(home, "status", "--format=yaml").stdout


def test_an_ended_login_is_still_shown(home: Home, cas: Cas) -> None:
    signed_in(home, cas, 3080, lasts=timedelta(seconds=-1))
    done = tsh(home, "status")
    assert done.returncode == 0
    assert "EXPIRED: log in again: tsh login" in done.stdout


def test_logout_of_one_and_of_all(home: Home, cas: Cas) -> None:
    signed_in(home, cas, 3080, host="one.example")
    signed_in(home, cas, 3081, host="two.example")
    signed_in(home, cas, 3082, host="three.example")
    assert "at one.example:3080" in tsh(home, "logout", "--proxy=one.example:3080").stdout
    assert not (home.path / "keys" / "one.example").exists()
    assert len(tsh(home, "logout", "--all").stdout.splitlines()) == 2
    assert [path.name for path in (home.path / "keys").iterdir()] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("login",), "where? tsh login --proxy=HOST:PORT"),
        (("login", "--proxy=a:b"), "'a:b' is not a proxy address"),
        (("login", "--proxy=x:1", "--ca-pin=y", "--insecure"), "exclude each other"),
        (("login", "--proxy=x:1", "--user=a", "--ttl=soon"), "--ttl soon"),
        (("login", "--proxy=x:1", "--user=a", "--ttl=9000h"), "--ttl 9000h: expected at most 8784h"),
        (("login", "--proxy=127.0.0.1:1", "--user=a"), "cannot reach the proxy: 127.0.0.1:1"),
        (("proxy", "db", "-p", "1", "--listen", "127.0.0.1:1", "x"), "exclude each other"),
        (("proxy", "db", "-p", "70000", "x"), "70000"),
        (("nothing",), "No such command"),
    ],
)
def test_bad_words_are_one_line(home: Home, words: tuple[str, ...], says: str) -> None:
    done = tsh(home, *words)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_is_said_before_the_password_is_asked(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = tsh(Home(closed / "tsh"), "login", "--proxy=127.0.0.1:1", "--user=a")
    assert (done.returncode, done.stderr) == (
        1,
        f"tsh: cannot write to {closed}/tsh: set TSH_HOME to a folder of yours\n",
    )


def test_a_traceback_is_shown_only_when_asked_for(home: Home) -> None:
    assert "Traceback" not in tsh(home, "ls").stderr
    assert "Traceback" in tsh(home, "--debug", "ls").stderr
    assert "Traceback" in tsh(home, "ls", "--debug").stderr


def test_config_prints_absolute_paths(home: Home, cas: Cas) -> None:
    signed_in(home, cas, 3080)
    text = tsh(home, "config").stdout
    assert "\nHost *.example.com\n" in text
    assert f"IdentityFile {home.path}/keys/localhost/alice\n" in text
    assert f"{TSH} proxy ssh" in text


def test_the_password_prompt_is_hidden_at_a_terminal() -> None:
    program = "from monoport.cli.password import read_password; print(f'got {read_password()}!', flush=True)"
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    seen = b""
    while b"Password: " not in seen:
        seen += os.read(master, 100)
    os.write(master, b"s3cret\n")
    while b"!" not in seen:
        seen += os.read(master, 100)
    os.waitpid(pid, 0)
    os.close(master)
    assert seen.count(b"s3cret") == 1
    assert b"got s3cret!" in seen


@pytest.mark.parametrize(("typed", "status", "says"), [(b"\x03", 130, b""), (b"\x04", 1, b"no password was typed")])
def test_the_password_prompt_is_left_at_once(typed: bytes, status: int, says: bytes) -> None:
    program = """
import asyncio, click
from monoport.cli.password import read_password
from monoport.cli.run import run
async def login():
    read_password()
run(click.Command("tsh", callback=lambda: asyncio.run(login())), [])
"""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    seen = b""
    while b"Password: " not in seen:
        seen += os.read(master, 100)
    os.write(master, typed)
    try:
        while more := os.read(master, 100):
            seen += more
    except OSError:  # how Linux reports that the other end of a terminal has gone
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    os.close(master)
    assert says in seen
    assert seen.endswith(b"\r\n")


def test_passwords_come_from_the_first_line_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from monoport.cli.password import MAX_PASSWORD, read_password
    from monoport.errors import Failure

    def given(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    given(b" correct horse \r\nsecond line\n")
    assert read_password() == " correct horse "
    given("pässword".encode())
    assert read_password() == "pässword"
    for data, says in ((b"", "no password"), (b"x" * (MAX_PASSWORD + 1), "longer than"), (b"\xff\n", "not UTF-8")):
        given(data)
        with pytest.raises(Failure, match=says):
            read_password()
