"""The steps of a client's conversation, and who may watch them: what `client_protocol` waits for, and tells."""

from enum import Enum, auto
from typing import Protocol


class Step(Enum):
    """What a reply is an answer to."""

    BANNER = auto()
    EHLO = auto()
    HELO = auto()
    LHLO = auto()
    STARTTLS = auto()
    AUTH_PLAIN = auto()
    AUTH_LOGIN = auto()
    AUTH_USER = auto()
    AUTH_PASSWORD = auto()
    MAIL = auto()
    RCPT = auto()
    DATA = auto()
    EOM = auto()
    RSET = auto()
    QUIT = auto()


class Observer(Protocol):
    """Is told every line of a connection, in the order in which it is written or read."""

    def sent(self, step: Step, line: str, index: int) -> None:
        """A command, without secrets; "." for the end of the message. `index`: which recipient a RCPT is about."""
        ...

    def heard(self, line: str) -> None:
        """A line of a reply."""
        ...

    def replied(self, step: Step, reply: str) -> None:
        """The line was the last of the reply to `step`; `reply` is the whole, joined to one."""
        ...
