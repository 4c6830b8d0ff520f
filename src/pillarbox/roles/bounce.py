"""Bounces: what the queue wants told to a sender, and who writes it. Implemented by `pillarbox/bounce`.

The queue notes a `PendingBounce` in the transaction that settles an attempt. When a message has been quiet for a
second, it asks the `Bouncer` for one DSN a kind; the DSN's commit and the removal of its pending notes are one
transaction again, so a crash repeats the question but never the bounce.
"""

from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Protocol

import msgspec

from pillarbox.mail.envelope import Envelope
from pillarbox.roles.queue import NewMessage


class BounceKind(StrEnum):
    """What the DSN says: the RFC 3464 §2.3.3 action."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"


class PendingBounce(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One recipient of a DSN to be written. Times are seconds; `esc_code` as in `Envelope` (47 means x.4.7).

    `envelope` is the one that ended or waits; its sender is never null. `delay`: the warn interval that has passed
    (DELAYED only). `ttl`: how long after `envelope.ctime` it is kept in all. `size`: bytes of the message's body.
    """

    evpid: int
    envelope: Envelope
    kind: BounceKind
    errorline: str = ""
    esc_class: int = 0
    esc_code: int = 0
    created: int = 0  # epoch: when the attempt ended
    delay: int = 0
    ttl: int = 0
    size: int = 0
    eight_bit: bool = False
    smtputf8: bool = False
    require_tls: bool = False


ReadBody = Callable[[int, int], Awaitable[bytes]]
"""`await read_body(offset, count)`: a piece of the original message, shorter only at its end; TempFail."""

WriteBody = Callable[[bytes], Awaitable[None]]
"""`await write_body(chunk)`: append to the body of the DSN; for one that should not be held in memory (RET=FULL)."""


class Bouncer(Protocol):
    """Makes a DSN. Called by the queue with a deadline; may be asked the same again after TempFail or a crash."""

    async def make(
        self,
        kind: BounceKind,
        pending: list[PendingBounce],
        read_body: ReadBody,
        *,
        msgid: int,
        write_body: WriteBody,
    ) -> NewMessage | None:
        """One DSN for these recipients of one message (same msgid, sender and kind; in order of evpid).

        `msgid` is reserved for the DSN: its envelopes must bear it. The body is returned in the answer, or given
        to `write_body` and marked `streamed`. None: there is nobody to tell (the sender cannot be routed; the
        bouncer logs why), and the matter is closed. TempFail: the queue asks again later.
        """
        ...
