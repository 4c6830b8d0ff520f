"""RCPT TO (RFC 5321 §4.1.1.3): lookup says who receives; its sealed envelopes are kept for the commit."""

from typing import TYPE_CHECKING

from pillarbox.roles.lookup import Recipient
from pillarbox.smtp import replies
from pillarbox.smtp.commands import (
    BadNotify,
    BadOrcpt,
    BadSyntax,
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


async def proceed(session: "Session", args: str) -> Reply:
    """Expand the recipient and keep its envelopes."""
    tx = session.tx
    assert tx is not None
    utf8 = tx.parameters.smtputf8
    rcpt, rest = parse_path(args, default_domain=session.name, utf8=utf8)
    try:
        parameters = parse_rcpt_parameters(rest, dsn=not session.listener.no_dsn, utf8=utf8)
    except UnknownOption as error:
        return replies.unsupported_rcpt_option(str(error))
    except BadNotify:
        return replies.NOTIFY_NEVER
    except BadOrcpt:
        return replies.BAD_ORCPT
    request = Recipient(
        generation=session.config.generation,
        client=session.client(await session.reverse_name()),
        msgid=tx.msgid,
        sender=tx.sender,
        rcpt=rcpt,
        dsn_notify=parameters.notify,
        dsn_orcpt=parameters.orcpt,
        dsn_ret=tx.parameters.ret,
        dsn_envid=tx.parameters.envid,
    )
    expansion = await session.services.lookup.expand(request)
    if expansion.code != 250:
        return replies.expansion_refused(expansion.code, expansion.text, utf8=utf8)
    tx.add(rcpt, expansion.envelopes)
    return replies.RECIPIENT_OK
