"""What a session's limits do to a command: rates of mail and recipients, and those who only make mistakes.

What is limited for one session is counted in it; what holds for a source or a user on the whole server is asked of
lookup (`server/admissions`), and only where it is configured.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from pillarbox.smtp import replies
from pillarbox.smtp.commands import Verb
from pillarbox.smtp.replies import Reply

if TYPE_CHECKING:
    from pillarbox.server.session import Session

Outcome = Reply | Coroutine[Any, Any, Reply | None] | None
Effect = Callable[["Session", str], Outcome]

_RATED = {Verb.MAIL: "mails", Verb.RCPT: "rcpt"}
_FAILURES = "failed-commands"


def proceed(session: "Session", verb: Verb, effect: Effect, args: str) -> Outcome:
    """The effect of a command that is allowed, unless it comes too often."""
    what = _RATED.get(verb)
    if what is None or not _counted(session, what):
        return effect(session, args)
    return _within_rate(session, what, effect, args)


async def _within_rate(session: "Session", what: str, effect: Effect, args: str) -> Reply | None:
    if not await _spend(session, what):
        return replies.TOO_FAST
    outcome = effect(session, args)
    return outcome if isinstance(outcome, Reply) or outcome is None else await outcome


async def _spend(session: "Session", what: str) -> bool:
    """Count one more; False, and a line in the log, where a rate does not allow it."""
    exceeded = await session.services.admissions.spend(session.config, what, session.peer.address, session.username)
    if exceeded:
        user = session.username or "<none>"
        session.event("smtp limited", limit=exceeded, address=session.peer.logged, user=user)
    return not exceeded


def _counted(session: "Session", what: str) -> bool:
    return session.config.smtp.has_rate(what) and _limited(session)


def _limited(session: "Session") -> bool:
    """Local users come over the control socket, and are not held up."""
    return session.peer.address != "local" and not session.listener.unlimited


def punishment(
    session: "Session", reply: Reply, answer: "Callable[[Session, Reply], None]"
) -> Coroutine[Any, Any, Reply | None] | None:
    """What has to be done before a refusal is answered; None: nothing, or it is another reply.

    Only what is the client's fault (5yz) counts.
    """
    if reply.code < 500 or reply.closes or not _limited(session):
        return None
    if session.config.smtp.tarpit or _counted(session, _FAILURES):
        return _punish(session, reply, answer)
    return None


async def _punish(session: "Session", reply: Reply, answer: "Callable[[Session, Reply], None]") -> Reply | None:
    await asyncio.sleep(session.config.smtp.tarpit)
    if _counted(session, _FAILURES) and not await _spend(session, _FAILURES):
        reply = replies.TOO_MANY_ERRORS
    answer(session, reply)
    return None


def last_word(session: "Session", reply: Reply) -> Reply:
    """The reply to a refused command, or the one that ends a session in which there were too many."""
    if reply.code < 500 or reply.closes or session.verb is Verb.RCPT:
        return reply
    session.failures += 1
    most = session.config.smtp.max_failed_commands
    if not most or session.failures < most or session.listener.unlimited:
        return reply
    session.event("smtp limited", limit="max-failed-commands", address=session.peer.logged)
    return replies.TOO_MANY_ERRORS


async def silent(session: "Session", seconds: float) -> bool:
    """Whether a client says nothing for so long (`greet-delay`): those who cannot wait are no mail servers."""
    session.early = asyncio.Event()
    try:
        async with asyncio.timeout(seconds):
            await session.early.wait()
    except TimeoutError:
        return True
    finally:
        session.early = None
    if not session.core.buffered:
        return True  # it said goodbye, which is nothing to complain about
    session.event("smtp limited", limit="greet-delay", address=session.peer.logged)
    return False
