"""Filters: what each was told and answered, in which order, and what became of the session and of the server."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tests.corpus.runner import compare
from tests.corpus.runner.cases import Case
from tests.corpus.runner.client import play
from tests.corpus.runner.sink import Sink
from tests.corpus.runner.stage import Stage, queued, settle
from tests.corpus.runner.text import PORTS, ROOT, numbered, plain, recorded, renumbered
from tests.system.server import Server, wait_for

_PATIENCE = 20.0  # seconds until everything is logged and delivered, and sessions that relay are over
_LOGS = {"filter_log": "filter.log", "filter2_log": "filter2.log"}
_ANSWERS = ("expect", "closed", "unexpected", "tls_ok", "refused")
_PORT = re.compile(r"(?<=\|127\.0\.0\.\d:)\d+(?=\||$)")
_LINE = [
    (re.compile(r"(?<=\|)\d{9,11}\.\d{6}(?=\|)"), "<ts>"),
    (re.compile(r"(?<=\|smtpd-version\|7\.8\.0)-portable"), ""),  # README.md: we say 7.8.0
]
_SIZE = re.compile(r"(?<=\|)\d+$")
_REPLY = re.compile(r"< report\|[^|]*\|[^|]*\|smtp-in\|protocol-server\|[^|]*\|(\d\d\d)([- ])(.*)")
_SESSION = re.compile(r"<id\d*> ")


def judge_filter(case: Case, stage: Stage) -> str:
    """Sessions through filters: replies, queue, log, what the filters read and wrote, and whether the server lives."""
    data = case.data
    scripts = {name: json.dumps(script) for name, script in data["scripts"].items()}
    paused = ("-P", "mda") if data.get("sink") else ("-P", "mda", "-P", "mta")
    try:
        server = stage.server(Case(case.kind, {**data, "files": scripts}), *paused)
    except AssertionError as failed:
        return "" if not data["started"] else str(failed)
    if not data["started"]:
        return "the server started, recorded that it does not"
    with _sinks(data.get("sink", {})):
        return _sessions(data) or _afterwards(data, server)


@contextmanager
def _sinks(scripts: Mapping[str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for number, script in scripts.items():
            stack.callback(Sink(PORTS[f"@SINK{number}@"], script).close)
        yield


def _sessions(data: Mapping[str, Any]) -> str:
    for want in data["sessions"]:
        bare = [{k: v for k, v in step.items() if k not in _ANSWERS} for step in want]
        if bad := compare.dialog(play(bare), want):
            return bad
    return ""


def _afterwards(data: Mapping[str, Any], server: Server) -> str:
    """What is left of a case once its sessions are over."""

    def check() -> str:
        return _log(server, data) or _told(data)

    if bad := settle(check, _PATIENCE):
        return bad
    if "queue" in data and (bad := compare.queue(queued(server), data["queue"])):
        return bad
    return _life(server, exited=data["server_exited"])


def _life(server: Server, *, exited: bool) -> str:
    """Whether it ended; if not, whether it goes on to serve: who comes next hears something."""
    process = server.process
    assert process is not None
    if wait_for(lambda: process.poll() is not None, _PATIENCE if exited else 0) != exited:
        return f"server_exited is {not exited}: {server.log()[-500:]}"
    if exited:
        return ""
    seen = play([{"connect": {}}, {"send": "QUIT\r\n"}])
    silent = [step for step in seen if "TIMEOUT" in step.get("expect", ())]
    return f"who comes next is not answered: {seen}" if silent or not seen[0].get("expect") else ""


def _log(server: Server, data: Mapping[str, Any]) -> str:
    """The lines of sessions, and all others that were recorded."""
    words = ["smtp", "mta"] if data.get("sink") else ["smtp"]
    lines = [line for line in server.log().splitlines() if not any(text in line for text in data.get("chance", ()))]
    if bad := compare.log("\n".join(lines), data["log"], words):
        return bad
    seen = set(map(plain, lines))
    missing = [line for line in map(recorded, data["log"]) if not _SESSION.match(line) and line not in seen]
    return f"log: missing {missing}" if missing else ""


def _told(data: Mapping[str, Any]) -> str:
    """What each filter logged of its dialogue with the server."""
    for field, name in _LOGS.items():
        want = data.get(field)
        if want is None:
            continue
        path = ROOT / "out" / name
        seen = path.read_text("latin-1").split("\n")[:-1] if path.exists() else []
        seen = [line for line in seen if not any(text in line for text in data.get("chance", ()))]
        if bad := dialogue(field, seen, want, varies=bool(data.get("order_varies"))):
            return bad
    return ""


def dialogue(what: str, seen: Sequence[str], want: Sequence[str], *, varies: bool = False) -> str:
    """A filter's log line by line, ids numbered by their first appearance; EHLO may have offered more."""
    got = _units(numbered(_normal(seen)))
    wanted = _units(renumbered(_normal(want)))
    if varies:
        return compare.lines(what, _flat(got, "<size>"), _flat(wanted, "<size>"), varies=True)
    for number, (one, other) in enumerate(zip(got, wanted, strict=False), 1):
        if not _same(one, other):
            return f"{what}, {number}: {' / '.join(one)}, recorded {' / '.join(other)}"
    if len(got) != len(wanted):
        return f"{what}: {len(got)} lines, recorded {len(wanted)}: {(got[len(wanted) :] or wanted[len(got) :])[:3]}"
    return ""


def _normal(text: Iterable[str]) -> list[str]:
    """Lines of either kind without times, ports of clients, and the name of our version."""
    return [_normal_line(line) for line in text]


def _normal_line(line: str) -> str:
    for pattern, name in _LINE:
        line = pattern.sub(name, line)
    if "|link-connect|" in line and "|smtp-in|" in line:
        head, _, tail = line.rpartition("|")
        return f"{_PORT.sub('<port>', head)}|{tail}"
    return line


def _flat(units: Iterable[Sequence[str]], size: str) -> list[str]:
    """All lines; sizes of messages are not compared where they were not recorded."""
    return [_SIZE.sub(size, line) if "|tx-commit|" in line else line for unit in units for line in unit]


def _units(text: Sequence[str]) -> list[list[str]]:
    """Single lines, and the lines of one reply of several together."""
    found: list[list[str]] = []
    open_reply = False
    for line in text:
        reply = _REPLY.match(line)
        if open_reply and reply:
            found[-1].append(line)
        else:
            found.append([line])
        open_reply = reply is not None and reply[2] == "-"
    return found


def _same(seen: Sequence[str], want: Sequence[str]) -> bool:
    if len(want) > 1 and want[-1].endswith(" HELP"):  # EHLO
        offered, recorded_offers = ({m[3] for line in unit[1:] if (m := _REPLY.match(line))} for unit in (seen, want))
        return seen[0] == want[0] and recorded_offers <= offered
    return list(seen) == list(want)
