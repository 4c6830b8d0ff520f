"""`smtpctl spf walk` against a real name server with the recorded zone."""

from collections.abc import Sequence

from tests.corpus.runner.cases import Case
from tests.corpus.runner.stage import Stage
from tests.corpus.runner.text import fill
from tests.sandbox import WORK
from tests.system.nameserver import MISSING, name_server
from tests.system.server import BIN, run


def judge_spf(cases: Sequence[Case], stage: Stage) -> dict[str, str]:
    """The verdicts on spf.json, by id."""
    if MISSING:
        return {case.id: MISSING for case in cases}
    with name_server(WORK / "nameserver", cases[0].data["zone"] if cases else []):
        return {case.id: _judge(case) for case in cases}


def _judge(case: Case) -> str:
    program, *args = case.data["argv"]
    result = run([str(BIN / program), *map(fill, args)], stdin=case.data.get("stdin", ""), user="nobody")
    if result.exit != case.data["exit"]:
        return f"exit {result.exit}, recorded {case.data['exit']}: {result.err[-300:]!r}"
    if sorted(result.out.splitlines()) != sorted(case.data["stdout"]):
        return f"stdout: {result.out!r}, recorded {case.data['stdout']}"
    if sorted(result.err.splitlines()) != sorted(case.data["stderr"]):
        return f"stderr: {result.err!r}, recorded {case.data['stderr']}"
    return ""
