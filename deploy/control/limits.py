"""How often a client may ask: token buckets, pure over a given clock.

A bucket holds up to `burst` and fills at `per_s`; each request takes one. Memory is bounded: of more clients than
`most_clients`, those that have not asked for longest are forgotten, and begin anew with a full bucket.
"""

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

IPV6_PREFIX: Final = 64
"""Bits of an IPv6 address that name a client: it chooses the others as it likes."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a bucket fills, and how much it holds."""

    per_s: float
    burst: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one address may do. Anonymous requests, readers and steerers are counted apart, so that one who sends many
    without a token, behind a tunnel or proxy that all share, takes nothing from who bears one.
    """

    requests: Rate = Rate(per_s=50.0, burst=200)
    """Of all kinds: a page and a scraper need a few each second."""
    orders: Rate = Rate(per_s=1.0, burst=30)
    """Calls that change something."""
    refusals: Rate = Rate(per_s=0.5, burst=10)
    """Answers that a token, host or origin is wrong, before they become 429."""
    most_clients: int = 4096
    """Buckets of each kind that are remembered."""


class Buckets:
    """One bucket for each client.

    Args:
        rate: of each.
        clock: seconds that only grow.
        most_clients: that are remembered.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float], most_clients: int) -> None:
        self._rate = rate
        self._clock = clock
        self._most = most_clients
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """What was left, and when; the one that asked last at the end."""

    def take(self, client: Hashable) -> float:
        """Take one; returns 0 if it was there, else seconds until it will be."""
        now = self._clock()
        left, then = self._buckets.pop(client, (float(self._rate.burst), now))
        left = min(self._rate.burst, left + (now - then) * self._rate.per_s)
        is_there = left >= 1.0
        self._buckets[client] = (left - 1.0 if is_there else left, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if is_there else (1.0 - left) / self._rate.per_s

    def __len__(self) -> int:
        """Clients that are remembered."""
        return len(self._buckets)


def whole_seconds(wait_s: float) -> int:
    """For Retry-After: at least 1, rounded up."""
    return max(1, math.ceil(wait_s))


def client_of(address: str) -> str:
    """Whom an address belongs to, as far as can be told."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        if not parsed.is_loopback:
            return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))
    return str(parsed)
