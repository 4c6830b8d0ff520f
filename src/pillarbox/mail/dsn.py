"""Delivery status notifications: the text of a `multipart/report` (RFC 3461, 3464, 6522; RFC 6533 where not ASCII).

Pure: `bounce` gathers what goes in and sends what comes out. The words a person reads are those that users of the
reference know.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pillarbox.mail.headers import format_date, format_message_id
from pillarbox.mail.idn import ascii_address, decode_unitext

_LINE_MAX = 998  # octets of a line, without its end (RFC 5322 §2.1.1, RFC 6532 §3.4)
_REASON_MAX = 900  # octets
_XTEXT = re.compile(rb"\+([0-9A-F]{2})")
_LEADING_CODE = ("1", "6")  # our own marks before a reason: they are not shown


@dataclass(frozen=True, slots=True)
class ReportedRecipient:
    """One recipient of the report. `reason` for a person; `status` as `5.1.1`; `original`: ORCPT as given."""

    address: str
    reason: str
    status: str
    original: str = ""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """What a DSN says. `action`: failed, delayed, delivered, relayed. Times are seconds, `date` since the epoch.

    `smtpname`: the name under which the message was taken in, `hostname`: ours. `full`: the whole message is
    returned, not its header alone. `eight_bit`: the part that is returned has bytes above 127; `utf8_header`: its
    header has, and they are UTF-8.
    """

    action: str
    to: str
    smtpname: str
    hostname: str
    msgid: int
    date: float
    boundary: int
    unique: int
    recipients: Sequence[ReportedRecipient]
    envelope_id: str = ""
    delay: int = 0
    ttl: int = 0
    full: bool = False
    eight_bit: bool = False
    utf8_header: bool = False

    @property
    def is_utf8(self) -> bool:
        """Does it need SMTPUTF8 and the internationalized forms of RFC 6533?"""
        texts = [t for r in self.recipients for t in (r.address, r.reason, _original(r.original))]
        return self.has_utf8_header or not all(t.isascii() for t in texts)

    @property
    def has_utf8_header(self) -> bool:
        """Is there something in its header that only SMTPUTF8 can carry? What is in its parts may travel as 8-bit."""
        return not (self._to.isascii() and self.smtpname.isascii())

    @property
    def _to(self) -> str:
        return ascii_address(self.to) or self.to

    @property
    def _separator(self) -> str:
        return f"{self.boundary}/{self.smtpname}"


def report_head(report: StatusReport) -> bytes:
    """The DSN up to where the returned message begins. Lines end in CRLF."""
    text = _trace(report) + _header(report) + _notice(report) + _delivery_status(report) + _returned(report)
    return "\r\n".join(text).encode("utf-8", "replace") + b"\r\n"


def report_tail(report: StatusReport) -> bytes:
    """What follows the returned message (which ends in a line end)."""
    return f"\r\n--{report._separator}--\r\n".encode("utf-8", "replace")


def format_status(action: str, esc_class: int, esc_code: int) -> str:
    """RFC 3463 status. The class is that of the action; `esc_code` 47 means x.4.7, and 730 x.7.30."""
    wanted = {"failed": 5, "delayed": 4}.get(action, 2)
    code = esc_code if esc_class in (0, 4, 5) and wanted != 2 else 0
    subject, detail = divmod(code, 100 if code >= 100 else 10)
    return f"{wanted}.{subject}.{detail}"


def format_reason(errorline: str) -> str:
    """An error line for a person: without a mark of ours in front, on one line."""
    if len(errorline) > 4 and errorline.startswith(_LEADING_CODE):
        errorline = errorline[4:]
    return _cut(" ".join(errorline.splitlines()), _REASON_MAX)


def _cut(text: str, octets: int) -> str:
    """As much of a text as fits, in whole characters."""
    return text.encode("utf-8", "replace")[:octets].decode("utf-8", "ignore")


def decode_xtext(text: str) -> str:
    """RFC 3461 §4 xtext, of UTF-8 where it is not ASCII; what would decode to control characters stays as it is."""
    data = _XTEXT.sub(lambda found: bytes([int(found[1], 16)]), text.encode())
    decoded = data.decode("utf-8", "replace")
    return decoded if decoded.isprintable() and "\ufffd" not in decoded else text


def format_span(seconds: int) -> str:
    """`4 hours`, `1 day`: the largest unit that fits, the rest dropped."""
    units = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
    name, size = next((unit for unit in units if seconds >= unit[1]), units[-1])
    count = seconds // size
    return f"{count} {name}{'' if count == 1 else 's'}"


def _trace(report: StatusReport) -> list[str]:
    return [
        f"Received: from {report.smtpname} ({report.hostname} [local])",
        f"\tby {report.hostname} (Pillarbox) with ESMTPA id {report.msgid:08x}",
        f"\tfor <{report._to}>;",
        f"\t{format_date(report.date)}",
    ]


def _header(report: StatusReport) -> list[str]:
    return [
        f"Subject: Delivery status notification: {report.action}",
        f"From: Mailer Daemon <MAILER-DAEMON@{report.smtpname}>",
        f"To: {report._to}",
        f"Date: {format_date(report.date)}",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status; boundary="{report._separator}"',
        f"Message-ID: {format_message_id(report.unique, report.hostname)}",
        "",
        "This is a MIME-encapsulated message.",
        "",
    ]


def _part(report: StatusReport, description: str, kind: str, *, eight_bit: bool) -> list[str]:
    lines = [f"--{report._separator}", f"Content-Description: {description}", f"Content-Type: {kind}"]
    if eight_bit:
        lines.append("Content-Transfer-Encoding: 8bit")
    return [*lines, ""]


def _notice(report: StatusReport) -> list[str]:
    charset = "utf-8" if report.is_utf8 else "us-ascii"
    lines = _part(report, "Notification", f"text/plain; charset={charset}", eight_bit=report.is_utf8)
    lines += ["    Hi!", "", "    This is the MAILER-DAEMON, please DO NOT REPLY to this email.", ""]
    match report.action:
        case "delayed":
            lines.append(f"    A message is delayed for more than {format_span(report.delay)} for the following")
            lines.append("    list of recipients:")
        case "delivered":
            lines.append("    Your message was successfully delivered to these recipients.")
        case "relayed":
            lines.append("    Your message was relayed to these recipients.")
        case _:
            lines.append("    An error has occurred while attempting to deliver a message for")
            lines.append("    the following list of recipients:")
    lines += ["", *(_cut(f"{r.address}: {r.reason}", _LINE_MAX) for r in report.recipients), ""]
    if report.action == "delayed":
        lines += [
            "    Please note that this is only a temporary failure report.",
            f"    The message is kept in the queue for up to {format_span(report.ttl)}.",
            "    You DO NOT NEED to re-send the message to these recipients.",
            "",
        ]
    return [*lines, "    Below is a copy of the original message:", ""]


def _delivery_status(report: StatusReport) -> list[str]:
    """The machine's part: RFC 3464 §2.1, one group for the message and one for each recipient."""
    utf8 = report.is_utf8
    kind = "message/global-delivery-status" if utf8 else "message/delivery-status"
    lines = _part(report, "Delivery Report", kind, eight_bit=utf8)
    if report.envelope_id:
        lines.append(f"Original-Envelope-Id: {decode_xtext(report.envelope_id)}")  # RFC 3461 §6.3
    lines += [f"Reporting-MTA: dns; {report.smtpname}", ""]
    for recipient in report.recipients:
        if recipient.original:
            lines.append(f"Original-Recipient: {_original(recipient.original)}")
        lines += [
            f"Final-Recipient: {'rfc822' if recipient.address.isascii() else 'utf-8'}; {recipient.address}",
            f"Action: {report.action}",
            f"Status: {recipient.status}",
            "",
        ]
    return lines


def _original(orcpt: str) -> str:
    kind, mark, address = orcpt.partition(";")
    if kind.lower() == "utf-8":
        return f"utf-8; {decode_unitext(decode_xtext(address))}"
    return f"{kind}; {decode_xtext(address)}" if mark else f"rfc822; {decode_xtext(orcpt)}"


def _returned(report: StatusReport) -> list[str]:
    """The head of the part that is returned. What is not UTF-8 in its header is not "global" (RFC 6532), only 8-bit."""
    if report.full:
        description, kind = "Message", "message/global" if report.utf8_header else "message/rfc822"
    else:
        description = "Message headers"
        kind = "message/global-headers" if report.utf8_header else "text/rfc822-headers"
    return _part(report, description, kind, eight_bit=report.eight_bit)
