"""Plays dialogues against a real OpenSMTPD, Debian's: to see what it answers, and to record new cases from it.

Only replies are compared: the corpus was recorded from 7.8, Debian has an older version (6.8, whose TLS does not work
with the OpenSSL 3 of Debian 12), and each has a spool of its own. A case to be recorded needs an id, a configuration
and the steps of its sessions, nothing else.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.servers import OpenSMTPD
from tests.corpus.runner import compare
from tests.corpus.runner.cases import Case
from tests.corpus.runner.client import play
from tests.corpus.runner.judge import bare
from tests.corpus.runner.place import fresh, joined
from tests.corpus.runner.play import Verdict
from tests.corpus.runner.text import fill, numbered
from tests.sandbox import WORK
from tests.system.server import answers, bound_ports, wait_for

_SOCKET = Path("/var/run/smtpd.sock")
_STARTS_WITHIN = 15.0  # seconds


class Reference(OpenSMTPD):
    """OpenSMTPD with the configuration of a case, its deliveries paused. Raises `bench.servers.Missing`."""

    def __init__(self, folder: Path, config: str) -> None:
        super().__init__(folder, deliver=False)
        self.config = config

    def setup(self) -> None:
        """Its places, and the case's configuration in them."""
        super().setup()
        self.conf.write_text(self.config)

    def start(self) -> None:
        """Start it and wait until it listens. Raises RuntimeError with the log."""
        self.setup()
        _SOCKET.unlink(missing_ok=True)
        self.launch()
        ports = {int(port) for port in re.findall(r"^\s*listen on .*?\bport (\d+)", self.config, re.MULTILINE)}

        def listening() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"it did not start: {self.log()[-500:]}")
            return answers(_SOCKET) and ports <= bound_ports()

        if not wait_for(listening, _STARTS_WITHIN):
            raise RuntimeError(f"it does not listen: {self.log()[-500:]}")


def play_case(case: Case) -> list[list[dict[str, Any]]]:
    """The sessions of a dialogue as the reference answers them. Raises RuntimeError where it does not start."""
    fresh(case.data.get("files"))
    server = Reference(WORK / "reference", fill(joined(case.data["config"])))
    try:
        server.start()
        return [play(bare(steps)) for steps in case.data["sessions"]]
    finally:
        server.stop()


def differences(cases: Sequence[Case]) -> Iterator[Verdict]:
    """What this version answers otherwise than the corpus says."""
    for case in cases:
        try:
            seen = play_case(case)
        except (OSError, RuntimeError) as error:
            yield Verdict(case, wrong=str(error))
            continue
        found = map(compare.dialog, seen, case.data["sessions"])
        yield Verdict(case, wrong=next(filter(None, found), ""))


def record(cases: Sequence[Case], path: Path) -> None:
    """Write the cases with the answers of the reference, in the form of `dialog/cases.json`."""
    done = [{**case.data, "sessions": [_normal(session) for session in play_case(case)]} for case in cases]
    path.write_text(json.dumps(done, indent=1) + "\n")


def _normal(session: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The steps with ids, dates and ports as the corpus writes them."""
    lines = [line for step in session for reply in step.get("expect", ()) for line in _lines(reply)]
    plain = iter([line.replace("<software>", "OpenSMTPD") for line in numbered(lines)])
    return [
        {**step, "expect": [[next(plain) for _ in _lines(reply)] for reply in step["expect"]]}
        if "expect" in step
        else dict(step)
        for step in session
    ]


def _lines(reply: str | Sequence[str]) -> Sequence[str]:
    return [reply] if isinstance(reply, str) else reply
