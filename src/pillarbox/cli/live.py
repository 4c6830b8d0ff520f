"""The running server, as smtpctl asks it: refusals and absences become `ControlError`, pages become streams."""

import os
from collections.abc import Iterator

from pillarbox import places
from pillarbox.cli.connection import Connection, ControlError, NotRunning
from pillarbox.control import wire
from pillarbox.roles.filters import Status
from pillarbox.roles.queue import QueueRow


class Live:
    """The server of one state directory."""

    def __init__(self, state: str) -> None:
        self._state = state
        self._connection = Connection(places.control_socket(state))

    def running(self) -> bool:
        """Whether it is there; raises `ControlError` where it is not and the user might not ask it either."""
        try:
            self._connection.connect()
        except NotRunning:
            self._need_rights()
            return False
        return True

    def ask(self, request: wire.Request) -> wire.Answer:
        """The answer; raises `ControlError` where the user may not ask."""
        try:
            answer = self._connection.ask(request)
        except NotRunning:
            self._need_rights()
            raise
        if isinstance(answer, wire.Denied):
            raise ControlError("need root privileges")
        return answer

    def look(self, request: wire.Request) -> wire.Answer:
        """As `ask`; raises `ControlError` where it failed, because there is nothing to print then."""
        answer = self.ask(request)
        if isinstance(answer, wire.Failed):
            raise ControlError(answer.text or "command failed")
        return answer

    def rows(self, msgid: int = 0) -> Iterator[QueueRow]:
        """Envelopes, of one message or all."""
        after = 0
        while True:
            answer = self.look(wire.ShowQueue(after, msgid))
            rows = answer.rows if isinstance(answer, wire.Rows) else []
            if not rows:
                return
            yield from rows
            after = rows[-1].envelope.evpid

    def row(self, evpid: int) -> QueueRow | None:
        """One envelope."""
        answer = self.look(wire.ShowEnvelope(evpid))
        return answer.rows[0] if isinstance(answer, wire.Rows) and answer.rows else None

    def pieces(self, msgid: int) -> Iterator[bytes] | None:
        """A body, CRLF lines; None where there is no such message."""
        first = self.look(wire.ReadMessage(msgid))
        return self._pieces(msgid, first) if isinstance(first, wire.Piece) else None

    def lines(self, what: str) -> Iterator[str]:
        """What the relays know: see `wire.ShowMta`."""
        shown = 0
        while True:
            answer = self.look(wire.ShowMta(what, shown))
            if not isinstance(answer, wire.Lines) or not answer.lines:
                return
            yield from answer.lines
            shown += len(answer.lines)

    def filters(self) -> Iterator[Status]:
        """The processors of filters."""
        shown = 0
        while True:
            answer = self.look(wire.ShowFilters(shown))
            if not isinstance(answer, wire.FilterRows) or not answer.rows:
                return
            yield from answer.rows
            shown += len(answer.rows)

    def config(self) -> Iterator[str]:
        """The running configuration, in pieces."""
        generation, offset = -1, 0
        while True:
            answer = self.look(wire.ShowConfig(generation, offset))
            if not isinstance(answer, wire.Text) or not answer.text:
                return
            yield answer.text
            generation = answer.generation
            offset += len(answer.text)

    def _pieces(self, msgid: int, answer: wire.Answer) -> Iterator[bytes]:
        offset = 0
        while isinstance(answer, wire.Piece) and answer.data:
            yield answer.data
            offset += len(answer.data)
            answer = self.look(wire.ReadMessage(msgid, offset))

    def _need_rights(self) -> None:
        """Without a server to judge: root may, and whoever owns the state directory."""
        try:
            owner = os.stat(self._state).st_uid
        except OSError:
            return
        if os.geteuid() not in (0, owner):
            raise ControlError("need root privileges")
