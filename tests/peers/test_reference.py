"""The runner that records dialogues from the real OpenSMTPD (`make corpus-reference`)."""

import pytest

from tests.corpus.runner.cases import HERE, Case
from tests.corpus.runner.play import select
from tests.corpus.runner.reference import answered, as_recorded, differences
from tests.peers.programs import opensmtpd

pytestmark = pytest.mark.usefixtures("machine", "homes")


def one(name: str) -> Case:
    """The recorded dialogue of this name."""
    return next(case for case in select(HERE, "dialog", name) if case.id == name)


@pytest.mark.parametrize("name", ["helo-and-quit", "data-dot-stuffing", "data-bare-lf", "pipelined-data-and-body"])
def test_a_dialogue_is_recorded_as_it_is_in_the_corpus(name: str) -> None:
    opensmtpd()
    case = one(name)
    sessions, log = answered(case)
    assert list(differences(case, sessions, log)) == []
    assert as_recorded(case, sessions, log)["sessions"] == case.data["sessions"]


def test_a_difference_is_told() -> None:
    opensmtpd()
    case = one("helo-and-quit")
    steps = [dict(step) for step in case.data["sessions"][0]]
    steps[-1]["expect"] = [["221 2.0.0 Farewell"]]
    (told,) = differences(Case("dialog", {**case.data, "sessions": [steps]}), *answered(case))
    assert "step 2 'QUIT" in told and "Farewell" in told
