"""Every kind of route that routing knows is served by the daemon's proxy, or refused by name."""

from __future__ import annotations

from typing import assert_never

import pytest

from monoport import protocols
from monoport.routing.conditions import Named, Offers, OffersOrNone, Under
from monoport.routing.match import decide
from monoport.routing.outcome import Kind, Refusal, Route
from monoport.routing.rules import Go, Rule
from monoport.routing.table import Table, build
from monoport.wire.clienthello import ClientHello

from ..scenarios.cluster import CLUSTER, PUBLIC, Cluster  # noqa: TID252 # tests are no package

APPLICATIONS = {"grafana.example.com": "grafana"}


def whole(served: frozenset[Kind]) -> Table:
    """The daemon's table, with an application, which no configuration can name yet."""
    return build([PUBLIC], CLUSTER, served, [one.routing for one in protocols.TABLE.values()], APPLICATIONS)


def hellos(rule: Rule) -> list[ClientHello]:
    """One ClientHello for each name by which a rule is reached at first."""
    match rule.when:
        case Named(hosts):
            return [ClientHello(server_name=host, alpn=()) for host in hosts]
        case Under(domains):
            return [ClientHello(server_name=f"name.{domain}", alpn=()) for domain in domains]
        case Offers(names) | OffersOrNone(names):
            return [ClientHello(server_name=PUBLIC, alpn=(name,)) for name in names]
        case _:
            return [ClientHello(server_name=PUBLIC, alpn=())]


@pytest.mark.parametrize("kind", Kind)
async def test_every_kind_is_served_or_refused_by_name(cluster: Cluster, kind: Kind) -> None:
    front = cluster.proxy.front
    assert front.table.served == frozenset(front.handlers)
    table = whole(front.table.served)
    rules = [rule for rule in table.rules if isinstance(rule.then, Go) and rule.then.kind is kind]
    assert rules, "a kind that nothing leads to"

    at_first = [one for one in rules if one.takes is ClientHello and "" in one.said]
    for rule, hello in [(one, hello) for one in at_first for hello in hellos(one)]:
        outcome = decide(hello, table)
        match outcome:
            case Route():
                assert rule.served
                assert (outcome.kind, outcome.rule) == (kind, rule.name)
            case Refusal():
                assert not rule.served
                assert outcome.code == "not_enabled"
                assert rule.goes_to in outcome.reason or "not enabled" in outcome.reason
                assert outcome.send, "the client is told by an alert"
            case _:
                assert_never(outcome)  # type: ignore[arg-type]
    assert any(rule.served for rule in rules) == (kind in front.handlers)
