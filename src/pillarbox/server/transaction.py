"""One mail transaction: from MAIL to the end of the message, or to RSET."""

import asyncio

import msgspec

from pillarbox.filters.stream import MessageStream
from pillarbox.mail.envelope import Sealed
from pillarbox.server.message import Incoming
from pillarbox.smtp.commands import MailParameters


class _Head(msgspec.Struct, frozen=True, array_like=True):
    """The one field of a sealed envelope that a dispatcher reads: its id, for the log."""

    evpid: int


_head = msgspec.msgpack.Decoder(_Head).decode


class Transaction:
    """What was agreed so far. `rcpts`: for each accepted RCPT the address and the id of its last envelope."""

    __slots__ = (
        "appended",
        "chunk",
        "committed",
        "envelopes",
        "junk",
        "message",
        "msgid",
        "parameters",
        "rcpts",
        "sender",
        "stream",
        "taking",
        "traced",
    )

    def __init__(self, *, msgid: int, sender: str, parameters: MailParameters) -> None:
        self.msgid = msgid
        self.sender = sender
        self.parameters = parameters
        self.envelopes: list[Sealed] = []
        self.rcpts: list[tuple[str, int]] = []
        self.message: Incoming | None = None
        self.chunk = 0  # bytes of the one that came last
        self.appended = False  # did the queue get some of the body?
        self.junk = False  # a filter says so
        self.stream: MessageStream | None = None  # the way of the message through filters that see it
        self.taking: asyncio.Future[None] | None = None  # somebody takes what they make of it, which is much
        # COMPAT: the reference counts trace fields twice where there are filters; they do not stand twice.
        self.traced = 0  # bytes
        self.committed: int | None = None  # the size of the message, once it is the queue's

    def add(self, rcpt: str, envelopes: tuple[Sealed, ...]) -> None:
        """A recipient was accepted."""
        self.envelopes += envelopes
        self.rcpts.append((rcpt, _head(envelopes[-1].data).evpid if envelopes else 0))


def evpids(envelopes: tuple[Sealed, ...]) -> list[int]:
    """The ids of envelopes, for reports."""
    return [_head(envelope.data).evpid for envelope in envelopes]
