"""Which clients the tests run, and docs/clients.md, which is made from them.

Belongs here: what a test declares of its client, listening to what the one port and the nodes say of its connections,
and the page. Does not belong here: the tests.

A test declares the client that it runs with `@pytest.mark.client(Client(...))`. `make clients` runs these tests, takes
versions from the programs and what they send from the daemons' own logs, and writes the page; a client that this
machine lacks keeps the row that it has. An ordinary run of the tests writes nothing; tests/contracts/test_clients.py
compares the page with the declarations.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from monoport import protocols

from ..conftest import find_program  # noqa: TID252 # tests are no package
from .cluster import BIN, Cluster, wait_until

MARK = "client"
# What a client reaches -> the heading of its table, and the kind of route that its connections take.
SECTIONS = {
    "ssh": ("SSH nodes", "ssh"),
    "postgres": ("PostgreSQL databases", "database"),
    "mongodb": ("MongoDB databases", "database"),
    "mysql": ("MySQL and MariaDB databases", "database"),
    "web": ("Web pages and API", "web"),
}
COLUMNS = ("Client", "Version", "Sends to the port", "How")
INTRODUCTION = """\
# Clients

Every client here is run by the tests (`tests/real`) against a whole cluster, through its one port. The table is written
by `make clients` from those runs: the version is the program's own answer, and what it sends is what the front door and
the node logged of its connections. In the tests the proxy is called `localhost` and the cluster `example.com`. The page
says what was tried, not what is possible: other versions and other clients of the same libraries are likely to work.
"""


@dataclass(frozen=True)
class Client:
    """One client in one way of using it: a row of the page.

    Args:
        name: as people call it. reaches: a key of SECTIONS.
        how: how it is told to use the port, in Markdown for one cell.
        version: asked for the version when the page is made, `program` and `distribution` make such functions.
    """

    name: str
    reaches: str
    how: str
    version: Callable[[], str]

    def __post_init__(self) -> None:
        assert self.reaches in SECTIONS, f"{self.name} reaches {self.reaches}, expected one of {', '.join(SECTIONS)}"


def program(*words: str) -> Callable[[], str]:
    """Ask a program: the first thing that looks like a version in what it prints."""

    def version() -> str:
        own = BIN / words[0]  # tsh, or a program of a Python package
        path = str(own) if own.exists() else find_program(words[0])
        assert path, f"{words[0]} is not installed"
        done = subprocess.run(
            [path, *words[1:]], capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
        )
        found = re.search(r"\d+(?:\.\d+)+[\w.]*", done.stdout + done.stderr)
        assert found, f"{' '.join(words)} says no version: {done.stdout}{done.stderr}"
        return found[0]

    return version


def distribution(name: str) -> Callable[[], str]:
    """The version of an installed Python package."""
    return lambda: importlib.metadata.version(name)


def declared(modules: Iterable[ModuleType]) -> list[Client]:
    """The clients that the tests of these modules run, each once."""
    found: dict[Client, None] = {}
    for module in modules:
        for test in vars(module).values():
            for mark in getattr(test, "pytestmark", ()):
                if mark.name == MARK:
                    found[mark.args[0]] = None
    return list(found)


class Ear:
    """Hears what the daemons of a cluster log from now on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.begin()

    def begin(self) -> None:
        """Forget what was said so far: it came from what makes a test ready."""
        self._begun = {daemon.log: len(daemon.text()) for daemon in self._cluster.daemons}

    def sent(self, client: Client) -> list[str]:
        """What its connections began with, each way once, when the last of them is over."""
        kind = SECTIONS[client.reaches][1]
        wait_until(lambda: not self._live(kind), 15, f"the end of the connections of {client.name}")
        lines = wait_until(lambda: self._over(kind), 15, f"a connection of {client.name} in the front door's log")
        inside = dict.fromkeys(line["client"] for line in self._lines("logged in"))
        return [_opening(line, inside) for line in lines]

    def _live(self, kind: str) -> bool:
        rows = json.loads(self._cluster.tctl("conns", "ls", "--format=json").stdout)
        return any(row["state"] == kind for row in rows)

    def _over(self, kind: str) -> list[dict[str, str]]:
        lines = (line for line in self._lines("connection") if line.get("kind") == kind)
        ways = {tuple(line.get(name) for name in ("rule", "sni", "alpn", "client")): line for line in lines}
        return list(ways.values())

    def _lines(self, event: str) -> Iterable[dict[str, str]]:
        for daemon in self._cluster.daemons:
            for line in daemon.text()[self._begun.get(daemon.log, 0) :].splitlines():
                if re.match(rf"\S+ \[info +\] {event} +\w+=", line):
                    yield {name: value.strip("'") for name, value in re.findall(r"(\w+)=('[^']*'|\S+)", line)}


def _opening(line: Mapping[str, str], inside: Iterable[str]) -> str:
    """One connection's beginning in words."""
    said = line.get("client", "None")
    if line["rule"] == "ssh-plain":
        return f"`{said}`"
    offers = {"ALPN": line["alpn"].split(","), "SNI": [line["sni"]]}
    names = [
        f"{what} {' or '.join(f'`{name}`' for name in offered)}"
        for what, offered in offers.items()
        if offered != ["None"]
    ]
    text = f"TLS with {', '.join(names)}" if names else "TLS without SNI and ALPN"
    if line["rule"].endswith("-greeting"):
        text = f"nothing until it is greeted, then {text}"
    found = protocols.TABLE.get(line["rule"].removesuffix("-upgraded"))
    if line["rule"].endswith("-upgraded") and found is not None and not found.routing.by_name:
        text = f"its protocol's request for TLS, then {text}"
    inner = [f"`{each}`" for each in inside]
    if line["kind"] == "ssh":
        text += f", in it `{said}`" + (f" to the proxy and {', '.join(inner)} to the node" if inner else "")
    return text


def row(client: Client, sent: Sequence[str]) -> tuple[str, ...]:
    """Its row of the page, as `rows` reads it: section, name, version, what it was heard to send, how."""
    return (SECTIONS[client.reaches][0], client.name, client.version(), "; ".join(sent), client.how)


def page(found: Iterable[tuple[str, ...]]) -> str:
    """The whole page of these rows."""
    ordered = sorted(found, key=lambda row: (row[1].lower(), row[4]))
    parts = [INTRODUCTION]
    for title, _ in SECTIONS.values():
        mine = [row[1:] for row in ordered if row[0] == title]
        if mine:
            parts += [f"\n## {title}\n\n", _row(COLUMNS), _row(["---"] * len(COLUMNS)), *map(_row, mine)]
    return "".join(parts)


def renewed(text: str, heard: Mapping[Client, Sequence[str]]) -> str:
    """The page with new rows for those who were heard; the rows of declared clients that were not stay as they are."""
    new = [row(client, sent) for client, sent in heard.items()]
    wanted = {(SECTIONS[one.reaches][0], one.name, one.how) for one in everyone()} - {_key(one) for one in new}
    return page([*new, *(one for one in rows(text) if _key(one) in wanted)])


def everyone() -> list[Client]:
    """The clients that any test of this folder runs."""
    package = __name__.rpartition(".")[0]
    found = sorted(Path(__file__).parent.glob("test_*.py"))
    return declared(importlib.import_module(f"{package}.{path.stem}") for path in found)


def _key(row: tuple[str, ...]) -> tuple[str, ...]:
    return (row[0], row[1], row[4])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def rows(text: str) -> list[tuple[str, ...]]:
    """The rows of a page, each behind its section's title."""
    found: list[tuple[str, ...]] = []
    title = ""
    for line in text.splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("| ") and not line.startswith(("| --- ", f"| {COLUMNS[0]} ")):
            cells = re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |"))
            found.append((title, *(cell.replace("\\|", "|") for cell in cells)))
    return found
