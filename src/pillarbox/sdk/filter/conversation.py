"""The conversation of a filter with its server: bytes in, handlers called, bytes out. Does no I/O of its own.

What comes for one session is done in order, one thing after the other. Where a handler is asynchronous, a task does it,
and all that comes for the session meanwhile waits behind; other sessions go on. Where none is, it is done in place.
"""

import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic

from pillarbox.sdk.filter import protocol
from pillarbox.sdk.filter.decisions import Decision, Verb, disconnect, proceed, reject
from pillarbox.sdk.filter.events import NAMES, Event, parse_event
from pillarbox.sdk.filter.hooks import Handler, Handlers
from pillarbox.sdk.filter.protocol import ADDRESSES, ARGUMENTS, SMTP_IN, Dialect, Phase, Question, dialect
from pillarbox.sdk.filter.session import REMEMBERED, S, Session
from pillarbox.sdk.filter.stream import Place, Room, Stage, build_stages, call
from pillarbox.sdk.wire import Blocks, ProtocolError

MAX_BACKLOG = 16 << 20  # bytes that wait behind handlers before no more is read
MAX_REPORT = 1000  # characters: OpenSMTPD ends when a report is longer than 2 KB
ON_ERROR = reject("451 4.3.0 Temporary failure in a filter, try again later")
_BARE = {Phase.DATA, Phase.COMMIT, Phase.RSET, Phase.QUIT}  # no argument: the handler gets the session alone

Work = tuple[Callable[..., Coroutine[Any, Any, None]], tuple[Any, ...], int]  # what to do, with what, its size

_log = logging.getLogger("pillarbox.sdk.filter")


class FilterError(Exception):
    """The filter cannot work at all. The text is for the server's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a filter does its work. Raises ValueError where `on_error` cannot be said everywhere.

    `on_error`: the answer when a handler raises, or is not done after `deadline` seconds (Pillarbox waits 60); when it
    was about a message, it is said at commit. `threads`: so many for plain functions; 0: they are called in the loop.
    `remember=False`: register nothing for the sake of `session`, which then knows little. `max_sessions`: of more, the
    one that was silent for longest is forgotten. `memory`: bytes of all messages that handlers want whole.
    """

    on_error: Decision = ON_ERROR
    deadline: float = 50.0
    threads: int = 0
    remember: bool = True
    max_sessions: int = 50_000
    memory: int = 256 << 20

    def __post_init__(self) -> None:
        if self.on_error.verb not in (Verb.REJECT, Verb.DISCONNECT, Verb.PROCEED):
            raise ValueError(f"on_error cannot be {self.on_error.verb}: only reject, disconnect or proceed")


@dataclass(slots=True)
class Track(Generic[S]):
    """A session and what is under way for it. `waiting`: behind the task that works for it; None: no task does."""

    session: Session[S]
    streams: dict[str, list[Stage]] = field(default_factory=dict)  # by token: a filter can be in a chain twice
    verdict: Decision | None = None  # to be said at commit
    waiting: deque[Work] | None = None

    def close(self) -> None:
        """The session is over."""
        for stages in self.streams.values():
            for stage in stages:
                stage.close()
        self.streams.clear()


class Conversation(Generic[S]):
    """`config` takes what the server says about itself. `spawn` starts a task; `wake` says that it wrote something.

    `failed` is told of exceptions of handlers, and where.
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
    ) -> None:
        self._handlers = handlers
        self._config = config
        self._options = options
        self._state = state
        self._spawn = spawn
        self._wake = wake
        self._failed = failed or _log_failure
        self._blocks = Blocks()
        self._out: list[str] = []
        self._held: list[str] = []  # what came before `start` was done
        self._starting = self._ready = False
        self._tracks: dict[str, Track[S]] = {}  # least recently used first
        self._room = Room(options.memory)
        self._backlog = 0
        self._told: dict[tuple[str, str], list[Handler]] = {}
        self._asynchronous: set[str | tuple[str, str]] = set()  # phases and events that a task is needed for

    @property
    def full(self) -> bool:
        """So much waits for handlers that no more should be read."""
        return self._backlog > MAX_BACKLOG

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._starting and all(track.waiting is None for track in self._tracks.values())

    @property
    def sessions(self) -> list[Session[S]]:
        """Those that are remembered."""
        return [track.session for track in self._tracks.values()]

    def take(self) -> bytes:
        """What is to be written."""
        out, self._out = self._out, []
        if not out:
            return b""
        out.append("")
        return "\n".join(out).encode(errors="surrogateescape")

    def feed(self, data: bytes) -> None:
        """What was read. Raises ProtocolError, FilterError, and what `start` does, in the handshake only."""
        cut, lines = self._blocks.feed(data)
        if cut is not None:
            self._take_cut(cut)
        if not self._ready:
            lines = self._greet(lines)
        self._read(lines)

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
                self._config[key] = f"{self._config[key]} {value}" if key in self._config else value
            if key == "ready":
                return self._begin(lines[at + 1 :])
        return []

    def _begin(self, rest: list[str]) -> list[str]:
        start = self._handlers.start
        if start is not None and inspect.iscoroutinefunction(start):
            self._starting, self._held = True, rest
            self._spawn(self._start())
            return []
        if start is not None:
            start()
        self._register()
        return rest

    async def _start(self) -> None:
        assert self._handlers.start is not None
        started = self._handlers.start()
        assert started is not None
        await started
        self._register()
        self._starting = False
        held, self._held = self._held, []
        self._read(held)
        self._wake()

    def _register(self) -> None:
        """Say what there are handlers for, and what is needed to know the sessions."""
        if self._options.threads:
            pool = ThreadPoolExecutor(self._options.threads, "handler")
            self._handlers = self._handlers.in_threads(pool)
        handlers = self._handlers
        phases = [phase for phase in Phase if handlers.questions.get(phase)]
        if handlers.of_messages():
            # At commit the message is decided about, or refused when a handler failed.
            phases += [Phase.DATA_LINE, *([] if Phase.COMMIT in phases else [Phase.COMMIT])]
        wanted = {key for key, functions in handlers.events.items() if functions}
        if not phases and not wanted:
            raise FilterError("there is no handler: nothing would reach this filter")
        for subsystem in {subsystem for subsystem, _ in wanted} | ({SMTP_IN} if phases else set()):
            names = REMEMBERED if self._options.remember else ("link-disconnect",)
            if subsystem in (SMTP_IN, protocol.SMTP_OUT):
                wanted |= {(subsystem, name) for name in names}
        self._out += protocol.register(phases, _in_order(wanted))
        self._index(phases)
        self._ready = True

    def _index(self, phases: list[Phase]) -> None:
        handlers = self._handlers
        for subsystem in {subsystem for subsystem, _ in handlers.events}:
            every = handlers.events.get((subsystem, "*"), [])
            names = {name for other, name in handlers.events if other == subsystem}
            for name in {*NAMES, *names}:
                functions = [*handlers.events.get((subsystem, name), []), *(every if name != "*" else [])]
                self._told[subsystem, name] = functions
                if _any_asynchronous(functions):
                    self._asynchronous.add((subsystem, name))
        for phase in phases:
            asked = handlers.of_messages() if phase == Phase.DATA_LINE else handlers.questions.get(phase, [])
            if _any_asynchronous(asked):
                self._asynchronous.add(phase)

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
            except (ProtocolError, IndexError) as error:
                # Not the end: a filter that ends takes OpenSMTPD with it.
                _log.error("not understood: %.80r: %s", line, error)
            at += 1

    def _take_event(self, fields: list[str]) -> None:
        _, version, when, subsystem, name, session = fields[:6]
        event = parse_event(dialect(version), when, subsystem, name, session, fields[6] if len(fields) > 6 else None)
        track = self._track(session, subsystem)
        self._submit(track, (subsystem, name), (self._tell, (track, event), 200))

    def _take_question(self, fields: list[str]) -> None:
        _, version, _, subsystem, phase, session, token = fields[:7]
        question = Question(dialect(version), phase, session, token, fields[7] if len(fields) > 7 else "")
        track = self._track(session, subsystem)
        self._submit(track, phase, (self._answer, (track, question), 200))

    def _take_lines(self, lines: list[str], at: int, fields: list[str]) -> int:
        """The lines of one message from this one on; where what follows begins. Raises ProtocolError, IndexError."""
        _, version, when, subsystem, _, session, token, _ = fields
        words = dialect(version)
        # The time differs from line to line; what is behind it does not, nor does its length for the next 250 years.
        start = 8 + len(version) + len(when)
        mark = f"|{subsystem}|data-line|{session}|{token}|"
        width = start + len(mark)
        payload: list[str] = []
        ended = False
        while at < len(lines) and not ended and lines[at][start:width] == mark:
            text = lines[at][width:]
            at += 1
            if text[:1] != ".":
                payload.append(text)
            elif text != ".":
                payload.append(text[1:])
            else:
                ended = True
        track = self._track(session, subsystem)
        size = sum(map(len, payload)) if track.waiting is not None else 0
        self._submit(track, Phase.DATA_LINE, (self._pass, (track, token, words, payload, ended), size))
        return at

    def _take_cut(self, start: str) -> None:
        """A line that was too long for us."""
        _log.error("a line of more than %d bytes was cut: %.80r", self._blocks.limit, start)
        fields = start.split("|", 7)
        if fields[0] == "filter" and len(fields) == 8 and self._ready:
            track = self._track(fields[5], fields[3])
            if fields[4] == "data-line":
                track.verdict = self._options.on_error
            self._read([start])

    def _track(self, session: str, subsystem: str) -> Track[S]:
        track = self._tracks.pop(session, None)
        if track is None:
            known = Session(id=session, subsystem=subsystem, state=self._state(), report=self._report)
            track = Track(known)
            if len(self._tracks) >= self._options.max_sessions:
                self._forget()
        self._tracks[session] = track
        return track

    def _forget(self) -> None:
        """Its end was never told: the session that was silent for longest and that nothing is under way for."""
        for key, track in self._tracks.items():
            if track.waiting is None and not track.streams and track.verdict is None:
                _log.warning("more than %d sessions: %s is forgotten", self._options.max_sessions, key)
                del self._tracks[key]
                return

    # What is done about it

    def _submit(self, track: Track[S], kind: str | tuple[str, str], work: Work) -> None:
        if track.waiting is not None:
            track.waiting.append(work)
            self._backlog += work[2]
        elif kind in self._asynchronous:
            track.waiting = deque()
            self._spawn(self._work(track, work))
        else:
            _finish(work[0](*work[1]))

    async def _work(self, track: Track[S], work: Work) -> None:
        """Do this, and what comes for the session meanwhile."""
        assert track.waiting is not None
        try:
            while True:
                await work[0](*work[1])
                self._wake()
                if not track.waiting:
                    return
                work = track.waiting.popleft()
                self._backlog -= work[2]
        finally:
            track.waiting = None

    async def _tell(self, track: Track[S], event: Event) -> None:
        session = track.session
        session.remember(event)
        name = getattr(event, "event", event.name)
        key = (event.subsystem, name)
        functions = self._told.get(key)
        if functions is None:
            functions = self._told.get((event.subsystem, "*"), []) or self._handlers.events.get(
                (event.subsystem, "*"), []
            )
        for handler in functions:
            try:
                await call(handler, self._options.deadline, session, event)
            except Exception as error:  # noqa: BLE001 - the author's code: a fault in it must not end the filter
                self._failed(f"{name} of session {session.id}", error)
        if name == "link-disconnect":
            track.close()
            if self._tracks.get(session.id) is track:
                del self._tracks[session.id]

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
        if question.phase == Phase.COMMIT and track.verdict is not None:
            verdict, track.verdict = track.verdict, None
            return verdict
        args = () if question.phase in _BARE else (_argument(session, question),)
        for handler in self._handlers.questions.get(question.phase, ()):
            decision = await call(handler, self._options.deadline, session, *args)
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
            track.streams[token] = stages = self._build_stages(track)
        for stage in stages:
            lines = await stage.feed(lines)
        if ended:
            for at, stage in enumerate(stages):
                rest = await stage.end()
                for later in stages[at + 1 :]:
                    rest = await later.feed(rest)
                lines = [*lines, *rest]
            if track.streams.pop(token, None) is None:
                return  # the session ended meanwhile
        prefix = protocol.data_prefix(words, track.session.id, token)
        if lines:
            self._out.append(protocol.data_lines(prefix, lines))
        if ended:
            self._out.append(f"{prefix}.")

    def _build_stages(self, track: Track[S]) -> list[Stage]:
        session = track.session

        def decide(decision: Decision) -> None:
            if track.verdict is None:
                track.verdict = decision

        def failed(error: Exception) -> None:
            self._failed(f"message {session.msgid} of session {session.id}", error)
            track.verdict = self._options.on_error

        place = Place(session, self._room, self._options.deadline, decide, failed)
        return build_stages(self._handlers, place)

    def _report(self, session: Session[S], text: str) -> None:
        if session.subsystem != SMTP_IN:
            _log.warning("a report about a session of %s cannot be made: %s", session.subsystem, text)
            return
        line = " ".join(text.replace("\0", " ").split())[:MAX_REPORT]
        self._out.append(protocol.report_line(time.time(), session.subsystem, session.id, line))


def _finish(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError("a handler that waits must be an `async def`")


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


def _in_order(events: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """As the manual has them; where every event is wanted, only that is said."""
    rank = {name: at for at, name in enumerate(NAMES)}
    whole = {subsystem for subsystem, name in events if name == "*"}
    kept = [(subsystem, name) for subsystem, name in events if subsystem not in whole or name == "*"]
    return sorted(kept, key=lambda event: (event[0], rank.get(event[1], len(rank)), event[1]))


def _any_asynchronous(handlers: list[Handler]) -> bool:
    return any(handler.asynchronous for handler in handlers)


def _log_failure(where: str, error: Exception) -> None:
    _log.error("a handler failed: %s", where, exc_info=error)
