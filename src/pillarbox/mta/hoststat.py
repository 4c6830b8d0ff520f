"""What destinations last answered (`smtpctl show hoststats`), and the envelopes to try again once one is back."""

from collections.abc import Callable
from dataclasses import dataclass, field

KEPT = 4 * 3600  # seconds without news after which a destination is forgotten
_DOMAINS_MAX = 50_000
_TEXT_MAX = 2047  # characters, as the reference


@dataclass(slots=True)
class _Entry:
    time: float
    text: str
    deferred: dict[int, None] = field(default_factory=dict)


class HostStats:
    """By destination domain. `max_deferred` envelopes are remembered for each; `schedule(evpid)` tries one now."""

    def __init__(self, *, max_deferred: int, schedule: Callable[[int], None], now: Callable[[], float]) -> None:
        self.max_deferred = max_deferred
        self._schedule = schedule
        self._now = now
        self._entries: dict[str, _Entry] = {}  # least recently updated first

    def update(self, domain: str, text: str) -> None:
        """The destination answered so, or could not be reached."""
        entry = self._entries.pop(domain, None) or _Entry(0, "")
        entry.time, entry.text = self._now(), text[:_TEXT_MAX]
        self._entries[domain] = entry
        if len(self._entries) > _DOMAINS_MAX:
            del self._entries[next(iter(self._entries))]

    def defer(self, domain: str, evpid: int) -> None:
        """This envelope waits for the destination to come back."""
        entry = self._entries.get(domain)
        if entry is not None and len(entry.deferred) < self.max_deferred:
            entry.deferred[evpid] = None

    def alive(self, domain: str) -> None:
        """The destination took something: try again what waits for it."""
        entry = self._entries.get(domain)
        if entry is None or not entry.deferred:
            return
        deferred, entry.deferred = entry.deferred, {}
        for evpid in deferred:
            self._schedule(evpid)

    def forget(self, domain: str, evpid: int) -> None:
        """The envelope is being tried."""
        entry = self._entries.get(domain)
        if entry is not None:
            entry.deferred.pop(evpid, None)

    def sweep(self) -> None:
        """Drop what is old."""
        oldest = self._now() - KEPT
        for domain in [d for d, e in self._entries.items() if e.time <= oldest]:
            del self._entries[domain]

    def lines(self) -> list[str]:
        """`domain|time|text`, in the order of names."""
        return [f"{domain}|{int(e.time)}|{e.text}" for domain, e in sorted(self._entries.items())]
