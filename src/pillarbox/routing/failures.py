"""Failed logins by where they came from: whoever guesses is soon refused without being heard.

A bucket a source: each failure fills it, time drains it. Of IPv6 the network that a site is given is counted as well.
The same secret for the same user is no guess but a forgotten telephone: it counts once. Memory is bounded; of too many
sources the ones that failed longest ago are forgotten.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address

import msgspec

from pillarbox.errors import TempFail
from pillarbox.mail.idn import fold_address

SOURCES_MAX = 10_000
REPEATED_MAX = 10_000
DRAIN = 60.0  # seconds until one failure is forgotten
SITE = 10  # so many times as many are granted to an IPv6 /48, which has 65,536 sources


class Scope(msgspec.Struct, frozen=True):
    """Who is counted as one, and how many times the limit they have."""

    name: str
    share: int


class Failures:
    """Counts. `now()` in seconds."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._key = secrets.token_bytes(32)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, and when it was so
        self._failed: OrderedDict[bytes, None] = OrderedDict()

    def left(self, address: str, limit: int) -> list[int]:
        """How many may fail before each of the source's scopes is refused. TempFail where one is."""
        found = []
        for scope in scopes(address):
            found.append(int(limit * scope.share - self._level(scope)))
            if found[-1] < 1:
                raise TempFail(f"too many failed logins from {scope.name}")
        return found

    def count(self, address: str, *, user: str, secret: str | None = None) -> None:
        """A login failed, with this password or token."""
        if secret is not None and self._is_repeated(address, user, secret):
            return
        for scope in scopes(address):
            self._buckets[scope.name] = self._level(scope) + 1, self._now()
            self._buckets.move_to_end(scope.name)
            if len(self._buckets) > SOURCES_MAX:
                self._buckets.popitem(last=False)

    def _level(self, scope: Scope) -> float:
        level, since = self._buckets.get(scope.name, (0.0, 0.0))
        return max(0.0, level - max(0.0, self._now() - since) / DRAIN * scope.share)

    def _is_repeated(self, address: str, user: str, secret: str) -> bool:
        fields = (source(address), fold_address(user), secret)
        encoded = [field.encode("utf-8", "surrogateescape") for field in fields]
        tried = blake2b(msgspec.msgpack.encode(encoded), key=self._key, digest_size=16).digest()
        repeated = tried in self._failed
        self._failed[tried] = None
        self._failed.move_to_end(tried)
        if len(self._failed) > REPEATED_MAX:
            self._failed.popitem(last=False)
        return repeated


def scopes(address: str) -> tuple[Scope, ...]:
    """The source and what it is part of: an IPv4 address; the /64 of an IPv6 address, which is what one host is given,
    and its /48, which is what one site is."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return (Scope(address, 1),)
    if not isinstance(parsed, IPv6Address):
        return (Scope(str(parsed), 1),)
    if parsed.ipv4_mapped is not None:
        return (Scope(str(parsed.ipv4_mapped), 1),)
    return Scope(_network(parsed, 64), 1), Scope(_network(parsed, 48), SITE)


def source(address: str) -> str:
    """Who is counted as one host."""
    return scopes(address)[0].name


def _network(address: IPv6Address, bits: int) -> str:
    return f"{IPv6Address(int(address) >> 128 - bits << 128 - bits)}/{bits}"
