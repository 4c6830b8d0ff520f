"""The filter that an author makes of functions; what happens with them is in `conversation`."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, Generic, NoReturn, TypedDict, TypeVar, Unpack, cast, overload

from pillarbox.sdk import program
from pillarbox.sdk.filter.conversation import Conversation
from pillarbox.sdk.filter.decisions import Decision
from pillarbox.sdk.filter.hooks import Handlers, Hooks
from pillarbox.sdk.filter.options import Options
from pillarbox.sdk.filter.pipes import Pipes
from pillarbox.sdk.filter.registry import FilterError
from pillarbox.sdk.filter.session import S
from pillarbox.sdk.stdio import Stdio
from pillarbox.sdk.wire import ProtocolError

_Start = TypeVar("_Start", bound=Callable[[], Awaitable[None] | None])

_log = logging.getLogger("pillarbox.sdk.filter")


class Settings(TypedDict, total=False):
    """The fields of `Options`, for type checkers."""

    on_error: Decision
    deadline: float
    threads: int
    remember: bool
    max_sessions: int
    memory: int


class Filter(Generic[S]):
    """A filter made of functions, each for one event, question or part of a message: `@filter.on.…`.

    A plain function is called while nothing else runs; with `threads`, in one of so many threads (functions for single
    lines never are). An `async` one is awaited while other sessions go on. For one session, all is done in order.

    `state` makes what handlers find in `session.state`; the other options are those of `Options`.
    """

    @overload
    def __init__(self: "Filter[SimpleNamespace]", **options: Unpack[Settings]) -> None: ...

    @overload
    def __init__(self, *, state: Callable[[], S], **options: Unpack[Settings]) -> None: ...

    def __init__(self, *, state: Callable[[], Any] = SimpleNamespace, **options: Unpack[Settings]) -> None:
        self._state = cast(Callable[[], S], state)
        self._options = Options(**options)
        self._handlers = Handlers()
        self._config: dict[str, str] = {}
        self.on: Hooks[S] = Hooks(self._handlers)

    @property
    def config(self) -> Mapping[str, str]:
        """What the server said of itself, as `smtpd-version`; empty until `start` is called."""
        return MappingProxyType(self._config)

    def start(self, function: _Start) -> _Start:
        """The decorated function is called once, when `config` is known; it may still add handlers, or raise."""
        self._handlers.start = function
        return function

    def conversation(
        self,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        wake: Callable[[], None],
        failed: Callable[[str, Exception], None] | None = None,
        drained: Callable[[], Awaitable[None]] | None = None,
    ) -> Conversation[S]:
        """A new conversation, without I/O; `run` holds the one with the server that started this program."""
        self._config.clear()
        return Conversation(
            handlers=self._handlers,
            config=self._config,
            options=self._options,
            state=self._state,
            spawn=spawn,
            wake=wake,
            failed=failed,
            drained=drained,
        )

    def run(self) -> NoReturn:
        """Talk on standard input and output until the server closes them, then exit: 0, or 1 with the reason logged.

        Standard error goes to the server's log, and so do `logging` and `print`.
        """
        program.log_to_server()
        program.run(self._run(Stdio()), log=_log, refusals=(ProtocolError, FilterError))

    async def _run(self, stdio: Stdio) -> None:
        async with asyncio.TaskGroup() as group:
            pipes = Pipes(stdio.reading, stdio.writing)
            made = self.conversation(spawn=group.create_task, wake=pipes.wake, drained=pipes.drained)
            with contextlib.closing(made) as conversation:
                if accepts := os.environ.get("PILLARBOX_ACCEPTS"):
                    self._config["accepts"] = accepts
                await pipes.run(conversation)
