"""The link to a running processor: bytes, deadlines and bounds. What is said is `filters/protocol`.

One life of a processor is one link. `tell` writes, and waits where the processor does not read; a processor that only
hears events is never waited for: what it does not read in time is dropped and counted. What it answers goes to who
asked (`deliver`), and is not read while they cannot take it (`hold`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from pillarbox.errors import TempFail
from pillarbox.filters.asked import Asked
from pillarbox.filters.protocol import FilterProtocol, Heard, Violation
from pillarbox.log import Log
from pillarbox.roles.filters import MDA, SMTP_IN, SMTP_OUT, Answer, Lines, Output, Question, Report, Result, Said, Told

UNREAD = 1 << 20  # bytes that it has not read, above which who tells it something waits
UNREAD_EVENTS = 8 << 20  # and above which events are dropped that only it waits for
UNREAD_MAX = 128 << 20  # and above which it is ended, however many tell it something at once
UNWANTED = 1 << 20  # bytes that it may write for nobody, beside twice those that it was told
ENDED = "ended"  # why it is over, where it closed its output
_COUNTED = 60.0  # seconds between two log lines about events that were dropped


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a processor may take, in seconds, and how it is started again when it fails."""

    start: float = 30.0  # until it is started, and until it has registered
    pauses: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)  # before it is started again: after the first death, and so on
    within: float = 60.0  # more deaths than that within this time: it is left down
    grace: float = 5.0  # to end by itself, when it should


class Link(asyncio.Protocol):
    """One conversation with a processor. `over` tells why it ended.

    `deliver(teller, answer)`: an answer, to be passed on. `timeout`: seconds for one, from the configuration.
    """

    def __init__(
        self,
        *,
        name: str,
        protocol: FilterProtocol,
        asked: Asked,
        timeout: float,
        start: float,
        on_registered: Callable[["Link"], None],
        deliver: Callable[[str, Answer], None],
        log: Log,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._protocol = protocol
        self._asked = asked
        self._timeout = timeout
        self._on_registered = on_registered
        self._deliver = deliver
        self._log = log
        self._transport: asyncio.Transport | None = None
        self._room: asyncio.Future[None] | None = None  # pending while what it has not read is too much
        self._least_unread = 0  # since when it has not read anything: bytes then, and the time
        self._reading_since = 0.0
        self._heard = 0.0  # when the last answer came
        self._turn = asyncio.Lock()  # fair: what is told stays in order
        self._held = False
        self._echoes = False  # it answered reports with too many of its own, which is in the log
        self._told_bytes = self._unwanted_bytes = 0
        self._counted = 0  # events that were dropped, and are in the log
        self._counting: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._starting: asyncio.TimerHandle | None = self._loop.call_later(start, self._not_registered, start)
        self.dropped = 0
        self.over: asyncio.Future[str] = self._loop.create_future()

    @property
    def phases(self) -> frozenset[str]:
        """What it may be asked about."""
        return self._protocol.phases

    @property
    def events(self) -> frozenset[str]:
        """What it hears."""
        return self._protocol.events

    @property
    def waiting(self) -> int:
        """Answers that it owes."""
        return len(self._asked)

    # -- telling

    async def tell(self, teller: str, items: Sequence[Told]) -> None:
        """Write this when there is room; returns when there is room for more. TempFail: it is over.

        Before too, for many tell at once, and a line that a client sends may be a hundred times as long as it is told.
        """
        async with self._turn:
            await self._has_room()
            self._write(teller, items)
        await self._has_room()

    async def _has_room(self) -> None:
        self._check()
        if self._room is not None and self._protocol.phases:
            await asyncio.shield(self._room)
            self._check()

    def _check(self) -> None:
        if self.over.done() or self._transport is None:
            raise TempFail(f"filter {self._name} does not answer")

    def _write(self, teller: str, items: Sequence[Told]) -> None:
        assert self._transport is not None
        lines: list[bytes] = []
        try:
            for item in items:
                if line := self._line(teller, item):
                    lines.append(line)
        finally:  # what is noted as asked has to be asked, whatever is wrong with the rest
            if lines:
                self._transport.writelines(lines)
                self._told_bytes += sum(map(len, lines))
                if self._transport.get_write_buffer_size() > UNREAD_MAX:
                    self.end("does not read what it is sent")

    def _line(self, teller: str, item: Told) -> bytes:
        """What it reads of this; b"": nothing."""
        if isinstance(item, Report):
            return self._event(teller, item)
        phase = item.phase if isinstance(item, Question) else "data-line"
        if phase not in self._protocol.phases:
            raise TempFail(f"filter {self._name} has not registered {phase}")
        self._watch_in(self._timeout)
        if isinstance(item, Lines):
            self._asked.lines(item, teller, self._loop.time())
        else:
            self._asked.question(item, teller, self._loop.time())
        return self._protocol.write(item)

    def _event(self, teller: str, report: Report) -> bytes:
        if report.subsystem != MDA:  # a delivery is no session that could end
            echo = report.event == "filter-report" and report.text.startswith("proc|")
            self._asked.hears_of(report.session, teller, subsystem=report.subsystem, echo=echo)
            if report.event == "link-disconnect":
                self._asked.ends(report.session)
        if f"{report.subsystem} {report.event}" not in self._protocol.events:
            return b""
        assert self._transport is not None
        if not self._protocol.phases and self._transport.get_write_buffer_size() > UNREAD_EVENTS:
            self.dropped += 1
            self._count_dropped()
            return b""
        return self._protocol.write(report)

    def _count_dropped(self) -> None:
        if self._counting is None:
            self._log.warn(f"filter {self._name}: it does not read its events: some are dropped")
            self._counting = self._loop.call_later(_COUNTED, self._say_dropped)

    def _say_dropped(self) -> None:
        self._counting = None
        count = self.dropped - self._counted
        self._counted = self.dropped
        if count:
            self._log.warn(f"filter {self._name}: {count} events were dropped: it does not read them")

    def teller_is_gone(self, teller: str, now: float) -> None:
        """Nobody waits for what it asked, nor is there anybody else to say that its sessions are over.

        `now`: epoch seconds.
        """
        sessions = self._asked.sessions_of(teller)
        if self._transport is not None and not self.over.done():
            self._write(teller, [Report(subsystem, "link-disconnect", n, now, "") for n, subsystem in sessions])
        self._asked.teller_is_gone(teller)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=UNREAD)
        self._transport.write(self._protocol.handshake())
        if self._protocol.ready:
            self._loop.call_soon(self._registered)

    def pause_writing(self) -> None:
        """It does not read: who has questions waits, but not for ever."""
        self._room = self._loop.create_future()
        self._least_unread, self._reading_since = UNREAD_MAX, self._loop.time()
        self._watch_in(self._timeout)

    def resume_writing(self) -> None:
        """It reads again."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def data_received(self, data: bytes) -> None:
        """Answers, perhaps in parts."""
        try:
            for heard in self._protocol.receive(data):
                if self.over.done():
                    return
                if isinstance(heard, Heard):
                    self._registered()
                else:
                    self._answered(heard)
        except Violation as violation:
            self.end(str(violation))

    def connection_lost(self, error: Exception | None) -> None:
        """It has ended, or closed its output."""
        self.end(ENDED)

    def _registered(self) -> None:
        if self.over.done():
            return
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None
        self._on_registered(self)

    def _answered(self, answer: Answer) -> None:
        if isinstance(answer, Result):
            teller, size = self._asked.result(answer), len(answer.param)
        elif isinstance(answer, Output):
            teller, size = self._asked.output(answer, self._loop.time()), len(answer.data)
        else:
            teller, size = self._reporting_for(answer.session), len(answer.text)
        if teller is None or isinstance(answer, Said):  # nothing else bounds these
            self._unwanted(size)
        else:
            self._heard = self._loop.time()
        if teller is not None:
            self._deliver(teller, answer)

    def _reporting_for(self, session: int) -> str | None:
        """Who passes on what it reports of its own; None: nobody, or it has said enough."""
        teller = self._asked.teller_of(session)
        hears = any(f"{subsystem} filter-report" in self._protocol.events for subsystem in (SMTP_IN, SMTP_OUT))
        if teller is None or not hears or self._asked.may_report(session):
            return teller
        if not self._echoes:
            self._log.warn(f"filter {self._name}: {session:016x} it answers reports with reports: some are dropped")
        self._echoes = True
        return None

    def _unwanted(self, size: int) -> None:
        self._unwanted_bytes += size + 50
        if self._unwanted_bytes > UNWANTED + 2 * self._told_bytes:
            raise Violation("floods us with lines that nobody waits for")

    # -- ends

    def hold(self) -> None:
        """Who gets its answers has no room: do not read on. Not its fault: it is not waited for meanwhile."""
        if not self._held and self._transport is not None and not self.over.done():
            self._held = True
            self._transport.pause_reading()

    def let_go(self) -> None:
        """They have."""
        if self._held and self._transport is not None and not self.over.done():
            self._held = False
            self._heard = self._reading_since = self._loop.time()
            self._transport.resume_reading()

    def end(self, reason: str, *, politely: bool = False) -> None:
        """Hang up; `over` gets the reason, unless it has one. `politely`: it gets what was written before."""
        if self.over.done():
            return
        self.over.set_result(reason)
        for timer in (self._starting, self._watching, self._counting):
            if timer is not None:
                timer.cancel()
        self._say_dropped()
        if self._transport is not None:
            if politely:
                self._transport.close()
            else:
                self._transport.abort()
        self.resume_writing()

    # -- deadlines

    def _not_registered(self, seconds: float) -> None:
        self.end(f"did not register within {seconds:g} s")

    def _watch_in(self, seconds: float) -> None:
        if self._watching is None:
            self._watching = self._loop.call_later(seconds, self._watch)

    def _watch(self) -> None:
        """End it where it answers nothing at all or reads nothing; let go of what it left out while it answers."""
        self._watching = None
        now = self._loop.time()
        if self._stuck(now):
            self.end(f"did not read for {self._timeout:g} s what it was sent")
            return
        oldest = self._asked.oldest()
        if oldest is None or self._held:
            if oldest is not None or self._room is not None:
                self._watch_in(self._timeout)
            return
        if max(oldest, self._heard) + self._timeout <= now:
            self.end(f"did not answer for {self._timeout:g} s")
            return
        for session, phase in self._asked.give_up(now - self._timeout):
            self._log.warn(f"filter {self._name}: {session:016x} {phase} was not answered for {self._timeout:g} s")
        oldest = self._asked.oldest()
        if oldest is not None or self._room is not None:
            self._watch_in(max(0.05, (now if oldest is None else oldest) + self._timeout - now))

    def _stuck(self, now: float) -> bool:
        """Has it read nothing for too long? One that only hears events may."""
        if self._room is None or not self._protocol.phases or self._transport is None:
            return False
        unread = self._transport.get_write_buffer_size()
        if unread < self._least_unread or self._held:  # who waits to write may not read meanwhile
            self._least_unread, self._reading_since = unread, now
        return now - self._reading_since >= self._timeout
