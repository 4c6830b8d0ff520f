"""MAIL FROM (RFC 5321 §4.1.1.2): who sends, and may they here?"""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.conf.model import TlsMode
from pillarbox.server.transaction import Transaction
from pillarbox.smtp import replies
from pillarbox.smtp.commands import (
    BadSize,
    BadSyntax,
    MailParameters,
    OptionTooLong,
    UnknownOption,
    asks_for_utf8,
    parse_mail_parameters,
    parse_path,
)
from pillarbox.smtp.replies import Reply

if TYPE_CHECKING:
    from pillarbox.server.session import Session


def check(session: "Session", args: str | None) -> Reply | None:
    """Refusals in the reference's order."""
    listener = session.listener
    if listener.tls is TlsMode.STARTTLS_REQUIRE and not session.tls:
        return replies.TLS_FIRST
    if listener.auth and not listener.auth_optional and not session.authenticated:
        return replies.AUTH_FIRST
    if session.mails >= session.config.smtp.max_mails:
        return replies.TOO_MANY_MAILS
    try:
        _parse_sender(session, args or "")
    except BadSyntax:
        return replies.BAD_SENDER
    return None


def _parse_sender(session: "Session", args: str) -> tuple[str, str]:
    return parse_path(args, default_domain=session.name, null=True, utf8=asks_for_utf8(args))


def proceed(session: "Session", args: str) -> Reply | Coroutine[Any, Any, Reply | None]:
    """Begin a transaction."""
    sender, rest = _parse_sender(session, args)
    try:
        parameters = parse_mail_parameters(rest, dsn=not session.listener.no_dsn, tls=bool(session.tls))
    except UnknownOption as error:
        return replies.unsupported_mail_option(str(error))
    except OptionTooLong as error:
        return replies.mail_option_too_long(str(error))
    except BadSize:
        return replies.BAD_SIZE
    except BadSyntax:
        return replies.SYNTAX_ERROR
    if parameters.size > session.config.smtp.max_message_size:
        return replies.DECLARED_TOO_BIG
    if session.authenticated and session.listener.senders:
        return _check_sender(session, sender, parameters)
    msgid = session.services.msgids.take()
    if msgid is None:
        return _wait(session, sender, parameters)
    return _begin(session, msgid, sender, parameters)


async def _check_sender(session: "Session", sender: str, parameters: MailParameters) -> Reply:
    allowed = await session.services.lookup.may_send_as(
        session.config.generation, session.listener.senders, session.username, sender
    )
    return await _wait(session, sender, parameters) if allowed else replies.SENDER_REJECTED


async def _wait(session: "Session", sender: str, parameters: MailParameters) -> Reply:
    return _begin(session, await session.services.msgids.wait(), sender, parameters)


def _begin(session: "Session", msgid: int, sender: str, parameters: MailParameters) -> Reply:
    session.tx = Transaction(msgid=msgid, sender=sender, parameters=parameters)
    if session.chain is not None:
        session.chain.begin_transaction()
    return replies.OK
