"""AUTH (RFC 4954): run the exchange, ask lookup, answer unknown users and wrong passwords alike."""

import asyncio
import re
import secrets
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from pillarbox.errors import TempFail
from pillarbox.roles.lookup import Login
from pillarbox.server.commands.hello import offers_auth
from pillarbox.server.tls import channel_bindings
from pillarbox.smtp import replies
from pillarbox.smtp.commands import BadSyntax, Verb
from pillarbox.smtp.replies import Reply
from pillarbox.smtp.sasl.exchange import (
    Answer,
    AskSalt,
    Challenge,
    CheckPassword,
    CheckProof,
    CheckToken,
    Circumstances,
    Failure,
    Question,
    Success,
)
from pillarbox.smtp.sasl.mechanisms import MECHANISMS, SCRAM_PLUS

if TYPE_CHECKING:
    from pillarbox.server.session import Session

_MECHANISM = re.compile(r"[A-Z0-9_-]{1,20}|[a-z0-9_-]{1,20}")  # RFC 4422 §3.1; anything else may be a password

Work = Coroutine[Any, Any, Reply | None]


def check(session: "Session", args: str | None) -> Reply | None:
    """Is it offered, and did it not happen already?"""
    if session.authenticated:
        return replies.ALREADY_AUTHENTICATED
    if not offers_auth(session):
        return replies.NOT_SUPPORTED
    return replies.NO_PARAMETERS_GIVEN if args is None else None


def proceed(session: "Session", args: str) -> Reply | Work:
    """Begin an exchange; after a HELO nobody has asked yet which ones there are."""
    if session.mechanisms is None:
        return _ask_and_begin(session, args)
    return _begin(session, args, session.mechanisms)


async def _ask_and_begin(session: "Session", args: str) -> Reply | None:
    outcome = _begin(session, args, await session.offered_mechanisms())
    return outcome if isinstance(outcome, Reply) else await outcome


def _begin(session: "Session", args: str, offered: Sequence[str]) -> Reply | Work:
    name, _, initial = args.replace("\t", " ").partition(" ")
    if name.upper() not in offered:
        return replies.unsupported_mechanism(name) if _MECHANISM.fullmatch(name) else replies.SYNTAX_ERROR
    session.exchange = MECHANISMS[name.upper()](
        Circumstances(
            nonce=secrets.token_urlsafe(18),
            bindings=channel_bindings(session.tls_object()) if name.upper() == SCRAM_PLUS else {},
            plus=SCRAM_PLUS in offered,
        )
    )
    return respond(session, initial or None)


def respond(session: "Session", line: str | None) -> Reply | Work:
    """The next line of the exchange."""
    assert session.exchange is not None
    session.verb = Verb.AUTH
    session.command = session.exchange.label()
    try:
        step = session.exchange.respond(line)
    except BadSyntax:  # `*` cancels, and is no base64 either
        session.exchange = None
        return replies.SYNTAX_ERROR
    if isinstance(step, Challenge | Success | Failure):
        return _take(session, step)
    return _ask(session, step)


def _take(session: "Session", step: Challenge | Success | Failure) -> Reply:
    if isinstance(step, Challenge):
        return replies.challenge(step.text)
    session.exchange = None
    if isinstance(step, Failure):
        return _failed(session)
    session.event("smtp authentication", user=_visible(step.user), result="ok")
    _report(session, "pass", step.user)
    session.username, session.authenticated = step.user, True
    if session.chain is not None:
        session.chain.username = step.user
    return replies.AUTHENTICATED


async def _ask(session: "Session", question: Question) -> Reply:
    """Have lookup answer a question, and go on with the answer."""
    # It goes on only with an answer: whatever goes wrong meanwhile ends it, and the next line is a command.
    exchange, session.exchange = session.exchange, None
    assert exchange is not None
    user, log = _visible(question.user), session.services.log
    clock = asyncio.get_running_loop().time
    # When all that is no success is answered: the time that a check took cannot be told from the answer.
    due = clock() + session.services.auth_delay()
    try:
        answer = await _answer(session, question)
    except TempFail as error:
        session.event("smtp authentication", user=user, result="tempfail")
        _report(session, "error", question.user)
        log.warn(f"smtp: {session.id:016x}: authentication: {error}")
        await asyncio.sleep(due - clock())
        return replies.AUTH_TEMPFAIL  # it counts for nothing: the client may be right
    if not answer:
        session.event("smtp authentication", user=user, result="permfail")
        _report(session, "fail", question.user)
        await asyncio.sleep(due - clock())
    session.exchange, step = exchange, exchange.answer(answer)
    assert isinstance(step, Challenge | Success | Failure)
    return _take(session, step)


async def _answer(session: "Session", question: Question) -> Answer:
    lookup, listener = session.services.lookup, session.listener
    login = Login(
        generation=session.config.generation,
        table=listener.tokens if isinstance(question, CheckToken) else listener.auth,
        user=question.user,
        address=session.peer.address,
    )
    match question:
        case CheckPassword():
            return await lookup.authenticate(login, question.password)
        case CheckToken():
            return await lookup.check_token(login, question.token)
        case AskSalt():
            return await lookup.scram_salt(login)
        case CheckProof():
            return await lookup.scram_signature(login, question.message, question.proof)


def _failed(session: "Session") -> Reply:
    """It was nobody; who goes on guessing is hung up on."""
    session.failed_logins += 1
    if session.failed_logins >= session.config.smtp.max_failed_logins:
        return replies.TOO_MANY_LOGINS
    return replies.AUTH_FAILED


def without_secrets(line: str) -> str:
    """What was meant for AUTH as it may be logged: an initial response holds a password, however misspelt."""
    words = line.split(None, 2)
    if len(words) == 1 or words[0].upper() != Verb.AUTH or not _MECHANISM.fullmatch(words[1]):
        return line if line.upper() == Verb.AUTH else f"{Verb.AUTH} (...)"
    return line if len(words) == 2 else f"{words[0]} {words[1]} (...)"


def _report(session: "Session", result: str, user: str) -> None:
    if session.events is not None:
        session.events.reports.link_auth(result, _visible(user))


def _visible(user: str) -> str:
    return "".join(c if c > " " else f"\\x{ord(c):02x}" for c in user)
