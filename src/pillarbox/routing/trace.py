"""What an expansion did, written down while it is done: an observer of `Expander`, and what it is handed to record.

The expander is the one that serves clients; only its tables, files and log are wrapped here, so that each question
that it asks is noted with the member that it was asked for. Nothing here decides anything.
"""

import io
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from pillarbox.conf import model
from pillarbox.conf.model import Rule
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope
from pillarbox.roles import explain
from pillarbox.roles.explain import TEXT_MAX, visible
from pillarbox.roles.lookup import User
from pillarbox.routing.aliases import Kind
from pillarbox.routing.ruleset import Decider, Subject
from pillarbox.tables.services import Service
from pillarbox.tables.table import Table

STEPS_MAX = 10_000  # a list of a hundred thousand members is not told in full


class Node(Protocol):
    """A member as the expander has it."""

    @property
    def form(self) -> Kind:
        """Address, user, …"""
        ...

    @property
    def text(self) -> str:
        """The member itself."""
        ...

    @property
    def depth(self) -> int:
        """How far below the recipient."""
        ...

    @property
    def parent(self) -> "Node | None":
        """What led to it."""
        ...


class Observer(Protocol):
    """What `Expander` tells to one who listens."""

    def inserted(self, node: Node, *, new: bool) -> None:
        """A member was found; one that is not new is dropped."""
        ...

    def working(self, node: Node) -> None:
        """From here on everything is done for this member."""
        ...

    def decoded(self, given: str, decoded: str | None) -> None:
        """A rewritten sender was decoded, or could not be."""
        ...

    def note(self, text: str) -> None:
        """Why something is not done."""
        ...

    def submitted(self, envelope: Envelope) -> None:
        """An envelope was made."""
        ...


class Decided:
    """The ruleset was asked; `routing/explain` tells how its rules came out. `error`: it could not be told."""

    __slots__ = ("error", "rule", "subject")

    def __init__(self, subject: Subject, rule: Rule | None, error: str = "") -> None:
        self.subject = subject
        self.rule = rule
        self.error = error


class TracedMember:
    """A member and what happened for it."""

    __slots__ = ("depth", "kind", "number", "parent", "steps", "text")

    def __init__(self, number: int, parent: int, node: Node) -> None:
        self.number = number
        self.parent = parent
        self.depth = node.depth
        self.kind = node.form.name.lower()
        self.text = visible(node.text)
        self.steps: list[explain.Step | Decided] = []


class Trace:
    """Collects. Implements `Observer`; the wrappers below add what was asked."""

    def __init__(self) -> None:
        self.members: list[TracedMember] = []
        self.submitter: list[int] = []  # of each envelope, in their order
        self.unknown: list[str] = []
        self.left_out = 0
        self._by_node: dict[int, TracedMember] = {}
        self._nodes: list[Node] = []  # kept, so that their ids stay theirs
        self._current: TracedMember | None = None
        self._steps = 0

    def inserted(self, node: Node, *, new: bool) -> None:
        """See `Observer`."""
        if not new:
            self._found(node, 0)
            return
        if len(self._nodes) >= STEPS_MAX:
            self.left_out += 1
            return
        self._nodes.append(node)
        parent = self._by_node.get(id(node.parent))
        member = TracedMember(len(self._nodes), parent.number if parent is not None else 0, node)
        self._by_node[id(node)] = member
        self.members.append(member)
        if node.parent is not None:
            self._found(node, member.number)

    def working(self, node: Node) -> None:
        """See `Observer`."""
        self._current = self._by_node.get(id(node))

    def decoded(self, given: str, decoded: str | None) -> None:
        """See `Observer`."""
        self.add(explain.SrsDecoded(given=visible(given), decoded=None if decoded is None else visible(decoded)))

    def note(self, text: str) -> None:
        """See `Observer`."""
        self.add(explain.Note(text=visible(text)))

    def submitted(self, envelope: Envelope) -> None:
        """See `Observer`."""
        self.submitter.append(self._current.number if self._current is not None else 0)
        self.add(explain.EnvelopeMade(number=len(self.submitter)))

    def add(self, step: explain.Step | Decided) -> None:
        """Something happened for the member that is being worked on."""
        if self._current is None or self._steps >= STEPS_MAX:
            self.left_out += 1
            return
        self._steps += 1
        self._current.steps.append(step)

    def _found(self, node: Node, number: int) -> None:
        self.add(explain.MemberFound(number=number, kind=node.form.name.lower(), text=visible(node.text)))


class TracedTable:
    """A table that notes what it is asked. Implements `tables.table.Table`."""

    def __init__(self, table: Table, source: str, trace: Trace) -> None:
        self.name = table.name
        self._table = table
        self._source = source
        self._trace = trace

    async def match(self, service: Service, key: str) -> bool:
        """See `Table`."""
        return await self._table.match(service, key)

    async def lookup(self, service: Service, key: str) -> str | None:
        """See `Table`."""
        value, error = None, ""
        try:
            value = await self._table.lookup(service, key)
        except TempFail as failure:
            error = str(failure)
            raise
        finally:
            self._trace.add(asked(self.name, self._source, service, key, value, error=error))
        return value

    async def fetch(self, service: Service) -> str | None:
        """Not here: it would take the next entry from the mail that is due."""
        raise TempFail(f"table {self.name} is not asked for its next entry to explain")

    async def update(self) -> None:
        """Not here."""

    def open(self) -> None:
        """The table is open."""

    async def close(self) -> None:
        """The table is not ours to close."""


class TracedRuleset:
    """The ruleset, noting what it decided. Implements `routing.ruleset.Decider`."""

    def __init__(self, ruleset: Decider, trace: Trace) -> None:
        self._ruleset = ruleset
        self._trace = trace

    async def decide(self, subject: Subject) -> Rule | None:
        """See `Decider`."""
        try:
            rule = await self._ruleset.decide(subject)
        except TempFail as error:
            self._trace.add(Decided(subject, None, str(error)))
            raise
        self._trace.add(Decided(subject, rule))
        return rule


class NotSeen(TempFail):
    """A `.forward` that whoever explains may not read, though the server could."""


class TracedFiles:
    """Users, `.forward` and included files: what was asked for, and what came."""

    def __init__(
        self,
        *,
        trace: Trace,
        tables: Mapping[str, model.Table],
        find_user: Callable[[str, str], Awaitable[User | None]],
        read_forward: Callable[[User], Awaitable[bytes | None]],
        read_include: Callable[[str], Awaitable[bytes]],
    ) -> None:
        self._trace = trace
        self._tables = tables
        self._find_user = find_user
        self._read_forward = read_forward
        self._read_include = read_include

    async def find_user(self, table: str, name: str) -> User | None:
        """The user of a user base."""
        step = explain.UserAsked(table=table, source=source_of(self._tables.get(table)), user=visible(name))
        try:
            user = await self._find_user(table, name)
        except TempFail as error:
            self._trace.add(user_asked(step, None, str(error)))
            raise
        self._trace.add(user_asked(step, user))
        return user

    async def read_forward(self, user: User) -> bytes | None:
        """`~/.forward` through the parent's rules. One that only the server may read counts as absent, and is said."""
        path = visible(f"{user.home}/.forward")
        try:
            found = await self._read_forward(user)
        except NotSeen as error:
            self._trace.unknown.append(f"{path}: {error}")
            self._trace.add(explain.ForwardRead(path=path, state="unknown", reason=visible(str(error))))
            return None
        except (TempFail, PermFail) as error:
            state = "insecure" if isinstance(error, PermFail) else "unreadable"
            self._trace.add(explain.ForwardRead(path=path, state=state, reason=visible(str(error))))
            raise
        if found is None:
            self._trace.add(explain.ForwardRead(path=path, state="absent"))
        else:
            self._trace.add(explain.ForwardRead(path=path, state="read", content=_content(found)))
        return found

    async def read_include(self, path: str) -> bytes:
        """The file of an `:include:`."""
        try:
            found = await self._read_include(path)
        except TempFail as error:
            self._trace.add(explain.IncludeRead(path=visible(path), reason=visible(str(error))))
            raise
        self._trace.add(explain.IncludeRead(path=visible(path), content=_content(found)))
        return found


class _Notes(io.StringIO):
    """Where the expander's log lines go: they say why something failed."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def write(self, text: str) -> int:
        level, colon, line = text.rstrip("\n").partition(": ")
        self._trace.note(line if colon and level in ("info", "warn", "debug") else text.rstrip("\n"))
        return len(text)


def notes_log(trace: Trace) -> Log:
    """A log whose lines become notes of the member that is being worked on."""
    return Log(_Notes(trace), verbose=True)


def asked(
    table: str, source: str, service: Service, key: str, value: str | None, *, error: str = ""
) -> explain.TableAsked:
    """The step of a question to a table."""
    return explain.TableAsked(
        table=table,
        source=source,
        service=str(service),
        key=visible(key),
        value=None if value is None else visible(value),
        error=visible(error),
    )


def user_asked(step: explain.UserAsked, user: User | None, error: str = "") -> explain.UserAsked:
    """The step of a question to a user base, with its answer."""
    return explain.UserAsked(
        table=step.table,
        source=step.source,
        user=step.user,
        uid=None if user is None else user.uid,
        gid=0 if user is None else user.gid,
        home="" if user is None else visible(user.home),
        error=visible(error),
    )


def source_of(table: model.Table | None) -> str:
    """Where a table's content is from, as smtpd.conf names it."""
    if table is None:
        return ""
    match table.kind:
        case model.TableKind.STATIC:
            return "smtpd.conf"
        case model.TableKind.GETPWNAM:
            return "system users"
        case model.TableKind.PROC:
            return f"{table.backend}:{table.config}"
        case kind:
            return f"{kind}:{table.config}"


def _content(data: bytes) -> str:
    """The lines of a file, each visible."""
    lines = data[:TEXT_MAX].decode("utf-8", "surrogateescape").split("\n")
    text = "\n".join(visible(line) for line in lines)
    return text + "…" if len(data) > TEXT_MAX else text
