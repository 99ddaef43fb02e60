"""What a watch brings, as values.

Belongs here: the closed set of changes and reading one line of the stream. Who writes the lines is `resources`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from monoport.access.resources import Resource, parse_document
from monoport.auth.authorities import TrustedCas


@dataclass(frozen=True, slots=True)
class Put:
    """A resource is there, or is now as given."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Removed:
    """A resource is gone; `host_id` tells databases of one name apart."""

    kind: str
    name: str
    host_id: str = ""


@dataclass(frozen=True, slots=True)
class Cas:
    """The cluster's CAs are now these."""

    cas: TrustedCas


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything before was the snapshot; what follows are changes."""


Change = Put | Removed | Cas | Ready


def parse_change(line: Mapping[str, Any]) -> Change | None:
    """The change that a line of the stream says; None for a sign of life or what a newer service says."""
    match line["type"]:
        case "put":
            return Put(parse_document(line["document"]))
        case "removed":
            return Removed(line["kind"], line["name"], line.get("host_id", ""))
        case "cas":
            return Cas(TrustedCas.from_json(line["cas"]))
        case "ready":
            return Ready()
        case _:
            return None
