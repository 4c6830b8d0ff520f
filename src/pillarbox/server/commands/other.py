"""The verbs that change little: RSET, NOOP, HELP, QUIT, and the one that never came."""

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


def help_text(session: "Session", _args: str) -> Reply:
    """Who we are, and what we understand."""
    commands = [verb.partition(" ")[0] for verb in Verb if verb is not Verb.WIZ]
    return replies.help_info(commands, [line.partition(" ")[0] for line in extensions(session)])


def quit_session(_session: "Session", _args: str) -> Reply:
    """The connection is closed behind the reply."""
    return replies.BYE


def wiz(_session: "Session", _args: str) -> Reply:
    """As the reference answers the old back door of others."""
    return replies.WIZ
