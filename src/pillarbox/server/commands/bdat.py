"""BDAT (RFC 3030): a message in chunks of announced size, pipelined as the client likes.

What was announced follows whatever the answer will be: a refused chunk is read too, and answered behind it, so that
nothing of a message is ever taken for a command. After a refusal the transaction is gone; the chunks that the client
had under way are refused one by one. BINARYMIME is not offered: a message has lines here, as behind DATA.
"""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.errors import PillarboxError
from pillarbox.filters.chain import Chain
from pillarbox.server import filtering
from pillarbox.server.commands import data
from pillarbox.server.transaction import Transaction
from pillarbox.smtp import replies
from pillarbox.smtp.commands import BadSyntax, Chunk, Verb, parse_chunk
from pillarbox.smtp.replies import Reply
from pillarbox.smtp.server_protocol import EndOfChunk
from pillarbox.smtp.states import NEXT, State

if TYPE_CHECKING:
    from pillarbox.server.session import Session


def check(_session: "Session", args: str | None) -> Reply | None:
    """Is it known how much follows?"""
    try:
        parse_chunk(args or "")
    except BadSyntax:
        return replies.BAD_CHUNK
    return None


def proceed(session: "Session", args: str) -> Coroutine[Any, Any, None] | None:
    """Read what follows; `end`, or for the last chunk `data.end`, answers."""
    chunk = parse_chunk(args)
    refusal = _refusal(session, chunk)
    if refusal is None and session.tx is not None and session.tx.message is None:
        if session.chain is not None:
            return _ask_and_begin(session, session.chain, session.tx, chunk)
        refusal = _begin(session, session.tx)
    _read(session, chunk, refusal)
    return None


async def _ask_and_begin(session: "Session", chain: Chain, tx: Transaction, chunk: Chunk) -> None:
    """With the first chunk filters are asked what they are asked at DATA."""
    refusal: Reply | None = replies.TEMPORARY_FAILURE
    try:
        refusal = await filtering.may_begin(session, chain) or _begin(session, tx)
    except PillarboxError as error:
        session.services.log.warn(f"smtp: {session.id:016x}: {error}")
    finally:
        _read(session, chunk, refusal)


def _begin(session: "Session", tx: Transaction) -> Reply | None:
    refusal = data.begin(session, tx)
    if refusal is None and session.events is not None:
        session.events.message_begins()
    return refusal


def _read(session: "Session", chunk: Chunk, refusal: Reply | None) -> None:
    """What was announced comes in any case."""
    session.chunk_refusal = refusal
    if refusal is not None:
        session.core.skip_chunk(chunk.size)
        return
    tx = session.tx
    assert tx is not None
    tx.chunk = chunk.size
    if chunk.last:
        session.verb = None  # the end of the message says what comes next
    session.core.begin_chunk(chunk.size, last=chunk.last, terms=data.terms(session))


def _refusal(session: "Session", chunk: Chunk) -> Reply | None:
    if Verb.BDAT not in NEXT[session.state]:
        return replies.NOT_ALLOWED
    assert session.tx is not None
    if not session.tx.rcpts:
        return replies.NO_RECIPIENT
    if chunk.size > 2 * session.config.smtp.max_message_size:  # twice: the limit counts a line end as one byte
        return replies.TOO_BIG
    return None


def end(session: "Session", event: EndOfChunk) -> Reply | Coroutine[Any, Any, Reply | None]:
    """A chunk that is not the last, or was refused, is complete."""
    refusal, session.chunk_refusal = session.chunk_refusal, None
    if refusal is not None:
        return _fail(session, refusal)
    tx = session.tx
    assert tx is not None and tx.message is not None
    if event.problem is not None and tx.message.failure is None:
        tx.message.fail(data.PROBLEMS[event.problem])
    waiting = data.take(session, tx, event.data, event.lines)
    return _answer(session, tx) if waiting is None else _pass_on(session, tx, waiting)


async def _pass_on(session: "Session", tx: Transaction, waiting: Coroutine[Any, Any, None]) -> Reply:
    await waiting
    return _answer(session, tx)


def _answer(session: "Session", tx: Transaction) -> Reply:
    """The message cannot be taken, as far as is known now, or the next chunk may come."""
    assert tx.message is not None
    failure = tx.message.failure
    return replies.chunk_received(tx.chunk) if failure is None else _fail(session, failure)


def _fail(session: "Session", reply: Reply) -> Reply:
    """A part of a message is none: the transaction ends with the first chunk that is refused."""
    if session.tx is None:
        return reply
    session.state = State.IDENTIFIED
    return data.refuse(session, reply)
