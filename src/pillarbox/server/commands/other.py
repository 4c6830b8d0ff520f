"""The verbs that change little: RSET, NOOP, HELP, QUIT, and the one that never came."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pillarbox.server.commands.hello import extensions
from pillarbox.smtp import replies
from pillarbox.smtp.commands import Verb
from pillarbox.smtp.replies import Reply

if TYPE_CHECKING:
    from pillarbox.server.session import Session


def check(_session: "Session", _args: str | None) -> Reply | None:
    """Nothing that the table of states does not say."""
    return None


def rset(session: "Session", _args: str) -> Reply:
    """Forget the transaction."""
    session.reset()
    return replies.RESET


def noop(_session: "Session", _args: str) -> Reply:
    """Still here."""
    return replies.OK


def check_help(_session: "Session", args: str | None) -> Reply | None:
    """COMPAT: without an argument, the reference's words. Ours: `HELP COMMANDS` and `HELP EXTENSIONS`."""
    return None if args is None or args.upper() in _TOPICS else replies.NO_ARGUMENTS


def help_text(session: "Session", args: str) -> Reply:
    """Who we are, or what there is here and now."""
    topic = _TOPICS.get(args.upper())
    return replies.names(topic(session)) if topic is not None else replies.HELP


def _commands(_session: "Session") -> list[str]:
    return [verb.partition(" ")[0] for verb in Verb if verb is not Verb.WIZ]


def _extensions(session: "Session") -> list[str]:
    return [line.partition(" ")[0] for line in extensions(session)]


_TOPICS: "dict[str, Callable[[Session], list[str]]]" = {"COMMANDS": _commands, "EXTENSIONS": _extensions}


def quit_session(_session: "Session", _args: str) -> Reply:
    """The connection is closed behind the reply."""
    return replies.BYE


def wiz(_session: "Session", _args: str) -> Reply:
    """As the reference answers the old back door of others."""
    return replies.WIZ
