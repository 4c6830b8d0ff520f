"""Limits that hold for the whole server: sessions by source and in all, and rates by source and by user.

Counted in lookup alone, so that they are exact however many dispatchers there are. A dispatcher names each session by
a ticket and is the holder of it; what a holder that died held is released. Memory: a session that is open, and a
bucket for each source or user that did something lately, `BUCKETS_MAX` at most.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping

from pillarbox.conf.model import Rate, SmtpOptions
from pillarbox.routing.failures import source

BUCKETS_MAX = 50_000  # above it, those that were left alone for the longest are forgotten: about 15 MB


class Admission:
    """`now()` in seconds, and never back."""

    def __init__(self, *, now: Callable[[], float], buckets_max: int = BUCKETS_MAX) -> None:
        self._now = now
        self._buckets_max = buckets_max
        self._held: dict[str, dict[int, str]] = {}  # holder → ticket → source
        self._by_source: Counter[str] = Counter()
        self._total = 0
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # level, and when it was so

    # -- sessions

    def admit(self, limits: SmtpOptions, holder: str, ticket: int, address: str) -> str:
        """Count a session in; or why not, as a limit's keyword."""
        name = source(address)
        if limits.max_session and self._total >= limits.max_session:
            return "max-session"
        if limits.max_session_per_source and self._by_source[name] >= limits.max_session_per_source:
            return "max-session-per-source"
        refusal = self.spend(limits.rates, "session", address, "")
        if not refusal:
            self._add(holder, ticket, name)
        return refusal

    def hold(self, holder: str, sessions: Mapping[int, str]) -> None:
        """Sessions that were admitted before we began, by ticket."""
        for ticket, address in sessions.items():
            self._add(holder, ticket, source(address))

    def leave(self, holder: str, ticket: int) -> None:
        """A session is over, whether it was counted or not."""
        name = self._held.get(holder, {}).pop(ticket, None)
        if name is not None:
            self._subtract(name)

    def release(self, holder: str) -> None:
        """The holder is gone, and all its sessions with it."""
        for name in self._held.pop(holder, {}).values():
            self._subtract(name)

    def _add(self, holder: str, ticket: int, name: str) -> None:
        held = self._held.setdefault(holder, {})
        if ticket not in held:
            held[ticket] = name
            self._by_source[name] += 1
            self._total += 1

    def _subtract(self, name: str) -> None:
        self._total -= 1
        self._by_source[name] -= 1
        if not self._by_source[name]:
            del self._by_source[name]

    # -- rates

    def spend(self, rates: tuple[Rate, ...], what: str, address: str, user: str) -> str:
        """One more of `what` (`mails`, …) from there and by this user, "" where nobody has logged in.

        Returns the keyword of the rate that does not allow it; then it is not counted at all.
        """
        keys = {f"{what}-per-source": source(address), f"{what}-per-user": user.lower()}
        chosen = [(rate, keys[rate.what]) for rate in rates if keys.get(rate.what)]
        for rate, key in chosen:
            if self._level(rate, key) + 1 > rate.count:
                return rate.what
        for rate, key in chosen:
            self._fill(rate, key)
        return ""

    def _level(self, rate: Rate, key: str) -> float:
        level, since = self._buckets.get((rate.what, key), (0.0, 0.0))
        return max(0.0, level - (self._now() - since) * rate.count / rate.seconds)

    def _fill(self, rate: Rate, key: str) -> None:
        self._buckets[rate.what, key] = self._level(rate, key) + 1, self._now()
        self._buckets.move_to_end((rate.what, key))
        if len(self._buckets) > self._buckets_max:
            self._buckets.popitem(last=False)
