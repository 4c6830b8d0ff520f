"""What an event log adds up to: counts, the most frequent values, times; in bounded memory, however long it is."""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from pillarbox.eventlog.lines import fields
from pillarbox.roles.filters import SMTP_OUT, Report

KEPT = 20_000  # different values of each kind that are counted exactly
SESSIONS = 100_000  # sessions under way that times are measured in
_TEXT = 200  # characters of a value
_WORDS = 100  # different events, answers, subsystems: more are no server's
_OTHER = "other"
_RESULTS = frozenset(("ok", "tempfail", "permfail", "pass", "fail", "error"))

_VERBS = frozenset((
    "HELO", "EHLO", "LHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "VRFY", "EXPN", "HELP",
    "QUIT",
))  # fmt: skip
# What differs from one refusal to the next: addresses, names in brackets, numbers of messages and sessions.
_VARIABLE = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|\b[0-9a-f]{8,16}\b|\b\d{1,3}(?:\.\d{1,3}){3}\b|[^\s<>:]+@[^\s<>:]+")


class Top:
    """Counts the most frequent of any number of values. Above `kept` of them the rare half is forgotten.

    Then a count may be too small, by `error` at most.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._counts: Counter[str] = Counter()
        self.error = 0

    def add(self, value: str) -> None:
        """Count it."""
        self._counts[value[:_TEXT]] += 1
        if len(self._counts) > 2 * self._kept:
            ranked = self._counts.most_common()
            self.error += ranked[self._kept][1]
            self._counts = Counter(dict(ranked[: self._kept]))

    def most(self, count: int) -> list[tuple[str, int]]:
        """The most frequent, the first one most; equal ones by name."""
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:count]

    def __len__(self) -> int:
        return len(self._counts)


class Times:
    """Durations in seconds, in buckets an eighth of a doubling wide: what is told is at most a tenth off."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.most = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one; a clock that went back gives none."""
        if seconds < 0:
            return
        self.count += 1
        self.total += seconds
        self.most = max(self.most, seconds)
        self._buckets[math.ceil(8 * math.log2(max(seconds, 1e-6)))] += 1

    def within(self, share: float) -> float:
        """The time within which this share of them was over."""
        wanted = share * self.count
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return float(min(2.0 ** (bucket / 8), self.most))
        return self.most


@dataclass(slots=True)
class _Open:
    """A session under way: since when it waits for what."""

    peer: str = ""
    asked: float = 0.0
    verb: str = ""  # of the command that is not answered yet
    last: str = ""  # of the last command


@dataclass(slots=True)
class Subsystem:
    """The figures of `smtp-in`, `smtp-out` or `mda`."""

    events: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)  # "tx-rcpt permfail"
    answers: Counter[str] = field(default_factory=Counter)  # of filters: "rcpt-to reject"
    peers: Top = field(default_factory=Top)
    refused: Top = field(default_factory=Top)  # peers by refusals
    domains: Top = field(default_factory=Top)  # of senders
    refusals: Top = field(default_factory=Top)
    replies: dict[str, Times] = field(default_factory=dict)  # from a command to its reply
    filters: dict[str, Times] = field(default_factory=dict)  # from a command to the filters' answer
    messages: int = 0
    size: int = 0  # bytes of them


class Figures:
    """Takes events one after the other."""

    def __init__(self, *, sessions: int = SESSIONS) -> None:
        self.count = 0
        self.first = 0.0
        self.last = 0.0
        self.subsystems: dict[str, Subsystem] = {}
        self._sessions: OrderedDict[int, _Open] = OrderedDict()
        self._limit = sessions
        self._steps = {
            "link-connect": self._connected,
            "link-disconnect": self._disconnected,
            "protocol-client": self._asked,
            "protocol-server": self._replied,
            "filter-response": self._filtered,
            "tx-mail": self._mail,
            "tx-rcpt": self._result,
            "tx-data": self._result,
            "link-auth": self._auth,
            "tx-commit": self._committed,
            "delivery": self._delivered,
        }

    def take(self, reports: Iterable[Report]) -> None:
        """Count all of them."""
        for report in reports:
            self.first = min(self.first, report.time) if self.count else report.time
            self.count += 1
            self.last = max(self.last, report.time)
            figures = self.subsystems.get(report.subsystem)
            if figures is None:
                figures = self.subsystems.setdefault(_word(report.subsystem, self.subsystems), Subsystem())
            figures.events[_word(report.event, figures.events)] += 1
            step = self._steps.get(report.event)
            if step is not None:
                step(report, figures)

    def _open(self, report: Report) -> _Open:
        session = self._sessions.get(report.session)
        if session is None:
            session = self._sessions[report.session] = _Open()
            if len(self._sessions) > self._limit:
                self._sessions.popitem(last=False)
        return session

    def _connected(self, report: Report, figures: Subsystem) -> None:
        _, _, ends = report.text.split("|", 2) if report.text.count("|") >= 2 else ("", "", "")
        source, _, target = ends.partition("|")
        session = self._open(report)
        session.peer, session.asked = _host(target if report.subsystem == SMTP_OUT else source), report.time
        figures.peers.add(session.peer)

    def _disconnected(self, report: Report, _: Subsystem) -> None:
        self._sessions.pop(report.session, None)

    def _asked(self, report: Report, _: Subsystem) -> None:
        session = self._open(report)
        word = report.text.split(" ", 1)[0].upper()
        # Without a word that we know it is the middle of AUTH: as a rule a secret.
        session.verb = session.last = "message" if word == "." else word if word in _VERBS else session.last or "other"
        session.asked = report.time

    def _replied(self, report: Report, figures: Subsystem) -> None:
        session = self._open(report)
        if session.verb:
            if session.verb not in figures.replies:
                figures.replies[session.verb] = Times()
            figures.replies[session.verb].add(report.time - session.asked)
            session.verb = ""
        if report.text[:1] in ("4", "5") and report.text[3:4] != "-":
            figures.refusals.add(f"{session.last or 'connect'}: {_VARIABLE.sub('<…>', report.text)}")
            if session.peer:
                figures.refused.add(session.peer)

    def _filtered(self, report: Report, figures: Subsystem) -> None:
        phase, _, rest = report.text.partition("|")
        phase = {"connected": "connect", "tls": "starttls"}.get(phase, phase)
        figures.answers[_word(f"{phase} {rest.partition('|')[0]}"[:_TEXT], figures.answers)] += 1
        session = self._open(report)
        if session.asked:
            figures.filters.setdefault(_word(phase[:_TEXT], figures.filters), Times()).add(report.time - session.asked)

    def _mail(self, report: Report, figures: Subsystem) -> None:
        self._result(report, figures)
        address = report.text.split("|", 2)[-1]
        figures.domains.add(address.rpartition("@")[2].lower() if "@" in address else address or "<>")

    def _result(self, report: Report, figures: Subsystem) -> None:
        result = "".join(report.text.split("|", 2)[1:2])
        figures.results[f"{report.event} {_result(result)}"] += 1

    def _auth(self, report: Report, figures: Subsystem) -> None:
        figures.results[f"link-auth {_result(report.text.partition('|')[0])}"] += 1

    def _committed(self, report: Report, figures: Subsystem) -> None:
        size = report.text.partition("|")[2]
        figures.messages += 1
        figures.size += int(size) if size.isascii() and size.isdigit() and len(size) < 19 else 0

    def _delivered(self, report: Report, figures: Subsystem) -> None:
        values = fields(report)
        result = values.get("result", "")
        figures.results[f"delivery {_result(result)}"] += 1
        if result != "ok":
            figures.refusals.add(f"{values.get('method', '')}: {_VARIABLE.sub('<…>', values.get('text', ''))}")


def _word(word: str, known: Collection[str]) -> str:
    """The word, unless there are too many already."""
    return word if word in known or len(known) < _WORDS else _OTHER


def _result(word: str) -> str:
    return word if word in _RESULTS else _OTHER


def _host(end: str) -> str:
    """An address without its port."""
    return end if end.startswith("unix:") else end.rpartition(":")[0] or end


def figures_json(figures: Figures, top: int) -> dict[str, Any]:
    """The same as JSON has it; times in seconds."""
    return {
        "events": figures.count,
        "first": figures.first,
        "last": figures.last,
        "subsystems": {name: _subsystem_json(part, top) for name, part in figures.subsystems.items()},
    }


def _subsystem_json(part: Subsystem, top: int) -> dict[str, Any]:
    return {
        "events": dict(part.events),
        "messages": part.messages,
        "bytes": part.size,
        "results": dict(part.results),
        "filter_answers": dict(part.answers),
        "peers": _top_json(part.peers, top),
        "peers_refused": _top_json(part.refused, top),
        "sender_domains": _top_json(part.domains, top),
        "refusals": _top_json(part.refusals, top),
        "reply_times": {verb: _times_json(times) for verb, times in part.replies.items()},
        "filter_times": {phase: _times_json(times) for phase, times in part.filters.items()},
    }


def _top_json(values: Top, count: int) -> dict[str, Any]:
    return {"most": [{"value": value, "count": n} for value, n in values.most(count)], "too_small_by": values.error}


def _times_json(times: Times) -> dict[str, Any]:
    shares = {f"p{share}": times.within(share / 100) for share in (50, 90, 99)}
    return {
        "count": times.count,
        "mean": times.total / times.count if times.count else 0.0,
        **shares,
        "max": times.most,
    }
