"""The message that a filter sees when a session is replayed: an event log has none. Does no I/O."""

from email.utils import formatdate

from pillarbox.eventlog.story import Known

_BODY = (
    "This message was made up: the log of the session has none.\n.A line with a dot, and one of other letters: äöü\n"
)


def specimen(known: Known, time: float) -> bytes:
    """A message from this sender to these recipients, CRLF at line ends, without its trace header."""
    rcpts = ", ".join(f"<{rcpt}>" for rcpt in known.rcpts) or "undisclosed-recipients:;"
    head = (
        f"From: <{known.sender or 'MAILER-DAEMON@' + (known.helo or 'localhost')}>\n"
        f"To: {rcpts}\n"
        "Subject: Replayed\n"
        f"Date: {formatdate(time)}\n"
        f"Message-ID: <{known.message or '0'}.replay@{known.helo or 'localhost'}>\n"
        "MIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=utf-8\n"
        "Content-Transfer-Encoding: 8bit\n"
        "\n"
    )
    return wire(f"{head}{_BODY}".encode("utf-8", "replace"))


def received(known: Known, time: float, hostname: str) -> bytes:
    """The trace header that the server puts before every message."""
    rcpt = f"\tfor <{known.rcpts[0]}>;\n" if len(known.rcpts) == 1 else ""
    text = (
        f"Received: from {known.helo} ({known.rdns or '<unknown>'} [{known.address}])\n"
        f"\tby {hostname} (Pillarbox) with ESMTP id {known.message or '00000000'}{'' if rcpt else ';'}\n"
        f"{rcpt}"
        f"\t{formatdate(time)}\n"
    )
    return wire(text.encode("utf-8", "replace"))


def wire(data: bytes) -> bytes:
    """A file's lines as they are sent: CRLF, the last one ended too."""
    lines = data.replace(b"\r\n", b"\n")
    if lines and not lines.endswith(b"\n"):
        lines += b"\n"
    return lines.replace(b"\n", b"\r\n")
