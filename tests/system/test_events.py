"""A server with the recorder: the sessions of swaks are in the log, and a filter that is played it does as it did."""

import json
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.peers.programs import program
from tests.system.server import Result, Server, Wiring, free_port, run, wait_for
from tests.system.test_crash import account

SCRIPTED = Path(__file__).resolve().parent.parent / "corpus/fixtures/filters/scripted.py"
PHASES = ("connect", "ehlo", "mail-from", "rcpt-to", "data", "data-line", "commit", "rset", "quit", "noop")
RULES = [
    {"phase": "rcpt-to", "param": "^refused@", "reply": "reject|550 5.7.1 not | here"},
    {"phase": "mail-from", "param": "^away@", "reply": "disconnect|421 4.7.0 go away"},
    {"phase": "commit", "param": "", "nth": 2, "reply": "reject|451 4.7.1 later"},
]


@dataclass
class Site:
    """A server that delivers for bench.test, relays for away.test to itself, filters, and records all of it."""

    folder: Path
    wiring: Wiring
    port: int = field(default_factory=free_port)
    second: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.mail, self.log, self.heard = (self.folder / name for name in ("mail", "events", "heard"))
        for made in (self.mail, self.log, self.heard):
            made.mkdir()
            made.chmod(0o777)
        os.chown(self.mail, account().pw_uid, account().pw_gid)
        self.mail.chmod(0o755)
        self.script("live")
        (self.folder / "scripted.py").write_text(SCRIPTED.read_text())
        self.server = Server(self.folder / "server", self.text(), self.wiring)

    def script(self, name: str) -> Path:
        """What the filter is to do, noting in `heard` what it was told."""
        register = ["report|smtp-in|*", *(f"filter|smtp-in|{phase}" for phase in PHASES)]
        orders = {"log": str(self.heard / name), "register": register, "rules": RULES, "dataline": []}
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(orders))
        return path

    def filter_(self, name: str) -> list[str]:
        """Its command line."""
        return ["/usr/bin/python3", str(self.folder / "scripted.py"), str(self.folder / f"{name}.json")]

    def text(self) -> str:
        """The configuration."""
        return f"""\
proc recorder "smtpd-events record --dir {self.log}"
report smtp on recorder
report mda on recorder
filter watched proc-exec "{" ".join(self.filter_("live"))}"
listen on 127.0.0.1 port {self.port} hostname mail.bench.test filter watched
listen on 127.0.0.1 port {self.second} hostname next.bench.test tag NEXT
action "local" maildir "{self.mail}/Maildir" virtual {{ "@" = "{account().pw_name}" }}
action "away" relay host "smtp://127.0.0.1:{self.second}"
match tag NEXT from any for any action "local"
match from any for domain "bench.test" action "local"
match from any for domain "away.test" action "away"
"""

    def swaks(self, sender: str, *rcpts: str) -> str:
        """One message; the dialogue."""
        options = ["-s", f"127.0.0.1:{self.port}", "-ehlo", "client.example.net", "-f", sender, "-t", ",".join(rcpts)]
        return run([program("swaks"), *options]).out

    def events(self, *words: str) -> Result:
        """What `smtpd-events` says."""
        return run(["smtpd-events", words[0], *words[1:2], str(self.log), *words[2:]])

    def recorded(self, **wanted: str) -> list[dict[str, Any]]:
        """The events of the log that have these values."""
        if not os.listdir(self.log):
            return []
        said = self.events("cat", "--json")
        assert (said.exit, said.err) == (0, ""), said
        found = [json.loads(line) for line in said.out.splitlines()]
        return [one for one in found if all(one[name] == value for name, value in wanted.items())]

    def asked(self, name: str) -> dict[str, list[tuple[str, str]]]:
        """By session what the filter was asked, in its order: phase and parameter, and each message as one of them."""
        told: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for line in (self.heard / name).read_text(encoding="latin-1").splitlines():
            words = line.split("|", 7)
            if words[0] == "< filter" and (words[4] != "data-line" or words[7] == "."):
                told[words[5]].append((words[4], words[7]))
        return told

    def reported(self, name: str) -> dict[str, list[str]]:
        """By session the events that it was told."""
        told: dict[str, list[str]] = defaultdict(list)
        for line in (self.heard / name).read_text(encoding="latin-1").splitlines():
            if line.startswith("< report|"):
                told[line.split("|")[5]].append(line)
        return told


@pytest.fixture
def site(folder: Path, wiring: Wiring) -> Site:
    """A few sessions that are over, and recorded, down to the last delivery."""
    it = Site(folder, wiring)
    with it.server as server:
        assert "<** " not in it.swaks("s@client.example.net", "one@bench.test")
        assert "451 4.7.1 later" in it.swaks("s@client.example.net", "two@bench.test")
        assert "550 5.7.1 not | here" in it.swaks("s@client.example.net", "refused@bench.test", "three@bench.test")
        assert "421 4.7.0 go away" in it.swaks("away@client.example.net", "four@bench.test")
        assert "<** " not in it.swaks("s@other.example", "five@away.test")
        assert server.wait_empty(30), server.log()
        assert wait_for(lambda: _complete(it), 30, every=0.3), f"{server.log()}\n{it.events('cat').out}"
    return it


def _complete(it: Site) -> bool:
    """Has every session ended, and every delivery?"""
    begun = it.recorded(event="link-connect")
    return len(begun) == 7 == len(it.recorded(event="link-disconnect")) and len(it.recorded(subsystem="mda")) == 3


def test_everything_that_happened_is_in_the_log(site: Site) -> None:
    assert {one["subsystem"] for one in site.recorded()} == {"smtp-in", "smtp-out", "mda"}
    assert len(site.recorded(event="tx-commit", subsystem="smtp-in")) == 4
    (out,) = site.recorded(event="tx-commit", subsystem="smtp-out")
    assert [one["fields"]["result"] for one in site.recorded(subsystem="mda")] == ["ok"] * 3
    assert sorted(one["time"] for one in site.recorded(session=out["session"])) == [
        one["time"] for one in site.recorded(session=out["session"])
    ]


@pytest.mark.long
def test_a_message_is_followed_from_its_arrival_to_its_delivery(site: Site) -> None:
    (out,) = site.recorded(event="tx-commit", subsystem="smtp-out")
    arrival = next(one for one in site.recorded(event="tx-mail") if one["fields"]["address"] == "s@other.example")
    told = site.events("session", arrival["fields"]["message"], "--all")
    assert told.exit == 0
    for text in (
        "C: MAIL FROM:<s@other.example>",
        "   filter, rcpt-to: proceed",
        f"-- connected to 127.0.0.1:{site.second}",
        "S: 220 next.bench.test",
    ):
        assert text in told.out
    one = site.events("session", out["session"])
    assert one.out.splitlines()[0].startswith(f"{out['session']} smtp-out ")
    assert one.out.splitlines()[-1].endswith("-- disconnected")


@pytest.mark.long
def test_figures_tell_who_came_and_what_was_refused(site: Site) -> None:
    figures = json.loads(site.events("stats", "--json").out)["subsystems"]
    assert figures["smtp-in"]["peers"]["most"] == [{"value": "127.0.0.1", "count": 6}]
    refusals = {one["value"]: one["count"] for one in figures["smtp-in"]["refusals"]["most"]}
    assert refusals == {
        "RCPT: 550 5.7.1 not | here": 1,
        "MAIL: 421 4.7.0 go away": 1,
        "message: 451 4.7.1 later": 1,
    }
    assert figures["smtp-in"]["filter_answers"]["rcpt-to reject"] == 1
    assert figures["mda"]["results"] == {"delivery ok": 3}
    assert figures["smtp-out"]["reply_times"]["message"]["count"] == 1


def test_a_filter_that_is_played_the_log_is_asked_and_told_what_it_was_then(site: Site) -> None:
    site.script("again")
    filtered = {one["session"] for one in site.recorded(event="filter-response")}
    assert len(filtered) == 5
    options = ["--json", "--same", "--speed", "2"]  # one session after the other, as then
    played = run(["smtpd-events", "replay", *options, str(site.log), "--", *site.filter_("again")])
    *sessions, last = map(json.loads, played.out.splitlines())
    assert (played.exit, played.err) == (0, "")
    assert last["summary"]["questions"] == sum(map(len, site.asked("again").values()))
    assert last["summary"]["differences"] == last["summary"]["faults"] == 0
    assert {name: site.asked("again")[name] for name in filtered} == site.asked("live")
    assert {name: site.reported("again")[name] for name in filtered} == {
        name: site.reported("live")[name] for name in filtered
    }
    assert len([one for one in sessions if one["sent_away"]]) == 1
