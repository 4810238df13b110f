"""Refusals by address: how many within a minute, and what of them is logged.

The first refusal of an address is logged, each further reason once, and the end, after some minutes without any;
a metric counts the rest. The number of addresses kept is bounded: those beyond it share one count.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from ipaddress import IPv6Address, IPv6Network, ip_address

from gpumon import clock
from gpumon.clock import Monotonic
from gpumon.server.auth.refusal import Reason, Right

log = logging.getLogger(__name__)

_MINUTE = 60.0
_QUIET_SECONDS = 600.0
"""After so long without a refusal they have ended. Longer than an agent's longest pause between two tries."""
_ADDRESSES = 10_000
_OTHERS = "others"


@dataclass(slots=True)
class _Address:
    since: float
    minute_began: float
    refusals: int = 0
    """Of the minute."""
    total: int = 0
    last: float = 0.0
    told: set[tuple[Right, Reason]] = field(default_factory=set)


class Failures:
    """Counts refusals. Used by one thread."""

    def __init__(
        self, per_minute: int, *, addresses: int = _ADDRESSES, monotonic: Monotonic = clock.monotonic
    ) -> None:
        self._per_minute = per_minute
        self._most_addresses = addresses
        self._monotonic = monotonic
        self._addresses: dict[str, _Address] = {}
        self._swept = monotonic()

    def limited_seconds(self, peer: str) -> float | None:
        """For how long the address of a peer is refused without looking; None where it is not."""
        found = self._addresses.get(self._counted_as(counted_address(peer)))
        if found is None or found.refusals < self._per_minute:
            return None
        left = found.minute_began + _MINUTE - self._monotonic()
        return left if left > 0 else None

    def note(self, peer: str, right: Right, reason: Reason) -> None:
        """Counts a refusal."""
        now = self._monotonic()
        self.sweep()
        name = self._counted_as(counted_address(peer))
        found = self._addresses.get(name)
        if found is None:
            found = self._addresses[name] = _Address(since=now, minute_began=now)
        if now - found.minute_began >= _MINUTE:
            found.minute_began, found.refusals = now, 0
        found.refusals += 1
        found.total += 1
        found.last = now
        if (right, reason) not in found.told:
            found.told.add((right, reason))
            log.warning("refusing address=%s right=%s reason=%s", name, right, reason)

    def sweep(self) -> None:
        """Forgets addresses that have been quiet, at most once a minute, and says that it is over."""
        now = self._monotonic()
        if now - self._swept < _MINUTE:
            return
        self._swept = now
        for name, found in list(self._addresses.items()):
            if now - found.last >= _QUIET_SECONDS:
                del self._addresses[name]
                log.info(
                    "refusals_ended address=%s times=%d after_seconds=%.0f",
                    name,
                    found.total,
                    found.last - found.since,
                )

    def _counted_as(self, address: str) -> str:
        if address in self._addresses or len(self._addresses) < self._most_addresses:
            return address
        return _OTHERS


def counted_address(peer: str) -> str:
    """An address as it is counted and logged: an IPv4 one that came by an IPv6 socket is the IPv4 one; of an IPv6
    one it is the /64, for whoever has one address of it has all."""
    try:
        address = ip_address(peer)
    except ValueError:  # a test's client, or what a proxy in front made up
        return repr(peer[:64])
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((int(address) >> 64 << 64, 64)))
