"""The lines of an event log: reports as smtpd-filters(7) writes them, and what the recorder adds. Does no I/O."""

import re

from pillarbox.errors import PillarboxError
from pillarbox.roles.filters import Report

FIELDS: dict[str, tuple[str, ...]] = {
    "link-connect": ("rdns", "fcrdns", "src", "dest"),
    "link-greeting": ("hostname",),
    "link-identify": ("method", "identity"),
    "link-tls": ("tls",),
    "link-auth": ("result", "username"),
    "link-disconnect": (),
    "tx-reset": ("message",),
    "tx-begin": ("message",),
    "tx-mail": ("message", "result", "address"),
    "tx-rcpt": ("message", "result", "address"),
    "tx-envelope": ("message", "envelope"),
    "tx-data": ("message", "result"),
    "tx-commit": ("message", "size"),
    "tx-rollback": ("message",),
    "protocol-client": ("command",),
    "protocol-server": ("response",),
    "filter-report": ("kind", "name", "message"),
    "filter-response": ("phase", "response", "param"),
    "timeout": (),
    "delivery": ("message", "envelope", "result", "method", "user", "delay", "text"),
}
CONFIG = "config|"  # the handshake, kept at the head of a file: `zcat FILE | ./filter` works
NOTE = "note|"  # `note|1|TIME|dropped|COUNT|REASON`: the recorder's own

_TIME = r"([0-9]{1,11}(?:\.[0-9]{0,9})?)"
_WORD = r"([a-z][a-z0-9-]{0,30})"
_REPORT = re.compile(
    rf"report\|([0-9]{{1,3}}\.[0-9]{{1,3}})\|{_TIME}\|{_WORD}\|{_WORD}\|([0-9a-f]{{1,16}})(?:\|(.*))?", re.DOTALL
)
_NOTE = re.compile(rf"note\|[0-9]+\|{_TIME}\|dropped\|([0-9]{{1,18}})\|(.*)", re.DOTALL)


class BadLine(PillarboxError):
    """A line that is no event."""


def parse_report(line: str) -> Report:
    """The event of a line, its fields in the order of 0.7, whatever version it has. Raises BadLine."""
    match = _REPORT.fullmatch(line)
    if match is None:
        raise BadLine(f"not an event: {line[:80]!r}")
    version, time, subsystem, event, session, text = match.groups(default="")
    if version != "0.7":
        text = _reordered(version, event, text)
    return Report(subsystem, event, int(session, 16), float(time), text)


def _reordered(version: str, event: str, text: str) -> str:
    """Up to 0.6 the user stood before the result, up to 0.5 addresses did."""
    major, minor = map(int, version.split("."))
    if event == "link-auth" and (major, minor) < (0, 7):
        user, _, result = text.rpartition("|")
        return f"{result}|{user}"
    if event in ("tx-mail", "tx-rcpt") and (major, minor) < (0, 6):
        message, _, rest = text.partition("|")
        address, _, result = rest.rpartition("|")
        return f"{message}|{result}|{address}"
    return text


def render_report(report: Report) -> str:
    """The line of an event, version 0.7."""
    head = f"report|0.7|{report.time:.6f}|{report.subsystem}|{report.event}|{report.session:016x}"
    return f"{head}|{report.text}" if FIELDS.get(report.event) or report.text else head


def render_note(time: float, count: int, reason: str) -> str:
    """The recorder's note that events are missing here."""
    return f"{NOTE}1|{time:.6f}|dropped|{count}|{printable(reason)}"


def parse_note(line: str) -> tuple[float, int, str]:
    """When it was written, how many events are missing before it, and why. Raises BadLine."""
    match = _NOTE.fullmatch(line)
    if match is None:
        raise BadLine(f"not a note: {line[:80]!r}")
    return float(match[1]), int(match[2]), match[3]


def fields(report: Report) -> dict[str, str]:
    """The fields of an event by name; those of an event that we do not know as `text`."""
    names = FIELDS.get(report.event, ("text",))
    values = report.text.split("|", len(names) - 1) if names else ()
    return dict(zip(names, values, strict=False))


def printable(text: str) -> str:
    """Text that a client chose, fit for a terminal: what is not seen and bytes that are no UTF-8 are shown escaped.

    Not only controls: other characters change the direction of what stands beside them, or hide in it.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
