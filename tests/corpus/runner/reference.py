"""`python -m tests.corpus.runner.reference`: the recorded dialogues against a real OpenSMTPD, the one of this Debian.

Nothing that we mean to answer otherwise counts here: what is compared with is the recording. `--write FILE` puts the
cases there as they were answered now, in the corpus's form: that is how a new case is recorded. Replies and log lines
are compared and written, not the queue. Exit status 1 where anything differs.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.servers import Missing, OpenSMTPD
from tests import sandbox
from tests.corpus.runner import compare
from tests.corpus.runner.cases import HERE, Case
from tests.corpus.runner.client import play
from tests.corpus.runner.place import fresh, joined
from tests.corpus.runner.play import select
from tests.corpus.runner.text import fill, numbered
from tests.system.server import bound_ports, wait_for

ANSWERS = ("expect", "closed", "unexpected", "tls_ok", "refused")
_START = 10.0  # seconds


class Reference(OpenSMTPD):
    """OpenSMTPD with the configuration of a case, deliveries paused."""

    def __init__(self, folder: Path, config: str) -> None:
        super().__init__(folder, deliver=False)
        self._config = config

    def setup(self) -> None:
        """See `bench.servers`; the configuration is the case's."""
        super().setup()
        self.conf.write_text(self._config)

    def start(self) -> None:
        """Start it and wait until it listens. Raises RuntimeError with the log."""
        self.setup()
        self.launch()
        ports = {int(port) for port in re.findall(r"^\s*listen on .*?\bport (\d+)", self._config, re.MULTILINE)}
        up = wait_for(lambda: (ports <= bound_ports() and self.ready()) or not self._alive(self.main_pid()), _START)
        if not up or not self._alive(self.main_pid()):
            raise RuntimeError(f"did not start: {self.log().strip()[-300:]}")

    def whole_log(self) -> str:
        """All that it said."""
        return self.log_path.read_text(errors="replace")


def answered(case: Case) -> tuple[list[list[dict[str, Any]]], str]:
    """The sessions of a case with what the server answers, and its log. Raises RuntimeError where it does not start."""
    fresh(case.data.get("files"))
    folder = sandbox.WORK / "reference"
    shutil.rmtree(folder, ignore_errors=True)
    server = Reference(folder, fill(joined(case.data["config"])))
    try:
        server.start()
        asked = [[{k: v for k, v in step.items() if k not in ANSWERS} for step in s] for s in case.data["sessions"]]
        sessions = [play(steps) for steps in asked]
        wait_for(lambda: server.whole_log().count(" smtp disconnected ") >= len(sessions), 1)
        return sessions, server.whole_log()
    finally:
        server.stop()


def differences(case: Case, sessions: list[list[dict[str, Any]]], log: str) -> Iterator[str]:
    """What is not as recorded."""
    for seen, want in zip(sessions, case.data["sessions"], strict=True):
        if bad := compare.dialog(seen, want):
            yield bad
    if bad := compare.log(log, case.data.get("log", []), ["smtp"]):
        yield bad


def as_recorded(case: Case, sessions: list[list[dict[str, Any]]], log: str) -> dict[str, Any]:
    """The case with these answers, in the corpus's form: ids are numbered across the whole case."""
    lines = [line for line in log.splitlines() if re.match(r"[0-9a-f]{16} smtp ", line)]
    replies = [line for session in sessions for step in session for line in _lines(step)]
    words = iter([line.replace("<software>", "OpenSMTPD") for line in numbered([*replies, *lines])])
    told = [[_with_lines(step, words) for step in session] for session in sessions]
    return {**case.data, "sessions": told, "log": list(words)}


def _lines(step: Mapping[str, Any]) -> list[str]:
    return [line for reply in step.get("expect", ()) if reply != "TIMEOUT" for line in reply]


def _with_lines(step: Mapping[str, Any], words: Iterator[str]) -> dict[str, Any]:
    if "expect" not in step:
        return dict(step)
    return {**step, "expect": [r if r == "TIMEOUT" else [next(words) for _ in r] for r in step["expect"]]}


def main() -> int:
    """Play what the command line asks for."""
    parser = argparse.ArgumentParser(prog="corpus-reference", description="Play recorded dialogues against OpenSMTPD.")
    parser.add_argument("--dir", type=Path, default=HERE, help="a folder of the corpus's form (default: the project's)")
    parser.add_argument("-k", dest="text", default="", help="only cases whose id contains this")
    parser.add_argument("--write", type=Path, help="a file for the cases as they are answered now")
    options = parser.parse_args()
    cases = select(options.dir.resolve(), "dialog", options.text)
    written, wrong = [], 0
    try:
        sandbox.enter()
        for case in cases:
            try:
                sessions, log = answered(case)
            except RuntimeError as failed:
                found = [str(failed)]
            else:
                found = list(differences(case, sessions, log))
                written.append(as_recorded(case, sessions, log))
            wrong += bool(found)
            for text in found:
                print(f"{case.name}: {text}", flush=True)
    except (sandbox.Refused, Missing) as missing:
        print(f"corpus-reference: {missing}", file=sys.stderr)
        return 2
    print(f"{len(cases) - wrong} of {len(cases)} dialogues are as recorded")
    if options.write:
        options.write.write_text(json.dumps(written, indent=1) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
