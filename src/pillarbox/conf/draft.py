"""A configuration in the making: what the statements so far have declared, and how they complain."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
from lark import Token, Tree

from pillarbox.conf.advice import Judge
from pillarbox.conf.lexer import NUMBER, STRING, Lexer, Skimmed, Source
from pillarbox.conf.model import (
    UNNAMED_CHAIN,
    Config,
    EventReport,
    Filter,
    Listener,
    Local,
    MtaLimits,
    Pki,
    Proc,
    Relay,
    Rule,
    Table,
    TableKind,
)
from pillarbox.conf.report import Report
from pillarbox.conf.tables import Shape, Tables, key_fits

Node = Tree[Token]


class Checker(Judge, Protocol):
    """Questions about the machine that only `daemon/check` can answer. Where the answer is a `str`, "" means fine."""

    def local_addresses(self) -> Sequence[str]:
        """Every address of this machine."""
        ...

    def listener(self, listener: Listener) -> str:
        """What is wrong with the interface, address or host name that it names."""
        ...

    def service_port(self, name: str) -> int:
        """The TCP port of a service, services(5); 0 where there is none."""
        ...

    def table_program(self, backend: str) -> bool:
        """Whether a table program of that name is installed."""
        ...

    def table_database(self, path: str) -> str:
        """What is wrong with a `db:` file."""
        ...

    def pki(self, pki: Pki) -> tuple[str, str]:
        """What is wrong with its files, and what to warn about."""
        ...

    def ca(self, path: str) -> str:
        """What is wrong with a file of CA certificates."""
        ...


class Wrong(Exception):
    """A statement, or a part of one, that cannot stand; `node` says where. The nearest of `names` may be named."""

    def __init__(self, node: Node | Token, message: str, *, names: Iterable[str] = (), near: str = "") -> None:
        super().__init__(message)
        self.node, self.message, self.names, self.near = node, message, names, near


class Draft:
    """What has been declared. `lexer` and `read` serve macros and includes."""

    def __init__(
        self, *, lexer: Lexer, read: Callable[[str], str], hostname: str, checker: Checker | None, report: Report
    ) -> None:
        self.lexer, self.read, self.checker, self.report = lexer, read, checker, report
        self.base = Config(hostname=hostname)
        self.options: dict[str, Any] = {}  # fields of Config that a statement sets as a whole
        self.tables = Tables(
            hostname=hostname, local_addresses=checker.local_addresses if checker is not None else lambda: ()
        )
        self.pki: dict[str, Pki] = {}
        self.pki_places: dict[str, tuple[Source, Node]] = {}  # where each was last spoken of
        self.ca: dict[str, str] = {}
        self.listeners: list[Listener] = []
        self.actions: dict[str, Local | Relay] = {}
        self.rules: list[Rule] = []
        self.procs: dict[str, Proc] = {}
        self.filters: dict[str, Filter] = {}
        self.reports: list[EventReport] = []
        self.mda_wrappers: dict[str, str] = {}
        self.mta_domains: dict[str, MtaLimits] = {}
        self.source: Source = lexer.source
        self.line = 0
        self.failed = False  # the current statement
        self._places: dict[tuple[str, str | int], tuple[Source, int, int]] = {("file", ""): (lexer.source, 1, 0)}
        self._given: set[str] = set()  # options of the current statement that count once, be they empty
        self._chains = 0

    def begin(self, source: Source, line: int) -> None:
        """The next statement."""
        self.source, self.line, self.failed = source, line, False
        self._given.clear()

    def first(self, option: str) -> bool:
        """Whether the current statement gives an option for the first time."""
        again = option in self._given
        self._given.add(option)
        return not again

    def get(self, field: str) -> Any:
        """A field of the Config as it is by now."""
        return self.options.get(field, getattr(self.base, field))

    def change(self, field: str, **values: object) -> None:
        """Set fields of one of the Config's groups of options."""
        self.options[field] = msgspec.structs.replace(self.get(field), **values)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Turn a Wrong into a problem and go on: the other options of the statement are looked at too."""
        try:
            yield
        except Wrong as wrong:
            self.failed = True
            line, pos = place(wrong.node)
            self.report.at(wrong.message, self.source, line, pos, names=wrong.names, near=wrong.near)

    def declare(self, kind: str, name: str | int, node: Node) -> None:
        """Remember where something was declared (the last time)."""
        self._places[kind, name] = (self.source, *place(_edge(node, 0)))

    def advise(self, kind: str, name: str | int, message: str) -> None:
        """Warn about something that was declared."""
        source, line, pos = self._places[kind, name]
        self.report.warn(message, source, line, pos)

    def warn(self, node: Node | Token, message: str) -> None:
        """Something that is legal but hardly meant."""
        line, pos = place(node)
        self.report.warn(message, self.source, line, pos)

    def table(self, node: Node) -> str:
        """The name of the table that a `_table` of the grammar means: `<name>`, or one made here."""
        if node.data == "reference":
            name = word(node)
            if not self.tables.knows(name):
                missing = self.report.missing("table", name)
                names = () if missing else self.tables.all
                raise Wrong(node, f"no such table: {name}{missing}", names=names, near=name)
            return name
        content = options(node)[0] if node.data == "block" else node
        return self.static_table(self.tables.unnamed(), content)

    def static_table(self, name: str, content: Node) -> str:
        """Declare a table from its elements: `pairs`, or `strings` and a single literal."""
        elements = words(content)
        mapping = content.data == "pairs"
        if mapping:
            entries = tuple(zip(elements[::2], elements[1::2], strict=True))
        else:
            entries = tuple((element, "") for element in elements)
        if not all(key_fits(key) for key, _ in entries):
            for key, _ in entries:
                if not key_fits(key):
                    self.warn(content, f'failed to add "{key}" in table "{name}"')
            entries = tuple(entry for entry in entries if key_fits(entry[0]))
        table = Table(name=name, kind=TableKind.STATIC, mapping=mapping, entries=entries)
        return self.tables.add(table, Shape.MAP if mapping else Shape.LIST)

    def serving_table(self, node: Node, shapes: Shape, refusal: str, *, userinfo: bool = False) -> str:
        """`table`, refused with `refusal` (in which {} is its name) where its shape does not serve."""
        name = self.table(node)
        self.require_shape(node, name, shapes, refusal, userinfo=userinfo)
        return name

    def require_shape(self, node: Node, name: str, shapes: Shape, refusal: str, *, userinfo: bool = False) -> None:
        """Refuse a table that is named here and does not serve."""
        if not self.tables.may_serve(name, shapes, userinfo=userinfo):
            raise Wrong(node, refusal.format(name) + self.report.missing("table", name))

    def filter(self, node: Node) -> str:
        """The name of the filter that an option names; `{ a, b }` becomes a chain of its own."""
        if values(node):
            name = word(node)
            self._require_filter(token(node))
            return name
        self._chains += 1
        name = f"{UNNAMED_CHAIN}{self._chains:08x}>"
        self.filters[name] = self.chain(name, options(node)[0])
        return name

    def chain(self, name: str, node: Node) -> Filter:
        """A chain of filters that exist, each once and none a chain."""
        members: dict[str, None] = {}
        for value in values(node):
            member = str(value)
            self._require_filter(value)
            if self.filters[member].kind == "chain":
                raise Wrong(value, f"no filter chain allowed within a filter chain: {member}")
            if member in members:
                raise Wrong(value, f"no filter allowed twice within a filter chain: {member}")
            members[member] = None
        return Filter(name=name, kind="chain", chain=tuple(members))

    def _require_filter(self, name: Token) -> None:
        if name not in self.filters:
            missing = self.report.missing("filter", str(name))
            names = () if missing else self.filters
            raise Wrong(name, f"no filter exist with that name: {name}{missing}", names=names, near=str(name))


def place(node: Node | Token) -> tuple[int, int]:
    """Line and offset to complain about: where an option begins, or where one over several lines ends."""
    first, last = _edge(node, 0), _edge(node, -1)
    at = first if first.line == last.line else last
    return at.line or 0, at.start_pos or 0


def _edge(node: Node | Token, index: int) -> Token:
    while isinstance(node, Tree):
        node = node.children[index]
    return node


def values(node: Node) -> list[Token]:
    """The words and numbers among a node's children."""
    found: list[Token] = []
    for child in node.children:
        if isinstance(child, Skimmed):
            found += [Token.new_borrow_pos(STRING, element, child) for element in child.elements]
        elif isinstance(child, Token) and child.type in _VALUES:
            found.append(child)
    return found


def token(node: Node, index: int = 0) -> Token:
    """The word or number at `index`."""
    return values(node)[index]


def word(node: Node, index: int = 0) -> str:
    """The text of the word or number at `index`."""
    return str(token(node, index))


def words(node: Node) -> list[str]:
    """The text of all words and numbers."""
    found: list[str] = []
    for child in node.children:
        if isinstance(child, Skimmed):
            found += child.elements
        elif isinstance(child, Token) and child.type in _VALUES:
            found.append(str(child))
    return found


def options(node: Node) -> list[Node]:
    """The children that are not tokens."""
    return [child for child in node.children if isinstance(child, Tree)]


_VALUES = {STRING, NUMBER}


def option(node: Node, name: str) -> Node | None:
    """The child that is of this rule, if there is one."""
    return next((child for child in options(node) if child.data == name), None)
