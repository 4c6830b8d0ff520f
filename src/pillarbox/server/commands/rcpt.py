"""RCPT TO (RFC 5321 §4.1.1.3): lookup says who receives; its sealed envelopes are kept for the commit."""

from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.roles.lookup import Expansion, Recipient
from pillarbox.server.transaction import Transaction, evpids
from pillarbox.smtp import replies
from pillarbox.smtp.commands import (
    BadNotify,
    BadOrcpt,
    BadSyntax,
    RcptParameters,
    UnknownOption,
    parse_path,
    parse_rcpt_parameters,
)
from pillarbox.smtp.replies import Reply

if TYPE_CHECKING:
    from pillarbox.server.session import Session

ENVELOPES_MAX = 50_000  # of one message, where recipients are lists; the rest is for the next transaction


def check(session: "Session", args: str | None) -> Reply | None:
    """Refusals that ask nobody."""
    assert session.tx is not None
    if len(session.tx.rcpts) >= session.config.smtp.max_rcpt or len(session.tx.envelopes) >= ENVELOPES_MAX:
        return replies.TOO_MANY_RECIPIENTS
    try:
        parse_path(args or "", default_domain=session.name, utf8=session.tx.parameters.smtputf8)
    except BadSyntax:
        return replies.BAD_RECIPIENT
    return None


def proceed(session: "Session", args: str) -> Reply | Coroutine[Any, Any, Reply]:
    """Expand the recipient and keep its envelopes."""
    assert session.tx is not None
    utf8 = session.tx.parameters.smtputf8
    rcpt, rest = parse_path(args, default_domain=session.name, utf8=utf8)
    try:
        parameters = parse_rcpt_parameters(rest, dsn=not session.listener.no_dsn, utf8=utf8)
    except UnknownOption as error:
        return replies.unsupported_rcpt_option(str(error))
    except BadNotify:
        return replies.NOTIFY_NEVER
    except BadOrcpt:
        return replies.BAD_ORCPT
    if session.hostname is None:
        return _wait(session, session.tx, rcpt, parameters)
    # Asked at once: lookup works while this process turns to other sessions.
    return _expanded(session, session.tx, rcpt, _expand(session, session.tx, rcpt, parameters))


async def _wait(session: "Session", tx: Transaction, rcpt: str, parameters: RcptParameters) -> Reply:
    await session.reverse_name()
    return await _expanded(session, tx, rcpt, _expand(session, tx, rcpt, parameters))


def _expand(
    session: "Session", tx: Transaction, rcpt: str, parameters: RcptParameters
) -> Coroutine[Any, Any, Expansion]:
    request = Recipient(
        generation=session.config.generation,
        client=session.client(session.hostname or ""),
        msgid=tx.msgid,
        sender=tx.sender,
        rcpt=rcpt,
        dsn_notify=parameters.notify,
        dsn_orcpt=parameters.orcpt,
        dsn_ret=tx.parameters.ret,
        dsn_envid=tx.parameters.envid,
    )
    return session.services.lookup.expand(request)


async def _expanded(session: "Session", tx: Transaction, rcpt: str, answer: Awaitable[Expansion]) -> Reply:
    expansion = await answer
    if expansion.code != 250:
        return replies.expansion_refused(expansion.code, expansion.text, utf8=tx.parameters.smtputf8)
    tx.add(rcpt, expansion.envelopes)
    if session.events is not None:
        session.events.envelopes(tx.msgid, evpids(expansion.envelopes))
    return replies.RECIPIENT_OK
