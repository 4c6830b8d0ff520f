"""Failed logins by where they came from: whoever guesses is soon refused without being heard.

A bucket a source: each failure fills it, time drains it. Of IPv6 the network that a site is given is counted as well.
The same secret for the same user is no guess but a forgotten telephone: it counts once. A SCRAM proof is made for one
exchange, and of a wrong one nothing can be told but that (RFC 5802 §3: the key it hides is masked with a signature that
only the right key makes): there a user has a part of the source's limit, so that the telephone shuts out its owner's
proofs and nobody else. Memory is bounded; of too many sources or users the ones that failed longest ago are forgotten.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

import msgspec

from pillarbox.errors import TempFail
from pillarbox.mail.idn import fold_address

SOURCES_MAX = 10_000
REPEATED_MAX = 10_000
USERS_MAX = 10_000
DRAIN = 60.0  # seconds until one failure is forgotten
OF_USER = 3  # a user at a source has this part of its limit, and of what drains: three telephones never fill it
SITE = 10  # so many times as many are granted to an IPv6 /48, which has 65,536 sources

_Key = TypeVar("_Key", str, bytes)


class Scope(msgspec.Struct, frozen=True):
    """Who is counted as one, and how many times the limit they have."""

    name: str
    share: int


Buckets = OrderedDict[_Key, tuple[float, float]]  # level, and when it was so


class Failures:
    """Counts. `now()` in seconds."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._now = now
        self._key = secrets.token_bytes(32)
        self._buckets: Buckets[str] = OrderedDict()
        self._users: Buckets[bytes] = OrderedDict()  # of one at one source
        self._failed: OrderedDict[bytes, None] = OrderedDict()

    def left(self, address: str, limit: int) -> list[int]:
        """How many may fail before each of the source's scopes is refused. TempFail where one is."""
        found = []
        for scope in scopes(address):
            found.append(int(limit * scope.share - self._level(self._buckets, scope.name, scope.share)))
            if found[-1] < 1:
                raise TempFail(f"too many failed logins from {scope.name}")
        return found

    def check_user(self, address: str, user: str, limit: int) -> None:
        """TempFail where this user's share of the source's limit is used up by secrets that nobody can tell apart.

        Those that are looked at already may come on top of it: they may as well be right.
        """
        level = self._level(self._users, self._digest(address, user), 1 / OF_USER)
        if max(1.0, limit / OF_USER) - level < 1:
            raise TempFail(f"too many failed logins of a user from {source(address)}")

    def count(self, address: str, *, user: str, secret: str | None = None) -> None:
        """A login failed, with this password or token; None: with something that is another one each time."""
        if secret is None:
            self._fill(self._users, self._digest(address, user), 1 / OF_USER, USERS_MAX)
        elif self._is_repeated(address, user, secret):
            return
        for scope in scopes(address):
            self._fill(self._buckets, scope.name, scope.share, SOURCES_MAX)

    def _fill(self, buckets: Buckets[_Key], key: _Key, share: float, most: int) -> None:
        buckets[key] = self._level(buckets, key, share) + 1, self._now()
        buckets.move_to_end(key)
        if len(buckets) > most:
            buckets.popitem(last=False)

    def _level(self, buckets: Buckets[_Key], key: _Key, share: float) -> float:
        level, since = buckets.get(key, (0.0, 0.0))
        return max(0.0, level - max(0.0, self._now() - since) / DRAIN * share)

    def _is_repeated(self, address: str, user: str, secret: str) -> bool:
        tried = self._digest(address, user, secret)
        repeated = tried in self._failed
        self._failed[tried] = None
        self._failed.move_to_end(tried)
        if len(self._failed) > REPEATED_MAX:
            self._failed.popitem(last=False)
        return repeated

    def _digest(self, address: str, user: str, *more: str) -> bytes:
        """What stands for a user at a source; names and secrets themselves are not kept."""
        fields = (source(address), fold_address(user), *more)
        encoded = [field.encode("utf-8", "surrogateescape") for field in fields]
        return blake2b(msgspec.msgpack.encode(encoded), key=self._key, digest_size=16).digest()


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
