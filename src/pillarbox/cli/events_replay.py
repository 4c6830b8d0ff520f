"""`smtpd-events replay`: a filter is given what was recorded, and what it decides is told."""

import argparse
import asyncio
import signal
import time
from collections.abc import Coroutine, Iterator
from typing import Any

from pillarbox import places
from pillarbox.cli.events import complain, event_log, show, show_raw
from pillarbox.cli.events_show import json_line, session_id
from pillarbox.errors import PillarboxError
from pillarbox.eventlog.filterprocess import start_filter
from pillarbox.eventlog.lines import printable
from pillarbox.eventlog.playing import Totals
from pillarbox.eventlog.replay import Replay
from pillarbox.eventlog.specimen import wire
from pillarbox.eventlog.transcript import moment
from pillarbox.eventlog.verdict import Decided, Filtered, Verdict
from pillarbox.filters.asked import Asked
from pillarbox.filters.protocol import FilterProtocol
from pillarbox.roles.filters import MDA, SMTP_IN, SMTP_OUT

_GRACE = 5.0  # seconds for a filter to end once its input has
_MAX_GROWTH = 64 << 20  # bytes


def replay(options: argparse.Namespace) -> int:
    """Play; 1 where the filter misbehaved, or, with --same, decided otherwise."""
    if not options.filter:
        raise PillarboxError("which filter? smtpd-events replay LOG… -- COMMAND ARGUMENTS…")
    if options.session is not None:
        options.session = session_id(options.session)
    message = None if options.message is None else wire(_read(options.message))
    return asyncio.run(_until_told_to_end(_replay(options, message)))


async def _until_told_to_end(playing: Coroutine[Any, Any, int]) -> int:
    """The filter is a session of its own, so it would outlive us: signals end it first."""
    task = asyncio.ensure_future(playing)
    told: list[int] = []

    def end(number: int) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if told:
            return 128 + told[0]
        raise


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise PillarboxError(f"{path}: {error.strerror}") from None


async def _replay(options: argparse.Namespace, message: bytes | None) -> int:
    reports = event_log(options).reports()
    if options.session:
        reports = (report for report in reports if f"{report.session:016x}".startswith(options.session))
    process = await start_filter(options.filter)
    playing = Replay(
        process=process,
        protocol=FilterProtocol(subsystems=(SMTP_IN, SMTP_OUT, MDA), admd=places.host_name(), version=options.protocol),
        asked=Asked(max_growth=_MAX_GROWTH),
        message=message,
        hostname=places.host_name(),
        speed=None if options.fast else options.speed,
        timeout=options.timeout,
        clock=asyncio.get_running_loop().time,
        finished=lambda verdict: _show_verdict(verdict, options),
        complain=complain,
    )
    began = time.monotonic()
    try:
        totals = await playing.run(reports)
    finally:
        status = await process.end(_GRACE)
    missing = bool(options.session) and not (totals.sessions or totals.over)
    if missing:
        complain(f"no session {options.session} in this log")
    elif totals.over:
        complain(f"{totals.over}{_how(status)}")
    elif status is None:
        complain(f"the filter did not end within {_GRACE:g} s after its input had; it was killed")
    elif status:
        complain(f"the filter ended as its input did, but not well{_how(status)}")
    if options.json:
        show_raw([json_line({"summary": _totals_json(totals, status)})])
    else:
        show([_totals_line(totals, time.monotonic() - began)])
    failed = missing or totals.faults or totals.over or status is None or (options.same and totals.differences)
    return 1 if failed else 0


def _how(status: int | None) -> str:
    if status is None:
        return "; it was killed"
    return f" (exit status {status})" if status >= 0 else f" (signal {-status})"


# -- as text


def _show_verdict(verdict: Verdict, options: argparse.Namespace) -> None:
    if options.json:
        show_raw([json_line(_verdict_json(verdict))])
    elif verdict.decided or verdict.messages or verdict.reports:
        show(_verdict_lines(verdict, verbose=options.verbose))


def _verdict_lines(verdict: Verdict, *, verbose: bool) -> Iterator[str]:
    yield f"{verdict.session:016x} {moment(verdict.time)} {printable(verdict.peer)}".rstrip()
    quiet = 0
    for one in verdict.decided:
        if verbose or one.answer != "proceed" or one.differs:
            yield f"    {_decision(one)}"
        else:
            quiet += 1
    for text in verdict.reports:
        yield f"    reports {printable(text)}"
    if verdict.more_reports:
        yield f"    reports {verdict.more_reports} times more"
    for message in verdict.messages:
        yield f"    message: {_message(message)}"
        if verbose and message.changed:
            yield from (f"      | {printable(line)}" for line in _text(message).split("\n"))
    if quiet:
        yield f"    proceed, {quiet} times"
    if verdict.ended:
        yield "    the client was sent away"


def _decision(one: Decided) -> str:
    param = f" ({printable(one.ask.param)})" if one.ask.param else ""
    answer = printable(one.answer.replace("|", " ", 1)) or "no answer that counts"
    then = f" [then: {printable((one.ask.then or '').replace('|', ' ', 1))}]" if one.differs else ""
    return f"{one.ask.phase}{param}: {answer}{then}"


def _message(message: Filtered) -> str:
    if not message.complete:
        return f"not finished, {message.size} of {message.expected} bytes came back"
    return (
        f"changed, {message.expected} bytes to {message.size}"
        if message.changed
        else f"unchanged, {message.size} bytes"
    )


def _text(message: Filtered) -> str:
    return message.output.decode("utf-8", "surrogateescape").replace("\r\n", "\n").removesuffix("\n")


def _totals_line(totals: Totals, seconds: float) -> str:
    parts = [
        f"{totals.sessions} sessions, {totals.events} events, {totals.questions} questions in {seconds:.1f} s",
        f"longest answer {totals.longest * 1000:.1f} ms",
        f"{totals.differences} decided otherwise than then",
        f"{totals.faults} faults",
    ]
    if totals.left_out:
        parts.append(f"{totals.left_out} sessions left out, whose beginning is not in the log")
    if totals.ignored:
        parts.append(f"{totals.ignored} answers that nobody waited for")
    return "; ".join(parts)


# -- as JSON


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "session": f"{verdict.session:016x}",
        "time": verdict.time,
        "peer": _utf8(verdict.peer),
        "decisions": [_decision_json(one) for one in verdict.decided],
        "messages": [_message_json(one) for one in verdict.messages],
        "reports": [_utf8(text) for text in verdict.reports],
        "more_reports": verdict.more_reports,
        "sent_away": verdict.ended,
    }


def _decision_json(one: Decided) -> dict[str, Any]:
    return {
        "phase": str(one.ask.phase),
        "param": _utf8(one.ask.param),
        "answer": _utf8(one.answer),
        "then": None if one.ask.then is None else _utf8(one.ask.then),
        "differs": one.differs,
        "seconds": one.seconds,
    }


def _message_json(one: Filtered) -> dict[str, Any]:
    return {
        "complete": one.complete,
        "changed": one.changed,
        "bytes_told": one.expected,
        "bytes": one.size,
        "output": _utf8(_text(one)),
    }


def _totals_json(totals: Totals, status: int | None) -> dict[str, Any]:
    return {
        "sessions": totals.sessions,
        "left_out": totals.left_out,
        "events": totals.events,
        "questions": totals.questions,
        "longest_answer": totals.longest,
        "differences": totals.differences,
        "faults": totals.faults,
        "ignored": totals.ignored,
        "over": totals.over or None,
        "exit_status": status,
    }


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
