"""Decorators that make functions a filter's handlers, and where these are kept."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from typing import Any, Generic, TypeVar, overload

from pillarbox.sdk.filter import events
from pillarbox.sdk.filter.decisions import Decision
from pillarbox.sdk.filter.message import Headers, Message
from pillarbox.sdk.filter.protocol import BARE, MDA, SMTP_IN, SMTP_OUT, Phase
from pillarbox.sdk.filter.session import S, Session

F = TypeVar("F", bound=Callable[..., object])
E = TypeVar("E", bound=events.Event)
Decided = Decision | None
Answer = Decided | Awaitable[Decided]
Lines = str | Decision | Iterable[str] | None
Rewritten = bytes | EmailMessage | Decision | None

MESSAGE_LIMIT = 10 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Handler:
    """A function of the author's; `asynchronous`: what it returns is awaited."""

    function: Callable[..., Any]
    asynchronous: bool


@dataclass(frozen=True, slots=True)
class WholeMessage:
    """A handler of whole messages up to `limit` bytes; `above` is decided at commit about larger ones."""

    handler: Handler
    limit: int
    above: Decision | None


@dataclass(slots=True)
class Handlers:
    """The functions of a filter."""

    questions: dict[str, list[Handler]] = field(default_factory=dict)
    events: dict[tuple[str, str], list[Handler]] = field(default_factory=dict)  # (subsystem, event)
    lines: list[Handler] = field(default_factory=list)
    ends: list[Handler] = field(default_factory=list)
    headers: list[Handler] = field(default_factory=list)
    messages: list[WholeMessage] = field(default_factory=list)
    start: Callable[[], Awaitable[None] | None] | None = None

    def copy(self) -> "Handlers":
        """As they are now: what is registered has been said, and a function that is added later is never called."""
        return replace(
            self,
            questions={phase: list(handlers) for phase, handlers in self.questions.items()},
            events={event: list(handlers) for event, handlers in self.events.items()},
            lines=list(self.lines),
            ends=list(self.ends),
            headers=list(self.headers),
            messages=list(self.messages),
        )

    def of_messages(self) -> list[Handler]:
        """Whatever sees the lines of a message."""
        return [*self.lines, *self.ends, *self.headers, *(whole.handler for whole in self.messages)]

    def in_threads(self, pool: Executor) -> "Handlers":
        """The same, with plain functions called in threads; but those for lines are too many and too short for that."""

        def moved(handlers: list[Handler]) -> list[Handler]:
            return [handler if handler.asynchronous else _in_thread(handler.function, pool) for handler in handlers]

        return replace(
            self,
            questions={phase: moved(handlers) for phase, handlers in self.questions.items()},
            events={event: moved(handlers) for event, handlers in self.events.items()},
            headers=moved(self.headers),
            messages=[replace(whole, handler=moved([whole.handler])[0]) for whole in self.messages],
        )


def _in_thread(function: Callable[..., Any], pool: Executor) -> Handler:
    def run(*args: object) -> Any:
        try:
            return function(*args)
        except StopIteration as error:  # of a `next()`; no future takes it, and whoever waits would wait for ever
            raise RuntimeError("it raised StopIteration") from error

    async def call(*args: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, run, *args)

    return Handler(call, asynchronous=True)


def build_handler(function: Callable[..., Any]) -> Handler:
    """Find out how a function is called."""
    functions = _forms(function)
    return Handler(function, any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in functions))


def _forms(function: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """The function, what is called of an object, and what a decorator wrapped."""
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004 - an object
    return function, called, inspect.unwrap(function)


def check_function(function: Callable[..., Any], arguments: int, *, yields: bool = False) -> None:
    """Raises TypeError for one that would fail whenever it is called, or of which nothing would ever run."""
    if not callable(function):
        raise TypeError(f"a handler is a function, not {function!r:.80}")
    if not yields and any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in _forms(function)):
        raise TypeError(f"{function!r:.80} yields, where a handler returns what it has to say")
    try:
        inspect.signature(function, follow_wrapped=False).bind(*range(arguments))
    except ValueError:  # one that is not written in Python
        return
    except TypeError as error:
        wanted = "the session alone" if arguments == 1 else "the session and one more argument"
        raise TypeError(f"{function!r:.80} is to take {wanted}: {error}") from None


class Hook(Generic[F]):
    """A decorator: the function is called from now on, and stays what it is.

    `arguments`: how many it gets; `yields`: may it be a generator?
    """

    def __init__(self, keep: Callable[[Handler], None], *, arguments: int = 2, yields: bool = False) -> None:
        self._keep = keep
        self._arguments = arguments
        self._yields = yields

    def __call__(self, function: F) -> F:
        """Keep the function. Raises TypeError where it could not be called."""
        check_function(function, self._arguments, yields=self._yields)
        self._keep(build_handler(function))
        return function


# What a handler of whole messages is: of the session and the message to what becomes of it.
MessageHandler = Callable[[Session[S], Message], Rewritten | Awaitable[Rewritten]]


class MessageHook(Generic[S]):
    """The decorator for handlers of whole messages, with or without options."""

    def __init__(self, keep: Callable[[WholeMessage], None]) -> None:
        self._keep = keep

    @overload
    def __call__(self, function: MessageHandler[S]) -> MessageHandler[S]: ...

    @overload
    def __call__(
        self, *, limit: int = ..., above: Decision | None = ...
    ) -> Callable[[MessageHandler[S]], MessageHandler[S]]: ...

    def __call__(
        self,
        function: MessageHandler[S] | None = None,
        *,
        limit: int = MESSAGE_LIMIT,
        above: Decision | None = None,
    ) -> MessageHandler[S] | Callable[[MessageHandler[S]], MessageHandler[S]]:
        """Keep the function. Messages of more than `limit` bytes pass unchanged; `above` is then decided at commit."""

        def keep(function: MessageHandler[S]) -> MessageHandler[S]:
            check_function(function, 2)
            self._keep(WholeMessage(build_handler(function), limit, above))
            return function

        return keep if function is None else keep(function)


class Subsystem(Generic[S]):
    """Decorators for events of one subsystem: the function gets the session and the event."""

    def __init__(self, handlers: Handlers, subsystem: str) -> None:
        self._handlers = handlers
        self._subsystem = subsystem
        self.every: Hook[Callable[[Session[S], events.Event], object]] = self.event("*")

    def event(self, name: str) -> Hook[Any]:
        """For an event by its name, one that has no class (`Other`) too; `*`: every event."""
        return Hook(self._handlers.events.setdefault((self._subsystem, name), []).append)


class DeliveryHooks(Subsystem[S]):
    """Decorators for events of local deliveries, which Pillarbox alone tells of."""

    def __init__(self, handlers: Handlers) -> None:
        super().__init__(handlers, MDA)
        self.delivery: Hook[Callable[[Session[S], events.Delivery], object]] = self.event("delivery")


class EventHooks(Subsystem[S]):
    """Decorators for events of sessions, in one direction."""

    def __init__(self, handlers: Handlers, subsystem: str) -> None:
        super().__init__(handlers, subsystem)
        self.link_connect: Hook[Callable[[Session[S], events.LinkConnect], object]] = self.event("link-connect")
        self.link_greeting: Hook[Callable[[Session[S], events.LinkGreeting], object]] = self.event("link-greeting")
        self.link_identify: Hook[Callable[[Session[S], events.LinkIdentify], object]] = self.event("link-identify")
        self.link_tls: Hook[Callable[[Session[S], events.LinkTLS], object]] = self.event("link-tls")
        self.link_auth: Hook[Callable[[Session[S], events.LinkAuth], object]] = self.event("link-auth")
        self.link_disconnect: Hook[Callable[[Session[S], events.LinkDisconnect], object]] = self.event(
            "link-disconnect"
        )
        self.tx_reset: Hook[Callable[[Session[S], events.TxReset], object]] = self.event("tx-reset")
        self.tx_begin: Hook[Callable[[Session[S], events.TxBegin], object]] = self.event("tx-begin")
        self.tx_mail: Hook[Callable[[Session[S], events.TxMail], object]] = self.event("tx-mail")
        self.tx_rcpt: Hook[Callable[[Session[S], events.TxRcpt], object]] = self.event("tx-rcpt")
        self.tx_envelope: Hook[Callable[[Session[S], events.TxEnvelope], object]] = self.event("tx-envelope")
        self.tx_data: Hook[Callable[[Session[S], events.TxData], object]] = self.event("tx-data")
        self.tx_commit: Hook[Callable[[Session[S], events.TxCommit], object]] = self.event("tx-commit")
        self.tx_rollback: Hook[Callable[[Session[S], events.TxRollback], object]] = self.event("tx-rollback")
        self.protocol_client: Hook[Callable[[Session[S], events.ProtocolClient], object]] = self.event(
            "protocol-client"
        )
        self.protocol_server: Hook[Callable[[Session[S], events.ProtocolServer], object]] = self.event(
            "protocol-server"
        )
        self.filter_report: Hook[Callable[[Session[S], events.FilterReport], object]] = self.event("filter-report")
        self.filter_response: Hook[Callable[[Session[S], events.FilterResponse], object]] = self.event(
            "filter-response"
        )
        self.timeout: Hook[Callable[[Session[S], events.Timeout], object]] = self.event("timeout")


class Hooks(EventHooks[S]):
    """All decorators: `@filter.on.mail_from`. Those with a value get the session and it, the others the session."""

    def __init__(self, handlers: Handlers) -> None:
        super().__init__(handlers, SMTP_IN)
        self.smtp_out: EventHooks[S] = EventHooks(handlers, SMTP_OUT)
        self.mda: DeliveryHooks[S] = DeliveryHooks(handlers)
        asked = self._question
        self.connect: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.CONNECT)
        self.helo: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.HELO)
        self.ehlo: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.EHLO)
        self.starttls: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.STARTTLS)
        self.auth: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.AUTH)
        self.mail_from: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.MAIL_FROM)
        self.rcpt_to: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.RCPT_TO)
        self.noop: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.NOOP)
        self.help: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.HELP)
        self.wiz: Hook[Callable[[Session[S], str], Answer]] = asked(Phase.WIZ)
        self.data: Hook[Callable[[Session[S]], Answer]] = asked(Phase.DATA)
        self.commit: Hook[Callable[[Session[S]], Answer]] = asked(Phase.COMMIT)
        self.rset: Hook[Callable[[Session[S]], Answer]] = asked(Phase.RSET)
        self.quit: Hook[Callable[[Session[S]], Answer]] = asked(Phase.QUIT)
        self.data_line: Hook[Callable[[Session[S], str], Lines | Awaitable[Lines] | AsyncIterator[str]]] = Hook(
            handlers.lines.append, yields=True
        )
        self.data_end: Hook[Callable[[Session[S]], Lines | Awaitable[Lines] | AsyncIterator[str]]] = Hook(
            handlers.ends.append, arguments=1, yields=True
        )
        self.headers: Hook[Callable[[Session[S], Headers], Answer]] = Hook(handlers.headers.append)
        self.message: MessageHook[S] = MessageHook(handlers.messages.append)

    def _question(self, phase: Phase) -> Hook[Any]:
        arguments = 1 if phase in BARE else 2
        return Hook(self._handlers.questions.setdefault(phase, []).append, arguments=arguments)
