"""Event logs made of what OpenSMTPD 7.8 told filters (tests/corpus/filter): one case, or all of them, as lines."""

import json
import re
from functools import cache
from pathlib import Path

CORPUS = Path(__file__).resolve().parent.parent / "corpus"
SCRIPTED = CORPUS / "fixtures/filters/scripted.py"
BEGIN = 1_700_000_000.0  # epoch seconds of the first event
HANDSHAKE = ["config|smtpd-version|7.8.0", "config|protocol|0.7", "config|subsystem|smtp-in", "config|ready"]


@cache
def _cases() -> dict[str, dict]:
    return {case["id"]: case for case in json.loads((CORPUS / "filter/cases.json").read_text())}


def case_log(name: str) -> list[str]:
    """The events of a case, a millisecond apart; its n-th id is n."""
    told = [line[2:] for line in _cases()[name].get("filter_log") or () if line.startswith("< report|")]
    return [_filled(line, BEGIN + n / 1000) for n, line in enumerate(told)]


def whole_log() -> list[str]:
    """The events of all cases, sessions told apart: 0000000N0000000M is the M-th of the N-th case."""
    return [
        re.sub(r"\|00000000(?=[0-9a-f]{8}(\||$))", f"|{number:08x}", line, count=1)
        for number, name in enumerate(_cases(), 1)
        for line in case_log(name)
    ]


def _filled(line: str, time: float) -> str:
    line = line.replace("<ts>", f"{time:.6f}").replace("<port>", "4321").replace("<tls>", "TLSv1.3:AES:256")
    line = re.sub(r"<msgid(\d+)>", lambda match: f"{int(match[1]):08x}", line)
    line = re.sub(r"<id(\d+)>", lambda match: f"{int(match[1]):016x}", line)
    line = re.sub(r"@(PORT|SINK)(\d)@", r"25\2", line)
    return line.replace("@HOSTNAME@", "mx.example.org")


def write_log(path: Path, lines: list[str]) -> Path:
    """As a plain file."""
    path.write_text("".join(f"{line}\n" for line in lines))
    return path
