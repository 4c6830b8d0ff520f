"""Failed logins by where they came from: whoever guesses is soon refused without being heard.

A bucket a source: each failure fills it, time drains it. Memory is bounded; of too many sources the ones that failed
longest ago are forgotten.
"""

from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from pillarbox.errors import TempFail

SOURCES_MAX = 10_000
DRAIN = 60.0  # seconds until one failure is forgotten


class Failures:
    """Counts. `now()` in seconds."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, and when it was so

    def begin(self, address: str, limit: int) -> None:
        """A login is tried: it counts as failed until `forgive` says otherwise, so that many at once gain nothing.

        TempFail where the source has failed too often.
        """
        self.check(address, limit)
        self._set(address, self._level(address) + 1)

    def check(self, address: str, limit: int) -> None:
        """Raise the TempFail of `begin`, and count nothing."""
        if self._level(address) + 1 > limit:
            raise TempFail(f"too many failed logins from {source(address)}")

    def forgive(self, address: str) -> None:
        """The login that was begun did not fail."""
        self._set(address, self._level(address) - 1)

    def _level(self, address: str) -> float:
        level, since = self._buckets.get(source(address), (0.0, 0.0))
        return max(0.0, level - max(0.0, self._now() - since) / DRAIN)

    def _set(self, address: str, level: float) -> None:
        name = source(address)
        if level <= 0:
            self._buckets.pop(name, None)
            return
        self._buckets[name] = level, self._now()
        self._buckets.move_to_end(name)
        if len(self._buckets) > SOURCES_MAX:
            self._buckets.popitem(last=False)


def source(address: str) -> str:
    """Who is counted as one: an IPv4 address, or the /64 that an IPv6 address is in, for that is what one is given."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
