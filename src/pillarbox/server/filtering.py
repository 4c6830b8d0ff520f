"""Where a session meets its filters: before it is greeted, at each command, at the end of a message.

`filters/chain` asks them; here is what their answers mean to a command. A command's argument is raw text until it
proceeds, because a filter may rewrite it: then it is looked at (`check`) once more.
"""

import re
import textwrap
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.errors import PillarboxError
from pillarbox.filters.chain import Chain, Verdict
from pillarbox.roles.filters import SMTP_IN, Decision, Phase
from pillarbox.server.events import SessionEvents
from pillarbox.server.services import bracketed
from pillarbox.smtp import replies
from pillarbox.smtp.commands import Verb
from pillarbox.smtp.replies import Reply

if TYPE_CHECKING:
    from pillarbox.server.dispatch import Step
    from pillarbox.server.session import Session

Outcome = Reply | Coroutine[Any, Any, Reply | None] | None

PHASES = {
    Verb.HELO: Phase.HELO,
    Verb.EHLO: Phase.EHLO,
    Verb.STARTTLS: Phase.STARTTLS,
    Verb.AUTH: Phase.AUTH,
    Verb.MAIL: Phase.MAIL_FROM,
    Verb.RCPT: Phase.RCPT_TO,
    Verb.DATA: Phase.DATA,
    Verb.RSET: Phase.RSET,
    Verb.QUIT: Phase.QUIT,
    Verb.NOOP: Phase.NOOP,
}  # COMPAT: HELP and WIZ are asked about by nobody; BDAT asks for the phase of DATA, in its own time
_WITH_ARGUMENT = (Phase.HELO, Phase.EHLO, Phase.AUTH)
_WITH_ADDRESS = (Phase.MAIL_FROM, Phase.RCPT_TO)
_REPLY_LINE = 512 - len("550 ") - len("\r\n")  # RFC 5321 §4.5.3.1.5
_STATUS = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3} ")  # RFC 3463


def concerns(session: "Session") -> bool:
    """Does the configuration have filters or listeners for such a session?"""
    config = session.config
    return bool(session.listener.filter) or any(report.direction == SMTP_IN for report in config.reports)


async def introduce(session: "Session") -> Reply | None:
    """Report a connection and have filters decide about it, before anything else; the refusal, which ends it."""
    processors, listener, generation = session.services.processors, session.listener, session.config.generation
    session.introduced = True
    registered = True
    if listener.filter:
        path = processors.path(generation, listener.filter)
        registered = not path.unknown() or await processors.registered(path)
    reports = processors.reports(generation, SMTP_IN, listener.filter, session.id)
    name = await session.client_name()
    if reports is not None:
        session.events = SessionEvents(reports)
        session.events.connected(name, *_ends(session))
    if not listener.filter:
        return None
    chain = session.chain = Chain(
        path=path, session=session.id, reports=reports, builtins=session.services.lookup, log=session.services.log
    )
    chain.rdns, chain.fcrdns, chain.src = name.name or "<unknown>", name.fcrdns, session.peer.address
    try:
        verdict = await _connect(session, chain, registered=registered)
    except PillarboxError as error:
        session.services.log.warn(f"smtp: {session.id:016x}: {error}")
        return Reply(451, replies.TEMPORARY_FAILURE.lines[0], closes=True)
    refusal = _obey(session, verdict)
    # There is no going on after a refusal: nobody was greeted (the reference goes on all the same).
    return None if refusal is None else Reply(refusal.code, *refusal.lines, closes=True)


async def _connect(session: "Session", chain: Chain, *, registered: bool) -> Verdict | None:
    if not registered:
        return chain.unregistered()
    if chain.has(Phase.CONNECT):
        return await chain.decide(Phase.CONNECT, bracketed(session.peer.address))
    chain.proceed(Phase.CONNECT)
    return None


def _ends(session: "Session") -> tuple[str, str]:
    """Both addresses as they are reported."""
    peer = session.peer
    if peer.address == "local":
        path = f"unix:{session.services.control_socket}"
        return path, path
    return f"{bracketed(peer.address)}:{peer.client_port}", f"{bracketed(peer.server)}:{peer.port}"


# --- commands ---------------------------------------------------------------------------------------------------------


def ask(session: "Session", chain: Chain, step: "Step", args: str, effect: Callable[[str], Outcome]) -> Outcome:
    """The effect of a command that is allowed, unless a filter decides otherwise; at once where nobody is asked."""
    assert session.verb is not None
    phase = PHASES.get(session.verb)
    if phase is None:
        return effect(args)
    parameter = _parameter(phase, args)
    if not chain.has(phase):
        chain.proceed(phase, parameter)
        return effect(args)
    return _asked(session, step, args, effect, chain.decide(phase, parameter))


async def _asked(
    session: "Session", step: "Step", args: str, effect: Callable[[str], Outcome], decided: Awaitable[Verdict]
) -> Reply | None:
    verdict = await decided
    refusal = _obey(session, verdict)
    if refusal is not None:
        return refusal
    if verdict.decision in (Decision.REWRITE, Decision.REPORT):
        # COMPAT: the text of a processor's report is the new argument, too.
        args = verdict.param if step.arguments or verdict.decision is Decision.REWRITE else args
        _tell_changed(session, verdict)
        refusal = replies.NO_ARGUMENTS if args and not step.arguments else _check(session, step, args)
        if refusal is not None:
            return refusal
    outcome = effect(args)
    return outcome if isinstance(outcome, Reply) or outcome is None else await outcome


def _check(session: "Session", step: "Step", args: str) -> Reply | None:
    """Whether a client could have said so."""
    return replies.SYNTAX_ERROR if len(args) > session.core.command_max else step.check(session, args)


def _tell_changed(session: "Session", verdict: Verdict) -> None:
    """Events show what a command was rewritten to. COMPAT: after a report it has begun, and is found wanting then."""
    if session.events is None or session.verb is None:
        return
    if verdict.decision is Decision.REWRITE:
        session.events.parsed(session.verb, verdict.param)
    else:
        session.events.begins()


def _parameter(phase: Phase, args: str) -> str:
    """What is asked about: addresses without brackets and parameters."""
    if phase in _WITH_ADDRESS:
        return args.partition("<")[2].partition(">")[0]
    return args if phase in _WITH_ARGUMENT else ""


def _obey(session: "Session", verdict: Verdict | None) -> Reply | None:
    """Note junk; the reply to a refusal."""
    if verdict is None:
        return None
    if verdict.decision is Decision.JUNK:
        # COMPAT: outside a transaction it is the session that is junk: MAIL makes none before it is answered.
        if session.tx is not None:
            session.tx.junk = True
        else:
            session.junk = True
    return refusal_of(verdict) if verdict.refused else None


def refusal_of(verdict: Verdict) -> Reply:
    """The reply that a filter gave."""
    lines = _reply_lines(verdict.param[4:])
    return Reply(int(verdict.param[:3]), *lines, closes=verdict.decision is Decision.DISCONNECT)


def _reply_lines(text: str) -> list[str]:
    """A text in lines that a client may rely on; the status code stands in each (RFC 2034 §4).

    The reference says up to 4 KB in one line, which some clients, it among them, take for a broken connection: then
    they come again for days, where they were to be told no.
    """
    if len(text) <= _REPLY_LINE:
        return [text]
    status = _STATUS.match(text)
    head = status[0] if status is not None else ""
    parts = textwrap.wrap(text[len(head) :], _REPLY_LINE - len(head), break_on_hyphens=False)
    return [head + part for part in parts] or [head]


async def wait_for_room(chain: Chain, then: Callable[[], Outcome], *, refuse: Callable[[Reply], Reply]) -> Reply | None:
    """A processor does not read what it is told: go on when it does, or say that this cannot be done now."""
    refusal = await chain.room()
    if refusal is not None:
        return refuse(refusal_of(refusal))
    outcome = then()
    return outcome if isinstance(outcome, Reply) or outcome is None else await outcome


# --- messages ---------------------------------------------------------------------------------------------------------


async def may_begin(session: "Session", chain: Chain) -> Reply | None:
    """The phase of DATA, for BDAT; the refusal."""
    if not chain.has(Phase.DATA):
        chain.proceed(Phase.DATA)
        return None
    return _obey(session, await chain.decide(Phase.DATA, ""))


async def may_commit(session: "Session", chain: Chain) -> Reply | None:
    """The phase of commit, when the message is complete; the refusal."""
    if not chain.has(Phase.COMMIT):
        chain.proceed(Phase.COMMIT)
        return None
    verdict = await chain.decide(Phase.COMMIT, "")
    # There is nothing to rewrite (the reference says so, too, and hangs).
    return replies.NO_ARGUMENTS if verdict.decision is Decision.REWRITE else _obey(session, verdict)
