"""Whom the sessions of a listener, or of a relay action, go through and tell: filters by phase, listeners by event.

Shared by the sessions of a configuration. What depends on what processors registered is made anew when that changes,
so sessions that last for days have the filters of today.
"""

from collections.abc import Callable, Iterator, Mapping

import msgspec

from pillarbox.conf.model import Config, Filter
from pillarbox.filters.outbox import Outbox
from pillarbox.filters.reports import Listeners
from pillarbox.roles.filters import EVENTS, MDA, MDA_EVENTS

_END = "link-disconnect"


class Step(msgspec.Struct, frozen=True):
    """What a phase comes to next: builtin filters that are asked together, or a processor, by a filter's name."""

    builtins: tuple[str, ...] = ()
    name: str = ""
    box: Outbox | None = None
    token: int = 0


class Path:
    """`filter_name` "": no filters, only the `report …` of the configuration. `boxes`: those known by name so far."""

    def __init__(
        self, *, config: Config, filter_name: str, boxes: Mapping[str, Outbox], random64: Callable[[], int]
    ) -> None:
        self.config = config
        self.filters = _members(config, filter_name)
        self._boxes = boxes
        self._random64 = random64
        self._tokens: dict[tuple[str, str], int] = {}  # by filter and phase, as long as this configuration lives
        self._steps: dict[str, tuple[Step, ...]] = {}
        self._listeners: dict[str, dict[str, Listeners]] = {}  # by subsystem
        self._asked = [f.proc for f in self.filters if f.proc]

    def names(self, subsystem: str) -> list[str]:
        """The processors that may listen."""
        reported = [report.proc for report in self.config.reports if report.direction == subsystem]
        return list(dict.fromkeys(self._asked + reported))

    def has(self, name: str, box: Outbox) -> bool:
        """Is this the processor of that name here? Another configuration may have another."""
        return self._boxes.get(name) is box

    def awaited(self) -> bool:
        """Is there one of them that may say so soon?"""
        return any(not (name in self._boxes and self._boxes[name].processor.failed) for name in self.unknown())

    def missing(self) -> list[str]:
        """Those of them without which no session goes on."""
        return [n for n in self.unknown() if not (n in self._boxes and self._boxes[n].processor.fail_open)]

    def unknown(self) -> list[str]:
        """The processors of filters that have not said yet what they want to be asked, and are waited for.

        One that has failed when it was first started is not, where sessions may go on without it.
        """
        return [name for name in self._asked if self._is_awaited(self._boxes.get(name))]

    def _is_awaited(self, box: Outbox | None) -> bool:
        return box is None or not (box.processor.known or box.processor.fail_open)

    def boxes_asked(self) -> list[Outbox]:
        """The processors of its filters."""
        return [self._boxes[name] for name in dict.fromkeys(self._asked) if name in self._boxes]

    def steps(self, phase: str) -> tuple[Step, ...]:
        """What a phase goes through, in order; nothing for most."""
        found = self._steps.get(phase)
        if found is None:
            found = self._steps[phase] = tuple(self._make_steps(phase))
        return found

    def listeners(self, subsystem: str) -> dict[str, Listeners]:
        """By event. The same object stays true."""
        found = self._listeners.get(subsystem)
        if found is None:
            found = self._listeners[subsystem] = {}
            self._fill(subsystem, found)
        return found

    def may_listen(self, subsystem: str) -> bool:
        """Does anybody listen, or is it not known yet of somebody?"""
        if self.listeners(subsystem):
            return True
        return any(not (n in self._boxes and self._boxes[n].processor.known) for n in self.names(subsystem))

    def events(self, subsystem: str, name: str) -> frozenset[str]:
        """What a processor hears of. Who asks about a session has to know when it ends, registered or not."""
        box = self._boxes.get(name)
        if box is None:
            return frozenset()
        heard = {event for event in _all_events(subsystem) if f"{subsystem} {event}" in box.processor.events}
        if subsystem != MDA and (heard or box.processor.phases):
            heard.add(_END)
        return frozenset(heard)

    def refresh(self) -> None:
        """Processors were started, registered, or ended."""
        self._steps.clear()
        for subsystem, table in self._listeners.items():
            self._fill(subsystem, table)

    def _fill(self, subsystem: str, table: dict[str, Listeners]) -> None:
        table.clear()
        for name in self.names(subsystem):
            box = self._boxes.get(name)
            if box is not None:
                for event in self.events(subsystem, name):
                    table[event] = (*table.get(event, ()), box.report)

    def _make_steps(self, phase: str) -> Iterator[Step]:
        builtins: list[str] = []
        for one in self.filters:
            if not one.proc:
                if one.phase == phase:
                    builtins.append(one.name)
                continue
            box = self._boxes.get(one.proc)
            if box is not None and phase in box.processor.phases:
                if builtins:
                    yield Step(builtins=tuple(builtins))
                    builtins = []
                yield Step(name=one.name, box=box, token=self._token(one.name, phase))
        if builtins:
            yield Step(builtins=tuple(builtins))

    def fresh_token(self) -> int:
        """For a session in which answers with the usual one may still come to something that is past."""
        return self._random64()

    def _token(self, name: str, phase: str) -> int:
        key = (name, phase)
        if key not in self._tokens:
            self._tokens[key] = self._random64()
        return self._tokens[key]


def _members(config: Config, name: str) -> tuple[Filter, ...]:
    """The filters of a name, in order: those of a chain, else itself."""
    if not name:
        return ()
    found = config.filters[name]
    return tuple(config.filters[member] for member in found.chain) if found.kind == "chain" else (found,)


def _all_events(subsystem: str) -> tuple[str, ...]:
    return MDA_EVENTS if subsystem == MDA else EVENTS
