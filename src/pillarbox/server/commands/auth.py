"""AUTH (RFC 4954): run the exchange, have the credentials checked, answer unknown users and wrong passwords alike."""

import asyncio
import re
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.errors import TempFail
from pillarbox.server.commands.hello import offers_auth
from pillarbox.smtp import replies
from pillarbox.smtp.commands import BadSyntax, Verb
from pillarbox.smtp.replies import Reply
from pillarbox.smtp.sasl import MECHANISMS, Challenge, Credentials

if TYPE_CHECKING:
    from pillarbox.server.session import Session

_MECHANISM = re.compile(r"[A-Z0-9_-]{1,20}|[a-z0-9_-]{1,20}")  # RFC 4422 §3.1; anything else may be a password


def check(session: "Session", args: str | None) -> Reply | None:
    """Is it offered, and did it not happen already?"""
    if session.authenticated:
        return replies.ALREADY_AUTHENTICATED
    if not offers_auth(session):
        return replies.NOT_SUPPORTED
    return replies.NO_PARAMETERS_GIVEN if args is None else None


def proceed(session: "Session", args: str) -> Reply | Coroutine[Any, Any, Reply | None]:
    """Begin an exchange."""
    name, _, initial = args.replace("\t", " ").partition(" ")
    mechanism = MECHANISMS.get(name.upper())
    if mechanism is None:
        return replies.unsupported_mechanism(name) if _MECHANISM.fullmatch(name) else replies.SYNTAX_ERROR
    session.exchange = mechanism()
    return respond(session, initial or None)


def respond(session: "Session", line: str | None) -> Reply | Coroutine[Any, Any, Reply | None]:
    """The next step of the exchange."""
    assert session.exchange is not None
    session.verb = Verb.AUTH
    session.command = session.exchange.label()
    try:
        step = session.exchange.respond(line)
    except BadSyntax:  # `*` cancels, and is no base64 either
        session.exchange = None
        return replies.SYNTAX_ERROR
    if isinstance(step, Challenge):
        return replies.challenge(step.text)
    session.exchange = None
    return _authenticate(session, step)


async def _authenticate(session: "Session", credentials: Credentials) -> Reply:
    services, user = session.services, _visible(credentials.user)
    try:
        known = await services.lookup.authenticate(
            session.config.generation, session.listener.auth, credentials.user, credentials.password
        )
    except TempFail as error:
        session.event("smtp authentication", user=user, result="tempfail")
        services.log.warn(f"smtp: {session.id:016x}: authentication: {error}")
        return replies.AUTH_TEMPFAIL
    if not known:
        session.event("smtp authentication", user=user, result="permfail")
        # Neither the time that a check took nor that of a table without the user can be told from the answer.
        await asyncio.sleep(services.auth_delay())
        return replies.AUTH_FAILED
    session.event("smtp authentication", user=user, result="ok")
    session.username, session.authenticated = credentials.user, True
    return replies.AUTHENTICATED


def without_secrets(line: str) -> str:
    """A command that begins with AUTH as it may be logged: an initial response holds a password, however misspelt."""
    words = line.split(None, 2)
    if len(words) == 1 or not _MECHANISM.fullmatch(words[1]):
        return line if line.upper() == Verb.AUTH else f"{Verb.AUTH} (...)"
    return line if len(words) == 2 else f"{words[0]} {words[1]} (...)"


def _visible(user: str) -> str:
    return "".join(c if c > " " else f"\\x{ord(c):02x}" for c in user)
