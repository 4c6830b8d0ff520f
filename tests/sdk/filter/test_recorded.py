"""What the real smtpd 7.8 said to filters, said to filters written on the SDK: the same answers as recorded."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox.sdk.filter import Decision, Event, Filter, Other, Session
from pillarbox.sdk.filter.decisions import Verb
from pillarbox.sdk.filter.testing import Harness

CASES = json.loads((Path(__file__).resolve().parents[2] / "corpus/filter/cases.json").read_text())
# `id4` is a token or a session; any text will do, as long as there is no `|` in it.
_PLACES = re.compile(r"<(ts|size|id\d+|msgid\d+|port)>")
_PLACED = {"ts": "1576146008.006099", "size": "511"}
# What the recorded filter did that none on the SDK does.
DIFFERS = {
    "decision-ehlo-report": "a report is no new argument",
    "decision-auth-report": "a report is no new argument",
    "decision-mail-from-report": "a report is no new argument",
    "decision-starttls-rewrite": "there is nothing to rewrite",
    "decision-rset-rewrite": "there is nothing to rewrite",
    "decision-commit-junk": "it ends the reference",
    "misbehave-junk-at-commit": "it ends the reference",
    "rewrite-invalid-rcpt-to": "an address gets its brackets",
    "dataline-early-final-dot": "a message has one end",
    "misbehave-bad-token": "an answer to nothing",
    "misbehave-old-argument-order-token-first": "not what this version wants",
    "misbehave-unknown-decision": "no decision",
    "misbehave-unknown-line": "no line of the protocol",
    "misbehave-dies-mid-session": "it ends",
    "misbehave-register-filter-smtp-out": "there is no such thing",
    "misbehave-register-unknown-event": "there is no such thing",
}
LOGS = [case for case in CASES if isinstance(case.get("filter_log"), list) and len(case["scripts"]) == 1]


def written(script: dict[str, Any], heard: list[Event]) -> Filter[Any]:
    """A filter on the SDK that does what the recorded one was told to."""
    filter = Filter(remember=False)
    counts: dict[str, int] = {}

    def decide(phase: str, param: str) -> Decision | None:
        counts[phase] = counts.get(phase, 0) + 1
        for rule in script.get("rules", []):
            asked = rule["phase"] == phase and re.search(rule.get("param", ""), param)
            if asked and rule.get("nth", counts[phase]) == counts[phase]:
                verb, _, text = rule["reply"].partition("|")
                return Decision(Verb(verb), text)  # some are wrong on purpose: not checked as reject() would
        return None

    def line(session: Session[Any], line: str) -> Iterator[str]:
        raw = f".{line}" if line.startswith(".") else line
        for rule in script["dataline"]:
            match = None if "append" in rule else re.search(rule["match"], raw)
            if match:
                yield from (re.sub(r"^\.", "", match.expand(each)) for each in rule["emit"])
                return
        yield line

    for entry in script["register"]:
        stream, subsystem, name = entry.split("|")
        attribute = name.replace("-", "_")
        if stream == "report":
            on = filter.on if subsystem == "smtp-in" else filter.on.smtp_out
            on.event(name)(lambda session, event: heard.append(event))
        elif name == "data-line":
            filter.on.data_line(line)
            filter.on.data_end(lambda session: [x for rule in script["dataline"] for x in rule.get("append", [])])
        elif name in ("data", "commit", "rset", "quit"):
            getattr(filter.on, attribute)(lambda session, phase=name: decide(phase, ""))
        else:
            getattr(filter.on, attribute)(lambda session, param, phase=name: decide(phase, param))
    return filter


def placed(line: str) -> str:
    return _PLACES.sub(lambda found: _PLACED.get(found[1], f"0{found[1]}"), line)


@pytest.mark.parametrize("case", [case for case in LOGS if case["id"] not in DIFFERS], ids=lambda case: case["id"])
def test_what_was_said_gets_the_recorded_answers(case: dict[str, Any]) -> None:
    (script,) = case["scripts"].values()
    log = [placed(line) for line in case["filter_log"]]
    heard: list[Event] = []
    with Harness(written(script, heard)) as harness:
        wanted = {line.removeprefix("> register|") for line in log if line.startswith("> register|")} - {"ready"}
        added = {"report|smtp-in|link-disconnect", "report|smtp-out|link-disconnect", "filter|smtp-in|commit"}
        assert wanted <= set(harness.registered) <= wanted | added
        said = harness.exchange(*(line[2:] for line in log if line.startswith(("< filter|", "< report|"))))
    # Between sessions the order may differ: the recorded filter answered while the server went on.
    assert sorted(said) == sorted(line[2:] for line in log if line.startswith(("> filter-", "> report|")))
    assert [event.name for event in heard] == [line.split("|")[4] for line in log if line.startswith("< report|")]
    assert not any(isinstance(event, Other) for event in heard)
