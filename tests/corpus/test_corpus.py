"""Every recorded case is a test, in both wirings. What waits for a feature is skipped by name (pending.toml).

Filter cases, each of which starts a server of its own, take turns: one is played in one process, the next in many;
`make soak` and `make corpus` play all in both.
"""

from collections.abc import Iterable, Iterator

import pytest
from _pytest.mark.structures import ParameterSet

from tests.corpus.runner.cases import HERE, Case, pending
from tests.corpus.runner.ctl import SEQUENCES
from tests.corpus.runner.judge import JUDGES, ONE_WIRING
from tests.corpus.runner.play import Verdict, judge, judge_sequence, kinds_of, select, waits_for
from tests.corpus.runner.stage import Stage
from tests.system.server import Wiring

_WAITING = pending()


def _params(kinds: Iterable[str]) -> list[ParameterSet]:
    found = []
    for wiring in Wiring:
        for kind in kinds:
            if kind in ONE_WIRING and wiring is not Wiring.ONE:
                continue
            for number, case in enumerate(select(HERE, kind)):
                marks = [pytest.mark.xdist_group(f"{kind}-{wiring}")] if kind in SEQUENCES else []
                if kind == "filter" and (number % 2 == 0) is not (wiring is Wiring.ONE):
                    marks.append(pytest.mark.long)
                if waits := waits_for(case, _WAITING):
                    marks.append(pytest.mark.skip(reason=f"waits for {waits}"))
                found.append(pytest.param(case, wiring, id=f"{wiring}-{case.name}", marks=marks))
    return found


@pytest.fixture(scope="session")
def stages() -> Iterator[dict[Wiring, Stage]]:
    """A stage a wiring, for all cases of this worker. They share ports: one is closed before the other is used."""
    made = {wiring: Stage(wiring) for wiring in Wiring}
    yield made
    for stage in made.values():
        stage.close()


@pytest.fixture(scope="session")
def sequences() -> dict[tuple[str, Wiring], dict[str, Verdict]]:
    """The verdicts of sequences that were played."""
    return {}


def _stage(stages: dict[Wiring, Stage], wiring: Wiring) -> Stage:
    for other, stage in stages.items():
        if other is not wiring:
            stage.close()
    return stages[wiring]


@pytest.mark.parametrize(("case", "wiring"), _params(JUDGES))
def test_case(case: Case, wiring: Wiring, stages: dict[Wiring, Stage], homes: None) -> None:
    (verdict,) = judge([case], _stage(stages, wiring))
    assert not verdict.wrong, verdict.wrong


@pytest.mark.parametrize(("case", "wiring"), _params(SEQUENCES))
def test_command(
    case: Case,
    wiring: Wiring,
    stages: dict[Wiring, Stage],
    sequences: dict[tuple[str, Wiring], dict[str, Verdict]],
    homes: None,
) -> None:
    key = (case.kind, wiring)
    if key not in sequences:
        sequences[key] = judge_sequence(case.kind, HERE, _stage(stages, wiring))
    wrong = sequences[key][case.id].wrong
    assert not wrong, wrong


@pytest.mark.parametrize("kind", [k for k in kinds_of("") if k not in JUDGES and k not in SEQUENCES])
def test_kind_without_a_judge_waits_for_a_feature(kind: str) -> None:
    cases = select(HERE, kind)
    waiting = {waits_for(case, _WAITING) for case in cases}
    assert "" not in waiting, f"{kind}: cases that nobody judges and that wait for nothing"
    pytest.skip(f"{len(cases)} cases wait for {', '.join(sorted(waiting))}")
