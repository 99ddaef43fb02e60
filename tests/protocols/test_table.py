"""The table of protocols: found by their files, frozen, and told apart."""

import dataclasses

import pytest

from monoport import protocols
from monoport.protocols.description import Description
from monoport.routing.rows import DatabaseRule
from monoport.wire.postgres.front import PostgresFront

POSTGRES = protocols.TABLE["postgres"]


def like(aliases: tuple[str, ...] = (), **changes: object) -> Description:
    values = {"name": "other", "alpn": ("teleport-other",)} | changes
    return dataclasses.replace(POSTGRES, routing=DatabaseRule(**values), aliases=aliases)  # type: ignore[arg-type]


def test_postgres_is_found_by_name_and_alias() -> None:
    assert protocols.named("postgres") is POSTGRES
    assert protocols.named("postgresql") is POSTGRES
    assert protocols.named("oracle") is None
    assert isinstance(POSTGRES.front(), PostgresFront)


def test_table_is_frozen() -> None:
    with pytest.raises(TypeError):
        protocols.TABLE["postgres"] = POSTGRES  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        POSTGRES.title = "other"  # type: ignore[misc]


def test_protocols_that_can_be_told_apart() -> None:
    table = protocols.build([POSTGRES, like(), like(name="third", alpn=("teleport-third",), starttls=b"\x10\0\0\1")])
    assert list(table) == ["postgres", "other", "third"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "postgres"}, "comes twice"),
        ({"aliases": ("postgresql",)}, "protocol name 'postgresql' is claimed"),
        ({"alpn": ("teleport-postgres",)}, "belongs to postgres"),
        ({"direct_alpn": ("teleport-other",)}, "belongs to other"),
        ({"direct_alpn": ("h2",)}, "belongs to the web"),
        ({"alpn": ("teleport-auth@x",)}, "cannot be a database protocol's"),
        ({"alpn": ("teleport-proxy-ssh",)}, "belongs to routing"),
        ({"starttls": POSTGRES.routing.starttls + b"x"}, "cannot be told apart"),
        ({"starttls": POSTGRES.routing.starttls[:4]}, "cannot be told apart"),
    ],
)
def test_ambiguous_protocols(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        protocols.build([POSTGRES, like(**changes)])


@pytest.mark.parametrize("changes", [{"name": "Other"}, {"name": "my-db"}, {"alpn": ()}])
def test_impossible_descriptions(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="protocol"):
        like(**changes)
