"""What a filter registers, and which handlers are called for what."""

import logging
from collections.abc import Sequence

from pillarbox.sdk.filter.events import NAMES
from pillarbox.sdk.filter.hooks import Handler, Handlers
from pillarbox.sdk.filter.protocol import SMTP_IN, SMTP_OUT, Phase, register
from pillarbox.sdk.filter.session import REMEMBERED

_log = logging.getLogger("pillarbox.sdk.filter")

Key = tuple[str, str]  # (subsystem, event)


class FilterError(Exception):
    """The filter cannot work at all. The text is for the server's log."""


class Registry:
    """Made when the handlers are complete. Raises FilterError where there are none.

    `remember`: sessions are to be known. `subsystems`: those that the server named.
    """

    def __init__(self, handlers: Handlers, *, remember: bool, subsystems: Sequence[str]) -> None:
        self.handlers = handlers
        self._phases = [phase for phase in Phase if handlers.questions.get(phase)]
        if handlers.of_messages():
            # At commit the message is decided about, or refused when a handler failed.
            self._phases += [Phase.DATA_LINE, *([] if Phase.COMMIT in self._phases else [Phase.COMMIT])]
        wanted = _wanted(handlers, {SMTP_IN, SMTP_OUT, *subsystems})
        if not self._phases and not wanted:
            raise FilterError("there is no handler: nothing would reach this filter")
        for subsystem in {subsystem for subsystem, _ in wanted} | ({SMTP_IN} if self._phases else set()):
            if subsystem in (SMTP_IN, SMTP_OUT):
                wanted |= {(subsystem, name) for name in (REMEMBERED if remember else ("link-disconnect",))}
        self._events = _in_order(wanted)
        self._every = {
            subsystem: found for (subsystem, name), found in handlers.events.items() if name == "*" and found
        }
        self._told = {
            key: self._find(key) for key in wanted | {(subsystem, name) for subsystem in self._every for name in NAMES}
        }
        self._asynchronous: set[str | Key] = {key for key, found in self._told.items() if _any_asynchronous(found)}
        self._asynchronous |= {phase for phase in self._phases if _any_asynchronous(self.asked(phase))}

    def lines(self) -> list[str]:
        """The lines that end the handshake."""
        return register(self._phases, self._events)

    def told(self, key: Key) -> list[Handler]:
        """Whom to tell of an event."""
        found = self._told.get(key)
        return self._every.get(key[0], []) if found is None else found

    def asked(self, phase: str) -> list[Handler]:
        """Whom to ask at a phase; of data-line, who sees the message."""
        return self.handlers.of_messages() if phase == Phase.DATA_LINE else self.handlers.questions.get(phase, [])

    def needs_task(self, kind: str | Key) -> bool:
        """Does a handler of this phase or event wait for anything?"""
        return kind in self._asynchronous or (
            isinstance(kind, tuple) and kind not in self._told and _any_asynchronous(self._every.get(kind[0], []))
        )

    def _find(self, key: Key) -> list[Handler]:
        every = self._every.get(key[0], []) if key[1] != "*" else []
        return [*self.handlers.events.get(key, []), *every]


def _wanted(handlers: Handlers, known: set[str]) -> set[Key]:
    """Events that there are handlers for. OpenSMTPD ends when a filter wants to hear of a subsystem that it has not."""
    wanted = {key for key, functions in handlers.events.items() if functions}
    for subsystem in {subsystem for subsystem, _ in wanted} - known:
        _log.warning("this server tells nothing of %s", subsystem)
    return {key for key in wanted if key[0] in known}


def _in_order(events: set[Key]) -> list[Key]:
    """As the manual has them; where every event is wanted, only that is said."""
    rank = {name: at for at, name in enumerate(NAMES)}
    whole = {subsystem for subsystem, name in events if name == "*"}
    kept = [(subsystem, name) for subsystem, name in events if subsystem not in whole or name == "*"]
    return sorted(kept, key=lambda event: (event[0], rank.get(event[1], len(rank)), event[1]))


def _any_asynchronous(handlers: list[Handler]) -> bool:
    return any(handler.asynchronous for handler in handlers)
