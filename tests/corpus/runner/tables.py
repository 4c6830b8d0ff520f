"""Table programs: what they are asked, in which words and order, and what becomes of one that talks nonsense."""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from tests.corpus.runner import compare
from tests.corpus.runner.cases import Case
from tests.corpus.runner.client import play
from tests.corpus.runner.sink import Sink
from tests.corpus.runner.stage import Stage, settle
from tests.corpus.runner.text import PORTS, ROOT, plain, recorded
from tests.system.server import Server

_PATIENCE = 10.0  # seconds until everything is delivered
_ANSWERS = ("expect", "closed", "unexpected", "tls_ok", "refused")
_REQUEST = [
    (re.compile(r"(?<=< table\|0\.1\|)\d+\.\d{6}(?=\|)"), "<ts>"),
    (re.compile(r"(?<=\|)[0-9a-f]{8}(?=\||$)"), "<reqid>"),
    (re.compile(r"(?<=smtpd-version\|7\.8\.0)-portable"), ""),  # README.md: we say 7.8.0
    (re.compile(re.escape(f"{ROOT}/bin/table-corpus")), "@LIBEXEC@/table-corpus"),  # where we find it, by PATH
]


def judge_tables(case: Case, stage: Stage) -> str:
    """A session with tables that are programs, or a handshake that goes wrong."""
    files = {name: json.dumps(spec) for name, spec in _programs(case).items()}
    server = stage.server(Case(case.kind, {**case.data, "files": {**case.data.get("files", {}), **files}}))
    if "raw_handshake" in case.data:
        return settle(lambda: _handshake(case, server), _PATIENCE)
    with ExitStack() as stack:
        for name, port in PORTS.items():
            if name.startswith("@SINK") and name in json.dumps(case.data):
                script = case.data.get("sinks", {}).get(name.strip("@SINK"), {})
                stack.callback(Sink(port, script).close)
        bare = [{k: v for k, v in step.items() if k not in _ANSWERS} for step in case.data["session"]]
        if bad := compare.dialog(play(bare), case.data["session"]):
            return bad
        words = ["smtp", "mta", "mda"]
        if bad := settle(lambda: compare.log(server.log(), case.data["log"], words), _PATIENCE):
            return bad
        return _update(case, server) or _requests(case)


def _programs(case: Case) -> Mapping[str, Any]:
    """The configuration of each program, by the name of its file."""
    if "raw_handshake" in case.data:
        return {
            "tp/t.json": {"log": "@ROOT@/out/tp-t.log", "services": [], "raw_handshake": case.data["raw_handshake"]}
        }
    tables: Mapping[str, Any] = case.data["tables"]
    return tables


def _handshake(case: Case, server: Server) -> str:
    """Whether the server has ended, and that it says why."""
    assert server.process is not None
    ended = server.process.poll() is not None
    if ended != case.data["server_exited"]:
        return f"server_exited is {ended}, recorded {case.data['server_exited']}: {server.log()[-300:]!r}"
    seen = [plain(line) for line in server.log().splitlines()]
    missing = [line for line in map(recorded, case.data["log"]) if line not in seen]
    return f"log: missing {missing}, seen {seen[-6:]}" if missing else ""


def _update(case: Case, server: Server) -> str:
    """`smtpctl update table` for those that were recorded as updated."""
    for name, lines in case.data["requests"].items():
        if any("|update|" in line for line in lines):
            result = server.ctl("update", "table", name)
            if result.exit:
                return f"update table {name}: {result}"
    return ""


def _requests(case: Case) -> str:
    """What each program read and wrote."""
    for name, want in case.data["requests"].items():
        path = ROOT / "out" / f"tp-{name}.log"
        seen = path.read_text().splitlines() if path.exists() else []
        if bad := compare.lines(f"requests of {name}", _comparable(seen), _comparable(want)):
            return f"{bad}: {_comparable(seen)}"
    return ""


def _comparable(lines: Sequence[str]) -> list[str]:
    found = [_plain_request(line) for line in lines]
    # Deliveries ask for their users in the order of random ids.
    return sorted(found) if any("|lookup|userinfo|" in line for line in found) else found


def _plain_request(line: str) -> str:
    """A line of a program's log without what differs from run to run."""
    for pattern, name in _REQUEST:
        line = pattern.sub(name, line)
    return recorded(plain(line))
