"""One function a kind: plays a case on a stage and says "" or what differs from the recording."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.corpus.runner import compare
from tests.corpus.runner.cases import Case
from tests.corpus.runner.client import play
from tests.corpus.runner.filters import judge_filter
from tests.corpus.runner.migration import judge_migration
from tests.corpus.runner.place import fresh, put
from tests.corpus.runner.sink import Sink
from tests.corpus.runner.stage import Stage, envelope, queued, settle, transaction
from tests.corpus.runner.tables import judge_tables
from tests.corpus.runner.text import PORTS, ROOT, fill, plain, recorded
from tests.sandbox import PEOPLE
from tests.system.server import run

PAUSED = ("-P", "mda", "-P", "mta")
_ANSWERS = ("expect", "closed", "unexpected", "tls_ok", "refused")
_PATIENCE = 8.0  # seconds beyond a case's own wait until it must look as recorded


def judge_config(case: Case, stage: Stage) -> str:
    """`smtpd -n`: the verdict, and the line of the first error."""
    fresh(case.data.get("files"))
    path = put("smtpd.conf", case.data["config"])
    result = run(["smtpd", "-n", "-f", str(path), *map(fill, case.data.get("args", []))])
    said = result.out + result.err
    if "Traceback" in said:
        return f"traceback: {said[-300:]}"
    if (result.exit == 0) != case.data["accept"]:
        return f"exit {result.exit}, recorded accept={case.data['accept']} {case.data['errors'][:1]}: {said[:300]!r}"
    lines = set(map(int, re.findall(r"^\S+:(\d+): ", said, re.MULTILINE)))
    if case.data["errors"] and (line := case.data["errors"][0]["line"]) and line not in lines:
        return f"errors on lines {sorted(lines)}, recorded {line}: {said[:300]!r}"
    return ""


def judge_dialog(case: Case, stage: Stage) -> str:
    """SMTP dialogues: replies, what is queued then, what was logged."""
    server = stage.server(case, *PAUSED, keep=True)
    if bad := play_sessions(case.data["sessions"]):
        return bad

    def check() -> str:
        return compare.log(server.log(), case.data["log"], ["smtp"])

    return compare.queue(queued(server), case.data["queue"]) or settle(check, 2)


def play_sessions(sessions: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Play recorded sessions one after the other and compare the replies."""
    for want in sessions:
        if bad := compare.dialog(play(bare(want)), want):
            return bad
    return ""


def bare(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps of a session without what was answered."""
    return [{k: v for k, v in step.items() if k not in _ANSWERS} for step in steps]


def judge_expand(case: Case, stage: Stage) -> str:
    """Recipients, a transaction each: the reply, and the envelopes that came of it."""
    server = stage.server(case, *PAUSED)
    messages: dict[str, Mapping[str, Any]] = {}
    for recipient in case.data["recipients"]:
        steps = transaction(
            {**case.data, "message": "Subject: x\r\n\r\nx\r\n.\r\n"}, [recipient["rcpt"]], "c.example.net"
        )
        accepted = recipient["reply"].startswith("250")
        seen = play(steps if accepted else [*steps[:4], steps[-1]])
        reply = plain("".join(seen[3].get("expect", [["nothing"]])[0])) if len(seen) > 3 else "nothing"
        if reply != plain(fill(recorded(recipient["reply"]))):
            return f"{recipient['rcpt']}: {reply!r}, recorded {recipient['reply']!r}"
        if accepted:
            stored = re.match(r"250 2\.0\.0 ([0-9a-f]{8}) ", "".join(seen[5]["expect"][0]))
            if not stored:
                return f"{recipient['rcpt']}: not stored: {seen[5]['expect']}"
            messages[stored[1]] = recipient
    found: dict[str, list[dict[str, str]]] = {msgid: [] for msgid in messages}
    for row in server.queue():
        found[row[0][:8]].append(envelope(server, row[0]))
    for msgid, recipient in messages.items():
        message = [{"message": [], "envelopes": found[msgid]}]
        if bad := compare.queue(message, [{"message": [], "envelopes": recipient.get("envelopes", [])}]):
            return f"{recipient['rcpt']}: {bad}"
    return ""


@contextmanager
def sinks(case: Case) -> Iterator[dict[str, Sink]]:
    """The scripted servers of a case, by the name it gives them: a number, or the path of a socket."""
    with ExitStack() as stack:
        made: dict[str, Sink] = {}
        for name, script in case.data.get("sinks", {}).items():
            sink = Sink(PORTS[f"@SINK{name}@"] if name.isdigit() else Path(fill(name)), script)
            stack.callback(sink.close)
            made[name] = sink
        yield made


def judge_delivery(case: Case, stage: Stage) -> str:
    """Local delivery: files, queue and log after a message."""
    server = stage.server(case)
    data, varies = case.data, bool(case.data.get("order_varies"))
    with sinks(case) as made:
        seen = play(transaction(data, [fill(rcpt) for rcpt in data["rcpts"]], "client.example.net"))
        replies = ["".join(step.get("expect", ["nothing"])[0]) for step in seen[3 : 3 + len(data["rcpts"])]]
        if bad := compare.lines("RCPT replies", replies, [fill(reply) for reply in data["rcpt_replies"]]):
            return bad

        def check() -> str:
            return (
                compare.log(server.log(), data["log"], ["mda"])
                or compare.files(delivered(data.get("files", {})), data["files_after"], varies=varies)
                or compare.sessions(_told(made), data.get("sink_sessions", {}), varies=varies)
                or compare.queue(queued(server), data["queue_after"], varies=varies)
            )

        return settle(check, data["wait"] + _PATIENCE)


def delivered(brought: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The files that deliveries wrote: all below `out/`, the homes and /var/mail but those that the case brought."""
    found: dict[str, list[dict[str, Any]]] = {}
    before = {ROOT / name for name in brought}
    places = [ROOT / "out", ROOT / "home", Path("/var/mail"), *(Path("/home", name) for name in PEOPLE)]
    for path in sorted(p for place in places for p in place.rglob("*") if p.is_file() and p not in before):
        name = plain(str(path))
        if path.parent.name in ("new", "cur", "tmp"):
            name = f"{plain(str(path.parent))}/<time>.<random>.<host>"
        text = path.read_text("latin-1").split("\n")
        lines = text[:-1] if text[-1] == "" else [*text[:-1], f"{text[-1]}(no newline)"]
        found.setdefault(name, []).append({"mode": oct(path.stat().st_mode & 0o7777), "lines": lines})
    return found


def judge_relay(case: Case, stage: Stage) -> str:
    """Outgoing mail: what scripted servers were told, what stays queued, what was logged."""
    data, varies = case.data, bool(case.data.get("order_varies"))
    server = stage.server(case, "-P", "mda")
    with sinks(case) as made:
        seen = play(transaction(data, [fill(rcpt) for rcpt in data["rcpts"]], data["helo"]))
        last = seen[-2].get("expect") if len(seen) > 1 else None
        if not last or not last[0][0].startswith("250"):
            return f"not accepted: {seen[-3:]}"

        def check() -> str:
            told, wanted, words = _told(made), data["sink_sessions"], ["mta"]
            if data.get("by_transaction"):
                told, wanted = ({n: compare.transactions(s) for n, s in side.items()} for side in (told, wanted))
                words = ["mta delivery"]
            return (
                compare.log(server.log(), data["log"], words)
                or compare.sessions(told, wanted, varies=varies)
                or compare.queue(queued(server), data["queue_after"], varies=varies)
            )

        return settle(check, data["wait"] + _PATIENCE)


def _told(made: Mapping[str, Sink]) -> dict[str, list[list[str]]]:
    return {name: [list(session) for session in sink.sessions] for name, sink in made.items()}


JUDGES: dict[str, Callable[[Case, Stage], str]] = {
    "config": judge_config,
    "dialog": judge_dialog,
    "expand": judge_expand,
    "delivery": judge_delivery,
    "relay": judge_relay,
    "migration": judge_migration,
    "tables": judge_tables,
    "filter": judge_filter,
}
# Kinds in which a wiring makes no difference are judged in one.
ONE_WIRING = {"config", "makemap", "migration", "spf"}
