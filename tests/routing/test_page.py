"""docs/routing.md is held to the code: it names every refusal and every rule."""

import re
from pathlib import Path

from monoport import protocols
from monoport.routing.outcome import Code, Kind
from monoport.routing.rules import Rule
from monoport.routing.table import build
from monoport.wire.front import Why

from .conftest import APPLICATIONS, PUBLIC

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "routing.md").read_text()
DATABASE = re.compile(r"\bRefused\(Why\.([A-Z_]+)")  # proxy/database.py puts "database_" before them
LITERAL = re.compile(
    r"(?:Refusal\(|self\._refused\([^,()]+(?:\.[a-z]+)?, [^,()]+,|\b_refused\(connection,)\s*\"([a-z_]+)\""
)


def refused_elsewhere() -> set[str]:
    """Codes that later steps of a connection write down as they refuse."""
    texts = [path.read_text() for path in (ROOT / "src").rglob("*.py")]
    found = {code for text in texts for code in LITERAL.findall(text)}
    databases = {f"database_{Why[name]}" for text in texts for name in DATABASE.findall(text)}
    return found | databases


def test_the_page_explains_every_refusal_and_no_other():
    explained = set(re.findall(r"^\| `([a-z_]+)` \|", PAGE.partition("\n## Refusals\n")[2], re.MULTILINE))
    assert refused_elsewhere() >= {"handshake_failed", "too_many_connections", "silence"}
    assert explained == set(Code) | refused_elsewhere()


def everything() -> tuple[Rule, ...]:
    """The rules of a proxy that serves all there is, for every protocol there is."""
    protocol_rules = [description.routing for description in protocols.TABLE.values()]
    return build(PUBLIC, "example", frozenset(Kind), protocol_rules, APPLICATIONS).rules


def test_the_page_names_every_rule():
    named = re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE.partition("\n## Refusals\n")[0], re.MULTILINE)
    assert sorted(named) == sorted(rule.name for rule in everything())


def test_the_page_names_every_alpn_of_a_protocol():
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \|(.*)", PAGE.partition("\n## Refusals\n")[0], re.MULTILINE))
    for description in protocols.TABLE.values():
        assert all(f"`{name}`" in rows[description.name] for name in description.alpn)


def test_the_page_says_which_rules_are_not_served():
    sentence = PAGE.partition("At present that is so for")[2].partition(".\n")[0]
    rules = [description.routing for description in protocols.TABLE.values()]
    running = build(PUBLIC, "example", frozenset(Kind) - {Kind.KUBERNETES, Kind.APPLICATION}, rules, APPLICATIONS)
    unserved = {rule.name for rule in running.rules if not rule.served and rule.takes is not bytes}
    assert set(re.findall(r"`([a-z-]+)`", sentence)) == unserved
