"""A session for people: who said what, what the server made of it, and when. Does no I/O."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pillarbox.eventlog.lines import fields, printable
from pillarbox.roles.filters import SMTP_OUT, Report

LISTED = 20  # sessions that an ambiguous id is explained with

_LAST = ("link-disconnect", "delivery")  # events behind which there is nothing of a session

_PHASES = {"connected": "connect", "tls": "starttls"}  # as filter-response calls them


def moment(time: float) -> str:
    """A point in time, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


def line_of(report: Report, start: float) -> str:
    """One event, `start` being the time of the session's first."""
    return f"{report.time - start:12.6f}  {_said(report)}"


def title(first: Report) -> str:
    """What stands above the events of a session."""
    return f"{first.session:016x} {first.subsystem} {moment(first.time)} UTC"


def _said(report: Report) -> str:
    event = report.event
    text = printable(report.text)
    if event in ("protocol-client", "protocol-server"):
        return f"{'C' if event == 'protocol-client' else 'S'}: {text}"
    value = {name: printable(text) for name, text in fields(report).items()}
    if event == "link-connect":
        arrow = "to" if report.subsystem == SMTP_OUT else "from"
        ends = ("dest", "src") if report.subsystem == SMTP_OUT else ("src", "dest")
        peer, own = (value.get(end, "") for end in ends)
        return (
            f"-- connected {arrow} {peer} ({value.get('rdns') or 'no name'}, fcrdns {value.get('fcrdns')}), own {own}"
        )
    if event == "filter-response":
        phase = value.get("phase", "")
        answer = " ".join(filter(None, (value.get("response"), value.get("param"))))
        return f"   filter, {_PHASES.get(phase, phase)}: {answer}"
    if event == "filter-report":
        return f"   filter {value.get('name')} ({value.get('kind')}) reports: {value.get('message')}"
    if event == "link-disconnect":
        return "-- disconnected"
    return " ".join(filter(None, ("--", event, *value.values())))


@dataclass(slots=True)
class Found:
    """What a search for a session brought: `events` where there was one, else only what the sessions were."""

    sessions: dict[int, Report] = field(default_factory=dict)  # the first event of each
    events: list[Report] = field(default_factory=list)
    more: bool = False

    @property
    def only(self) -> Report | None:
        """The first event of the one session that was found."""
        return next(iter(self.sessions.values())) if len(self.sessions) == 1 else None


def find_session(reports: Iterable[Report], prefix: str) -> Found:
    """The session whose id, or whose message's or envelope's, begins with these hexadecimal digits.

    Holds the events of one session, and LISTED sessions where there are more.
    """
    found = Found()
    recent = _Recent()
    for report in reports:
        if report.session in found.sessions:
            if len(found.sessions) == 1:
                found.events.append(report)
        elif not _is_about(report, prefix):
            recent.add(report)
        elif len(found.sessions) == LISTED:
            found.more = True
            break
        else:
            events = [*recent.pop(report.session), report]
            found.sessions[report.session] = events[0]
            found.events = events if len(found.sessions) == 1 else []
    return found


def all_sessions(reports: Iterable[Report], prefix: str) -> Iterator[list[Report]]:
    """The events of each such session, in the order of their beginnings.

    Holds the events of those that have not ended, and of those behind them.
    """
    held: dict[int, list[Report]] = {}
    ended: set[int] = set()
    recent = _Recent()
    for report in reports:
        if report.session in held:
            held[report.session].append(report)
        elif _is_about(report, prefix):
            held[report.session] = [*recent.pop(report.session), report]
        else:
            recent.add(report)
            continue
        if report.event in _LAST:
            ended.add(report.session)
            while (first := next(iter(held), None)) in ended:
                yield held.pop(first)
                ended.discard(first)
    yield from held.values()


def follow_session(reports: Iterable[Report], prefix: str) -> Iterator[Report]:
    """The events of the first such session, one by one until it ends."""
    recent = _Recent()
    session = None
    for report in reports:
        if session is None:
            if not _is_about(report, prefix):
                recent.add(report)
                continue
            session = report.session
            yield from recent.pop(session)
        if report.session == session:
            yield report
            if report.event in _LAST:
                return


def begins(first: Report) -> bool:
    """Is this how a session begins? Else its beginning is missing, as in a log whose first files were deleted."""
    return first.event in ("link-connect", "delivery")


def _is_about(report: Report, prefix: str) -> bool:
    return f"{report.session:016x}".startswith(prefix) or _names(report, prefix)


def _names(report: Report, prefix: str) -> bool:
    """Is this the event where a session gets a message or envelope with such an id? Half an id is none."""
    if len(prefix) < 8 or report.event not in ("tx-begin", "tx-envelope", "delivery"):
        return False
    values = fields(report)
    return any(values.get(name, "").startswith(prefix) for name in ("message", "envelope"))


class _Recent:
    """The events of sessions under way, since a message's id comes late in one; the oldest go first."""

    def __init__(self, limit: int = 50_000) -> None:
        self._sessions: OrderedDict[int, list[Report]] = OrderedDict()
        self._limit = limit
        self._count = 0

    def add(self, report: Report) -> None:
        if report.event == "link-disconnect":
            self.pop(report.session)
            return
        self._sessions.setdefault(report.session, []).append(report)
        self._count += 1
        while self._count > self._limit:
            self._count -= len(self._sessions.popitem(last=False)[1])

    def pop(self, session: int) -> list[Report]:
        events = self._sessions.pop(session, [])
        self._count -= len(events)
        return events


def candidates(found: Found) -> Iterator[str]:
    """A line for each of several sessions."""
    for first in found.sessions.values():
        peer = fields(first).get("src" if first.subsystem != SMTP_OUT else "dest", "")
        yield f"{title(first)} {printable(peer)}".rstrip()
    if found.more:
        yield "… and more"
