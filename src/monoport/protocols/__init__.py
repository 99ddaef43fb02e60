"""The table of database protocols: every `protocols/<name>.py` with a constant PROTOCOL, frozen.

Belongs here: finding the descriptions and rejecting a set of them that could not be told apart. A protocol is added by
adding its file; nothing here names one. Others' come by entry point, and none is loaded but those that are named.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
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
GROUP = "monoport.protocols"  # of entry points: <name> = <package>.<module>:PROTOCOL


@cache  # a process has one configuration, and others' code is loaded once
def table(others: tuple[str, ...] = ()) -> Mapping[str, Description]:
    """Return the table with others' protocols behind ours, in the order given: with none, TABLE itself.

    Args:
        others: names of entry points of the group `monoport.protocols`.

    Raises:
        ValueError: one is not installed or unusable, or two protocols could not be told apart.
    """
    return build([*TABLE.values(), *map(_other, others)]) if others else TABLE


def _other(name: str) -> Description:
    from importlib.metadata import entry_points  # noqa: PLC0415 # tsh starts often, and needs it nearly never

    found = tuple(entry_points(group=GROUP, name=name))
    if not found:
        raise ValueError(f"no installed package has the entry point {name!r} of the group {GROUP}")
    if len(found) > 1:
        packages = ", ".join(sorted(one.dist.name if one.dist is not None else one.value for one in found))
        raise ValueError(f"protocol {name!r} comes from several packages: {packages}")
    try:
        protocol = found[0].load()
    except Exception as error:  # others' code, which may raise anything
        raise ValueError(f"protocol {name!r} cannot be loaded from {found[0].value}: {error!r}") from error
    if not isinstance(protocol, Description):
        raise ValueError(f"protocol {name!r}: {found[0].value} is no Description")
    if protocol.name != name:
        raise ValueError(f"protocol {name!r}: {found[0].value} describes {protocol.name!r}")
    if protocol.listen_key or protocol.silence_key:
        raise ValueError(f"protocol {name!r} has a listen_key or silence_key, but keys are the configuration's own")
    return protocol


def named(name: str, known: Mapping[str, Description] = TABLE) -> Description | None:
    """Return the protocol of that name or alias, None if there is none."""
    return next((found for found in known.values() if name == found.name or name in found.aliases), None)


def login(
    protocol: str,
    user: str,
    database: str,
    features: tuple[str, ...] = (),
    known: Mapping[str, Description] = TABLE,
) -> DatabaseLogin:
    """Return what a login asks for; where a protocol lets sessions begin without a database, "" means none yet."""
    found = known.get(protocol)
    needed = found is None or found.needs_database
    return DatabaseLogin(user, database if database or needed else None, features)
