"""Types of the fields in resource documents: names, patterns with templates, labels, times.

Belongs here: what one field may hold, and its bounds. Does not: which documents have it (resources.py).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from monoport.access.claims import MAX_NAME, IdentityError, check_name
from monoport.access.duration import format_duration, parse_duration

MAX_LIST: Final = 256  # entries of any list or map in a document: a role is read on every decision
MAX_TTL: Final = timedelta(days=30)  # a user's certificate is meant to be short-lived; longer is a mistake in units

TRAITS: Final = ("logins", "db_users", "db_names", "kubernetes_users", "kubernetes_groups")
TRAIT: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", re.ASCII)  # the name of a trait; TRAITS are monoport's own
# Text, one template, text: a second template in one entry would multiply what a role holds.
TEMPLATE: Final = re.compile(
    r"(?P<before>[^{}]*)\{\{\s*(?P<space>internal|external)\.(?P<trait>[A-Za-z0-9_.-]+)\s*\}\}(?P<after>[^{}]*)",
    re.ASCII,
)
DNS_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)


def _printing(value: str) -> str:
    try:
        check_name("value", value)
    except IdentityError as error:
        raise ValueError(str(error).removeprefix("identity: value: ")) from error
    return value


def _key(value: str) -> str:
    if "/" in value:  # names are the last part of storage keys and of `tctl get KIND/NAME`
        raise ValueError("must not contain /")
    return value


def _dns_label(value: str) -> str:
    if not DNS_LABEL.fullmatch(value):
        raise ValueError("expected a lower-case DNS label")
    return value


def _no_template(value: str) -> str:
    if "{{" in value:
        raise ValueError("templates are not allowed here")
    return value


def _template(value: str) -> str:
    if "{{" not in value and "}}" not in value:
        return value
    found = TEMPLATE.fullmatch(value)
    own = f"one of {', '.join(f'{{{{internal.{trait}}}}}' for trait in TRAITS)}"
    if found is None:
        raise ValueError(f"expected {own}, or {{{{external.NAME}}}}, once, with or without text around it")
    if (found["space"] == "internal") is not (found["trait"] in TRAITS):
        raise ValueError(f"expected {own}; other traits are {{{{external.NAME}}}}")
    if not TRAIT.fullmatch(found["trait"]):
        raise ValueError(
            f"{found['trait']!a} is no name of a trait: expected letters, digits and . _ -, a letter first"
        )
    return value


def _selectors(value: object) -> object:
    if value == "*":
        return {"*": ("*",)}
    if isinstance(value, dict):
        return {key: (one,) if isinstance(one, str) else one for key, one in value.items()}
    return value


def _star_alone(value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    if "*" in value and "*" not in value["*"]:
        raise ValueError("the label '*' takes only the value '*'")
    return value


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _instant(value: object) -> object:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return value


def sequence(value: object) -> object:
    """A list as YAML and JSON have it becomes the tuple that a frozen model keeps."""
    return tuple(value) if isinstance(value, list) else value


Text = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_printing)]
Name = Annotated[Text, AfterValidator(_key)]
DnsLabel = Annotated[str, AfterValidator(_dns_label)]
Texts = Annotated[tuple[Text, ...], Field(max_length=MAX_LIST), BeforeValidator(sequence)]
Plain = Annotated[Text, AfterValidator(_no_template)]
Pattern = Annotated[Text, AfterValidator(_template)]
Patterns = Annotated[tuple[Pattern, ...], Field(max_length=MAX_LIST), BeforeValidator(sequence)]
Labels = Annotated[dict[Plain, Plain], Field(max_length=MAX_LIST)]
Selector = Annotated[
    dict[Plain, Annotated[tuple[Pattern, ...], Field(max_length=MAX_LIST, min_length=1), BeforeValidator(sequence)]],
    Field(max_length=MAX_LIST),
    BeforeValidator(_selectors),
    AfterValidator(_star_alone),
]
Ttl = Annotated[
    timedelta, Field(gt=timedelta(0), le=MAX_TTL), BeforeValidator(_duration), PlainSerializer(format_duration)
]
Instant = Annotated[datetime, BeforeValidator(_instant)]
