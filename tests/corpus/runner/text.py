"""Placeholders and normalisation: what a case says becomes what is fed, and what is seen becomes what was recorded."""

import re
from collections.abc import Iterable

from tests.sandbox import HOSTNAME, WORK
from tests.system.server import BIN

ROOT = WORK / "root"
STATE = WORK / "server/state"  # of the server under test; only used in differs.toml
UID = GID = 6010  # vmail
PYTHON = "/usr/bin/python3"
PORTS = {f"@PORT{n}@": 20000 + n for n in range(1, 10)} | {f"@SINK{n}@": 21000 + n for n in range(1, 10)}

_FIXED = {
    "@ROOT@": str(ROOT),
    "@STATE@": str(STATE),
    "@UID@": str(UID),
    "@GID@": str(GID),
    "@LIBEXEC@": str(BIN),
    "@HOSTNAME@": HOSTNAME,
    "@PYTHON@": PYTHON,
    **{name: str(port) for name, port in PORTS.items()},
}
_PLACEHOLDER = re.compile("|".join(_FIXED))
_SEEN = [
    (re.compile(re.escape(str(ROOT))), "@ROOT@"),
    (re.compile(re.escape(str(BIN))), "@LIBEXEC@"),
    (re.compile(re.escape(HOSTNAME)), "@HOSTNAME@"),
    *((re.compile(rf"\b{port}\b"), name) for name, port in PORTS.items()),
]

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_DAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_RULES = [
    (re.compile(rf"{_DAY}, \d{{1,2}} {_MONTH} \d{{4}} \d\d:\d\d:\d\d [+-]\d{{4}}(?: \([A-Z]+\))?"), "<date>"),
    (re.compile(rf"{_DAY} {_MONTH} [ \d]\d \d\d:\d\d:\d\d \d{{4}}"), "<ctime>"),
    (re.compile(r"TLSv1\.[0-3]:[A-Z0-9_-]+:\d+"), "<tls>"),
    (re.compile(r"SRS0=[^=@]+=[^=@]+="), "SRS0=<hash>=<tt>="),
    (re.compile(r"\b0x[0-9a-f]{9,12}\b"), "<ptr>"),
    (re.compile(r"(?<=delay=)(?:\d+[smhd])+"), "<dur>"),
    (re.compile(r"(?<=127\.0\.0\.1:)\d{4,5}\b"), "<port>"),
    (re.compile(r"\b\d{9,20}/(?=[\w.@-]+(?:\"|--|$))"), "<boundary>/"),
    (re.compile(r"(?:error:[0-9A-F]{8}:)?SSL routines::[^\"]*"), "<openssl>"),
    (re.compile(r"(?:OpenSMTPD|Pillarbox)"), "<software>"),
]
_ID = re.compile(r"\b[0-9a-f]{16}\b")
_MSGID = re.compile(r"(?<!SIZE )(?<!size=)(?<![\w-])[0-9a-f]{8}\b(?!-)")
_NUMBERED = re.compile(r"<(id|msgid)\d+>")


def fill(text: str) -> str:
    """A case's text with its placeholders replaced."""
    text = re.sub(r"@A(\d+)@", lambda m: "a" * int(m[1]), text)
    return _PLACEHOLDER.sub(lambda m: _FIXED[m[0]], text)


def plain(text: str) -> str:
    """What was seen, in the words of a recording; ids are without numbers: `<id>`, `<msgid>`."""
    for pattern, name in _SEEN:
        text = pattern.sub(name, text)
    for pattern, name in _RULES:
        text = pattern.sub(name, text)
    return _MSGID.sub("<msgid>", _ID.sub("<id>", text))


def recorded(text: str) -> str:
    """A recorded line in the form that `plain` gives."""
    for pattern, name in _RULES:
        text = pattern.sub(name, text)
    return _NUMBERED.sub(r"<\1>", text)


def numbered(lines: Iterable[str]) -> list[str]:
    """Seen lines with ids numbered by first appearance, so that the same id in two places must be the same again."""
    return _renumber([*lines], seen=True)


def renumbered(lines: Iterable[str]) -> list[str]:
    """Recorded lines with ids numbered anew from 1: a recording numbers across a whole case."""
    return _renumber([*lines], seen=False)


def _renumber(lines: list[str], *, seen: bool) -> list[str]:
    known: dict[str, str] = {}

    def number(kind: str, value: str) -> str:
        if value not in known:
            known[value] = f"<{kind}{sum(v.startswith('<' + kind) for v in known.values()) + 1}>"
        return known[value]

    out = []
    for line in lines:
        if seen:
            text = line
            for pattern, name in (*_SEEN, *_RULES):
                text = pattern.sub(name, text)
            text = _ID.sub(lambda m: number("id", m[0]), text)
            text = _MSGID.sub(lambda m: number("msgid", m[0]), text)
        else:
            text = _NUMBERED.sub(lambda m: number(m[1], m[0]), line.replace("OpenSMTPD", "<software>"))
        out.append(text)
    return out
