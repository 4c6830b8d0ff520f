"""One SMTP session as a milter is told of it: what it wants to hear, what it says, and how long that holds.

What a milter decides before the first message holds for the session, what it decides about a message until that is
over; what it decides about a recipient, for that one. After a decision it hears no more (xxfi_*(3)).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto

from pillarbox.milter import macros, wire
from pillarbox.milter.client import Connection, Deadlines, MilterError
from pillarbox.milter.envelope import EnvelopeChange
from pillarbox.milter.facts import Facts
from pillarbox.milter.macros import Macros
from pillarbox.milter.message import HEADER_LIMIT, Message
from pillarbox.milter.replies import parse_text
from pillarbox.milter.wire import (
    SILENT,
    SINCE,
    UNWANTED,
    AddHeader,
    AddRecipient,
    Answer,
    Change,
    ChangeHeader,
    ChangeSender,
    Command,
    Decision,
    DeleteRecipient,
    InsertHeader,
    Options,
    ProtocolError,
    Quarantine,
    ReplaceBody,
    Stage,
    Step,
)


class Outcome(Enum):
    """What becomes of a command."""

    CONTINUE = auto()
    ACCEPT = auto()
    REFUSE = auto()
    DISCARD = auto()
    DISCONNECT = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reply`: what the client is to be told."""

    outcome: Outcome
    reply: str = ""


CONTINUE = Verdict(Outcome.CONTINUE)
ACCEPT = Verdict(Outcome.ACCEPT)
DISCARD = Verdict(Outcome.DISCARD)
# The texts of sendmail.
REJECT = Verdict(Outcome.REFUSE, "550 5.7.1 Command rejected")
TEMPFAIL = Verdict(Outcome.REFUSE, "451 4.7.1 Please try again later")
DISCONNECT = Verdict(Outcome.DISCONNECT, "421 4.7.0 Closing connection")

_VERDICTS = {
    Answer.CONTINUE: CONTINUE,
    Answer.SKIP: CONTINUE,
    Answer.ACCEPT: ACCEPT,
    Answer.REJECT: REJECT,
    Answer.TEMPFAIL: TEMPFAIL,
    Answer.DISCARD: DISCARD,
    Answer.SHUTDOWN: DISCONNECT,
    Answer.CONNECTION_FAILURE: DISCONNECT,
}
_STAGES = {
    Command.CONNECT: Stage.CONNECT,
    Command.HELO: Stage.HELO,
    Command.MAIL: Stage.MAIL,
    Command.RCPT: Stage.RCPT,
    Command.DATA: Stage.DATA,
    Command.END_OF_HEADERS: Stage.END_OF_HEADERS,
    Command.END_OF_MESSAGE: Stage.END_OF_MESSAGE,
}
_OF_THE_SESSION = (Command.CONNECT, Command.HELO)
_CHANGE = 64  # bytes, at least, that a change takes of memory beside its text


class Dialogue:
    """On one connection. Every method may raise MilterError; then there is nothing but to close.

    `settled`: what was decided about the session; `changes`: what the milter wants done to the envelope.
    """

    def __init__(
        self,
        *,
        connection: Connection,
        options: Options,
        names: Macros,
        facts: Facts,
        deadlines: Deadlines,
        now: Callable[[], datetime],
    ) -> None:
        self._connection = connection
        self._options = options
        self._names = names
        self._facts = facts
        self._deadlines = deadlines
        self._now = now
        self._in_message = self._in_data = False
        self._skipped: set[Command] = set()
        self.settled: Verdict | None = None
        self.changes: list[EnvelopeChange] = []

    async def usable(self) -> bool:
        """Can the milter be asked about another message?"""
        return await self._connection.usable()

    @property
    def wants_refused(self) -> bool:
        """Does the milter ask for recipients that the server refused?"""
        return bool(self._options.steps & Step.REJECTED_RCPT)

    def rest(self) -> None:
        """Nothing is asked any more: between two messages, the milter could do without us."""
        self._connection.idle = not self._in_message

    async def connect(self) -> Verdict:
        """The client is there."""
        client = self._facts.client
        # What runs on this machine is told as Postfix does: milters know 127.0.0.1, few know UNIX sockets.
        family = b"4" if client.family == "L" else client.family.encode()
        name = _bytes(self._facts.client_name)
        packet = wire.connect(name, family, client.port, _bytes(client.address))
        return await self._ask(Command.CONNECT, packet)

    async def helo(self) -> Verdict:
        """HELO or EHLO, also a second one."""
        return await self._ask(Command.HELO, _packet(Command.HELO, self._facts.helo))

    async def mail(self, sender: str, parameters: tuple[str, ...]) -> Verdict:
        """A message begins."""
        self.abort()
        self._in_message, self._in_data = True, False
        self._connection.idle = False
        self._skipped.clear()
        self.changes = []
        return await self._ask(Command.MAIL, _packet(Command.MAIL, f"<{sender}>", *parameters))

    async def rcpt(self, address: str, parameters: tuple[str, ...], values: Mapping[str, str] | None = None) -> Verdict:
        """A recipient. `values`: its macros, where the server refused it."""
        if self._in_data:
            return TEMPFAIL  # DATA was refused by somebody else, and a milter takes no recipients after it
        more = macros.recipient(address) if values is None else values
        return await self._ask(Command.RCPT, _packet(Command.RCPT, f"<{address}>", *parameters), more)

    async def data(self) -> Verdict:
        """DATA, told once: that it was refused by somebody else, and came again, is nothing to a milter."""
        if self._in_data:
            return CONTINUE
        self._in_data = True
        return await self._ask(Command.DATA, wire.packet(Command.DATA))

    async def message(self, message: Message) -> Verdict:
        """A whole message, which is changed as the milter says. Also raises TooBig, and OSError of its file."""
        verdict = await self._content(message)
        if verdict.outcome is Outcome.CONTINUE:
            self._say_macros(Command.END_OF_MESSAGE)
            await self._tell(wire.packet(Command.END_OF_MESSAGE))
            verdict = await self._answered(Command.END_OF_MESSAGE, message)
            self._in_message = False
        return verdict

    async def _content(self, message: Message) -> Verdict:
        header = message.header
        header.leading_space = bool(self._options.steps & Step.LEADING_SPACE)
        for name, value in header.shown():
            verdict = await self._ask(Command.HEADER, wire.packet(Command.HEADER, wire.fields(name, value)))
            if verdict.outcome is not Outcome.CONTINUE:
                return verdict
        verdict = await self._ask(Command.END_OF_HEADERS, wire.packet(Command.END_OF_HEADERS))
        if verdict.outcome is not Outcome.CONTINUE or self._options.steps & Step.NO_BODY:
            return verdict
        for piece in message.body():
            verdict = await self._ask(Command.BODY, wire.packet(Command.BODY, piece))
            if verdict.outcome is not Outcome.CONTINUE or Command.BODY in self._skipped:
                return verdict
        return verdict

    def abort(self) -> None:
        """The message is over, and the milter does not know yet."""
        if self._in_message:
            self._connection.send(wire.packet(Command.ABORT))
            self._in_message = False
        self.rest()

    def quit(self) -> None:
        """The session is over, or the milter need not hear more of it."""
        self.abort()
        self._connection.send(wire.packet(Command.QUIT))
        self._connection.close()

    def close(self) -> None:
        """Leave without a word."""
        self._connection.close()

    async def _ask(self, command: Command, packet: bytes, more: Mapping[str, str] | None = None) -> Verdict:
        """Say it, unless the milter does not want to hear it, and take the answer, unless it gives none."""
        if self.settled:
            return self.settled
        if self._options.version < SINCE.get(command, 0) or command in self._skipped:
            return CONTINUE
        self._say_macros(command, more)
        if self._options.steps & UNWANTED[command]:
            return CONTINUE
        await self._tell(packet)
        if self._options.steps & SILENT[command]:
            await self._connection.drained(self._deadlines.command)
            return CONTINUE
        return await self._answered(command)

    async def _tell(self, packet: bytes) -> None:
        if await self._connection.unasked():
            raise MilterError("it said more than it was asked")
        self._connection.idle = False
        self._connection.send(packet)

    def _say_macros(self, command: Command, more: Mapping[str, str] | None = None) -> None:
        """Also where the command is not wanted: a milter may look at them later."""
        stage = _STAGES.get(command)
        if stage is not None:
            names = self._options.macros.get(stage, self._names.default(stage))
            values = self._names.select(names, self._facts, self._now(), more)
            self._connection.send(wire.macros(command, values))

    async def _answered(self, command: Command, message: Message | None = None) -> Verdict:
        decision = await self._decision(command, message)
        verdict = _VERDICTS.get(decision.answer)
        try:
            verdict = verdict or Verdict(Outcome.REFUSE, parse_text(decision.text))
        except ProtocolError as error:
            raise MilterError(str(error)) from None
        if decision.answer is Answer.SKIP:
            self._skipped.add(command)
        if command in _OF_THE_SESSION:
            return self._of_the_session(verdict)
        if verdict.outcome is Outcome.DISCONNECT:
            self.settled = verdict
        return verdict

    def _of_the_session(self, verdict: Verdict) -> Verdict:
        if verdict.outcome is Outcome.DISCARD:
            return CONTINUE  # there is nothing yet to discard (xxfi_connect(3))
        if verdict.outcome is not Outcome.CONTINUE:
            self.settled = verdict
        return verdict

    async def _decision(self, command: Command, message: Message | None) -> Decision:
        """The answer; on the way to it, changes of the message are made. Each sign of life extends the deadline."""
        seconds = self._deadlines.command if message is None else self._deadlines.message
        size = 0
        while True:
            letter, payload = await self._connection.packet(seconds)
            try:
                reply = wire.parse_reply(letter, payload)
            except ProtocolError as error:
                raise MilterError(f"{error} to {command.name}") from None
            if not isinstance(reply, Decision):
                if message is None:
                    raise MilterError(f"{type(reply).__name__} in answer to {command.name}")
                if not isinstance(reply, ReplaceBody):
                    size += len(payload) + _CHANGE
                if size > HEADER_LIMIT:
                    raise MilterError(f"changes of more than {HEADER_LIMIT} bytes")
                self._change(message, reply)
            elif reply.answer is not Answer.PROGRESS:
                return reply

    def _change(self, message: Message, change: Change) -> None:
        match change:
            case AddHeader():
                message.header.add(change)
            case InsertHeader():
                message.header.insert(change)
            case ChangeHeader():
                message.header.change(change)
            case ReplaceBody():
                message.replace_body(change.data)
            case Quarantine():
                message.junk = True
            case AddRecipient() | DeleteRecipient() | ChangeSender():
                self.changes.append(change)


def _packet(command: Command, *values: str) -> bytes:
    return wire.packet(command, wire.fields(*map(_bytes, values)))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")
