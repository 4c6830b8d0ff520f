"""What the server writes into a message: Received, and Date and Message-ID where a local client left them out."""

from collections.abc import Callable

from pillarbox.mail.headers import format_date, format_message_id
from pillarbox.mail.idn import ascii_address


class Dates:
    """The date of now as header text; formatted once a second, since every message wants it."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._second = -1
        self._text = ""

    def text(self) -> str:
        """RFC 5322 §3.3, local zone."""
        second = int(self._now())
        if second != self._second:
            self._second, self._text = second, format_date(second)
        return self._text


def keyword(*, extended: bool, tls: bool, authenticated: bool, utf8: bool = False) -> str:
    """The `with` keyword (RFC 3848; RFC 6531 §4.3 where SMTPUTF8 was asked for)."""
    return f"{'UTF8' if utf8 else 'E' if extended else ''}SMTP{'S' if tls else ''}{'A' if authenticated else ''}"


def received(*, source: str, by: str, protocol: str, msgid: int, notes: str, rcpt: str, date: str) -> bytes:
    """The Received field (RFC 5321 §4.4). `source`: `from …` or "" where it is masked; `rcpt` "" with several.

    One that ASCII cannot hold is left out: a line of ours must not be why a message needs SMTPUTF8 on its way.
    """
    rcpt = ascii_address(rcpt) or ""
    addressee = f"\r\n\tfor <{rcpt}>" if rcpt else ""
    text = (
        f"Received: {source}\r\n\tby {by} (Pillarbox) with {protocol} id {msgid:08x}{notes}{addressee};\r\n\t{date}\r\n"
    )
    return text.encode("ascii", "replace")


def missing(*, date: str, unique: int, host: str, has_date: bool, has_message_id: bool) -> bytes:
    """The Date and Message-ID fields that are not there."""
    text = "" if has_date else f"Date: {date}\r\n"
    if not has_message_id:
        text += f"Message-ID: {format_message_id(unique, host)}\r\n"
    return text.encode("ascii", "replace")
