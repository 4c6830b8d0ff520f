"""`python -m tests.corpus.runner`: run cases, print what differs from the recording and a table.

Options: `--dir DIR`, `--kind KIND`, `-k TEXT`, `--wiring one|many`. As root, in a sandbox (`tests/sandbox.py`).
`--reference` plays the dialogues against Debian's OpenSMTPD instead; with `--record FILE` what it answers is written.
Exit status 0 where every case that is judged is as recorded, 1 where one is not, 2 where there is none.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from bench.servers import Missing
from tests import sandbox
from tests.corpus.runner import reference
from tests.corpus.runner.cases import HERE, pending
from tests.corpus.runner.ctl import SEQUENCES
from tests.corpus.runner.judge import JUDGES, ONE_WIRING
from tests.corpus.runner.play import Verdict, judge, judge_sequence, kinds_of, select, waits_for
from tests.corpus.runner.stage import Stage
from tests.system.server import Wiring

WIRINGS = {"one": Wiring.ONE, "many": Wiring.MANY}


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="corpus", description="Run recorded cases against Pillarbox.")
    parser.add_argument("--dir", type=Path, default=HERE, help="a folder of the corpus's form (default: the project's)")
    parser.add_argument("--kind", default="", help="config, dialog, expand, delivery, relay, ctl, …; default: all")
    parser.add_argument("-k", dest="text", default="", help="only cases whose id contains this")
    parser.add_argument("--wiring", choices=WIRINGS, help="default: both")
    parser.add_argument("--reference", action="store_true", help="play dialogues against Debian's OpenSMTPD instead")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write cases with the reference's answers")
    options = parser.parse_args()
    options.record = options.record and options.record.resolve()
    options.dir = options.dir.resolve()
    try:
        sandbox.enter()
    except sandbox.Refused as refused:
        print(f"corpus: {refused}", file=sys.stderr)
        return 2
    if options.reference or options.record:
        return _reference(options)
    rows: list[tuple[str, list[Verdict]]] = []
    for wiring in [WIRINGS[options.wiring]] if options.wiring else list(Wiring):
        for kind in kinds_of(options.kind):
            if kind in ONE_WIRING and rows and wiring is Wiring.MANY:
                continue
            verdicts = _run(kind, wiring, options)
            if verdicts:
                rows.append((f"{kind} ({wiring})", verdicts))
    if not rows:  # a name misspelt is no success
        print(f"corpus: no such cases in {options.dir}", file=sys.stderr)
        return 2
    return _table(rows)


def _reference(options: argparse.Namespace) -> int:
    """What another server answers is news, not a failure."""
    cases = select(options.dir, "dialog", options.text)
    try:
        if options.record:
            reference.record(cases, options.record)
            return 0
        verdicts = []
        for verdict in reference.differences(cases):
            verdicts.append(verdict)
            if verdict.wrong:
                print(f"{verdict.case.name}: {verdict.wrong}", flush=True)
    except (Missing, RuntimeError) as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 2
    _table([("dialog (OpenSMTPD)", verdicts)])
    return 0


def _run(kind: str, wiring: Wiring, options: argparse.Namespace) -> list[Verdict]:
    cases = select(options.dir, kind, options.text)
    verdicts: list[Verdict] = []
    stage = Stage(wiring)
    try:
        if kind in JUDGES:
            for verdict in judge(cases, stage):
                verdicts.append(verdict)
                _say(verdict, wiring)
        elif kind in SEQUENCES and cases:
            all_of_it = judge_sequence(kind, options.dir, stage)
            verdicts = [all_of_it[case.id] for case in cases]
            for verdict in verdicts:
                _say(verdict, wiring)
        else:
            waiting = pending()
            verdicts = [Verdict(case, waits=waits_for(case, waiting) or "no judge for this kind") for case in cases]
    finally:
        stage.close()
    return verdicts


def _say(verdict: Verdict, wiring: Wiring) -> None:
    if verdict.wrong:
        print(f"{verdict.case.name} [{wiring}]: {verdict.wrong}", flush=True)


def _table(rows: list[tuple[str, list[Verdict]]]) -> int:
    total: Counter[str] = Counter()
    print(f"\n{'':32}{'as recorded':>12}{'not':>6}{'waiting':>9}")
    for name, verdicts in rows:
        count = Counter("waits" if v.waits else "wrong" if v.wrong else "good" for v in verdicts)
        total += count
        print(f"{name:32}{count['good']:12}{count['wrong']:6}{count['waits']:9}")
    print(f"{'':32}{total['good']:12}{total['wrong']:6}{total['waits']:9}")
    return int(total["wrong"] > 0)


if __name__ == "__main__":
    sys.exit(main())
