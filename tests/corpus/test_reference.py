"""The second runner: the same dialogues against a real OpenSMTPD."""

import json
from pathlib import Path

import pytest

from tests.corpus.runner import reference
from tests.corpus.runner.cases import HERE, Case, load
from tests.peers.programs import opensmtpd

pytestmark = pytest.mark.usefixtures("machine")
CASES = {case.id: case for case in load(HERE, "dialog")}


@pytest.mark.parametrize("name", ["helo-and-quit", "data-dot-stuffing", "rcpt-rejections", "match-order-first-wins"])
def test_it_answers_as_it_was_recorded(name: str) -> None:
    opensmtpd()
    (verdict,) = reference.differences([CASES[name]])
    assert verdict.wrong == ""


def test_a_difference_is_told() -> None:
    opensmtpd()
    case = CASES["helo-and-quit"]
    sessions = json.loads(json.dumps(case.data["sessions"]).replace("2.0.0 Bye", "2.0.0 See you"))
    (verdict,) = reference.differences([Case("dialog", {**case.data, "sessions": sessions})])
    assert "See you" in verdict.wrong


def test_a_configuration_that_it_refuses_is_told() -> None:
    opensmtpd()
    (verdict,) = reference.differences([Case("dialog", {"id": "x", "config": ["nonsense"], "sessions": []})])
    assert "syntax error" in verdict.wrong


def test_a_new_case_is_recorded_as_the_corpus_writes_it(tmp_path: Path) -> None:
    opensmtpd()
    case = CASES["data-dot-stuffing"]
    steps = [{k: v for k, v in step.items() if k in ("connect", "send")} for step in case.data["sessions"][0]]
    reference.record([Case("dialog", {**case.data, "sessions": [steps]})], tmp_path / "new.json")
    (made,) = json.loads((tmp_path / "new.json").read_text())
    wanted = [
        {k: v for k, v in step.items() if k in ("connect", "send", "expect", "closed")}
        for step in case.data["sessions"][0]
    ]
    assert made["sessions"][0] == wanted
