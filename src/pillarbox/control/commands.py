"""What each request of `smtpctl` does: one method a request, found in one table by its type.

Every answer is bounded (a page); what is shown comes from queue and dispatchers at that moment, nothing is kept here
but the subsystems being traced.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

import msgspec

from pillarbox.control import wire
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.roles.dispatcher import Incoming
from pillarbox.roles.filters import Filters
from pillarbox.roles.lookup import Lookup
from pillarbox.roles.parent import System
from pillarbox.roles.queue import INLINE_BODY, Queue, QueueRow


class _Logging(Protocol):
    """Every role that logs."""

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        ...


_Method: TypeAlias = Callable[[Any], Awaitable[wire.Answer]]

_TEXTS_BYTES = 256 * 1024  # of problems of a configuration, each perhaps with a long line of the file

_encode = msgspec.msgpack.Encoder().encode


class Commands:
    """Carries out requests of those who may do everything.

    `now` is a monotonic clock in seconds: uptime counts from construction. `has_filters()`: whether there is anybody to
    ask about them.
    """

    def __init__(
        self,
        *,
        queue: Queue,
        dispatchers: list[Incoming],
        lookup: Lookup,
        filters: Filters,
        has_filters: Callable[[], bool],
        system: System,
        log: Log,
        now: Callable[[], float],
    ) -> None:
        self._queue = queue
        self._dispatchers = dispatchers
        self._lookup = lookup
        self._filters = filters
        self._has_filters = has_filters
        self._system = system
        self._log = log
        self._now = now
        self._started = now()
        self._verbose = log.verbose
        self._traced: set[str] = set()
        self._sessions = 0
        self._methods: dict[type, _Method] = {
            wire.ShowQueue: self._show_queue,
            wire.ShowEnvelope: self._show_envelope,
            wire.ReadMessage: self._read_message,
            wire.ShowMta: self._show_mta,
            wire.ShowStats: self._show_stats,
            wire.ShowStatus: self._show_status,
            wire.ShowConfig: self._show_config,
            wire.ShowFilters: self._show_filters,
            wire.Change: self._change,
            wire.Pause: self._pause,
            wire.PauseRoute: self._pause_route,
            wire.ResumeRoute: self._resume_route,
            wire.LogLevel: self._log_level,
            wire.Trace: self._trace,
            wire.UpdateTable: self._update_table,
            wire.RestartFilter: self._restart_filter,
            wire.Explain: self._explain,
            wire.Stop: self._stop,
            wire.Reload: self._reload,
        }

    async def answer(self, request: wire.Request, *, sessions: int) -> wire.Answer:
        """Do what is asked. `sessions`: control connections now. Raises TempFail or PermFail where a role cannot."""
        self._sessions = sessions
        return await self._methods[type(request)](request)

    async def _show_queue(self, request: wire.ShowQueue) -> wire.Answer:
        rows = await self._queue.show(request.after, wire.PAGE_ROWS, request.msgid)
        return wire.Rows(_page(rows))

    async def _show_envelope(self, request: wire.ShowEnvelope) -> wire.Answer:
        row = await self._queue.envelope(request.evpid)
        return wire.Missing() if row is None else wire.Rows([row])

    async def _read_message(self, request: wire.ReadMessage) -> wire.Answer:
        # A body that is gone and a queue that cannot read look alike (TempFail): ask for an envelope first.
        if request.offset == 0 and not await self._queue.show(0, 1, request.msgid):
            return wire.Missing()
        return wire.Piece(await self._queue.read(request.msgid, request.offset, INLINE_BODY))

    async def _show_mta(self, request: wire.ShowMta) -> wire.Answer:
        lines = await self._queue.show_mta(request.what)
        return wire.Lines(lines[request.after : request.after + wire.PAGE_ROWS])

    async def _show_stats(self, request: wire.ShowStats) -> wire.Answer:
        values = dict(await self._queue.stats())
        for dispatcher in self._dispatchers:
            for name, value in (await dispatcher.stats()).items():
                values[name] = values.get(name, 0) + value
        values["control.session"] = self._sessions
        values["uptime"] = int(self._now() - self._started)
        return wire.Numbers(values)

    async def _show_status(self, request: wire.ShowStatus) -> wire.Answer:
        paused = await self._queue.paused()
        if any([await dispatcher.paused() for dispatcher in self._dispatchers]):
            paused = [*paused, "smtp"]
        return wire.Lines(paused)

    async def _show_config(self, request: wire.ShowConfig) -> wire.Answer:
        generation, text = await self._system.configuration(request.offset)
        if request.generation not in (-1, generation):
            return wire.Failed("the configuration was replaced meanwhile")
        return wire.Text(generation, text)

    async def _show_filters(self, request: wire.ShowFilters) -> wire.Answer:
        rows = await self._filters.show() if self._has_filters() else []
        return wire.FilterRows(rows[request.after : request.after + wire.PAGE_FILTERS])

    async def _change(self, request: wire.Change) -> wire.Answer:
        match request.verb:
            case "schedule":
                count = await self._queue.schedule(request.which)
            case "remove":
                count = await self._queue.remove(request.which)
            case "pause" | "resume":
                count = await self._queue.suspend(request.which, request.verb == "pause")
            case "discover":
                count = await self._known(request.which)
            case _:
                return wire.Failed("incompatible smtpctl and smtpd")
        return wire.Count(count)

    async def _known(self, which: int) -> int:
        """How many envelopes the queue has: with a database there is nothing to find that it does not know."""
        if which >> 32:
            return int(await self._queue.envelope(which) is not None)
        count = after = 0
        while rows := await self._queue.show(after, wire.PAGE_ROWS, which):
            count += len(rows)
            after = rows[-1].envelope.evpid
        return count

    async def _pause(self, request: wire.Pause) -> wire.Answer:
        await self._system.remember_pause(request.kind, request.paused)
        if request.kind == "smtp":
            # Each of them: one that was restarted may differ from the others.
            changed = any([await dispatcher.pause(request.paused) for dispatcher in self._dispatchers])
        else:
            changed = await self._queue.pause(request.kind, request.paused)
        if not changed:
            return wire.Failed()
        self._log.info(f"info: {request.kind} {'paused' if request.paused else 'resumed'}")
        return wire.Done()

    async def _pause_route(self, request: wire.PauseRoute) -> wire.Answer:
        await self._system.remember_route(request.source, request.dest, request.paused)
        await self._queue.pause_mta_route(request.source, request.dest, request.paused)
        return wire.Done()

    async def _resume_route(self, request: wire.ResumeRoute) -> wire.Answer:
        await self._queue.resume_route(request.route)
        return wire.Done()

    async def _log_level(self, request: wire.LogLevel) -> wire.Answer:
        self._verbose = request.verbose
        await self._tell_level()
        return wire.Done()

    async def _trace(self, request: wire.Trace) -> wire.Answer:
        name = f"profile {request.subsystem}" if request.profile else request.subsystem
        if request.on:
            self._traced.add(name)
        elif name == "all":
            self._traced = {traced for traced in self._traced if traced.startswith("profile ")}
        else:
            self._traced.discard(name)
        await self._tell_level()
        return wire.Done()

    async def _tell_level(self) -> None:
        """Debug lines are one level here: tracing anything turns them on, tracing nothing more turns them off."""
        verbose = self._verbose or bool(self._traced)
        self._log.verbose = verbose
        roles: tuple[_Logging, ...] = (self._system, self._queue, self._lookup, self._filters, *self._dispatchers)
        for role in roles:
            try:
                await role.log_level(verbose)
            except TempFail as error:  # a role that is being restarted starts with its own level
                self._log.debug(f"control: log level: {error}")

    async def _update_table(self, request: wire.UpdateTable) -> wire.Answer:
        return wire.Done() if await self._lookup.update_table(request.name) else wire.Failed()

    async def _restart_filter(self, request: wire.RestartFilter) -> wire.Answer:
        if not self._has_filters() or not await self._filters.restart(request.name):
            return wire.Failed("no such filter")
        self._log.info(f"info: restart of filter {request.name} requested by smtpctl")
        return wire.Done()

    async def _explain(self, request: wire.Explain) -> wire.Answer:
        return wire.Explained(await self._lookup.explain(request.question))

    async def _stop(self, request: wire.Stop) -> wire.Answer:
        self._log.info("info: stop requested by smtpctl")
        await self._system.stop()
        return wire.Done()

    async def _reload(self, request: wire.Reload) -> wire.Answer:
        self._log.info("info: reload requested by smtpctl")
        reloaded = await self._system.reload()
        return wire.Reloaded(_shown(reloaded.problems), _shown(reloaded.notes))


def _shown(texts: tuple[str, ...]) -> tuple[str, ...]:
    """As many as fit a frame, and how many there are beside them."""
    size = 0
    for number, text in enumerate(texts):
        size += len(text)
        if size > _TEXTS_BYTES:
            return (*texts[:number], f"{len(texts) - number} more")
    return texts


def _page(rows: list[QueueRow]) -> list[QueueRow]:
    """As many of the rows as fit a frame, at least one."""
    size = 0
    for number, row in enumerate(rows):
        size += len(_encode(row))
        if size > wire.PAGE_BYTES and number:
            return rows[:number]
    return rows
