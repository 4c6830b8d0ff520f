"""From an event of the protocol to its answer: one table of verbs, one place for states, logs and errors.

A further verb is a line in `STEPS` and in `smtp/states`, and a file in `server/commands`.
"""

import asyncio
import functools
import re
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from pillarbox.errors import PermFail, PillarboxError, TempFail
from pillarbox.roles.queue import Queue
from pillarbox.server import events, filtering, limits
from pillarbox.server.commands import auth, bdat, data, hello, mail, other, rcpt
from pillarbox.smtp import commands, replies
from pillarbox.smtp.commands import Verb
from pillarbox.smtp.replies import Reply
from pillarbox.smtp.server_protocol import Body, EndOfBody, EndOfChunk, Event, Fault, Line, Skipped
from pillarbox.smtp.states import NEXT

if TYPE_CHECKING:
    from pillarbox.server.session import Session

_HIDDEN = "(...)"
# What a client meant by a line that we refuse: with a space, a control or a mark in front, or between the letters.
_MEANS_AUTH = re.compile(r"[^A-Z]*A[^A-Z]*U[^A-Z]*T[^A-Z]*H", re.IGNORECASE | re.ASCII)
_MEANS_BDAT = re.compile(r"[^A-Z]*B[^A-Z]*D[^A-Z]*A[^A-Z]*T", re.IGNORECASE | re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/=]*")

Work = Coroutine[Any, Any, Reply | None]


class Step(msgspec.Struct, frozen=True):
    """A verb. `check`: refusals that ask nobody; `proceed`: the effect, at once or as a coroutine.

    `anywhere`: it looks at the state itself, because of what follows it; without an outcome the answer comes later.
    """

    check: "Callable[[Session, str | None], Reply | None]"
    proceed: "Callable[[Session, str], Reply | Work | None]"
    arguments: bool = True
    anywhere: bool = False


STEPS: dict[Verb, Step] = {
    Verb.HELO: Step(hello.check_helo, hello.helo),
    Verb.EHLO: Step(hello.check_ehlo, hello.ehlo),
    Verb.STARTTLS: Step(hello.check_starttls, hello.starttls),
    Verb.AUTH: Step(auth.check, auth.proceed),
    Verb.MAIL: Step(mail.check, mail.proceed),
    Verb.RCPT: Step(rcpt.check, rcpt.proceed),
    Verb.DATA: Step(data.check, data.proceed, arguments=False),
    Verb.BDAT: Step(bdat.check, bdat.proceed, anywhere=True),
    Verb.RSET: Step(other.check, other.rset, arguments=False),
    Verb.QUIT: Step(other.check, other.quit_session, arguments=False),
    Verb.NOOP: Step(other.check, other.noop),
    Verb.HELP: Step(other.check_help, other.help_text),
    Verb.WIZ: Step(other.check, other.wiz, arguments=False),
}

_FAULTS = {
    Fault.LINE_TOO_LONG: replies.LINE_TOO_LONG,
    Fault.COMMAND_TOO_LONG: replies.COMMAND_TOO_LONG,
    Fault.BARE_NEWLINE: replies.BARE_NEWLINE_IN_COMMAND,
}


def handle(session: "Session", event: Event) -> None:
    """Do what an event asks for."""
    try:
        _handle(session, event)
    except Exception as error:  # noqa: BLE001 - as in `guard`, for what is begun or answered without a task
        answer(session, _failed(session, error))


def _handle(session: "Session", event: Event) -> None:
    match event:
        case Line():
            session.note_command()
            _take(session, _handle_line(session, event.text))
        case Body():
            session.note_progress(len(event.data))
            work = data.receive(session, event)
            if work is not None:
                session.start(work)
        case Skipped():
            session.note_progress(event.size)
        case EndOfChunk():
            session.note_command()
            _take(session, bdat.end(session, event))
        case EndOfBody():
            session.note_command()
            _take(session, data.end(session, event))
        case Fault():
            refuse_input(session, _FAULTS[event])


def refuse_input(session: "Session", reply: Reply) -> None:
    """What came was no command: say so and hang up."""
    session.event("smtp bad-input", result=f'"{reply.text}"')
    session.send(reply)


def _take(session: "Session", outcome: Reply | Work | None) -> None:
    if isinstance(outcome, Reply):
        answer(session, outcome)
    elif outcome is not None:
        session.start(outcome)


def _handle_line(session: "Session", raw: bytes) -> Reply | Work | None:
    """Obey a line, as soon as filters can be told of it."""
    if session.chain is not None and session.chain.congested:
        return filtering.wait_for_room(
            session.chain,
            lambda: _obey_line(session, raw),
            refuse=lambda reply: _leave_line(session, raw, reply),
        )
    return _obey_line(session, raw)


def _leave_line(session: "Session", raw: bytes, reply: Reply) -> Reply:
    """A line that is refused before anybody looked at it. An exchange of AUTH ends, as with any other refusal."""
    line = raw.decode("utf-8", "surrogateescape")
    secret, session.exchange = session.exchange is not None or session.auth_refused, None
    session.verb, session.command = None, _HIDDEN if secret else line
    if _MEANS_AUTH.match(line):
        session.command = auth.without_secrets(line)
    if not _MEANS_BDAT.match(line):
        return reply
    return Reply(421, *reply.lines, closes=True)  # octets follow, which are no commands


def _obey_line(session: "Session", raw: bytes) -> Reply | Work | None:
    """Obey a line. Octets follow one that was meant for BDAT: if it is refused, nobody knows where they end."""
    line = raw.decode("utf-8", "surrogateescape")
    if session.exchange is not None and session.events is not None:
        session.events.command(events.HIDDEN)
    if session.exchange is None:
        outcome = _obey(session, line)
    elif _MEANS_BDAT.match(line) and not _BASE64.fullmatch(line):
        session.verb, session.command = None, _HIDDEN
        return replies.BAD_CHUNK
    else:
        outcome = auth.respond(session, line)
    refused = isinstance(outcome, Reply) and not outcome.positive
    return replies.BAD_CHUNK if refused and _MEANS_BDAT.match(line) else outcome


def _obey(session: "Session", line: str) -> Reply | Work | None:
    session.command = auth.without_secrets(line) if _MEANS_AUTH.match(line) else line
    session.verb = None
    bad = "\0" in line or "\r" in line
    verb, args = (None, None) if bad else commands.parse_line(line)
    if verb is None and session.auth_refused:
        session.command = _HIDDEN
    if session.events is not None:
        session.events.command(session.command.replace(_HIDDEN, events.HIDDEN))
    if verb is None:
        return replies.BAD_CHARACTER if bad else replies.UNRECOGNIZED
    session.auth_refused = False
    if session.events is not None:
        session.events.parsed(verb, args or "")
    step = STEPS[verb]
    if args is not None and not step.arguments:
        return replies.NO_ARGUMENTS
    if verb not in NEXT[session.state] and not step.anywhere:
        return replies.NOT_ALLOWED
    session.verb = verb
    refusal = step.check(session, args)
    if refusal is not None:
        return refusal
    if session.chain is not None:
        effect = functools.partial(_proceed, session, verb, step)
        return filtering.ask(session, session.chain, step, args or "", effect)
    return _proceed(session, verb, step, args or "")


def _proceed(session: "Session", verb: Verb, step: Step, args: str) -> Reply | Work | None:
    """The effect of a command that is allowed."""
    if session.events is not None:
        session.events.begins()
    return limits.proceed(session, verb, step.proceed, args)


def answer(session: "Session", reply: Reply) -> None:
    """Send the answer to the last command, a refusal perhaps later; the state advances if it is positive."""
    work = limits.punishment(session, reply, _answer)
    if work is None:
        _answer(session, reply)
    else:
        session.start(work)


def _answer(session: "Session", reply: Reply) -> None:
    if not reply.positive:
        reply = limits.last_word(session, reply)
    session.send(reply)
    if not reply.positive:
        if session.command[:4].upper() == Verb.AUTH:
            session.auth_refused = True
        session.event("smtp failed-command", command=f'"{session.command}"', result=f'"{reply.text}"')
    elif session.verb is not None:
        session.state = NEXT[session.state][session.verb]
    session.verb = None


async def guard(session: "Session", work: Work) -> Reply | None:
    """Run a command; failures of machinery become replies, here and nowhere else."""
    try:
        return await work
    except asyncio.CancelledError:
        return None
    except Exception as error:  # noqa: BLE001 - the one place: logged whole, the client sees no text of it
        return _failed(session, error)


def _failed(session: "Session", error: Exception) -> Reply:
    if isinstance(error, TempFail | PermFail):
        session.services.log.warn(f"smtp: {session.id:016x}: {error}")
        return replies.temporary(error) if isinstance(error, TempFail) else replies.PERMANENT_FAILURE
    session.services.log.exception(f"smtp: {session.id:016x}: {session.command}", error)
    return replies.INTERNAL_ERROR


async def greet(session: "Session") -> None:
    """The banner, with the name that the table has for the address that was connected to (`hostnames`).

    First of all filters decide, then (`greet-delay`) we listen a while. A table that cannot be asked now takes nothing
    but that name away, as in the reference.
    """
    if not session.introduced and filtering.concerns(session):
        refusal = await filtering.introduce(session)
        if refusal is not None:
            answer(session, refusal)
            return
    delay = session.listener.greet_delay
    if delay and not await limits.silent(session, delay):
        session.send(replies.TALKED_FIRST)
        return
    try:
        if session.listener.hostnames:
            name = await session.services.lookup.host_name(
                session.config.generation, session.listener.hostnames, session.peer.server
            )
            session.name = name or session.name
    except TempFail as error:
        session.services.log.warn(f"smtp: {session.id:016x}: {error}")
    session.send(replies.banner(session.name))
    if session.events is not None:
        session.events.reports.link_greeting(session.name)


async def discard(queue: Queue, msgid: int) -> None:
    """Tell the queue that a body will not be completed. It sweeps by itself what this does not reach."""
    try:
        await queue.discard(msgid)
    except PillarboxError:
        return
