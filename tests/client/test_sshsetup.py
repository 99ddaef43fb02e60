"""What a login puts into a running ssh-agent, and that a logout takes it out again."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from monoport.client.profile import Home
from monoport.client.sshsetup import add_to_agent, set_up, tear_down
from monoport.errors import Failure

from .conftest import Cas, signed_in

FAILURE, SUCCESS, REQUEST_IDENTITIES, IDENTITIES_ANSWER, ADD_ID_CONSTRAINED, CONSTRAIN_LIFETIME = 5, 6, 11, 12, 25, 1


@pytest.fixture
def agent(tmp_path_factory: pytest.TempPathFactory, need: Callable[[str], str]) -> Iterator[dict[str, str]]:
    """A running ssh-agent, as the environment that names it."""
    folder = tmp_path_factory.mktemp("a")
    path = folder / "sock"
    with subprocess.Popen([need("ssh-agent"), "-D", "-a", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # printed once it listens
        yield {"SSH_AUTH_SOCK": str(path), "HOME": str(folder)}
        process.terminate()


def add_another_key(agent: dict[str, str], need: Callable[[str], str], path: Path) -> None:
    words = [need("ssh-keygen"), "-q", "-N", "", "-t", "ed25519", "-C", "mine", "-f", path]
    subprocess.run(words, check=True, timeout=30)
    subprocess.run([need("ssh-add"), "-q", path], env=agent, check=True, timeout=30)


def listed(agent: dict[str, str], need: Callable[[str], str]) -> list[str]:
    done = subprocess.run([need("ssh-add"), "-l"], env=agent, capture_output=True, text=True, timeout=30, check=False)
    return [line for line in done.stdout.splitlines() if not line.startswith("The agent has no")]


async def test_login_adds_the_certificate_once_and_logout_removes_it(
    home: Home, cas: Cas, agent: dict[str, str], need: Callable[[str], str], tmp_path: Path
) -> None:
    add_another_key(agent, need, tmp_path / "other")
    profile = signed_in(home, cas, 3080)
    assert await set_up(home, profile, agent, print)
    assert await set_up(home, profile, agent, print)
    (line,) = [line for line in listed(agent, need) if "monoport:alice@example.com" in line]
    assert "ECDSA-CERT" in line
    assert (Path(agent["HOME"]) / ".ssh" / "known_hosts").read_bytes().count(b"@cert-authority") == 1
    await tear_down(home, profile, agent)
    assert [line for line in listed(agent, need) if "mine" not in line] == []
    assert len(listed(agent, need)) == 1
    assert (Path(agent["HOME"]) / ".ssh" / "known_hosts").read_bytes() == b""


class ScriptedAgent:
    """Speaks the agent protocol with fixed answers (draft-ietf-sshm-ssh-agent section 3)."""

    def __init__(self, path: Path, answer: int) -> None:
        self.path, self.answer, self.messages = path, answer, []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await reader.readexactly(int.from_bytes(await reader.readexactly(4)))
                self.messages.append(message)
                listing = message[0] == REQUEST_IDENTITIES
                reply = bytes([IDENTITIES_ANSWER, 0, 0, 0, 0]) if listing else bytes([self.answer])
                writer.write(len(reply).to_bytes(4) + reply)
                await writer.drain()
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[dict[str, str]]:
        server = await asyncio.start_unix_server(self.serve, self.path)
        async with server:
            yield {"SSH_AUTH_SOCK": str(self.path)}


async def test_the_key_lives_in_the_agent_as_long_as_the_certificate(home: Home, cas: Cas, tmp_path: Path) -> None:
    agent = ScriptedAgent(tmp_path / "a", SUCCESS)
    profile = signed_in(home, cas, 3080, lasts=timedelta(minutes=5))
    async with agent.running() as environment:
        assert await add_to_agent(home, profile, environment)
    added = agent.messages[-1]
    assert added[0] == ADD_ID_CONSTRAINED
    assert added[-5] == CONSTRAIN_LIFETIME
    assert 200 < int.from_bytes(added[-4:]) <= 300


async def test_an_agent_that_refuses_is_named(home: Home, cas: Cas, tmp_path: Path) -> None:
    profile = signed_in(home, cas, 3080)
    async with ScriptedAgent(tmp_path / "a", FAILURE).running() as environment:
        with pytest.raises(Failure, match=r"ssh-agent at .* refused"):
            await add_to_agent(home, profile, environment)


@pytest.mark.parametrize("environment", [{}, {"SSH_AUTH_SOCK": "/nowhere/agent"}])
async def test_no_agent_is_no_error(home: Home, cas: Cas, tmp_path: Path, environment: dict[str, str]) -> None:
    profile = signed_in(home, cas, 3080)
    assert not await set_up(home, profile, {"HOME": str(tmp_path)} | environment, print)
    await tear_down(home, profile, {"HOME": str(tmp_path)} | environment)


async def test_another_profile_of_the_cluster_keeps_the_line(home: Home, cas: Cas, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path)}
    first = signed_in(home, cas, 3080, host="one.example")
    second = signed_in(home, cas, 3081, host="two.example")
    await set_up(home, first, environment, print)
    await tear_down(home, first, environment)
    path = tmp_path / ".ssh" / "known_hosts"
    assert path.read_bytes().count(b"@cert-authority") == 1
    home.forget(first)
    await tear_down(home, second, environment)
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("host", "cluster", "trust", "written", "said"),
    [
        ("proxy.example.com", "example.com", "roots", True, None),
        (
            "localhost",
            "example.com",
            "pin",
            True,
            "ssh now trusts the CA of example.com for all *.example.com: --no-ssh",
        ),
        ("localhost", "example.com", "roots", False, "`tsh config`"),
        ("evil.example", "github.com", "roots", False, "no --ca-pin vouches"),
        ("proxy.example.com", "example.com", "insecure", False, "with --insecure nothing vouches for example.com"),
        ("evil.example", "com", "pin", False, "too broad"),
    ],
)
async def test_what_the_users_own_ssh_trusts(
    home: Home, tmp_path: Path, host: str, cluster: str, trust: str, written: bool, said: str | None
) -> None:
    told: list[str] = []
    environment = {"HOME": str(tmp_path)}
    path = tmp_path / ".ssh" / "known_hosts"
    profile = replace(signed_in(home, Cas(cluster), 3080, host=host), trust=trust)
    assert not await set_up(home, profile, environment, told.append)
    assert (path.exists() and b"@cert-authority" in path.read_bytes()) is written
    assert [said is not None and said in line for line in told] == ([True] if said else [])


async def test_a_login_that_nobody_vouches_for_takes_back_the_line_but_not_anothers(
    home: Home, cas: Cas, tmp_path: Path
) -> None:
    environment = {"HOME": str(tmp_path)}
    path = tmp_path / ".ssh" / "known_hosts"
    mine = signed_in(home, cas, 3080, host="one.example")
    await set_up(home, mine, environment, print)
    line = path.read_bytes()
    evil = replace(signed_in(home, Cas(), 3081, host="evil.net"), trust="roots")
    home.save(evil)
    await set_up(home, evil, environment, print)
    assert path.read_bytes() == line
    home.save(replace(mine, trust="insecure"))
    await set_up(home, replace(mine, trust="insecure"), environment, print)
    assert path.read_bytes() == b""
