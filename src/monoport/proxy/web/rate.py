"""How often one source address may try: a bucket of tokens each.

Belongs here: counting. Does not belong here: what is tried.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

MAX_SOURCES = 16_384  # buckets kept: about 3 MiB; beyond it the one used longest ago is forgotten
_NETWORK = 64  # bits of an IPv6 address that count: one customer has at least that many addresses


@dataclass(slots=True)
class Rate:
    """Allows `burst` tries at once and one more every `seconds`, per source.

    burst: tries. seconds: between two tries once the burst is used up. clock: monotonic seconds.
    """

    burst: int
    seconds: float
    clock: Callable[[], float]
    _full_at: dict[str, float] = field(
        default_factory=dict
    )  # source -> when its bucket is full again, oldest use first

    def take(self, source: str) -> float:
        """Count one try; return 0.0 if it is allowed, else the seconds until one is.

        Args:
            source: an IP address, or any other name of where it came from.
        """
        now, key = self.clock(), _key(source)
        full_at = max(self._full_at.pop(key, now), now)
        wait = full_at + self.seconds - now - self.burst * self.seconds
        if wait <= 1e-9:  # floating point: the burst-th try must not wait for a rounding error
            full_at, wait = full_at + self.seconds, 0.0
        self._full_at[key] = full_at
        if len(self._full_at) > MAX_SOURCES:
            del self._full_at[next(iter(self._full_at))]
        return wait


def _key(source: str) -> str:
    try:
        address = ip_address(source.partition("%")[0])
    except ValueError:
        return source[:64]
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return f"{int(address) >> (128 - _NETWORK):x}"
    return str(address)
