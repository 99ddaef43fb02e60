"""For which hosts the user's own ssh may trust a cluster's CA: a cluster chooses its name itself.

Belongs here: the decision, from names alone. Does not belong here: the file (knownhosts.py), saying it (sshsetup.py).
"""

import re
from enum import StrEnum

from monoport.client.profile import Profile

_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_ADDRESS = re.compile(r"[0-9.]+|.*:.*")
# What countries' registries sell names under, as in co.uk (most of the public suffix list's of this form)
_SHARED = frozenset(
    {"ac", "co", "com", "edu", "go", "gob", "gouv", "gov", "gv", "mil", "ne", "net", "nom", "or", "org"}
)


class Verdict(StrEnum):
    """Whether `*.<cluster>` may stand in the user's known_hosts, and why."""

    RELATED = "related"  # the user typed a proxy of that very domain
    PINNED = "pinned"  # another domain, but the administrator's fingerprint vouches for it
    UNRELATED = "unrelated"  # another domain, and nobody vouches
    UNVERIFIED = "unverified"  # --insecure: nobody knows whose CA it is
    BROAD = "broad"  # nobody's domain, such as `com`


def verdict(profile: Profile) -> Verdict:
    """Decide for a login, from the cluster's name, the proxy as typed and how the proxy was verified."""
    cluster, typed = profile.cluster.lower(), profile.proxy.host
    if not _NAME.fullmatch(cluster) or (cluster != typed and _shared(cluster)):
        return Verdict.BROAD
    if profile.trust == "insecure":
        return Verdict.UNVERIFIED
    if related(cluster, typed):
        return Verdict.RELATED
    return Verdict.PINNED if profile.trust == "pin" else Verdict.UNRELATED


def related(one: str, other: str) -> bool:
    """Whether two names are equal, one is below the other, or both are directly below one domain of somebody's own."""
    if one == other:
        return True
    if _ADDRESS.fullmatch(one) or _ADDRESS.fullmatch(other):
        return False
    if one.endswith(f".{other}") or other.endswith(f".{one}"):
        return True
    parent = one.partition(".")[2]
    return parent == other.partition(".")[2] and not _shared(parent)


def _shared(domain: str) -> bool:
    """Whether many owners have names directly below this one."""
    labels = domain.split(".")
    return len(labels) < 2 or (len(labels) == 2 and len(labels[1]) == 2 and labels[0] in _SHARED)
