"""Plays the server for one filter: its events and questions from a log, its answers judged.

One task sends, in the order of the log; a session whose question is not answered waits, others go on. Another listens.
What was recorded is history: an answer that differs from it is told, and the session goes on as it did, except where
the filter sends the client away. The lines are those of the server itself (`filters/protocol`, `filters/asked`).
"""

import asyncio
import contextlib
import functools
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable

from pillarbox.eventlog.ahead import Ahead
from pillarbox.eventlog.filterprocess import FilterProcess
from pillarbox.eventlog.lines import fields
from pillarbox.eventlog.playing import Over, Session, Totals
from pillarbox.eventlog.specimen import received, specimen
from pillarbox.eventlog.story import Ask, Message, Step
from pillarbox.eventlog.verdict import Filtered, Verdict, ends_session, fault_of
from pillarbox.eventlog.whole import WholeSessions
from pillarbox.filters.asked import Asked
from pillarbox.filters.protocol import MAX_LINE, FilterProtocol, Heard, Violation
from pillarbox.roles.filters import SMTP_IN, Lines, Output, Phase, Question, Report, Result, Said

START = 30.0  # seconds until it has registered
FAULTS = 20  # after so many it is given up
_HELD = 10_000  # steps that wait for answers, above which the log is not read on
_SESSIONS = 50_000  # known at a time; the oldest is forgotten
_BURST = 1 << 18  # bytes that are sent at once
_UNREAD = 1 << 24  # bytes of its own reports that it does not read
_TURN = 256  # events that are sent before it is listened again
_IGNORED = 10_000  # answers that nobody waits for
_GOLDEN = 0x9E3779B97F4A7C15
_NAMED = re.compile(rb"\|([0-9a-fA-F]{16})\|")
_TELLER = "replay"


class Replay:
    """`speed`: how many times as fast as it was, None: as fast as the filter. `message`: what every client sends.

    `finished` gets each session's verdict, `complain` a line for each fault; `clock`: seconds, of the event loop.
    """

    def __init__(
        self,
        *,
        process: FilterProcess,
        protocol: FilterProtocol,
        asked: Asked,
        message: bytes | None,
        hostname: str,
        speed: float | None,
        timeout: float,
        clock: Callable[[], float],
        finished: Callable[[Verdict], None],
        complain: Callable[[str], None],
    ) -> None:
        self._process = process
        self._protocol = protocol
        self._asked = asked
        self._message = message
        self._hostname = hostname
        self._speed = speed
        self._timeout = timeout
        self._clock = clock
        self._finished = finished
        self._complain = complain
        self._sessions: dict[int, Session] = {}
        self._ready: deque[Session] = deque()  # those that were answered
        self._held = 0
        self._counter = itertools.count(1)
        self._wake = asyncio.Event()
        self._gone = ""  # why it says nothing more
        self._part = b""
        self._line = 0  # that the filter wrote last
        self.totals = Totals()

    async def run(self, reports: Iterable[Report]) -> Totals:
        """All of it. Raises what reading raises."""
        listening = asyncio.create_task(self._listen())
        whole = WholeSessions(reports)
        log = Ahead(whole, wake=functools.partial(asyncio.get_running_loop().call_soon_threadsafe, self._wake.set))
        try:
            await self._register()
            log.start()
            await self._play(log)
            await self._flush()
        except Over as over:
            self.totals.over = str(over)
        finally:
            log.close()
            listening.cancel()
            (ended,) = await asyncio.gather(listening, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended
        self.totals.left_out = whole.left_out
        for session in list(self._sessions.values()):
            self._finish(session)
        return self.totals

    # -- sending

    async def _register(self) -> None:
        self._process.write(self._protocol.handshake())
        await self._flush()
        deadline = self._clock() + START
        while not self._protocol.ready:
            if self._clock() >= deadline:
                raise Over(f"the filter did not register within {START:g} s")
            await self._wait(deadline - self._clock())

    async def _play(self, log: Ahead) -> None:
        begin, first, counter = self._clock(), None, itertools.count(1)
        while (reports := log.take()) is not None:
            if not reports:
                await self._wait(self._timeout)
            for report in reports:
                if self._speed is not None:
                    first = report.time if first is None else first
                    await self._wait_until(begin + (report.time - first) / self._speed)
                self._take(report)
                await self._pump()
                if next(counter) % _TURN == 0:
                    await self._wait(0)
                while self._held > _HELD:
                    await self._wait(self._timeout)
        for session in list(self._sessions.values()):
            self._add(session, session.story.end())
        await self._pump()
        while any(session.waiting for session in self._sessions.values()):
            await self._wait(self._timeout)

    async def _wait_until(self, time: float) -> None:
        while (delay := time - self._clock()) > 0:
            await self._wait(delay)

    async def _wait(self, seconds: float) -> None:
        """Listen until something comes, for so long at most; then send what that makes possible. Raises Over."""
        await self._flush()
        oldest = self._asked.oldest()
        if oldest is not None:
            seconds = min(seconds, max(0.0, oldest + self._timeout - self._clock()))
        if not self._wake.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._wake.wait()
        self._wake.clear()
        self._give_up()
        await self._pump()
        if self._gone:
            raise Over(self._gone)
        if self.totals.faults and not self._protocol.ready:
            raise Over("the filter did not register as it should")
        if self.totals.faults >= FAULTS:
            raise Over(f"{FAULTS} faults are enough")
        if self.totals.ignored > _IGNORED:
            raise Over("the filter answers and answers what nobody asked")

    async def _flush(self) -> None:
        try:
            await self._process.flush(self._timeout)
        except TimeoutError:
            self.totals.faults += 1
            raise Over(f"the filter did not read for {self._timeout:g} s what it was sent") from None
        except ConnectionError:
            raise Over(self._gone or "the filter ended, or closed its input") from None

    async def _pump(self) -> None:
        while self._ready:
            self._advance(self._ready.popleft())
            if self._process.pending > _BURST:
                await self._flush()

    def _take(self, report: Report) -> None:
        """An event of the log."""
        session = self._sessions.get(report.session)
        if session is None:
            session = self._begin(report)
        if not session.over:
            self._add(session, session.story.feed(report))
        elif report.event == "link-disconnect":
            self._sessions.pop(report.session, None)

    def _begin(self, report: Report) -> Session:
        if len(self._sessions) >= _SESSIONS:
            oldest = next(iter(self._sessions.values()))
            self._finish(oldest)
            self._sessions.pop(oldest.verdict.session, None)
        values = fields(report) if report.event == "link-connect" else {}
        verdict = Verdict(report.session, report.time, values.get("src", ""))
        session = self._sessions[report.session] = Session(verdict)
        self.totals.sessions += 1
        return session

    def _add(self, session: Session, steps: list[Step]) -> None:
        session.steps.extend(steps)
        self._held += len(steps)
        if session.waiting is None and steps:
            self._ready.append(session)

    def _advance(self, session: Session) -> None:
        """Send what can be sent."""
        while session.steps and session.waiting is None:
            step = session.steps.popleft()
            self._held -= 1
            if isinstance(step, Report):
                self._event(session, step)
            elif isinstance(step, Ask):
                self._question(session, step)
            else:
                self._lines(session, step)

    def _event(self, session: Session, report: Report) -> None:
        if report.event == "filter-response":
            report = _with_text(report, session.response(report.text))
        self._tell(report)
        if report.event == "link-disconnect":
            self._finish(session)

    def _tell(self, report: Report) -> None:
        self._asked.hears_of(report.session, _TELLER)
        if f"{report.subsystem} {report.event}" in self._protocol.events:
            self._process.write(self._protocol.write(_with_text(report, report.text)))
            self.totals.events += 1
        if report.event == "link-disconnect":
            self._asked.ends(report.session)

    def _question(self, session: Session, ask: Ask) -> None:
        if ask.phase not in self._protocol.phases:
            return
        token = self._expect(session, ask)
        question = Question(ask.phase, session.verdict.session, token, ask.time, _clean(ask.param))
        self._asked.question(question, _TELLER, session.since)
        self._process.write(self._protocol.write(question))

    def _lines(self, session: Session, step: Message) -> None:
        if Phase.DATA_LINE not in self._protocol.phases:
            return
        data = self._message if self._message is not None else specimen(step.known, step.time)
        data = received(step.known, step.time, self._hostname) + data
        token = self._expect(session, step)
        session.verdict.messages.append(Filtered(data))
        lines = Lines(session.verdict.session, token, step.time, data, True)
        self._asked.lines(lines, _TELLER, session.since)
        self._process.write(self._protocol.write(lines))

    def _expect(self, session: Session, step: Ask | Message) -> int:
        session.expect(step, next(self._counter) * _GOLDEN % (1 << 64), self._clock())
        self.totals.questions += 1
        return session.token

    # -- listening

    async def _listen(self) -> None:
        try:
            while data := await self._process.read():
                *lines, self._part = (self._part + data).split(b"\n")
                for line in lines:
                    self._line += 1
                    self._hear(line + b"\n")
                if len(self._part) > MAX_LINE:
                    self._fault(b"", f"wrote more than {MAX_LINE} bytes without an end of line")
                    break
                if self._process.pending > _UNREAD:
                    self._gone = "the filter reports more than it reads"
                    self._process.hang_up()
                    return
                self._wake.set()
            self._gone = "the filter ended, or closed its output"
        finally:
            self._gone = self._gone or "it is not listened to any more"
            self._wake.set()

    def _hear(self, line: bytes) -> None:
        try:
            for heard in self._protocol.receive(line):
                if isinstance(heard, Result):
                    self._decided(heard)
                elif isinstance(heard, Output):
                    self._output(heard)
                elif isinstance(heard, Said):
                    self._said(heard)
                else:
                    assert isinstance(heard, Heard)
        except Violation as violation:
            self._fault(line, str(violation))

    def _decided(self, result: Result) -> None:
        session = self._waiting(result)
        if self._asked.result(result) is None or session is None or not isinstance(session.waiting, Ask):
            self.totals.ignored += 1
            return
        ask = session.waiting
        if fault := fault_of(ask.phase, result):
            raise Violation(fault)
        answer = f"{result.decision}|{result.param}" if result.param else str(result.decision)
        self._answered(session, answer)
        session.decide(ask, answer)
        reply = ends_session(ask.phase, answer)
        if reply is not None and answer != ask.then:  # where it was sent away then, what came of that is in the log
            self._held -= len(session.steps)
            self._add(session, session.send_away(ask, reply))
        session.verdict.ended |= reply is not None

    def _answered(self, session: Session, answer: str) -> None:
        """The question is settled, "" where nothing came that counts: what waited goes on."""
        self.totals.longest = max(self.totals.longest, self._clock() - session.since)
        decided = session.settle(answer, self._clock())
        if decided is not None:
            self.totals.differences += decided.differs
        self._ready.append(session)

    def _waiting(self, answer: Result | Output) -> Session | None:
        """The session that waits for this answer; None: it does not any more."""
        session = self._sessions.get(answer.session)
        return session if session is not None and session.waiting and session.token == answer.token else None

    def _output(self, output: Output) -> None:
        session = self._waiting(output)
        if self._asked.output(output, self._clock()) is None or session is None:
            self.totals.ignored += 1
            return
        filtered = session.verdict.messages[-1]
        filtered.add(output.data)
        if output.last:
            filtered.finish()
            self._answered(session, "")

    def _said(self, said: Said) -> None:
        session = self._sessions.get(said.session)
        if session is None:
            self.totals.ignored += 1
            return
        session.verdict.report(said.text)
        self._tell(Report(SMTP_IN, "filter-report", said.session, said.time, f"proc|replayed|{said.text}"))

    # -- what goes wrong, and ends

    def _fault(self, line: bytes, text: str) -> None:
        """Say it, and let the session go on that it was about."""
        self.totals.faults += 1
        self._complain(f"line {self._line} of the filter: {text}")
        for number in _NAMED.findall(line):
            session = self._sessions.get(int(number, 16))
            if session is not None and session.waiting is not None:
                self._answered(session, "")

    def _give_up(self) -> None:
        """Answers that are due."""
        for number, phase in self._asked.give_up(self._clock() - self._timeout):
            session = self._sessions.get(number)
            # One that a faulty answer settled is asked something else by now.
            if session is not None and session.waiting is not None and _phase(session.waiting) == phase:
                self.totals.faults += 1
                self._complain(f"session {number:016x}: {phase} was not answered within {self._timeout:g} s")
                self._answered(session, "")

    def _finish(self, session: Session) -> None:
        """The session is over. One that the filter ended is kept in mind until it ends in the log as well."""
        session.waiting = None
        self._held -= len(session.steps)
        session.steps.clear()
        if not session.over:
            self._sessions.pop(session.verdict.session, None)
        if not session.told:
            session.told = True
            self._finished(session.verdict)


def _phase(waiting: Ask | Message) -> Phase:
    return waiting.phase if isinstance(waiting, Ask) else Phase.DATA_LINE


def _clean(text: str) -> str:
    """As the server has it: without bytes that are no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _with_text(report: Report, text: str) -> Report:
    text = _clean(text)
    if text == report.text:
        return report
    return Report(report.subsystem, report.event, report.session, report.time, text)
