"""The link to a running table program: bytes, deadlines and bounds. What is said is `tables/protocol`."""

import asyncio
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

from pillarbox.errors import TempFail
from pillarbox.tables.protocol import Answer, Nonsense, Op, TableProtocol
from pillarbox.tables.services import Service

MAX_WAITING = 1000  # questions that wait for an answer; each is 1 KB at most


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a program may take, in seconds, and how long it is left alone when it fails."""

    answer: float = 15.0  # until a question is given up; and until a program that answers nothing at all is ended
    lost: float = 60.0  # until one that answers others is ended because of a question that it left out
    start: float = 30.0  # until it is started, and until it has registered its services
    steady: float = 60.0  # having lived so long, its earlier failures are forgotten
    pauses: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)  # before it is started again: the first time, and so on
    down: float = 60.0  # after more failures than that


class _Question(NamedTuple):
    answer: "asyncio.Future[Answer]"
    asked: float


class Link(asyncio.Protocol):
    """One conversation with a program. `over` tells why it ended; by then every question is answered or a TempFail."""

    def __init__(
        self, *, table: str, patience: Patience, now: Callable[[], float], on_registered: Callable[["Link"], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._patience = patience
        self._now = now
        self._on_registered = on_registered
        self._protocol = TableProtocol(table=table)
        self._transport: asyncio.Transport | None = None
        self._waiting: dict[str, _Question] = {}  # the oldest first
        self._heard = 0.0  # when the last answer came
        self._registered = False
        self._ids = itertools.count(secrets.randbits(32))
        self._timer = self._loop.call_later(patience.start, self._not_registered)
        self.over: asyncio.Future[str] = self._loop.create_future()

    @property
    def services(self) -> frozenset[Service]:
        """What the program has registered."""
        return self._protocol.services or frozenset()

    def ask(self, op: Op, service: Service | None, key: str | None) -> "asyncio.Future[Answer]":
        """Ask; who waits for the answer has to give it up in time. TempFail: it cannot be asked now."""
        if self.over.done() or self._transport is None:
            raise TempFail(f"table {self._table} does not answer")
        if len(self._waiting) >= MAX_WAITING:
            raise TempFail(f"table {self._table}: {MAX_WAITING} questions are waiting already")
        id_ = f"{next(self._ids) & 0xFFFFFFFF:08x}"
        line = self._protocol.request(op, service, key, id_=id_, now=self._now())
        answer: asyncio.Future[Answer] = self._loop.create_future()
        if not self._waiting:
            self._watch_in(self._patience.answer)
        self._waiting[id_] = _Question(answer, self._loop.time())
        # What a program does not read stays here: no more than MAX_WAITING lines.
        self._transport.write(line)
        return answer

    def end(self, reason: str) -> None:
        """Hang up; `over` gets the reason, unless it has one."""
        if self.over.done():
            return
        self.over.set_result(reason)
        self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        for question in self._waiting.values():
            if not question.answer.done():
                question.answer.set_exception(TempFail(f"table {self._table} did not answer: it {reason}"))
        self._waiting.clear()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._protocol.handshake())

    def data_received(self, data: bytes) -> None:
        """Answers, perhaps in parts."""
        try:
            for answer in self._protocol.receive(data):
                self._heard = self._loop.time()
                waiting = self._waiting.pop(answer.id).answer
                if not waiting.done():  # nobody waits any more: it came too late, or the client has gone
                    waiting.set_result(answer)
        except Nonsense as nonsense:
            self.end(str(nonsense))
            return
        if self._protocol.services is not None and not self._registered:
            self._registered = True
            self._timer.cancel()
            self._on_registered(self)

    def connection_lost(self, error: Exception | None) -> None:
        """The program has ended, or closed its output."""
        self.end("ended")

    # -- deadlines

    def _not_registered(self) -> None:
        self.end(f"did not register its services within {self._patience.start:g} s")

    def _watch_in(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._watch)

    def _watch(self) -> None:
        """End a program that answers nothing, or has left a question out for good."""
        if not self._waiting:
            return
        oldest = next(iter(self._waiting.values())).asked
        silent_since = max(oldest, self._heard)
        left = min(silent_since + self._patience.answer, oldest + self._patience.lost) - self._loop.time()
        if left > 0:
            self._watch_in(left)
        elif self._loop.time() >= silent_since + self._patience.answer:
            self.end(f"did not answer for {self._patience.answer:g} s")
        else:
            self.end(f"left a question unanswered for {self._patience.lost:g} s")
