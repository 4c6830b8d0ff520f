"""Judges a list of cases on one stage: what pytest and the command line both call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.corpus.runner.cases import FILES, Case, Notes, differs, load, pending
from tests.corpus.runner.ctl import SEQUENCES
from tests.corpus.runner.judge import JUDGES
from tests.corpus.runner.stage import Stage


@dataclass(frozen=True)
class Verdict:
    """How a case came out. `waits`: for what, when it is not judged; `wrong`: "" where it is as recorded."""

    case: Case
    wrong: str = ""
    waits: str = ""


def kinds_of(kind: str) -> list[str]:
    """The files that a kind names: "ctl" is a folder of several, "" is all."""
    if kind in FILES:
        return [kind]
    return [name for name, path in FILES.items() if not kind or path.startswith(f"{kind}/")]


def select(folder: Path, kind: str, text: str = "") -> list[Case]:
    """Cases of a kind whose id contains `text`."""
    return [case for case in load(folder, kind) if text in case.id]


def waits_for(case: Case, waiting: Notes) -> str:
    """What a case waits for, "" where it can be judged."""
    return str(waiting.find(case) or "")


def expected(case: Case, notes: Notes) -> Case:
    """The case with what we mean to answer in place of the recording (differs.toml says how that is written)."""
    note = notes.find(case)
    if not note:
        return case
    data = {**case.data, **note.get("expect", {})}
    if steps := note.get("steps"):
        first = [_changed(step, steps.get(str(number), {})) for number, step in enumerate(data["sessions"][0])]
        data["sessions"] = [first[: note.get("last", len(first)) + 1], *data["sessions"][1:]]
    data["by_transaction"] = note.get("by_transaction", False)
    data["chance"] = note.get("chance", ())
    if "log" in data:
        kept = [line for line in data["log"] if not any(text in line for text in note.get("drop", ()))]
        data["log"] = [*kept, *note.get("add", ())]
    if data.get("filter_log"):
        data["filter_log"] = _told(data["filter_log"], note)
    return Case(case.kind, data)


def _changed(step: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    changed = {**step, **change}
    return {name: value for name, value in changed.items() if name != "refused" or value}


def _told(lines: Sequence[str], note: Mapping[str, Any]) -> list[str]:
    """A filter's log as we mean it to be."""
    for text, other in note.get("told", {}).items():
        lines = [line.replace(text, other) for line in lines if other or text not in line]
    handshake = [line for line in lines if line.startswith(("< config|", "> register|"))]
    return [*lines, *note.get("told_more", ()), *handshake * (note.get("starts", 1) - 1)]


def judge(cases: Sequence[Case], stage: Stage) -> Iterator[Verdict]:
    """Verdicts in the order of the cases, all of one kind. A sequence is played whole, whatever was selected of it."""
    waiting, notes = pending(), differs()
    for case in cases:
        if waits := waits_for(case, waiting):
            yield Verdict(case, waits=waits)
        else:
            yield Verdict(case, wrong=_wrong(expected(case, notes), stage))


def _wrong(case: Case, stage: Stage) -> str:
    try:
        return JUDGES[case.kind](case, stage)
    except (AssertionError, OSError, ValueError, LookupError) as failed:  # what a broken answer makes of the comparison
        return f"{type(failed).__name__}: {failed}"


def judge_sequence(kind: str, folder: Path, stage: Stage) -> dict[str, Verdict]:
    """Verdicts on a whole sequence, by id."""
    waiting, notes = pending(), differs()
    verdicts = {case.id: Verdict(case, waits=waits_for(case, waiting)) for case in load(folder, kind)}
    cases = [expected(verdict.case, notes) for verdict in verdicts.values() if not verdict.waits]
    for id_, wrong in SEQUENCES[kind](cases, stage).items():
        verdicts[id_] = Verdict(verdicts[id_].case, wrong=wrong)
    return verdicts
