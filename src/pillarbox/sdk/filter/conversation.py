"""The conversation of a filter with its server: bytes in, handlers called, bytes out. Does no I/O of its own.

What comes for one session is done in order, one thing after the other. Where a handler is asynchronous, a task does it,
and all that comes for the session meanwhile waits behind; other sessions go on. Where none is, it is done in place.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic

from pillarbox.sdk.filter import protocol
from pillarbox.sdk.filter.decisions import REFUSALS, Decision, Verb, disconnect, proceed
from pillarbox.sdk.filter.events import Event, parse_event
from pillarbox.sdk.filter.hooks import Handlers
from pillarbox.sdk.filter.options import Options
from pillarbox.sdk.filter.protocol import ADDRESSES, ARGUMENTS, BARE, SMTP_IN, Dialect, Phase, Question, dialect
from pillarbox.sdk.filter.registry import Registry
from pillarbox.sdk.filter.session import S, Session
from pillarbox.sdk.filter.stream import Place, Room, Stage, build_stages, call, footprint
from pillarbox.sdk.filter.tracks import Track, Tracks, Work
from pillarbox.sdk.wire import Blocks, ProtocolError

MAX_REPORT = 1000  # characters
LONG = 1.0  # seconds that handlers may keep everything else waiting before the log says so

_NO_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte

_log = logging.getLogger("pillarbox.sdk.filter")


class Conversation(Generic[S]):
    """`config` takes what the server says about itself. `spawn` starts a task; `wake` says that it wrote something.

    `failed` is told of exceptions of handlers, and where. `drained` waits until most of what was written is read.
    """

    def __init__(
        self,
        *,
        handlers: Handlers,
        config: dict[str, str],
        options: Options,
        state: Callable[[], S],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        wake: Callable[[], None],
        failed: Callable[[str, Exception], None] | None = None,
        drained: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._handlers = handlers
        self._config = config
        self._options = options
        self._state = state
        self._spawn = spawn
        self._wake = wake
        self._failed = failed or _log_failure
        self._drained = drained
        self._blocks = Blocks()
        self._out: list[str] = []
        self._reports: deque[str] = deque()  # from threads, too
        self._held: list[str] = []  # what came before `start` was done
        self._starting = self._ready = False
        self._tracks = Tracks(limit=options.max_sessions, start=self._new_session)
        self._room = Room(options.memory)
        self._backlog = 0  # bytes that wait behind handlers
        self._working = 0  # tasks
        self._pool: ThreadPoolExecutor | None = None
        self._registry: Registry

    @property
    def full(self) -> bool:
        """So much waits for handlers that no more should be read."""
        return self._backlog > self._options.memory

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._starting and not self._working

    @property
    def sessions(self) -> list[Session[S]]:
        """Those that are remembered."""
        return [track.session for track in self._tracks]

    def take(self) -> bytes:
        """What is to be written."""
        out, self._out = self._out, []
        while self._reports:
            out.insert(0, self._reports.pop())
        if not out:
            return b""
        out.append("")
        try:
            return "\n".join(out).encode(errors="surrogateescape")
        except UnicodeEncodeError as error:  # surrogates of a handler's that stand for no bytes
            _log.error("written with ? for what cannot be: %s", error)
            return _NO_BYTES.sub("?", "\n".join(out)).encode(errors="surrogateescape")

    def feed(self, data: bytes) -> None:
        """What was read. Raises ProtocolError, FilterError, and what `start` does, in the handshake only."""
        cut, lines = self._blocks.feed(data)
        if cut is not None:
            self._take_cut(cut)
        if not self._ready:
            lines = self._greet(lines)
        began = time.monotonic()
        self._read(lines)
        if (took := time.monotonic() - began) > LONG:
            _log.warning(
                "plain functions took %.1f s, and nothing else ran: make them async, or Filter(threads=…)", took
            )

    def close(self) -> None:
        """It is over: threads need not wait for more."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    # The handshake

    def _greet(self, lines: list[str]) -> list[str]:
        if self._starting:
            self._held += lines
            return []
        for at, line in enumerate(lines):
            kind, _, rest = line.partition("|")
            if kind != "config":
                raise ProtocolError(f"not a line of the handshake: {line[:80]!r}")
            key, bar, value = rest.partition("|")
            if key == "protocol":
                dialect(value)
            if bar:
                known = self._config.get(key) if key == "subsystem" else None  # there are several
                self._config[key] = f"{known} {value}" if known else value
            if key == "ready":
                return self._begin(lines[at + 1 :])
        return []

    def _begin(self, rest: list[str]) -> list[str]:
        started = None if self._handlers.start is None else self._handlers.start()
        if started is not None:
            self._starting, self._held = True, rest
            self._spawn(self._start(started))
            return []
        self._register()
        return rest

    async def _start(self, started: Awaitable[None]) -> None:
        await started
        self._register()
        self._starting = False
        held, self._held = self._held, []
        self._read(held)
        self._wake()

    def _register(self) -> None:
        handlers = self._handlers.copy()
        if self._options.threads:
            self._pool = ThreadPoolExecutor(self._options.threads, "handler")
            handlers = handlers.in_threads(self._pool)
        subsystems = self._config.get("subsystem", "").split()
        self._registry = Registry(handlers, remember=self._options.remember, subsystems=subsystems)
        self._out += self._registry.lines()
        self._ready = True

    # What comes

    def _read(self, lines: list[str]) -> None:
        at = 0
        while at < len(lines):
            line = lines[at]
            try:
                if line.startswith("filter|"):
                    fields = line.split("|", 7)
                    if fields[4] == "data-line":
                        at = self._take_lines(lines, at, fields)
                        continue
                    self._take_question(fields)
                elif line.startswith("report|"):
                    self._take_event(line.split("|", 6))
                else:
                    raise ProtocolError("neither an event nor a request")
            except (ProtocolError, ValueError, IndexError) as error:
                # Not the end: a filter that ends takes OpenSMTPD with it.
                _log.error("not understood: %.80r: %s", line, error)
            at += 1

    def _take_event(self, fields: list[str]) -> None:
        _, version, when, subsystem, name, session = fields[:6]
        event = parse_event(dialect(version), when, subsystem, name, session, fields[6] if len(fields) > 6 else None)
        track = self._tracks.get(session, subsystem)
        self._submit(track, (subsystem, name), (self._tell, (track, event), 200))

    def _take_question(self, fields: list[str]) -> None:
        _, version, _, subsystem, phase, session, token = fields[:7]
        question = Question(dialect(version), phase, session, token, fields[7] if len(fields) > 7 else "")
        track = self._tracks.get(session, subsystem)
        self._submit(track, phase, (self._answer, (track, question), 200))

    def _take_lines(self, lines: list[str], at: int, fields: list[str]) -> int:
        """The lines of one message from this one on; where what follows begins. Raises ProtocolError, ValueError."""
        _, version, when, subsystem, _, session, token, text = fields
        words = dialect(version)
        start = len(f"filter|{version}|{when}")
        payload, ended = protocol.parse_run(lines, at, start, lines[at].removesuffix(text))
        track = self._tracks.get(session, subsystem)
        size = footprint(payload) if track.waiting is not None else 0
        self._submit(track, Phase.DATA_LINE, (self._pass, (track, token, words, payload, ended), size))
        return at + len(payload) + ended

    def _take_cut(self, start: str) -> None:
        """A line that was too long for us."""
        _log.error("a line of more than %d bytes was cut: %.80r", self._blocks.limit, start)
        fields = start.split("|", 7)
        if fields[0] == "filter" and len(fields) == 8 and self._ready:
            self._read([start])
            if fields[4] == "data-line":
                track = self._tracks.get(fields[5], fields[3])
                self._submit(track, Phase.DATA_LINE, (self._cut, (track, fields[6]), 0))

    def _new_session(self, session: str, subsystem: str) -> Session[S]:
        state: Any = None  # where there is none, the handlers fail, and are answered for, one by one
        try:
            state = self._state()
        except Exception as error:  # noqa: BLE001 - the author's code
            self._failed(f"state of session {session}", error)
        return Session(id=session, subsystem=subsystem, state=state, report=self._report)

    # What is done about it

    def _submit(self, track: Track[S], kind: str | tuple[str, str], work: Work) -> None:
        if track.waiting is not None:
            # The server counts from now on, however long it waits here.
            track.waiting.append((work, time.monotonic() + self._options.deadline))
            self._backlog += work[2]
        elif self._registry.needs_task(kind):
            track.waiting = deque()
            track.until = time.monotonic() + self._options.deadline
            self._working += 1
            self._spawn(self._work(track, work))
        else:
            _finish(work[0](*work[1]))

    async def _work(self, track: Track[S], work: Work) -> None:
        """Do this, and what comes for the session meanwhile."""
        assert track.waiting is not None
        try:
            while True:
                await work[0](*work[1])
                if not track.waiting:
                    return
                self._wake()
                work, track.until = track.waiting.popleft()
                self._backlog -= work[2]
        finally:
            track.waiting = None
            self._working -= 1
            self._wake()

    async def _tell(self, track: Track[S], event: Event) -> None:
        session = track.session
        session.remember(event)
        name = getattr(event, "event", event.name)
        for handler in self._registry.told((event.subsystem, name)):
            try:
                # For an event nobody waits: it has its time from here.
                await call(handler, time.monotonic() + self._options.deadline, session, event)
            except Exception as error:  # noqa: BLE001 - the author's code: a fault in it must not end the filter
                self._failed(f"{name} of session {session.id}", error)
        if name == "tx-begin":
            track.verdicts.clear()  # of a message that never came to commit
        elif name == "link-disconnect":
            self._tracks.drop(track)

    async def _answer(self, track: Track[S], question: Question) -> None:
        try:
            decision = await self._decide(track, question)
            line = protocol.answer(question, self._fitting(track.session, question, decision))
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(f"{question.phase} of session {track.session.id}", error)
            line = protocol.answer(question, self._on_error(question.phase))
        self._out.append(line)

    async def _decide(self, track: Track[S], question: Question) -> Decision:
        session = track.session
        if question.phase == Phase.COMMIT and track.verdicts:
            verdicts = list(track.verdicts.values())
            track.verdicts.clear()
            return next((verdict for verdict in verdicts if verdict.verb in REFUSALS), verdicts[0])
        args = () if question.phase in BARE else (_argument(session, question),)
        for handler in self._registry.asked(question.phase):
            decision = await call(handler, track.until, session, *args)
            if decision is not None:
                if not isinstance(decision, Decision):
                    raise TypeError(f"neither a decision nor None: {decision!r:.80}")
                return decision
        return proceed()

    def _fitting(self, session: Session[S], question: Question, decision: Decision) -> Decision:
        """Where "report" would not do what it says, report and proceed."""
        if decision.verb is Verb.REPORT and (question.phase in ARGUMENTS or not question.dialect.reports):
            self._report(session, decision.text)
            return proceed()
        return decision

    def _on_error(self, phase: str) -> Decision:
        decision = self._options.on_error
        if phase == Phase.CONNECT and decision.verb is Verb.REJECT:
            return disconnect(decision.text)  # the reference goes on with a session that was rejected here
        return decision

    async def _pass(self, track: Track[S], token: str, words: Dialect, lines: list[str], ended: bool) -> None:
        """Some lines of a message, and perhaps its end."""
        stages = track.streams.get(token)
        if stages is None:
            track.streams[token] = stages = self._build_stages(track, token)
        prefix = protocol.data_prefix(words, track.session.id, token)
        await self._give(prefix, stages, lines)
        if ended:
            for at, stage in enumerate(stages, 1):
                for rest in await stage.end():
                    await self._give(prefix, stages[at:], rest)
                    if self._drained is not None and track.waiting is not None:  # in a task
                        await self._drained()
            if track.streams.pop(token, None) is not None:  # else the session ended meanwhile
                self._out.append(f"{prefix}.")

    async def _give(self, prefix: str, stages: list[Stage], lines: list[str]) -> None:
        """What these stages make of some lines is written."""
        for stage in stages:
            lines = await stage.feed(lines)
        if lines:
            self._out.append(protocol.data_lines(prefix, lines))

    async def _cut(self, track: Track[S], token: str) -> None:
        self._refuse(track, token)

    def _refuse(self, track: Track[S], token: str) -> None:
        """A message that handlers did not see as it is. Who lets such messages pass undoes no decision about them."""
        given = track.verdicts.get(token)
        if self._options.on_error.verb in REFUSALS and (given is None or given.verb not in REFUSALS):
            track.verdicts[token] = self._options.on_error

    def _build_stages(self, track: Track[S], token: str) -> list[Stage]:
        session = track.session
        track.verdicts.pop(token, None)  # of a message that never came to commit

        def decide(decision: Decision) -> None:
            track.verdicts.setdefault(token, decision)

        def failed(error: Exception) -> None:
            self._failed(f"message {session.msgid} of session {session.id}", error)
            self._refuse(track, token)

        def unseen(why: str) -> None:
            _log.error("message %s of session %s was not looked at: %s", session.msgid, session.id, why)
            self._refuse(track, token)

        place = Place(session, self._room, lambda: track.until, decide, failed, unseen)
        return build_stages(self._registry.handlers, place)

    def _report(self, session: Session[S], text: str) -> None:
        line = " ".join(text.replace("\0", " ").split())[:MAX_REPORT]
        # OpenSMTPD up to 7.8 at least ends with "unexpected direction" when a filter writes a report.
        if session.subsystem == SMTP_IN and "report" in self._config.get("accepts", "").split():
            self._reports.append(protocol.report_line(time.time(), session.subsystem, session.id, line))
            with contextlib.suppress(RuntimeError):  # in a thread, at whose end it is written
                asyncio.get_running_loop()
                self._wake()
        else:
            _log.info("session %s: %s", session.id, line)


def _finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("it was to wait for nothing")


def _argument(session: Session[Any], question: Question) -> str:
    """What the handler gets beside the session."""
    value = question.param
    if question.phase == Phase.CONNECT:
        rdns, _, address = value.rpartition("|")
        value = address.strip("[]")
        if not session.src:  # no link-connect was registered
            session.rdns, session.src = rdns, address
    elif question.phase in ADDRESSES:
        value = value.removeprefix("<").removesuffix(">")
    return value


def _log_failure(where: str, error: Exception) -> None:
    _log.error("a handler failed: %s", where, exc_info=error)
