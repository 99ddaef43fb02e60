"""What every test shares: names of missing tools in the summary, and the rule that CI lacks none."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from monoport.net import eventloop

from .blackhole import BlackHole, Clock

settings.register_profile("shared machine", deadline=None)  # a busy neighbour is no failure
settings.load_profile("shared machine")

# As the daemon does: clients and server of the tests with 500 connections need more than a login's usual 1024.
_, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (_most, _most))

# Program -> the Debian package that brings it. A test asks with the fixture `need`.
PACKAGES = {
    "ssh": "openssh-client",
    "scp": "openssh-client",
    "sftp": "openssh-client",
    "ssh-agent": "openssh-client",
    "ssh-add": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "plink": "putty-tools",
    "psftp": "putty-tools",
    "puttygen": "putty-tools",
    "rsync": "rsync",
    "git": "git",
    "mariadb": "mariadb-client",
    "mariadbd": "mariadb-server",
    "mariadb-dump": "mariadb-client",
    "psql": "postgresql-client",
    "pgbench": "postgresql",
    "postgres": "postgresql",
    "curl": "curl",
    "openssl": "openssl",
    "node": "nodejs",
    "java": "default-jdk-headless",
    "javac": "default-jdk-headless",
    "haproxy": "haproxy",
    "xauth": "xauth",
    "xdpyinfo": "x11-utils",
    "Xvfb": "xvfb",
}
MISSING = "missing tool: "

# The rooms whose code sits closest to the loop run on asyncio's own too, as they do in somebody else's program.
BOTH_LOOPS = ("net", "sockets")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the daemon runs on."""
    ours = {"monoport": eventloop.new_loop}
    room = item.path.relative_to(Path(__file__).parent).parts[0]
    return ours | {"asyncio": asyncio.SelectorEventLoop} if room in BOTH_LOOPS else ours


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--clients FILE`: write the page of the clients that the tests run; see tests/real/clients.py."""
    parser.addoption("--clients", metavar="FILE", type=Path, help="write docs/clients.md from what the tests see")


def find_program(name: str) -> str | None:
    """The path of a program as Debian installs it, also outside the PATH of ordinary users."""
    servers = ":".join(str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:{servers}")


def require(name: str) -> str:
    """The path of a program; without it the test is skipped by name, or fails where CI runs it."""
    path = find_program(name)
    if path is None:
        reason = f"{MISSING}{name}: apt-get install {PACKAGES.get(name, name)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def fetched(path: str) -> Path:
    """A file that `scripts/clients` gets for the tests; without it as `require` does."""
    found = Path(__file__).parents[1] / ".clients" / path
    if not found.exists():
        reason = f"{MISSING}{path}: run scripts/clients"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session", name="need")
def _need():  # a plain function is what tests call
    """`need("psql")` -> its path; see `require`."""
    return require


@pytest.fixture
async def black_hole() -> AsyncIterator[BlackHole]:
    """A wire that can be cut without either end noticing."""
    async with BlackHole() as hole:
        yield hole


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    """The loop's clock, which can be turned forward."""
    turned = Clock()
    yield turned
    turned.stop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Name what was missing, so that a skipped test is never mistaken for a passed one; then, below every diff, what
    failed in a line each: who sees the log's end alone sees that."""
    reasons = {
        str(report.longrepr[2])
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    }
    for reason in sorted(reason for reason in reasons if MISSING in reason):
        terminalreporter.write_line(reason)
    yield
    for outcome in ("failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            terminalreporter.write_line(f"{outcome}: {report.nodeid} {_last_line(report)}"[:200], red=True)


def _last_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message.splitlines()[0] if crash and crash.message else ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Soaks run only by `make soak`; tests of real programs share the servers of one worker."""
    chosen = config.getoption("-m")
    for item in items:
        if "soak" in item.keywords and "soak" not in chosen:
            item.add_marker(pytest.mark.skip(reason="a soak: runs by `make soak`"))
        if Path(str(item.path)).parent.name == "real":
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.xdist_group("real"))
