"""smtpctl, mailq and sendmail: recorded in sequence against one server, so a sequence is played once and then judged.

Which mail was there is not recorded but follows from the answers; `_Commands` sends it at the right places.
"""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.corpus.runner.cases import Case
from tests.corpus.runner.client import play
from tests.corpus.runner.maps import judge_makemap
from tests.corpus.runner.sink import Sink
from tests.corpus.runner.spf import judge_spf
from tests.corpus.runner.stage import Stage, envelope, remove_all, settle
from tests.corpus.runner.text import PORTS, fill, numbered, renumbered
from tests.system.server import BIN, Result, Server, wait_for

CONFIG = """\
table users file:@ROOT@/tables/users
table al file:@ROOT@/tables/list
listen on 127.0.0.1 port @PORT1@ hostname mail.example.org
action "local" maildir userbase <users>
action "out" relay host smtp://127.0.0.1:@SINK1@
match from any for domain "example.org" action "local"
match from any for any action "out"
"""
REFUSAL = "451 4.7.1 come back later"
_PATIENCE = 9.0  # seconds
_TOKEN = re.compile(r"<(?:(?:id|msgid)\d+|ctime|expire|n|time|date|dur|duration|crypt-hash)>")
_SHAPES = {
    "id": "[0-9a-f]{16}",
    "msgid": "[0-9a-f]{8}",
    "date": r"[A-Z][a-z]{2}, .*",
    "dur": r"\S+",
    "duration": r"\S+",
    "crypt-hash": r"\$\S+",
}
_NUMBER = r"-?\d+"


@dataclass
class Names:
    """What the recorded names of ids stand for in this run."""

    known: dict[str, str] = field(default_factory=dict)

    def fill(self, text: str) -> str:
        """A recorded argument; an id that is not known yet is one that does not exist."""
        return _TOKEN.sub(
            lambda m: self.known.get(m[0], "fedcba9876543210"[: 8 if "msgid" in m[0] else 16]), fill(text)
        )

    def match(self, seen: str, want: str) -> bool:
        """Does a line look as recorded? Ids that were not known are learnt from it."""
        pattern, position = "", 0
        groups: dict[str, str] = {}
        want = fill(want).replace("OpenSMTPD", "Pillarbox")
        for token in _TOKEN.finditer(want):
            pattern += re.escape(want[position : token.start()])
            position = token.end()
            name = token[0]
            if name in self.known:
                pattern += re.escape(self.known[name])
            elif re.search(r"\d", name):
                groups[f"g{len(groups)}"] = name
                pattern += f"(?P<g{len(groups) - 1}>{_SHAPES[name.strip('<>0123456789')]})"
            else:
                pattern += _SHAPES.get(name.strip("<>"), _NUMBER)
        found = re.fullmatch(pattern + re.escape(want[position:]), seen)
        if found:
            self.known.update({name: found[group] for group, name in groups.items()})
        return found is not None


def judge_commands(cases: Sequence[Case], stage: Stage) -> dict[str, str]:
    """The verdicts on commands.json, by id."""
    sequence = _Commands(stage)
    with_sink = Sink(PORTS["@SINK1@"], {"replies": [{"cmd": "^RCPT TO:<temp", "reply": REFUSAL}]})
    try:
        return {case.id: _guarded(sequence.run, case) for case in cases}
    finally:
        with_sink.close()
        stage.close()


def _guarded(judge: Callable[[Case], str], case: Case) -> str:
    """A verdict, also where the server or a program did not answer at all: the sequence goes on."""
    try:
        return judge(case)
    except (AssertionError, OSError, subprocess.TimeoutExpired) as failed:
        return f"{type(failed).__name__}: {failed}"


class _Commands:
    """The sequence of commands.json."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.names = stage, Names()
        self.server = stage.server(Case("commands", {"config": CONFIG}), "-P", "mda", "-P", "mta")
        self.server.stop()
        self.server.wipe()
        self.before: dict[str, Callable[[], None]] = {
            "usage-none": self.server.start,
            "show-queue": self.first_mail,
            "show-queue-after-tempfail": self.refused_mail,
            "schedule-evpid": self.mail_to_schedule,
            "show-queue-offline": self.stop,
        }

    def run(self, case: Case) -> str:
        """Play one command and compare."""
        self.before.get(case.id, lambda: None)()
        program, *args = map(self.names.fill, case.data["argv"])
        stdin, user = case.data.get("stdin", ""), case.data.get("as_user", "")
        if not (BIN / program).exists():  # a name that the programs do not know themselves by
            program = str(self.server.folder / program)
            Path(program).symlink_to(BIN / "smtpctl")

        def check() -> str:
            return self.compare(case, self.server.ctl(*args, program=program, stdin=stdin, user=user))

        # What the server shows of its relays changes for a while after a delivery.
        return settle(check, _PATIENCE if case.id in ("show-hosts", "show-relays", "show-routes") else 0)

    def compare(self, case: Case, result: Result) -> str:
        """Exit status and both outputs."""
        if result.exit != case.data["exit"]:
            return f"exit {result.exit}, recorded {case.data['exit']}: {result.out[-200:]!r} {result.err[-300:]!r}"
        for stream, text in (("stdout", result.out), ("stderr", result.err)):
            seen, want = text.splitlines(), case.data[stream]
            if case.data["argv"][-1] in ("queue", "mailq"):
                seen = sorted(seen, key=lambda row: row.split("|")[2:6])  # as recorded: by content, ids are random
            if len(seen) != len(want) or not all(map(self.names.match, seen, want)):
                return f"{stream}: {seen}, recorded {want}"
        return ""

    def send(self, sender: str, rcpts: Sequence[str], msgid: str, parameters: str = "") -> None:
        """Inject a message, and note its id under the recorded name."""
        steps: list[dict[str, Any]] = [{"connect": {}}, {"send": "EHLO client.example.net\r\n"}]
        steps.append({"send": f"MAIL FROM:<{sender}>{parameters}\r\n"})
        steps += [{"send": f"RCPT TO:<{rcpt}>\r\n"} for rcpt in rcpts]
        steps += [{"send": "DATA\r\n"}, {"send": "Subject: q\r\n\r\nbody\r\n.\r\n"}, {"send": "QUIT\r\n"}]
        reply = str(play(steps)[-2].get("expect"))
        found = re.search(r"250 2\.0\.0 ([0-9a-f]{8}) ", reply)
        assert found, f"message refused: {reply}"
        self.names.known[msgid] = found[1]

    def first_mail(self) -> None:
        """Two messages, three envelopes."""
        self.send("alice@client.example.net", ["alice@example.org"], "<msgid1>")
        self.send("", ["bob+tag@example.org", "x@far.example"], "<msgid2>", " RET=HDRS ENVID=e1")

    def refused_mail(self) -> None:
        """What was queued leaves; of one more message a recipient is refused for now."""
        assert self.server.wait_empty(10), "the first mail was not delivered"
        self.send("dave@client.example.net", ["temp@far.example", "fine@far.example"], "<msgid4>")
        assert wait_for(lambda: [row[11::2] for row in self.server.queue()] == [["pending", REFUSAL]], 10), "not tried"

    def mail_to_schedule(self) -> None:
        """A new server with one message of two envelopes."""
        self.server = self.stage.server(Case("commands", {"config": CONFIG}), "-P", "mda", "-P", "mta")
        self.send("a@client.example.net", ["alice@example.org", "z@far.example"], "<msgid5>")
        for row in self.server.queue():
            self.names.known["<id7>" if row[2] == "mda" else "<id8>"] = row[0]

    def stop(self) -> None:
        """The server ends; its state stays."""
        self.server.stop()


def judge_sendmail(cases: Sequence[Case], stage: Stage) -> dict[str, str]:
    """The verdicts on sendmail.json, by id."""
    server = stage.server(Case("sendmail", {"config": CONFIG}), "-P", "mda", "-P", "mta")
    try:
        return {case.id: _guarded(lambda case: _sendmail(case, server), case) for case in cases}
    finally:
        stage.close()


def _sendmail(case: Case, server: Server) -> str:
    data = case.data
    offline = "offline_files" in data
    if offline:
        server.stop()
    elif server.process is None:
        server.start()
    program, *args = data["argv"]
    result = server.ctl(*args, program=program, stdin=data["stdin"], user=data.get("as_user", ""))
    if result.exit != data["exit"]:
        return f"exit {result.exit}, recorded {data['exit']}: {result.err[-300:]!r}"
    err = [line for line in result.err.split("\n") if line]
    if err != (want := [fill(line) for line in data["stderr"] if line]):
        return f"stderr: {err}, recorded {want}"
    return _left(server, data) if offline else _queued(server, data)


def _queued(server: Server, data: Mapping[str, Any]) -> str:
    """What sendmail queued, in the words of sendmail.json."""
    messages: dict[str, list[str]] = {}
    for row in server.queue():
        field = envelope(server, row[0])
        get = field.get
        text = f"{get('sender')} -> {get('dest')} {get('type')} dsn-notify={get('dsn-notify')} flags={get('flags', '')}"
        messages.setdefault(row[0][:8], []).append(f"{text} envid={get('dsn-envid', '')} ret={get('dsn-ret', '')}")
    seen = [
        (numbered(server.ctl("show", "message", msgid).out.split("\n")[:-1]), sorted(envelopes))
        for msgid, envelopes in messages.items()
    ]
    remove_all(server)
    want = [(renumbered(m["message"]), sorted(m["envelopes"])) for m in data["queued"]]
    found = [(text, [e.replace("mx.example.org", "@HOSTNAME@") for e in envelopes]) for text, envelopes in seen]
    return "" if found == want else f"queued {found}, recorded {want}"


def _left(server: Server, data: Mapping[str, Any]) -> str:
    """The file that sendmail left for a server that was down."""
    paths = [path for path in (server.state / "offline").iterdir() if not path.name.startswith(".")]
    if len(paths) != len(data["offline_files"]):
        return f"offline: {paths}"
    for path, want in zip(paths, data["offline_files"], strict=True):
        seen = (oct(path.stat().st_mode & 0o7777), path.read_text().split("\n")[:-1])
        path.unlink()
        if seen != (want["mode"], want["content"]):
            return f"offline file: {seen}, recorded {(want['mode'], want['content'])}"
    return ""


SEQUENCES: dict[str, Callable[[Sequence[Case], Stage], dict[str, str]]] = {
    "commands": judge_commands,
    "sendmail": judge_sendmail,
    "makemap": judge_makemap,
    "spf": judge_spf,
}
