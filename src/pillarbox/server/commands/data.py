"""DATA (RFC 5321 §4.1.1.4): take the message, and answer for it only when the queue made it durable."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.errors import PermFail, TempFail
from pillarbox.filters.chain import Chain, Verdict
from pillarbox.filters.stream import MessageStream
from pillarbox.mail.envelope import Sealed
from pillarbox.roles.queue import NewMessage
from pillarbox.server import filtering, trace
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
_SPAM = b"X-Spam: Yes\r\n"


def check(session: "Session", _args: str | None) -> Reply | None:
    """Somebody must receive it."""
    assert session.tx is not None
    return None if session.tx.rcpts else replies.NO_RECIPIENT


def proceed(session: "Session", _args: str) -> Reply:
    """From here on it is a message."""
    assert session.tx is not None
    refusal = begin(session, session.tx)
    if refusal is not None:
        return refusal
    session.core.begin_body(terms(session))
    return replies.START_BODY


def terms(session: "Session") -> Terms:
    """What the configuration says about messages."""
    smtp = session.config.smtp
    normalize = smtp.bare_newline == "normalize"
    return Terms(max_size=smtp.max_message_size, max_line=smtp.max_line_length, normalize=normalize)


def begin(session: "Session", tx: Transaction) -> Reply | None:
    """Make room for the message: its trace fields stand before whatever comes. A reply where that cannot be.

    Filters that see the message see those fields, too; what is said of headers holds for what comes out of them.
    """
    prefix = _received(session, tx)
    if session.junk or tx.junk:
        prefix = _SPAM + prefix
    if session.chain is not None:
        tx.traced = len(prefix) - prefix.count(b"\n")
        opened = session.chain.open_message(prefix)
        if isinstance(opened, Verdict):
            return filtering.refusal_of(opened)
        if opened is not None:
            tx.stream, prefix = opened, b""
            opened.on_output = lambda: _have_taken(session, tx)
    session.expect_message()
    masquerade = tx.sender if session.listener.masquerade and session.authenticated else ""
    tx.message = Incoming(
        prefix,
        domain=(session.listener.hostname or session.config.hostname).encode("ascii", "replace"),
        masquerade=masquerade.encode(),
        additions=lambda header: _additions(session, header),
    )
    return None


def receive(session: "Session", event: Body) -> Coroutine[Any, Any, None] | None:
    """Some of the message; a coroutine where the queue has to take some before more comes."""
    tx = session.tx
    assert tx is not None and tx.message is not None
    return take(session, tx, event.data, event.lines)


def take(session: "Session", tx: Transaction, data: bytes, lines: int) -> Coroutine[Any, Any, None] | None:
    """Keep some of the message, or let filters see it; a coroutine where there is no room for more."""
    assert tx.message is not None
    if tx.stream is not None:
        tx.stream.feed(data)
        return tx.stream.room() if tx.stream.full else None
    tx.message.add(data, lines)
    return stream(session, tx, tx.message) if tx.message.wants_streaming() else None


def end(session: "Session", event: EndOfBody) -> Reply | Coroutine[Any, Any, Reply | None]:
    """The message is complete: refuse it, or commit it."""
    tx = session.tx
    assert tx is not None and tx.message is not None
    session.message_came()
    session.state = State.IDENTIFIED
    if session.chain is not None:
        return _answer_filtered(session, session.chain, tx, tx.message, event)
    if event.problem is None:
        tx.message.add(event.data, event.lines)
        tx.message.finish()
    elif tx.message.failure is None:
        tx.message.fail(PROBLEMS[event.problem])
    if session.events is not None:
        session.events.end_of_message()
    if tx.message.failure is None:
        return _commit(session, tx, tx.message)
    return refuse(session, tx.message.failure)


async def _answer_filtered(
    session: "Session", chain: Chain, tx: Transaction, message: Incoming, event: EndOfBody
) -> Reply | None:
    """Whatever goes wrong on the way, the transaction is over: its message has ended."""
    try:
        return await _end_filtered(session, chain, tx, message, event)
    except BaseException:
        if session.tx is tx:
            session.reset()
        raise


async def _end_filtered(
    session: "Session", chain: Chain, tx: Transaction, message: Incoming, event: EndOfBody
) -> Reply | None:
    """Likewise, with filters that see the message, or have a word before it is taken."""
    failed = None
    if event.problem is not None and message.failure is None:
        message.fail(PROBLEMS[event.problem])
    if tx.stream is None:
        message.add(event.data, event.lines)
    else:
        failed = await _strain(session, chain, tx, tx.stream, event.data)
    message.finish()
    if session.events is not None:
        session.events.end_of_message()
    # As the reference does, they are asked about a message that will be refused, too.
    refusal = failed or await filtering.may_commit(session, chain) or message.failure
    return refuse(session, refusal) if refusal is not None else await _commit(session, tx, message)


async def _strain(
    session: "Session", chain: Chain, tx: Transaction, stream: MessageStream, data: bytes
) -> Reply | None:
    """The last of the client's message: wait for what filters make of it. A reply where that is nothing."""
    stream.end(data)
    stream.on_output = None
    if tx.taking is not None:
        await tx.taking
    while made := await stream.more():
        await _add_made(session, tx, made)
    return filtering.refusal_of(chain.message_failed(stream)) if stream.failed else None


def _have_taken(session: "Session", tx: Transaction) -> None:
    """Filters made more of a message than shall wait for its end."""
    if tx.taking is None or tx.taking.done():
        tx.taking = asyncio.get_running_loop().create_future()
        session.services.background(_take_made(session, tx, tx.taking))


async def _take_made(session: "Session", tx: Transaction, done: "asyncio.Future[None]") -> None:
    assert tx.stream is not None
    try:
        while session.tx is tx and (made := tx.stream.take()):
            await _add_made(session, tx, made)
    except BaseException:
        if tx.message is not None and tx.message.failure is None:
            tx.message.fail(replies.TEMPORARY_FAILURE)  # there is a hole in it
        raise
    finally:
        if not done.done():  # whoever waits for it may have been cancelled
            done.set_result(None)


async def _add_made(session: "Session", tx: Transaction, made: bytes) -> None:
    """Keep what filters made of some of the message."""
    assert tx.message is not None
    tx.message.add(made, made.count(b"\n"))
    if tx.message.wants_streaming():
        await stream(session, tx, tx.message)


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
        tx.committed = message.stored_size + tx.traced
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
        size=tx.committed,
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
