"""One conversation between a table and its server: handshake, then questions answered as they get ready.

What is asked of whom is in `table.Table`; the lines are `wire`'s, the descriptors `stdio`'s.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pillarbox.sdk import wire
from pillarbox.sdk.wire import Operation, ProtocolError, Request, Service, TableError, Value

_T = TypeVar("_T")
LookupHandler = Callable[[str], Value | Awaitable[Value]]
CheckHandler = Callable[[str], bool | Awaitable[bool]]
FetchHandler = Callable[[], Value | Awaitable[Value]]
Hook = Callable[[], Awaitable[None] | None]

_log = logging.getLogger("pillarbox.sdk.table")


@dataclass(slots=True)
class Handlers:
    """The functions of a table."""

    lookup: dict[Service, LookupHandler] = field(default_factory=dict)
    check: dict[Service, CheckHandler] = field(default_factory=dict)
    fetch: dict[Service, FetchHandler] = field(default_factory=dict)
    update: Hook | None = None
    start: Hook | None = None

    def services(self) -> list[Service]:
        """Each service that one of the functions is for."""
        return list(dict.fromkeys([*self.lookup, *self.check, *self.fetch]))


class Session:
    """`config` takes what the server says about itself; `deadline` bounds each answer, in seconds."""

    def __init__(self, *, handlers: Handlers, config: dict[str, str], concurrency: int, deadline: float) -> None:
        self._handlers = handlers
        self._config = config
        self._deadline = deadline
        self._room = asyncio.Semaphore(concurrency)
        self._turns: dict[str, int] = {}
        self._answers = {
            Operation.CHECK: self._check,
            Operation.LOOKUP: self._lookup,
            Operation.FETCH: self._fetch,
            Operation.UPDATE: self._update,
        }

    async def run(self, lines: AsyncIterator[tuple[str, bool]], write: Callable[[bytes], None]) -> None:
        """Until the server closes its end; what was asked before is still answered. Raises an ExceptionGroup."""
        ready = False
        async with asyncio.TaskGroup() as group:
            async for line, cut in lines:
                if not ready:
                    registered = await self.configure(line)
                    if registered:
                        write(wire.encode(registered))
                        ready = True
                    continue
                request = wire.parse_request(line, cut=cut)
                await self._room.acquire()
                group.create_task(self._serve(request, write))

    async def _serve(self, request: Request, write: Callable[[bytes], None]) -> None:
        try:
            write(wire.encode([await self.answer(request)]))
        finally:
            self._room.release()

    async def configure(self, line: str) -> list[str]:
        """A line of the handshake; at its end the lines that register services. Raises ProtocolError, TableError."""
        kind, _, rest = line.partition("|")
        if kind != "config":
            raise ProtocolError(f"not a line of the handshake: {line[:80]!r}")
        key, bar, value = rest.partition("|")
        if bar:
            if key == "protocol" and value != wire.VERSION:
                raise ProtocolError(f"protocol {value!r} is not spoken here, only {wire.VERSION}")
            self._config[key] = value
        if key != "ready":
            return []
        if self._handlers.start is not None:
            await _result(self._handlers.start())
        services = self._handlers.services()
        if not services:
            raise TableError("no service is registered: nothing could be asked of this table")
        return [*(f"register|{service}" for service in services), "register|ready"]

    async def answer(self, request: Request) -> str:
        """The line that answers; whatever goes wrong becomes an error, which the server takes as "try again later"."""
        try:
            if request.cut:
                raise TableError(f"the request is longer than {wire.MAX_LINE} bytes")
            async with asyncio.timeout(self._deadline):
                return await self._answers[request.operation](request)
        except TableError as error:
            return wire.failed(request, str(error))
        except TimeoutError:
            return wire.failed(request, f"no answer within {self._deadline:g} s")
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise  # the program ends
            # Of something that the function waited for: whoever asked must still have an answer.
            _log.error("%s of %s was cancelled", request.operation, request.service or "the table", exc_info=True)
            return wire.failed(request, "cancelled in the table program")
        except Exception as error:  # noqa: BLE001 - the author's code: a fault in one answer must not end the others
            _log.error("%s of %s", request.operation, request.service or "the table", exc_info=error)
            return wire.failed(request, f"{type(error).__name__} in the table program")

    async def _check(self, request: Request) -> str:
        service = _service(request)
        if handler := self._handlers.check.get(service):
            there = bool(await _result(handler(request.key)))
        elif asked := self._handlers.lookup.get(service):
            there = _some(await _result(asked(request.key))) is not None
        else:
            raise _not_offered(request)
        return wire.found(request) if there else wire.not_found(request)

    async def _lookup(self, request: Request) -> str:
        handler = self._handlers.lookup.get(_service(request))
        if handler is None:
            raise _not_offered(request)
        value = _some(await _result(handler(request.key)))
        if value is None:
            return wire.not_found(request)
        return wire.found(request, wire.join_value(request.service, value))

    async def _fetch(self, request: Request) -> str:
        handler = self._handlers.fetch.get(_service(request))
        if handler is None:
            raise _not_offered(request)
        value = _some(await _result(handler()))
        if value is None:
            return wire.not_found(request)
        return wire.found(request, wire.join_value(request.service, self._next(request.service, value)))

    def _next(self, service: str, value: str | Sequence[str | int]) -> str:
        """The value itself, or the next of several."""
        if isinstance(value, str):
            return value
        turn = self._turns.get(service, 0) % len(value)
        self._turns[service] = turn + 1
        return wire.join_part(value[turn])

    async def _update(self, request: Request) -> str:
        if self._handlers.update is not None:
            await _result(self._handlers.update())
        return wire.updated(request)


async def _result(given: _T | Awaitable[_T]) -> _T:
    """What a function returned, or what its coroutine does."""
    return await given if inspect.isawaitable(given) else given


def _some(value: Value) -> str | Sequence[str | int] | None:
    """The value; None also where a list of them is empty. Raises TypeError for bytes, whose numbers are a list, too."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("a value is text, not bytes")
    return value if isinstance(value, str) or value else None


def _service(request: Request) -> Service:
    try:
        return Service(request.service)
    except ValueError:
        raise TableError(f"unknown service {request.service[:80]!r}") from None


def _not_offered(request: Request) -> TableError:
    return TableError(f"this table offers no {request.operation} of {request.service}")
