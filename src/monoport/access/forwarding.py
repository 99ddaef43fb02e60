"""What an SSH session may forward: one role option for each kind, and how roles combine.

Belongs here: the kinds, and the verdict about each. Does not: which roles count (decide), forwarding itself (agents).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from monoport.access.resources import Role


class Forwarding(StrEnum):
    """A kind of forwarding; its value is the role option that decides about it."""

    AGENT = "forward_agent"
    PORT = "port_forwarding"  # from the client to TCP beside the node: ssh -L, -D, -W
    REMOTE_PORT = "remote_port_forwarding"  # from a TCP port of the node to the client: ssh -R
    UNIX = "unix_forwarding"  # as PORT, to a Unix socket
    REMOTE_UNIX = "remote_unix_forwarding"  # as REMOTE_PORT, from a Unix socket
    X11 = "permit_x11_forwarding"
    GATEWAY = "gateway_ports"  # REMOTE_PORT on other addresses than loopback


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a kind is granted, and which option of which role said so, for audit and explanations."""

    granted: bool
    rule: str


def verdict(what: Forwarding, roles: Sequence[Role]) -> Verdict:
    """Decide about one kind: `false` in any of the roles wins, `true` in one grants, and nothing said means no.

    Args:
        what: the kind.
        roles: those that allow the very login that is asked for.
    """
    said = [(role, getattr(role.spec.options, what)) for role in roles]
    for role, value in said:
        if value is False:
            return Verdict(False, f"role {role.name}: options.{what} is false")
    for role, value in said:
        if value:
            return Verdict(True, f"role {role.name}: options.{what} is true")
    return Verdict(False, f"no role that allows this access has options.{what}")


def verdicts(roles: Sequence[Role]) -> Mapping[Forwarding, Verdict]:
    """Decide about every kind."""
    return {what: verdict(what, roles) for what in Forwarding}
