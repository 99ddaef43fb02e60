"""Identities, resources and roles to decide about, at one fixed instant."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from monoport.access.identity import Identity, Kind
from monoport.access.resources import Database, Lock, Node, Role, parse_document

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Make:
    """Short ways to make values."""

    now: datetime = NOW

    def user(self, **changes: Any) -> Identity:
        fields = {
            "kind": Kind.USER,
            "name": "alice",
            "cluster": "example.com",
            "roles": ("dev",),
            "traits": {"logins": ("root", "alice"), "db_users": ("reader",), "db_names": ("shop",)},
            "principals": ("root", "alice"),
            "expires": NOW + timedelta(hours=1),
        }
        return Identity(**(fields | changes))

    def host(self, **changes: Any) -> Identity:
        fields = {"kind": Kind.HOST, "name": "h1", "traits": {}, "roles": ("node",), "principals": ("h1", "web")}
        return self.user(**(fields | changes))

    def node(self, labels: dict[str, str] | None = None) -> Node:
        found = parse_document(
            {
                "kind": "node",
                "metadata": {"name": "h1", "labels": labels or {}},
                "spec": {"hostname": "web", "host_id": "h1"},
            }
        )
        assert isinstance(found, Node)
        return found

    def database(self, labels: dict[str, str] | None = None) -> Database:
        found = parse_document(
            {
                "kind": "db",
                "metadata": {"name": "orders", "labels": labels or {}},
                "spec": {"protocol": "postgres", "host_id": "h1"},
            }
        )
        assert isinstance(found, Database)
        return found

    def role(self, name: str = "dev", **spec: Any) -> Role:
        found = parse_document({"kind": "role", "version": "v1", "metadata": {"name": name}, "spec": spec})
        assert isinstance(found, Role)
        return found

    def roles(self, **specs: Any) -> dict[str, Role]:
        return {name: self.role(name, **spec) for name, spec in specs.items()}

    def lock(self, expires: str | None = None, **target: str) -> Lock:
        spec = {"target": target, "expires": expires}
        found = parse_document({"kind": "lock", "metadata": {"name": "l1"}, "spec": spec})
        assert isinstance(found, Lock)
        return found


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()


@pytest.fixture(scope="session")
def now() -> datetime:
    return NOW
