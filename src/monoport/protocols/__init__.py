"""The table of database protocols: every `protocols/<name>.py` with a constant PROTOCOL, frozen.

Belongs here: finding the descriptions and rejecting a set of them that could not be told apart. A protocol is added by
adding its file; nothing here names one.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from monoport.access.question import DatabaseLogin
from monoport.protocols.description import Description
from monoport.routing import table as routing
from monoport.routing.outcome import Kind


def build(descriptions: Iterable[Description]) -> Mapping[str, Description]:
    """Return an immutable table by name. Raises ValueError where two protocols could not be told apart."""
    table: dict[str, Description] = {}
    names: dict[str, str] = {}
    descriptions = tuple(descriptions)
    rules = [description.routing for description in descriptions]
    routing.build(["localhost"], "cluster", frozenset({Kind.DATABASE}), rules)  # raises where the front door could not
    for description in descriptions:
        for name in (description.name, *description.aliases):
            _claim(names, name, description.name, "protocol name")
        table[description.name] = description
    return MappingProxyType(table)


def _claim(taken: dict[str, str], key: str, owner: str, what: str) -> None:
    if key in taken:
        raise ValueError(f"{what} {key!r} is claimed by protocols {taken[key]} and {owner}")
    taken[key] = owner


def _found() -> Iterable[Description]:
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        protocol = getattr(importlib.import_module(f"{__name__}.{module}"), "PROTOCOL", None)
        if protocol is not None:
            yield protocol


TABLE: Mapping[str, Description] = build(_found())


def named(name: str) -> Description | None:
    """Return the protocol of that name or alias, None if there is none."""
    return next((found for found in TABLE.values() if name == found.name or name in found.aliases), None)


def login(protocol: str, user: str, database: str, features: tuple[str, ...] = ()) -> DatabaseLogin:
    """Return what a login asks for; where a protocol lets sessions begin without a database, "" means none yet."""
    found = TABLE.get(protocol)
    needed = found is None or found.needs_database
    return DatabaseLogin(user, database if database or needed else None, features)
