"""docs/clients.md lists the clients that the tests run: every one of them, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..real import clients  # noqa: TID252 # tests are no package

ROOT = Path(__file__).parents[2]
RENEW = "run: make clients"


@pytest.fixture(scope="module")
def declared() -> list[clients.Client]:
    """What the tests of real programs declare."""
    return clients.everyone()


def test_the_page_lists_exactly_the_clients_that_are_run(declared: list[clients.Client]) -> None:
    rows = clients.rows((ROOT / "docs/clients.md").read_text())
    listed = sorted((title, name, how) for title, name, _, _, how in rows)
    assert listed == sorted((clients.SECTIONS[each.reaches][0], each.name, each.how) for each in declared), RENEW


def test_every_row_says_which_version_sends_what() -> None:
    text = (ROOT / "docs/clients.md").read_text()
    rows = clients.rows(text)
    assert rows
    assert all(version[:1].isdigit() and ("`" in sent or "TLS" in sent) for _, _, version, sent, _ in rows), RENEW
    assert text.startswith(clients.INTRODUCTION), RENEW


def test_a_row_is_read_as_it_was_written() -> None:
    client = clients.Client("a client", "ssh", "`a | b` and c", lambda: "1.2")
    written = clients.page([clients.row(client, ["`SSH-2.0-x`", "TLS without SNI and ALPN"])])
    assert clients.rows(written) == [
        ("SSH nodes", "a client", "1.2", "`SSH-2.0-x`; TLS without SNI and ALPN", "`a | b` and c")
    ]


def test_who_was_not_heard_keeps_a_row_and_who_is_not_declared_loses_it(declared: list[clients.Client]) -> None:
    first, second = declared[:2]
    gone = clients.Client("gone", "ssh", "`gone`", lambda: "1.0")
    old = clients.page([clients.row(one, ["`old`"]) for one in (first, second, gone)])
    found = clients.rows(clients.renewed(old, {first: ["`new`"]}))
    assert {(row[1], row[4], row[3]) for row in found} == {
        (first.name, first.how, "`new`"),
        (second.name, second.how, "`old`"),
    }
