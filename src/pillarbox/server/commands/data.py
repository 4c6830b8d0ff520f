"""DATA (RFC 5321 §4.1.1.4): take the message, and answer for it only when the queue made it durable."""

from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.errors import PermFail, TempFail
from pillarbox.mail.envelope import Sealed
from pillarbox.roles.queue import NewMessage
from pillarbox.server import trace
from pillarbox.server.headers import Header
from pillarbox.server.message import Incoming
from pillarbox.server.transaction import Transaction
from pillarbox.smtp import replies
from pillarbox.smtp.data import Problem, Terms
from pillarbox.smtp.replies import Reply
from pillarbox.smtp.server_protocol import Body, EndOfBody
from pillarbox.smtp.states import State

if TYPE_CHECKING:
    from pillarbox.server.session import Session

PROBLEMS = {
    Problem.TOO_BIG: replies.TOO_BIG,
    Problem.BARE_NEWLINE: replies.BARE_NEWLINE,
    Problem.LINE_TOO_LONG: replies.MESSAGE_LINE_TOO_LONG,
}
_SUBMISSION = 587


def check(session: "Session", _args: str | None) -> Reply | None:
    """Somebody must receive it."""
    assert session.tx is not None
    return None if session.tx.rcpts else replies.NO_RECIPIENT


def proceed(session: "Session", _args: str) -> Reply:
    """From here on it is a message."""
    assert session.tx is not None
    begin(session, session.tx)
    session.core.begin_body(terms(session))
    return replies.START_BODY


def terms(session: "Session") -> Terms:
    """What the configuration says about messages."""
    smtp = session.config.smtp
    normalize = smtp.bare_newline == "normalize"
    return Terms(max_size=smtp.max_message_size, max_line=smtp.max_line_length, normalize=normalize)


def begin(session: "Session", tx: Transaction) -> None:
    """Make room for the message: its trace fields stand before whatever comes."""
    session.expect_message()
    masquerade = tx.sender if session.listener.masquerade and session.authenticated else ""
    tx.message = Incoming(
        _received(session, tx),
        domain=(session.listener.hostname or session.config.hostname).encode("ascii", "replace"),
        masquerade=masquerade.encode(),
        additions=lambda header: _additions(session, header),
    )


def receive(session: "Session", event: Body) -> Coroutine[Any, Any, None] | None:
    """Some of the message; a coroutine where the queue has to take some before more comes."""
    tx = session.tx
    assert tx is not None and tx.message is not None
    tx.message.add(event.data, event.lines)
    return stream(session, tx, tx.message) if tx.message.wants_streaming() else None


def end(session: "Session", event: EndOfBody) -> Reply | Coroutine[Any, Any, Reply | None]:
    """The message is complete: refuse it, or commit it."""
    tx = session.tx
    assert tx is not None and tx.message is not None
    session.state = State.IDENTIFIED
    if event.problem is None:
        tx.message.add(event.data, event.lines)
        tx.message.finish()
    elif tx.message.failure is None:
        tx.message.fail(PROBLEMS[event.problem])
    if tx.message.failure is None:
        return _commit(session, tx, tx.message)
    return refuse(session, tx.message.failure)


def refuse(session: "Session", failure: Reply) -> Reply:
    """The message is not taken, and the transaction over."""
    if failure is replies.LOOP:
        session.services.log.warn("loop detected")
    session.reset()
    return failure


async def stream(session: "Session", tx: Transaction, message: Incoming) -> None:
    """Pass on what is too much to keep. One chunk is under way while the next one is being read."""
    try:
        while message.wants_streaming():
            await _append(session, tx, message)
    except (TempFail, PermFail) as error:  # said at the end, of the message or of the chunk: nobody listens before
        session.services.log.warn(f"smtp: {session.id:016x}: {error}")
        message.fail(replies.temporary(error) if isinstance(error, TempFail) else replies.PERMANENT_FAILURE)


async def _append(session: "Session", tx: Transaction, message: Incoming) -> None:
    offset = message.streamed
    tx.appended = True
    await session.services.queue.append(tx.msgid, offset, message.take_chunk())


def _commit(session: "Session", tx: Transaction, message: Incoming) -> Coroutine[Any, Any, Reply]:
    """Our word is given with the 250, so everything is on disk before it."""
    session.committing = True
    if tx.appended or message.wants_streaming():
        return _commit_streamed(session, tx, message)
    # Handed over at once: queue works while this process turns to other sessions.
    return _committed(session, tx, message, _hand_over(session, tx, message))


def _hand_over(session: "Session", tx: Transaction, message: Incoming) -> Awaitable[None]:
    """Begin the commit with what is left of the body. What cannot even be asked for is as refused."""
    try:
        return session.services.queue.commit(_whole(tx, message))
    except BaseException:
        _end(session)
        raise


async def _commit_streamed(session: "Session", tx: Transaction, message: Incoming) -> Reply:
    try:
        while message.size > message.streamed:
            await _append(session, tx, message)
    except BaseException:
        _end(session)
        raise
    return await _committed(session, tx, message, _hand_over(session, tx, message))


async def _committed(session: "Session", tx: Transaction, message: Incoming, done: Awaitable[None]) -> Reply:
    try:
        await done
        tx.appended = False  # it is the queue's now
    finally:
        _end(session)
    session.mails += 1
    _log(session, tx, message)
    return replies.accepted(tx.msgid)


def _end(session: "Session") -> None:
    session.committing = False
    session.reset()


def _whole(tx: Transaction, message: Incoming) -> NewMessage:
    return NewMessage(
        msgid=tx.msgid,
        size=message.size,
        envelopes=tuple[Sealed, ...](tx.envelopes),
        body=message.take_chunk(),
        streamed=tx.appended,
        eight_bit=message.eight_bit,
        smtputf8=tx.parameters.smtputf8 and message.utf8_header,
        require_tls=tx.parameters.require_tls,
    )


def _log(session: "Session", tx: Transaction, message: Incoming) -> None:
    session.event(
        "smtp message",
        msgid=f"{tx.msgid:08x}",
        size=message.stored_size,
        nrcpt=len(tx.rcpts),
        proto="ESMTP" if session.extended else "SMTP",
    )
    for rcpt, evpid in tx.rcpts:
        session.event("smtp envelope", evpid=f"{evpid:016x}", **{"from": f"<{tx.sender}>", "to": f"<{rcpt}>"})


def _received(session: "Session", tx: Transaction) -> bytes:
    source = ""
    if not session.listener.mask_src:
        source = f"from {session.helo} ({session.hostname or '<unknown>'} {session.peer.shown})"
    notes = ""
    if session.tls:
        notes = f" ({session.tls}:{'YES' if session.verified else 'NO'})"
        if session.listener.received_auth:
            notes += f" auth=yes user={session.username}" if session.username else " auth=no"
    return trace.received(
        source=source,
        by=session.name,
        protocol=trace.keyword(
            extended=session.extended,
            tls=bool(session.tls),
            authenticated=session.authenticated,
            utf8=tx.parameters.smtputf8,
        ),
        msgid=tx.msgid,
        notes=notes,
        rcpt=tx.rcpts[0][0] if len(tx.rcpts) == 1 else "",
        date=session.services.dates.text(),
    )


def _additions(session: "Session", header: Header) -> bytes:
    """Date and Message-ID belong to whoever submits: only local clients and port 587 get them from us."""
    if (header.has_date and header.has_message_id) or not (session.peer.loopback or session.peer.port == _SUBMISSION):
        return b""
    return trace.missing(
        date=session.services.dates.text(),
        unique=session.services.random64(),
        host=session.listener.hostname or session.config.hostname,
        has_date=header.has_date,
        has_message_id=header.has_message_id,
    )
