"""`smtpd-events session`, `cat` and `stats`: what is printed of an event log."""

import argparse
import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from pillarbox import REFERENCE_VERSION
from pillarbox.cli.events import complain, event_log, show, show_raw
from pillarbox.errors import PillarboxError
from pillarbox.eventlog.figures import Figures, Subsystem, Times, Top, figures_json
from pillarbox.eventlog.lines import fields, printable, render_report
from pillarbox.eventlog.transcript import (
    all_sessions,
    begins,
    candidates,
    find_session,
    follow_session,
    line_of,
    moment,
    title,
)
from pillarbox.roles.filters import Report

_HANDSHAKE = (
    f"config|smtpd-version|{REFERENCE_VERSION}",
    "config|protocol|0.7",
    "config|subsystem|smtp-in",
    "config|ready",
)


def json_line(value: Any) -> str:
    """One line of JSON, in which a terminal finds nothing to obey."""
    text = msgspec.json.encode(value).decode()
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    """As JSON has it: of what lies beyond U+FFFF the two halves."""
    units = char.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _event_json(report: Report) -> str:
    values = {name: _clean(text) for name, text in fields(report).items()}
    return json_line({
        "time": report.time,
        "subsystem": _clean(report.subsystem),
        "event": _clean(report.event),
        "session": f"{report.session:016x}",
        "fields": values,
    })  # fmt: skip


def _clean(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# -- session


def session_id(text: str) -> str:
    """The beginning of an id, or all of it, as ids are printed. Raises PillarboxError."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,16}", text):
        raise PillarboxError(f"not the id of a session: {printable(text)} (1 to 16 hexadecimal digits)")
    return text.lower()


def show_session(options: argparse.Namespace) -> int:
    """A transcript; 1 where there is no such session, or more than one."""
    prefix = session_id(options.id)
    if options.follow:
        return _follow(options, prefix)
    if options.all:
        return _all(options, prefix)
    found = find_session(event_log(options).reports(), prefix)
    if not found.sessions:
        return _none(prefix)
    if found.only is None:
        complain(f"several sessions are {prefix}…; one of them, or --all:")
        if options.json:
            show_raw(map(_candidate_json, found.sessions.values()))
        else:
            show(candidates(found))
        return 1
    _print(found.events, as_json=options.json)
    return 0


def _none(prefix: str) -> int:
    complain(f"no session {prefix} in this log")
    return 1


def _all(options: argparse.Namespace, prefix: str) -> int:
    count = 0
    for count, events in enumerate(all_sessions(event_log(options).reports(), prefix), 1):  # noqa: B007 - after the loop
        _print(events, as_json=options.json)
        if not options.json:
            show([""])
    return 0 if count else _none(prefix)


def _candidate_json(first: Report) -> str:
    return json_line({"session": f"{first.session:016x}", "subsystem": first.subsystem, "time": first.time})


def _print(events: Iterable[Report], *, as_json: bool) -> None:
    start = None
    for report in events:
        if start is None:
            start = report.time
            if not begins(report):
                complain(f"session {report.session:016x}: its beginning is not in what was read")
            if not as_json:
                show([title(report)])
        if as_json:
            show_raw([_event_json(report)])
        else:
            show([line_of(report, start)])


def _follow(options: argparse.Namespace, prefix: str) -> int:
    """From its first event until it ends: the first session of that name, if there are more."""
    _print(follow_session(event_log(options).follow(), prefix), as_json=options.json)
    return 0


# -- cat


def cat(options: argparse.Namespace) -> int:
    """Events as lines; the handshake first, so that a filter can read them."""
    log = event_log(options)
    reports = log.follow() if options.follow else log.reports()
    if options.event:
        reports = (report for report in reports if report.event in options.event)
    render = _event_json if options.json else render_report
    if not options.json:
        show_raw(_HANDSHAKE)
    if options.follow:
        for report in reports:
            show_raw([render(report)])
    show_raw(map(render, reports))
    return 0


# -- stats


def stats(options: argparse.Namespace) -> int:
    """Figures of a whole log."""
    figures = Figures()
    figures.take(event_log(options).reports())
    if options.json:
        show_raw([json_line(figures_json(figures, options.top))])
    else:
        show(_figures_text(figures, options.top))
    return 0


def _figures_text(figures: Figures, top: int) -> Iterator[str]:
    if not figures.count:
        yield "no events"
        return
    yield f"{figures.count} events from {moment(figures.first)} to {moment(figures.last)} UTC"
    for name, part in sorted(figures.subsystems.items()):
        yield ""
        yield printable(name)
        yield from _subsystem_text(part, top)


def _subsystem_text(part: Subsystem, top: int) -> Iterator[str]:
    yield f"  sessions {part.events['link-connect']}, messages {part.messages}, bytes {part.size}"
    yield from _counts("results", part.results.most_common())
    yield from _counts("answers of filters", part.answers.most_common())
    yield from _top("peers", part.peers, top)
    yield from _top("peers by refusals", part.refused, top)
    yield from _top("senders' domains", part.domains, top)
    yield from _top("refusals", part.refusals, top)
    yield from _times("time to reply", part.replies)
    yield from _times("time that filters took", part.filters)
    yield from _counts("events", part.events.most_common())


def _counts(heading: str, counts: list[tuple[str, int]]) -> Iterator[str]:
    if counts:
        yield f"  {heading}"
        for value, count in counts:
            yield f"  {count:10}  {printable(value)}"


def _top(heading: str, values: Top, count: int) -> Iterator[str]:
    more = f", {len(values) - count} more" if len(values) > count else ""
    inexact = f"; counts are up to {values.error} too small" if values.error else ""
    yield from _counts(f"{heading}{more}{inexact}", values.most(count))


def _times(heading: str, times: dict[str, Times]) -> Iterator[str]:
    if not times:
        return
    yield f"  {heading:24}{'count':>9}{'half':>10}{'90 %':>10}{'99 %':>10}{'longest':>10}"
    for name, values in sorted(times.items()):
        columns = "".join(f"{_duration(values.within(share)):>10}" for share in (0.5, 0.9, 0.99))
        yield f"    {printable(name):22}{values.count:>9}{columns}{_duration(values.most):>10}"


def _duration(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
