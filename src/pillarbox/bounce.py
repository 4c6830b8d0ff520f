"""Bounces: from what the queue noted to a DSN that goes into the queue like any message.

Implements `roles.bounce.Bouncer`. The text is made by `mail/dsn`; the recipient, who is the sender of the message that
failed, is routed and expanded as if a local client had sent it. What cannot be routed is logged and dropped: a bounce
is never bounced.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable

from pillarbox.conf.model import Config
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.dsn import ReportedRecipient, StatusReport, format_reason, format_status, report_head, report_tail
from pillarbox.mail.headers import header_end
from pillarbox.roles.bounce import BounceKind, PendingBounce, ReadBody, WriteBody
from pillarbox.roles.lookup import Client, Expansion, Lookup, Recipient
from pillarbox.roles.queue import INLINE_BODY, NewMessage

_CHUNK = 128 * 1024
_HEADER_MAX = 256 * 1024  # bytes of a header that are returned at most
_EXPAND_WAIT = 60.0


class Bouncer:
    """Writes DSNs. `now()`: epoch seconds."""

    def __init__(self, *, config: Config, lookup: Lookup, log: Log, now: Callable[[], float]) -> None:
        self._config = config
        self._lookup = lookup
        self._log = log
        self._now = now

    def configure(self, config: Config) -> None:
        """For the bounces that are made from now on."""
        self._config = config

    async def make(
        self,
        kind: BounceKind,
        pending: list[PendingBounce],
        read_body: ReadBody,
        *,
        msgid: int,
        write_body: WriteBody,
    ) -> NewMessage | None:
        """One DSN; None where its recipient is refused. TempFail: ask again."""
        expansion = await self._expand(pending, msgid)
        if expansion is None:
            return None
        envelope = pending[0].envelope
        require_tls = pending[0].require_tls
        # RFC 8689 §5: the way back may be less protected than the way there, so only the header goes it.
        full = kind is BounceKind.FAILED and envelope.dsn_ret == "FULL" and not require_tls
        header = await _read_header(read_body, pending[0].size)
        report = self._report(kind, pending, msgid=msgid, full=full, header=header)
        head, tail = report_head(report), report_tail(report)
        if not full or pending[0].size + len(head) + len(tail) <= INLINE_BODY:
            returned = b"".join([c async for c in _pieces(read_body, pending[0].size)]) if full else header
            body = head + returned + tail
            return _message(msgid, expansion, report, size=len(body), body=body, require_tls=require_tls)
        size = len(head) + pending[0].size + len(tail)
        await write_body(head)
        async for chunk in _pieces(read_body, pending[0].size):
            await write_body(chunk)
        await write_body(tail)
        return _message(msgid, expansion, report, size=size, streamed=True, require_tls=require_tls)

    async def _expand(self, pending: list[PendingBounce], msgid: int) -> Expansion | None:
        """The envelopes of the DSN; None, and logged, where there is nobody."""
        envelope = pending[0].envelope
        hostname = self._config.hostname
        client = Client(
            listener=0,
            smtpname=hostname,
            address="local",
            local=True,
            hostname=hostname,
            helo=envelope.smtpname or hostname,
            internal=True,
        )
        recipient = Recipient(
            generation=self._config.generation, client=client, msgid=msgid, sender="", rcpt=envelope.sender
        )
        try:
            async with asyncio.timeout(_EXPAND_WAIT):
                expansion = await self._lookup.expand(recipient)
        except TimeoutError:
            raise TempFail("bounce: no answer about the recipient") from None
        if 200 <= expansion.code < 300 and expansion.envelopes:
            return expansion
        reply = f"{expansion.code} {expansion.text}"
        temporary = 400 <= expansion.code < 500
        self._log_refusal(pending, "TempFail" if temporary else "PermFail", reply)
        if temporary:
            raise TempFail(f"bounce: {reply}")
        return None

    def _log_refusal(self, pending: list[PendingBounce], result: str, reply: str) -> None:
        envelope = pending[0].envelope
        to = f"<{envelope.sender}>"
        self._log.event(secrets.randbits(64), "smtp failed-command", command=f'"RCPT TO: {to}"', result=f'"{reply}"')
        count = f"{len(pending)} envelope{'' if len(pending) == 1 else 's'}"
        self._log.warn(
            f"{result} injecting failure report on message {envelope.msgid:08x} to {to} for {count}: {reply}"
        )

    def _report(
        self, kind: BounceKind, pending: list[PendingBounce], *, msgid: int, full: bool, header: bytes
    ) -> StatusReport:
        envelope = pending[0].envelope
        hostname = self._config.hostname
        return StatusReport(
            action=kind.value,
            to=envelope.sender,
            smtpname=envelope.smtpname or hostname,
            hostname=hostname,
            msgid=msgid,
            date=self._now(),
            boundary=secrets.randbits(64),
            unique=secrets.randbits(64),
            recipients=[_recipient(kind, p) for p in pending],
            envelope_id=envelope.dsn_envid,
            delay=pending[0].delay,
            ttl=pending[0].ttl,
            full=full,
            eight_bit=not header.isascii() or (full and (pending[0].eight_bit or pending[0].smtputf8)),
            utf8_header=not header.isascii() and _is_utf8(header),
        )


def _is_utf8(header: bytes) -> bool:
    try:
        header.decode()
    except UnicodeDecodeError:
        return False
    return True


def _recipient(kind: BounceKind, pending: PendingBounce) -> ReportedRecipient:
    return ReportedRecipient(
        address=pending.envelope.dest,
        reason=format_reason(pending.errorline),
        status=format_status(kind.value, pending.esc_class, pending.esc_code),
        original=pending.envelope.dsn_orcpt,
    )


def _message(
    msgid: int,
    expansion: Expansion,
    report: StatusReport,
    *,
    size: int,
    body: bytes = b"",
    streamed: bool = False,
    require_tls: bool = False,
) -> NewMessage:
    return NewMessage(
        msgid=msgid,
        size=size,
        envelopes=expansion.envelopes,
        body=body,
        streamed=streamed,
        eight_bit=report.eight_bit or report.is_utf8,
        smtputf8=report.has_utf8_header,
        require_tls=require_tls,
    )


async def _pieces(read_body: ReadBody, size: int) -> AsyncIterator[bytes]:
    """The whole message; TempFail where it is shorter than it was."""
    at = 0
    while at < size:
        piece = await read_body(at, min(_CHUNK, size - at))
        if not piece:
            raise TempFail("bounce: the message cannot be read")
        at += len(piece)
        yield piece


async def _read_header(read_body: ReadBody, size: int) -> bytes:
    """The header without the empty line that ends it; cut after a whole line where it is too long."""
    data = b""
    async for piece in _pieces(read_body, size):
        data += piece
        end = header_end(data)
        if end >= 0:
            return data[: end - 2]
        if len(data) >= _HEADER_MAX:
            break
    return data[: data.rfind(b"\r\n") + 2]
