"""Queue: the durable store and what may be asked of it. Implemented by `queue/queue`."""

from typing import Protocol

import msgspec

from pillarbox.mail.envelope import Envelope, Outcome, Sealed

# A body up to this many bytes travels within a call; a larger one in chunks of at most this size.
INLINE_BODY = 128 * 1024


class NewMessage(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A message to be committed. Body: CRLF lines, dot-unstuffed, with trace headers. Inline, or what was appended.

    `size` is the body's length in bytes; a body shorter than it is refused (TempFail), never stored.
    """

    msgid: int
    size: int
    envelopes: tuple[Sealed, ...]
    body: bytes = b""
    streamed: bool = False  # the body came by `append`
    eight_bit: bool = False
    smtputf8: bool = False  # the header needs it
    require_tls: bool = False  # RFC 8689


class QueueRow(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """An envelope as `smtpctl show queue` needs it."""

    envelope: Envelope
    expire: int  # epoch seconds
    next_try: int  # epoch seconds
    state: str  # pending, inflight, offline
    suspended: bool = False


class Queue(Protocol):
    """Called by dispatchers (incoming mail, bodies, outcomes), the parent (bodies, outcomes) and control."""

    async def reserve(self, count: int) -> list[int]:
        """Message ids (31 bit, not 0) that are free in the store and given to nobody else."""
        ...

    async def append(self, msgid: int, offset: int, chunk: bytes) -> None:
        """Add to the body of a message that is not committed yet. `offset` must be what was appended so far."""
        ...

    async def discard(self, msgid: int) -> None:
        """Forget what was appended: the client went away or the message was refused."""
        ...

    async def commit(self, message: NewMessage) -> None:
        """Verify the seals and make message and envelopes durable. When this returns, the mail is ours.

        TempFail: nothing was stored (disk full, body incomplete); its text is for the log, the client gets 452/451.
        """
        ...

    async def read(self, msgid: int, offset: int, count: int) -> bytes:
        """A piece of a body; shorter than `count` only at the end. TempFail where the message is gone."""
        ...

    async def settle(self, outcomes: list[Outcome]) -> None:
        """Attempts that ended. Durable when this returns; repeated reports of the same attempt are harmless."""
        ...

    async def show(self, after: int, count: int, msgid: int = 0) -> list[QueueRow]:
        """Envelopes with evpid > `after` in order, at most `count`; of one message if `msgid`."""
        ...

    async def envelope(self, evpid: int) -> QueueRow | None:
        """One envelope."""
        ...

    async def schedule(self, which: int) -> int:
        """Try now: an evpid, a msgid (< 2**32), or 0 = all. Returns how many."""
        ...

    async def remove(self, which: int) -> int:
        """Delete: an evpid, a msgid, or 0 = all. Returns how many."""
        ...

    async def suspend(self, which: int, suspended: bool) -> int:
        """`smtpctl pause|resume envelope`: hold or release. Returns how many changed."""
        ...

    async def pause(self, kind: str, paused: bool) -> bool:
        """Stop or go on scheduling "mda" or "mta" deliveries. False where it was so already."""
        ...

    async def stats(self) -> dict[str, int]:
        """Counters and gauges under the reference's names (`scheduler.envelope`, `queue.…`, `mta.…`, `mda.…`)."""
        ...

    async def paused(self) -> list[str]:
        """Which of "mda" and "mta" are paused (`smtpctl show status`)."""
        ...

    async def show_mta(self, what: str) -> list[str]:
        """Lines of `smtpctl show hosts|hoststats|relays|routes`, and with "paused" of `show mta paused`."""
        ...

    async def pause_mta_route(self, source: str, dest: str, paused: bool) -> None:
        """`smtpctl pause|resume mta from SOURCE for DEST`: an IP address, a domain."""
        ...

    async def resume_route(self, route: int) -> None:
        """`smtpctl resume route N`: forget the penalty of a route; unknown numbers are ignored."""
        ...

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        ...
