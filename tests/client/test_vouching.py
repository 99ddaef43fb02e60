"""Which names a cluster may have so that the user's own ssh trusts its CA."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monoport.client.names import Address
from monoport.client.profile import Home
from monoport.client.vouching import Verdict, verdict

from .conftest import Cas, signed_in


@pytest.mark.parametrize(
    ("typed", "cluster", "expected"),
    [
        ("localhost", "localhost", Verdict.RELATED),
        ("localhost", "demo.localhost", Verdict.RELATED),
        ("example.com", "example.com", Verdict.RELATED),
        ("proxy.example.com", "example.com", Verdict.RELATED),
        ("example.com", "prod.example.com", Verdict.RELATED),
        ("proxy.example.com", "prod.example.com", Verdict.RELATED),
        ("proxy.example.com", "Prod.Example.Com", Verdict.RELATED),
        ("proxy.example.co.uk", "prod.example.co.uk", Verdict.RELATED),
        ("10.0.0.7", "10.0.0.7", Verdict.RELATED),
        ("proxy.example.com", "github.com", Verdict.UNRELATED),
        ("example.com", "github.com", Verdict.UNRELATED),
        ("badexample.com", "example.com", Verdict.UNRELATED),
        ("example.com", "badexample.com", Verdict.UNRELATED),
        ("evil.co.uk", "bank.co.uk", Verdict.UNRELATED),
        ("proxy.eu.example.com", "prod.us.example.com", Verdict.UNRELATED),
        ("127.0.0.1", "example.com", Verdict.UNRELATED),
        ("9.0.0.1", "10.0.0.1", Verdict.UNRELATED),
        ("::1", "example.com", Verdict.UNRELATED),
        ("example.com", "com", Verdict.BROAD),
        ("example.com", "com.", Verdict.BROAD),
        ("example.com", "a..com", Verdict.BROAD),
        ("proxy.example.com", "example", Verdict.BROAD),
        ("proxy.example.co.uk", "co.uk", Verdict.BROAD),
        ("example.com", "user@example.com", Verdict.BROAD),
        ("localhost", "example", Verdict.BROAD),
    ],
)
def test_names(home: Home, cas: Cas, typed: str, cluster: str, expected: Verdict) -> None:
    profile = replace(signed_in(home, cas, 3080), proxy=Address(typed, 3080), cluster=cluster, trust="roots")
    assert verdict(profile) is expected
    unverified = expected if expected is Verdict.BROAD else Verdict.UNVERIFIED
    assert verdict(replace(profile, trust="insecure")) is unverified
    pinned = Verdict.PINNED if expected is Verdict.UNRELATED else expected
    assert verdict(replace(profile, trust="pin")) is pinned
