"""What the queue asks of a store: the interface, and the values that cross it.

`sqlite` implements it. A method that changes something returns a Future: the change was begun, goes on when nobody
waits for it any more, and is durable when the Future is done. `TempFail`: nothing was changed. A store whose disk
fails (fsync) calls the `on_fatal` it was made with: what it last said cannot be trusted, the role ends.
"""

import asyncio
from typing import Protocol

import msgspec

from pillarbox.mail.envelope import Envelope
from pillarbox.roles.bounce import PendingBounce


class StoredEnvelope(msgspec.Struct, frozen=True):
    """A new envelope. `data` is its encoded form."""

    evpid: int
    destination: str
    next_try: int
    data: bytes


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A new message. `body` is whole unless `streamed`. The pending bounces `answers` are removed with its commit."""

    msgid: int
    size: int
    envelopes: tuple[StoredEnvelope, ...]
    body: bytes = b""
    streamed: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    require_tls: bool = False
    answers: tuple[int, ...] = ()
    answers_msgid: int = 0


class Gone(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope that ended: it is deleted, its message too if it was the last and no bounce needs it."""

    evpid: int
    attempt: int = 0
    bounce: PendingBounce | None = None


class Later(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope that is tried again. `data`: the new encoded form; `tried`: when the attempt ended."""

    evpid: int
    attempt: int
    data: bytes
    destination: str
    next_try: int
    tried: int
    bounce: PendingBounce | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """An envelope as stored, with its message's facts. `attempt`: the last one settled; `tried`: when (0: never).

    `body` is empty where it was not asked for, is larger than INLINE_BODY, or would exceed the budget.
    """

    envelope: Envelope
    destination: str
    next_try: int
    tried: int
    attempt: int
    suspended: bool
    size: int
    eight_bit: bool
    smtputf8: bool
    require_tls: bool
    body: bytes = b""


class Page(msgspec.Struct, frozen=True):
    """Rows of a destination in the order (next_try, evpid). `rest`: next_try of the row behind them, None: the end.

    `damaged`: (next_try, evpid) of those among them that cannot be read.
    """

    rows: list[Row]
    rest: int | None
    damaged: list[tuple[int, int]] = []


class Store(Protocol):
    """The durable part of the queue. `which` is an evpid, a msgid (below 2**32) or 0 for all."""

    async def close(self) -> None:
        """Finish what was begun and let go of everything."""
        ...

    def check_space(self) -> None:
        """Is there room for new mail? TempFail if not."""
        ...

    async def unused(self, first: int, last: int) -> bool:
        """Is no msgid between these (inclusive) in use?"""
        ...

    def commit(self, message: StoredMessage) -> "asyncio.Future[None]":
        """Store a message with its envelopes."""
        ...

    def settle(self, changes: list[Gone | Later]) -> "asyncio.Future[list[bool]]":
        """Apply these; False for an envelope that was not there (removed meanwhile): its bounce is not stored."""
        ...

    async def append(self, msgid: int, offset: int, chunk: bytes) -> None:
        """Add to the body of a message to come. TempFail where `offset` is not its present length."""
        ...

    async def discard(self, msgid: int) -> None:
        """Forget an appended body."""
        ...

    async def read(self, msgid: int, offset: int, count: int) -> bytes:
        """A piece of a body. TempFail where there is no such message."""
        ...

    async def due(self, destination: str, after: tuple[int, int], limit: int, body_budget: int) -> Page:
        """Envelopes not suspended behind (next_try, evpid) `after`, with bodies of up to `body_budget` bytes in all."""
        ...

    async def destinations(self, kind: str, now: int, limit: int) -> list[str]:
        """Destinations of "mda" or "mta" to be looked at by `now`, the longest due first."""
        ...

    async def next_destination(self, kind: str, now: int) -> int | None:
        """When, after `now`, the next destination is to be looked at."""
        ...

    def rest(self, destination: str, not_before: int) -> "asyncio.Future[int | None]":
        """Look at it again when its next envelope is due, not before; None: it has none, and is forgotten."""
        ...

    async def stranded(self, now: int, horizon: int) -> list[str]:
        """Destinations that would be looked at only after `horizon`: a clock was wrong. They are made due `now`."""
        ...

    async def rows(self, after: int, count: int, which: int) -> list[Row]:
        """Envelopes in order of evpid, behind `after`; no bodies."""
        ...

    def remove(self, evpids: list[int]) -> "asyncio.Future[list[Envelope]]":
        """Delete; returns those that were there."""
        ...

    def suspend(self, evpids: list[int], suspended: bool) -> "asyncio.Future[dict[int, str]]":
        """Hold or release; returns evpid → destination of those that changed."""
        ...

    def schedule(self, evpids: list[int], now: int) -> "asyncio.Future[dict[int, str]]":
        """Make due; returns evpid → destination of those that were there."""
        ...

    async def bouncing(self, limit: int) -> list[int]:
        """Messages (msgid) with pending bounces."""
        ...

    async def bounces(self, msgid: int, limit: int) -> list[tuple[int, PendingBounce]]:
        """The pending bounces of a message, with their row ids."""
        ...

    def drop_bounces(self, msgid: int, ids: tuple[int, ...]) -> "asyncio.Future[None]":
        """Nobody is to be told: the rows go, and the message if nothing else needs it."""
        ...

    async def counts(self) -> tuple[int, int]:
        """How many envelopes and messages there are."""
        ...

    async def sweep(self) -> int:
        """Delete body files that nothing refers to; returns how many."""
        ...
