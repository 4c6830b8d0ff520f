"""makemap and newaliases: recorded in sequence in one folder, with files whose names alone are recorded.

What is in them follows from the answers. The configuration that newaliases read was the one that the reference
installs; here it is named with `-f`.
"""

import re
import shutil
from collections.abc import Sequence

from tests.corpus.runner.cases import Case
from tests.corpus.runner.stage import Stage
from tests.corpus.runner.text import ROOT, fill
from tests.system.server import BIN, run

FILES = {
    "aliases": "root: alice\npostmaster: root\nabuse\n",
    "dup": "one: 1\ntwo: 2\nOne: 3\n",
    "map": "One: first\n# comment\ntwo\tsecond value\n",
    "nul": "one: a\0b\n",
    "set": "one\nthree four\n",
}
_STOCK = "/opt/opensmtpd/etc/smtpd.conf"
# With what was recorded about it on lines 6, 15 and 21.
_CONFIG = {
    6: "table aliases file:/etc/mail/aliases",
    8: "listen on lo",
    15: 'action "local" mbox alias <aliases>',
    16: 'action "outbound" relay',
    21: 'match for local action "local"',
    22: 'match from local for any action "outbound"',
}


def judge_makemap(cases: Sequence[Case], stage: Stage) -> dict[str, str]:
    """The verdicts on makemap.json, by id."""
    folder = ROOT / "m"
    shutil.rmtree(ROOT, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    (ROOT / "smtpd.conf").write_text("".join(f"{_CONFIG.get(n, '#')}\n" for n in range(1, 23)))
    return {case.id: _judge(case) for case in cases}


def _judge(case: Case) -> str:
    program, *args = map(fill, case.data["argv"])
    if program == "newaliases" and not args:
        args = ["-f", str(ROOT / "smtpd.conf")]
    result = run([str(BIN / program), *args])
    if result.exit != case.data["exit"]:
        return f"exit {result.exit}, recorded {case.data['exit']}: {result.err[-300:]!r}"
    if result.out.splitlines() != [fill(line) for line in case.data["stdout"]]:
        return f"stdout: {result.out!r}, recorded {case.data['stdout']}"
    if bad := _compare_errors(result.err.splitlines(), [fill(line) for line in case.data["stderr"]]):
        return bad
    left = sorted(path.name for path in (ROOT / "m").iterdir())
    return "" if left == case.data["files_after"] else f"files: {left}, recorded {case.data['files_after']}"


def _compare_errors(seen: list[str], want: list[str]) -> str:
    """The same lines; of problems in a configuration each one that has a line, whatever we have to add."""
    problems = [line.replace(_STOCK, str(ROOT / "smtpd.conf")) for line in want if line.startswith(_STOCK)]
    if not problems:
        return "" if seen == want else f"stderr: {seen}, recorded {want}"
    ours = [line for line in seen if re.match(r"\S+:\d+: ", line)]
    same = len(ours) == len(problems) and all(map(str.startswith, ours, problems))
    return "" if same else f"stderr: {ours}, recorded {problems}"
