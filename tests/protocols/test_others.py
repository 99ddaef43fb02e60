"""Protocols of other packages: loaded only where they are named, refused where they could not be told apart."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from monoport import config, protocols
from monoport.access.claims import Destination
from monoport.access.resources import Database, DatabaseSpec, Metadata
from monoport.client.databases import protocol_of, title_of
from monoport.config import Address, ConfigError
from monoport.errors import Failure

from ..others import PROGRAM, install  # noqa: TID252 # tests are no package

MODULE = "greet_for_monoport"
SILENT = PROGRAM.replace("alpn=(", "greets=True, alpn=(").replace("default_port", 'silence_key="x",\n    default_port')
FILE = """\
version: v3
teleport:
  protocols: {others}
  proxy_server: example.com
db_service:
  enabled: yes
  databases:
    - {{name: hello, protocol: greet, uri: localhost}}
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sys.path; afterwards nothing of what was loaded from it is left."""
    before = set(sys.modules)
    protocols.table.cache_clear()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    protocols.table.cache_clear()
    for name in set(sys.modules) - before:
        if name.endswith("_for_monoport"):
            del sys.modules[name]


def test_it_is_loaded_only_when_it_is_named(packages: Path) -> None:
    install(packages, {"greet": f"{MODULE}:PROTOCOL"})
    assert protocols.table() is protocols.TABLE
    assert MODULE not in sys.modules
    table = protocols.table(("greet",))
    assert list(table) == [*protocols.TABLE, "greet"]
    assert protocols.named("greet", table) is table["greet"]
    assert protocols.named("greet") is None
    assert "greet" not in protocols.TABLE
    with pytest.raises(TypeError):
        table["other"] = table["greet"]  # type: ignore[index]
    assert protocols.login("greet", "alice", "", known=table).database is None
    assert protocols.login("greet", "alice", "").database == "", "what is unknown needs a database"


@pytest.mark.parametrize(
    ("point", "program", "says"),
    [
        ("greet", PROGRAM.replace("teleport-greet", "teleport-mysql"), "belongs to"),
        ("greet", PROGRAM.replace("default_port", 'aliases=("mariadb",),\n    default_port'), "'mariadb' is claimed"),
        ("greet", PROGRAM.replace("alpn=(", "greets=True, alpn=("), "both claim silent clients"),
        ("mysql", PROGRAM.replace('"greet"', '"mysql"'), "comes twice"),
        ("other", PROGRAM, "describes 'greet'"),
        ("greet", PROGRAM.replace("default_port", 'listen_key="web_listen_addr",\n    default_port'), "listen_key"),
        ("greet", SILENT, "keys are the configuration's own"),
        ("greet", "PROTOCOL = {}", "is no Description"),
        ("greet", "import nothing_of_that_name", "ModuleNotFoundError"),
        ("greet", "raise OSError('no')", "OSError"),
        ("greet", "", "AttributeError"),
    ],
)
def test_what_cannot_be_used_is_refused(packages: Path, point: str, program: str, says: str) -> None:
    install(packages, {point: f"{MODULE}:PROTOCOL"}, program=program)
    with pytest.raises(ValueError, match=says):
        protocols.table((point,))


def test_it_must_be_installed_once(packages: Path) -> None:
    with pytest.raises(ValueError, match="no installed package has the entry point 'greet'"):
        protocols.table(("greet",))
    install(packages, {"greet": f"{MODULE}:PROTOCOL"})
    install(packages, {"greet": f"{MODULE}:PROTOCOL"}, "another-for-monoport")
    with pytest.raises(ValueError, match="several packages: another-for-monoport, greet-for-monoport"):
        protocols.table(("greet",))


def test_named_twice_it_comes_twice(packages: Path) -> None:
    install(packages, {"greet": f"{MODULE}:PROTOCOL"})
    with pytest.raises(ValueError, match="comes twice"):
        protocols.table(("greet", "greet"))


@pytest.mark.parametrize("others", ["greet", "[greet]"])
def test_a_configuration_names_it(packages: Path, others: str) -> None:
    install(packages, {"greet": f"{MODULE}:PROTOCOL"})
    loaded = config.parse(FILE.format(others=others), "monoport.yaml")
    assert loaded.db_service.databases[0].uri == Address("localhost", 7777)
    assert list(loaded.protocols) == [*protocols.TABLE, "greet"]


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ("[]", 'monoport.yaml:8:31: db_service.databases[0].protocol: "greet" is not a protocol; '),
        ("[hello]", "monoport.yaml:3:14: teleport.protocols: no installed package has the entry point 'hello' of the "),
        ("[7]", "monoport.yaml:3:15: teleport.protocols[0]: 7: expected a string"),
        ("{a: b}", "monoport.yaml:3:3: teleport.protocols[0]: a mapping: expected a string"),
    ],
)
def test_a_configuration_that_is_wrong_says_where(packages: Path, others: str, says: str) -> None:
    install(packages, {"greet": f"{MODULE}:PROTOCOL"})
    with pytest.raises(ConfigError) as raised:
        config.parse(FILE.format(others=others), "monoport.yaml")
    assert str(raised.value).startswith(says)


def test_a_user_names_it_and_no_cluster_does(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(packages, {"greet": f"{MODULE}:PROTOCOL"})
    hello = Destination("db", "hello", "greet", "alice")
    listed = Database(metadata=Metadata(name="hello"), spec=DatabaseSpec(protocol="greet", host_id="h"))
    with pytest.raises(Failure, match="this tsh does not know the protocol 'greet' of database hello"):
        protocol_of(hello)
    assert title_of(listed) == "greet"
    assert MODULE not in sys.modules
    monkeypatch.setenv("TSH_PROTOCOLS", "greet")
    assert protocol_of(hello).title == title_of(listed) == "Greet"
    monkeypatch.setenv("TSH_PROTOCOLS", "greet,none")
    with pytest.raises(Failure, match="TSH_PROTOCOLS: no installed package has the entry point 'none'"):
        protocol_of(hello)
