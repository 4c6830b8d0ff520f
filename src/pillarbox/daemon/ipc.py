"""Calls between roles: typed, length-prefixed MessagePack frames over a socketpair, many a write.

An `Interface` is made of a `roles` Protocol once: every method gets a number and typed codecs, so a proxy and a
server are generic. Frame: length (of what follows), kind, call id, method, then the arguments or the result.
Reading never waits for writing; calls in flight per peer are bounded, and what a peer has not read; each call has a
deadline and can be cancelled; a dead peer is a `TempFail`; a bad frame ends the peer. `wiring` says who may call what.
"""

import asyncio
import inspect
import itertools
import struct
import typing
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import Any, cast

import msgspec

from pillarbox.errors import NoSpace, PermFail, PillarboxError, TempFail
from pillarbox.log import Log

_HEADER = struct.Struct(">IBIH")
_LENGTH = struct.Struct(">I")
_CALL, _REPLY, _FAILED, _CANCEL = range(4)
_FAILURES: tuple[type[PillarboxError], ...] = (TempFail, PermFail, NoSpace)  # the first byte of a failure says which

MAX_FRAME = 64 * 1024 * 1024
MAX_PAYLOAD = MAX_FRAME - _HEADER.size
MAX_CALLS = 4096  # in flight to one peer; further callers wait
UNREAD = 8 * 1024 * 1024  # bytes that a peer has not read, above which callers wait
UNREAD_MAX = 4 * MAX_FRAME  # and above which it is given up: answers do not wait
DEADLINE = 60.0  # seconds, where a method names none
_SWEEP = 1.0


class Method(msgspec.Struct):
    """One method of an interface: its number and codecs. `deadline` in seconds."""

    number: int
    service: str
    name: str
    arguments: msgspec.msgpack.Decoder[Any]
    result: msgspec.msgpack.Decoder[Any]
    deadline: float
    signature: Any  # inspect.Signature, for calls by keyword or with defaults
    arity: int


class Interface:
    """The methods of several Protocols, numbered. Both ends build it from the same source, so the numbers agree."""

    def __init__(self, services: Mapping[str, type], deadlines: Mapping[str, float] | None = None) -> None:
        self.methods: list[Method] = []
        self.by_service: dict[str, dict[str, Method]] = {}
        for service, protocol in services.items():
            names = [n for n, f in vars(protocol).items() if inspect.iscoroutinefunction(f)]
            self.by_service[service] = {}
            for name in names:
                method = _method(len(self.methods), service, name, getattr(protocol, name), deadlines or {})
                self.methods.append(method)
                self.by_service[service][name] = method


def _method(
    number: int, service: str, name: str, function: Callable[..., Any], deadlines: Mapping[str, float]
) -> Method:
    hints = typing.get_type_hints(function)
    returns = hints.pop("return")
    signature = inspect.signature(function)
    parameters = tuple(hints[p] for p in list(signature.parameters)[1:])
    arguments: Any = tuple[parameters] if parameters else tuple[()]  # type: ignore[valid-type]
    return Method(
        number,
        service,
        name,
        msgspec.msgpack.Decoder(arguments),
        msgspec.msgpack.Decoder(returns),
        deadlines.get(f"{service}.{name}", DEADLINE),
        signature,
        len(parameters),
    )


_encode = msgspec.msgpack.Encoder().encode
_Settled = tuple[Any, BaseException | None]  # what a call came to: its value, or why there is none


class Link(asyncio.Protocol):
    """One end of a connection to a peer role: serves its calls and carries ours.

    `serve` maps (service, method) to what is called; a call of anything else ends the peer. `lost` is called once when
    the peer is gone; `faulty` says then that it was alive, and sent or left unread what a healthy one never would.
    """

    def __init__(
        self,
        *,
        peer: str,
        interface: Interface,
        serve: Mapping[tuple[str, str], Callable[..., Awaitable[Any]]],
        log: Log,
        lost: Callable[["Link"], None] | None = None,
    ) -> None:
        self.peer = peer
        self._log = log
        self._lost = lost
        self._methods = interface.methods
        self._handlers = [serve.get((m.service, m.name)) for m in interface.methods]
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._output: list[bytes] = []
        self._calls: dict[int, tuple[asyncio.Future[_Settled], float, Method]] = {}
        self._waiting: dict[asyncio.Future[None], tuple[float, Method]] = {}
        self._unread = False  # the peer does not read fast enough
        self._serving: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self.closed = self.faulty = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socketpair is ours now."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=UNREAD)

    def pause_writing(self) -> None:
        """The peer does not read: new calls wait."""
        self._unread = True

    def resume_writing(self) -> None:
        """It reads again."""
        self._unread = False
        self._wake()

    def data_received(self, data: bytes) -> None:
        """Whole frames are handled at once; a partial one waits for its rest."""
        buffer: bytes | bytearray
        if self._input:
            self._input += data
            if len(self._input) < _LENGTH.size:
                return
            (length,) = _LENGTH.unpack_from(self._input)
            if len(self._input) < 4 + length <= 4 + MAX_FRAME:
                return
            buffer = self._input
        else:
            buffer = data
        done = 0
        try:
            with memoryview(buffer) as view:
                while len(view) - done >= _LENGTH.size:
                    (length,) = _LENGTH.unpack_from(view, done)
                    if not _HEADER.size - 4 <= length <= MAX_FRAME:
                        raise _BadFrame(f"length {length}")
                    end = done + 4 + length
                    if end > len(view):
                        break
                    _, kind, call, number = _HEADER.unpack_from(view, done)
                    with view[done + _HEADER.size : end] as payload:
                        self._frame(kind, call, number, payload)
                    done = end
        except (_BadFrame, msgspec.MsgspecError) as error:
            self._give_up(f"bad frame: {error}")
            return
        if buffer is self._input:
            del self._input[:done]
        elif done < len(data):
            self._input += data[done:] if done else data

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer is gone: what was asked of it fails, what it asked is cancelled."""
        self._end()

    # -- ours

    def _give_up(self, reason: str) -> None:
        self._log.warn(f"ipc: {self.peer}: {reason}")
        self.faulty = True
        self.close()

    def close(self) -> None:
        """End the link at once."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def _end(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for future, _, _ in self._calls.values():
            if not future.done():
                future.set_result((None, TempFail(f"{self.peer} is being restarted")))
        self._calls.clear()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        for task in list(self._serving.values()):
            task.cancel()
        if self._lost is not None:
            self._lost(self)

    def call(self, method: Method, arguments: tuple[Any, ...]) -> Awaitable[Any]:
        """Ask the peer; the answer is to be awaited, and comes by the deadline of the method.

        The question leaves now where there is room, not when the answer is awaited: the peer works meanwhile.
        """
        payload = _encode(arguments)
        deadline = self._loop.time() + method.deadline
        if self.closed or self._unread or len(self._calls) >= MAX_CALLS or len(payload) > MAX_PAYLOAD:
            return self._call_later(method, payload, deadline)
        return self._ask(method, payload, deadline)

    async def _call_later(self, method: Method, payload: bytes, deadline: float) -> Any:
        if len(payload) > MAX_PAYLOAD:
            raise TempFail(f"{method.service}.{method.name}: {len(payload)} bytes at once")
        while (self._unread or len(self._calls) >= MAX_CALLS) and not self.closed:
            await self._turn(deadline, method)
        if self.closed:
            raise TempFail(f"{self.peer} is being restarted")
        return await self._ask(method, payload, deadline)

    def _ask(self, method: Method, payload: bytes, deadline: float) -> "_Answer":
        self._next = call = (self._next + 1) & 0xFFFFFFFF
        future: asyncio.Future[_Settled] = self._loop.create_future()
        self._calls[call] = (future, deadline, method)
        self._watch_deadlines()
        self._send(_CALL, call, method.number, payload)
        return _Answer(self, call, method, future)

    def withdraw(self, call: int, method: Method) -> None:
        """Nobody waits for this answer any more: tell the peer."""
        if self._forget(call):
            self._send(_CANCEL, call, method.number, b"")

    async def _turn(self, deadline: float, method: Method) -> None:
        """Wait until there may be room for a call; TempFail at its deadline."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting[waiter] = deadline, method
        self._watch_deadlines()
        try:
            await waiter
        except asyncio.CancelledError:
            self._waiting.pop(waiter)
            self._wake()  # had it been our turn, it is another's
            raise
        finally:
            self._waiting.pop(waiter, None)

    def _wake(self) -> None:
        """Let those go on for whom there is room; who finds none after all waits again."""
        room = 0 if self._unread else MAX_CALLS - len(self._calls)
        for waiter in list(itertools.islice(self._waiting, max(0, room))):
            if not waiter.done():
                waiter.set_result(None)

    def _forget(self, call: int) -> "tuple[asyncio.Future[_Settled], float, Method] | None":
        entry = self._calls.pop(call, None)
        if self._waiting:
            self._wake()
        return entry

    def _watch_deadlines(self) -> None:
        """One timer for all deadlines of the link: a call ends at most a second late."""
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._loop.time()
        for call in [c for c, (_, deadline, _) in self._calls.items() if deadline <= now]:
            entry = self._forget(call)
            if entry and not entry[0].done():
                entry[0].set_result((None, self._no_answer(entry[2])))
                self._send(_CANCEL, call, entry[2].number, b"")
        for waiter, (deadline, method) in self._waiting.items():
            if deadline <= now and not waiter.done():
                waiter.set_exception(self._no_answer(method))
        if self._calls or self._waiting:
            self._watch_deadlines()

    def _no_answer(self, method: Method) -> TempFail:
        return TempFail(f"{self.peer} did not answer {method.service}.{method.name}")

    def _send(self, kind: int, call: int, number: int, payload: bytes) -> None:
        if self.closed:
            return
        if not self._output:
            self._loop.call_soon(self._flush)
        self._output.append(_HEADER.pack(len(payload) + _HEADER.size - 4, kind, call, number))
        self._output.append(payload)

    def _flush(self) -> None:
        if self._output and self._transport is not None and not self.closed:
            self._transport.writelines(self._output)
            if self._unread and self._transport.get_write_buffer_size() > UNREAD_MAX:
                self._give_up("it does not read what it is sent")
        self._output = []

    def _frame(self, kind: int, call: int, number: int, payload: memoryview) -> None:
        if kind == _CALL:
            self._serve(call, number, payload)
        elif kind == _CANCEL:
            task = self._serving.pop(call, None)
            if task is not None:
                task.cancel()
        else:
            entry = self._forget(call)
            if entry is None or entry[0].done():
                return  # cancelled, or past its deadline
            if kind == _REPLY:
                self._answered(*entry, payload)
            elif kind == _FAILED and len(payload) > 0 and payload[0] < len(_FAILURES):
                entry[0].set_result((None, _FAILURES[payload[0]](str(payload[1:], "utf-8", "replace"))))
            else:
                entry[0].set_result((None, self._no_answer(entry[2])))
                raise _BadFrame(f"kind {kind}")

    def _answered(self, future: "asyncio.Future[_Settled]", _: float, method: Method, payload: memoryview) -> None:
        try:
            future.set_result((method.result.decode(payload), None))
        except msgspec.MsgspecError:
            future.set_result((None, self._no_answer(method)))  # nobody else knows of it any more
            raise

    def _serve(self, call: int, number: int, payload: memoryview) -> None:
        handler = self._handlers[number] if number < len(self._handlers) else None
        if handler is None:
            name = self._methods[number].name if number < len(self._methods) else str(number)
            raise _BadFrame(f"{name} is not for {self.peer}")
        if call in self._serving:  # else one id for all of them would be no bound
            raise _BadFrame(f"call {call} twice")
        if len(self._serving) >= 2 * MAX_CALLS:
            raise _BadFrame(f"more than {2 * MAX_CALLS} calls at once")
        arguments = self._methods[number].arguments.decode(payload)
        try:
            answer = handler(*arguments)
        except Exception as error:  # noqa: BLE001 - one that fails before it waits is answered as one that fails later
            self._failed(call, number, error)
            return
        task = answer if isinstance(answer, asyncio.Future) else asyncio.ensure_future(answer)
        self._serving[call] = task
        task.add_done_callback(lambda t: self._served(call, number, t))

    def _served(self, call: int, number: int, task: "asyncio.Future[Any]") -> None:
        self._serving.pop(call, None)
        if task.cancelled():
            self._send(_FAILED, call, number, b"\0cancelled")
            return
        error = task.exception()
        method = self._methods[number]
        if error is None:
            try:
                payload = _encode(task.result())
            except (msgspec.MsgspecError, UnicodeError, TypeError, OverflowError) as unsendable:
                error = unsendable
            else:
                if len(payload) <= MAX_PAYLOAD:
                    self._send(_REPLY, call, number, payload)
                    return
                error = TempFail(f"{method.service}.{method.name}: an answer of {len(payload)} bytes")
        self._failed(call, number, error)

    def _failed(self, call: int, number: int, error: BaseException) -> None:
        known = _FAILURES.index(type(error)) if type(error) in _FAILURES else 0
        text = failure_text(self._methods[number], error, self._log)
        self._send(_FAILED, call, number, bytes([known]) + text.encode("utf-8", "replace"))


class _Answer:
    """The answer to a call that was made. Nothing is said where nobody awaits it: the caller has gone."""

    __slots__ = ("_call", "_future", "_link", "_method")

    def __init__(self, link: Link, call: int, method: Method, future: "asyncio.Future[_Settled]") -> None:
        self._link, self._call, self._method, self._future = link, call, method, future

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            value, error = yield from self._future
        except asyncio.CancelledError:
            self._link.withdraw(self._call, self._method)
            raise
        if error is not None:
            raise error
        return value


class _BadFrame(Exception):
    """What a healthy peer never sends."""


def failure_text(method: Method, error: BaseException, log: Log) -> str:
    """The text that crosses for a failed call; an unexpected exception is logged whole where it happened."""
    if isinstance(error, TempFail | PermFail):
        return str(error)
    log.exception(f"{method.service}.{method.name} failed", error)
    return f"internal error in {method.service}.{method.name}"


class Port:
    """Our side of a peer that may come and go: proxies hold the port, the daemon attaches links to it."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.link: Link | LocalLink | None = None

    def call(self, method: Method, arguments: tuple[Any, ...]) -> Awaitable[Any]:
        """Call over the current link; `TempFail` while there is none."""
        link = self.link
        if link is None or link.closed:
            return _unreachable(self.peer)
        return link.call(method, arguments)


async def _unreachable(peer: str) -> Any:
    raise TempFail(f"{peer} is being restarted")


class LocalLink:
    """The same calls within one process. Values are encoded and decoded all the same, so aliasing cannot hide."""

    closed = False

    def __init__(self, *, peer: str, serve: Mapping[tuple[str, str], Callable[..., Awaitable[Any]]], log: Log) -> None:
        self.peer = peer
        self._serve = serve
        self._log = log

    async def call(self, method: Method, arguments: tuple[Any, ...]) -> Any:
        """Run the method here; unexpected exceptions become `TempFail` as they would from a process."""
        handler = self._serve[(method.service, method.name)]
        try:
            async with asyncio.timeout(method.deadline):
                result = await handler(*method.arguments.decode(_encode(arguments)))
        except (TempFail, PermFail) as error:
            raise type(error)(str(error)) from None
        except TimeoutError:
            raise TempFail(f"{self.peer} did not answer {method.service}.{method.name}") from None
        except Exception as error:  # noqa: BLE001 - the seam between roles: what a process would report
            raise TempFail(failure_text(method, error, self._log)) from None
        return method.result.decode(_encode(result))


def proxy(interface: Interface, service: str, port: Port) -> Any:
    """An object with the methods of `service` that calls through `port`; typed by the caller with `cast`."""

    def bind(method: Method) -> Callable[..., Awaitable[Any]]:
        def call(*arguments: Any, **named: Any) -> Awaitable[Any]:
            if named or len(arguments) != method.arity:
                bound = method.signature.bind(None, *arguments, **named)
                bound.apply_defaults()
                arguments = tuple(bound.arguments.values())[1:]
            return port.call(method, arguments)

        return call

    methods = {name: staticmethod(bind(m)) for name, m in interface.by_service[service].items()}
    return type(f"{service.title()}Proxy", (), {"__slots__": (), **methods})()
