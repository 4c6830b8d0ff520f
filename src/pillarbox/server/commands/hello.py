"""HELO, EHLO (RFC 5321 §4.1.1.1) and STARTTLS (RFC 3207): who speaks, and over what."""

import hashlib
import ssl
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.conf.model import TlsMode
from pillarbox.smtp import replies
from pillarbox.smtp.commands import valid_domain
from pillarbox.smtp.replies import Reply
from pillarbox.smtp.server_protocol import AUTH_MAX
from pillarbox.smtp.states import State

if TYPE_CHECKING:
    from pillarbox.server.session import Session


def check_helo(session: "Session", args: str | None) -> Reply | None:
    """Is there a name, and is it one?"""
    return _check_name(args, replies.HELO_WITHOUT_NAME)


def check_ehlo(session: "Session", args: str | None) -> Reply | None:
    """Is there a name, and is it one?"""
    return _check_name(args, replies.EHLO_WITHOUT_NAME)


def _check_name(args: str | None, missing: Reply) -> Reply | None:
    if args is None:
        return missing
    return None if valid_domain(args) else replies.INVALID_DOMAIN


def helo(session: "Session", args: str) -> Reply:
    """Note the name; a transaction under way is forgotten."""
    _identify(session, args, extended=False)
    return replies.hello(session.name, args, session.peer.shown)


def ehlo(session: "Session", args: str) -> Reply | Coroutine[Any, Any, Reply | None]:
    """Note the name and say what is offered here and now."""
    _identify(session, args, extended=True)
    if offers_auth(session) and session.mechanisms is None:
        return _ehlo_with_auth(session, args)
    return replies.hello(session.name, args, session.peer.shown, extensions(session))


async def _ehlo_with_auth(session: "Session", args: str) -> Reply:
    await session.offered_mechanisms()
    return replies.hello(session.name, args, session.peer.shown, extensions(session))


def _identify(session: "Session", name: str, *, extended: bool) -> None:
    session.reset()
    session.helo = name
    session.extended = extended
    if session.events is not None:
        session.events.reports.link_identify("EHLO" if extended else "HELO", name)


def extensions(session: "Session") -> list[str]:
    """The lines of EHLO."""
    listener = session.listener
    offered = ["8BITMIME", "ENHANCEDSTATUSCODES", "PIPELINING", f"SIZE {session.config.smtp.max_message_size}"]
    if not listener.no_dsn:
        offered.append("DSN")
    if offers_starttls(session) and not session.tls:
        offered.append("STARTTLS")
    if offers_auth(session) and session.mechanisms:
        offered.append(f"AUTH {' '.join(session.mechanisms)}")
    limits = session.config.smtp
    offered += ["SMTPUTF8", "CHUNKING", f"LIMITS MAILMAX={limits.max_mails} RCPTMAX={limits.max_rcpt}"]
    if session.tls:
        offered.append("REQUIRETLS")  # RFC 8689 §2: only where it is kept already
    return [*offered, "HELP"]


def offers_starttls(session: "Session") -> bool:
    """Is it a listener where TLS is started by command, and are there keys?"""
    return session.tls_context is not None and session.listener.tls in (TlsMode.STARTTLS, TlsMode.STARTTLS_REQUIRE)


def offers_auth(session: "Session") -> bool:
    """Passwords are taken over TLS only, from this machine too, as the reference does."""
    return bool(session.listener.auth and session.tls and not session.authenticated)


def check_starttls(session: "Session", args: str | None) -> Reply | None:
    """Is it offered?"""
    if not offers_starttls(session):
        return replies.NOT_SUPPORTED
    if session.tls:
        return replies.ALREADY_SECURED
    return None if args is None else replies.NO_PARAMETERS_ALLOWED


def starttls(session: "Session", _args: str) -> Reply | Coroutine[Any, Any, Reply | None]:
    """Go ahead, unless something was sent behind the command in the clear (RFC 3207 §5: an injection)."""
    if session.core.buffered:
        session.core.discard()
        return replies.TLS_INJECTION
    session.pause_reading()
    return _upgrade(session)


async def _upgrade(session: "Session") -> None:
    session.send(replies.READY_FOR_TLS)
    session.flush()
    try:
        await session.start_tls()
    except (OSError, TimeoutError) as error:
        session.fail(handshake_failed(error))
        return
    secured(session)
    session.helo, session.state = "", State.CONNECTED  # RFC 3207 §4.2: what was said in the clear is forgotten


def secured(session: "Session") -> None:
    """The handshake succeeded: note and log what came of it."""
    found = session.tls_object()
    cipher, _, bits = found.cipher() or ("unknown", "", 0)
    session.tls = f"{found.version()}:{cipher}:{bits}"
    session.event("smtp tls", ciphers=session.tls)
    if session.events is not None:
        session.events.reports.link_tls(session.tls)
    if session.listener.tokens:
        session.core.command_max = AUTH_MAX
    session.verified = session.listener.tls_verify
    certificate = found.getpeercert(binary_form=True)
    if certificate:
        result = "verified" if session.verified else "unchecked"
        digest = hashlib.sha256(certificate).hexdigest()
        session.event("smtp cert-check", result=f'"{result}"', fingerprint=f'"SHA256:{digest}"')
    session.services.count("smtp.smtps" if session.listener.tls is TlsMode.SMTPS else "smtp.tls", 1)


def handshake_failed(error: Exception) -> str:
    """The reason of a disconnect, for the log."""
    return f'"io-error: handshake failed: {_reason(error)}"'


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"SSL routines::{error.reason.lower().replace('_', ' ')}"
    return str(error) or type(error).__name__
