"""Rewriting a file of the old grammar in place: what does not change is copied as it was written.

`Rewrite` is one statement with some of its words replaced; `Page` puts a file together again out of statements that
were rewritten and everything between them: comments, blank lines, indentation.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lark import Token, Tree

from pillarbox.conf.draft import options
from pillarbox.conf.format import quoted
from pillarbox.conf.legacy_read import LegacyStatement, Node, is_macro, is_quoted
from pillarbox.conf.lexer import KEYWORDS, NUMBER, STRING, Source

MARK = "# smtpd-convert:"
_PLAIN = re.compile(r"[A-Za-z0-9:_][A-Za-z0-9$%&'*+\-./:;?@\[\]^_`|~]*\Z")
_ALL_DIGITS = re.compile(r"-?[0-9]+\Z")


def spell(text: str) -> str:
    """A word bare where today's lexer takes it for one, else in quotes."""
    return text if _PLAIN.match(text) and text not in KEYWORDS and not _ALL_DIGITS.match(text) else quoted(text)


def comment(message: str) -> str:
    """A comment of ours, on one line. A backslash at its end would make the next line part of it."""
    return f"{MARK} {' '.join(message.split())}".rstrip("\\")


def tokens_of(node: Node | Token) -> list[Token]:
    """The tokens of a node, in the file's order."""
    if isinstance(node, Token):
        return [node]
    return [token for child in node.children for token in tokens_of(child)]


class Rewrite:
    """One statement, some of whose tokens are replaced or left out; the others stay as written."""

    def __init__(self, statement: LegacyStatement) -> None:
        self.statement = statement
        self.changes: dict[int, str] = {}
        self.before: list[str] = []  # lines of their own
        self.instead = ""  # the statement, where replacing words does not do
        self.after = ""  # what is added to it
        self.gone = False  # nothing of today says this

    def replace(self, token: Token, text: str) -> None:
        """Write `text` for a token; "" leaves it out."""
        self.changes[id(token)] = text

    def drop(self, node: Node | Token) -> None:
        """Leave out all of an option."""
        for token in tokens_of(node):
            self.replace(token, "")

    def explain(self, message: str) -> None:
        """Put a comment of ours above it."""
        self.before.append(comment(message))

    def lines(self) -> list[str] | None:
        """What stands in its place; None where it stays as it was."""
        if self.gone:
            return [*self.before, *self.commented()]
        lines = [*self.before, self.instead or self.text() + self.after]
        statement = self.statement
        return None if lines == [statement.source.text[statement.start : statement.end]] else lines

    def text(self) -> str:
        """The whole statement."""
        return self.part(self.statement.tokens)

    def part(self, nodes: Iterable[Node | Token] | Node | Token) -> str:
        """The text of some of its tokens, which stand side by side."""
        listed = [nodes] if isinstance(nodes, Tree | Token) else nodes
        tokens = [token for node in listed for token in tokens_of(node)]
        wanted = {id(token) for token in tokens}
        pieces: list[str] = []
        pos = 0
        for span in self.statement.spans:
            inside = [token for token in span if id(token) in wanted]
            if not inside:
                continue
            start, end = span[0].start_pos or 0, span[0].end_pos or 0
            written = self._span(span, inside, start, end)
            if written:
                pieces += (self.statement.source.text[pos:start] if pieces else "", written)
            pos = end
        return "".join(pieces)

    def _span(self, span: Sequence[Token], inside: Sequence[Token], start: int, end: int) -> str:
        if len(inside) == len(span) and all(self._stays(token) for token in span):
            return self.statement.source.text[start:end]
        return " ".join(text for token in inside if (text := self._word(token)))

    def _stays(self, token: Token) -> bool:
        return id(token) not in self.changes and not self._is_reserved(token)

    def _is_reserved(self, token: Token) -> bool:
        """Whether it was a word like any other, and is a keyword today."""
        return token.type == STRING and token in KEYWORDS and not is_quoted(self.statement.source, token)

    def _word(self, token: Token) -> str:
        if id(token) in self.changes:
            return self.changes[id(token)]
        source = self.statement.source
        if token.type == STRING and (is_macro(source, token) or self._is_reserved(token)):
            return spell(str(token))
        if is_macro(source, token):
            return str(token)
        return source.text[token.start_pos or 0 : token.end_pos or 0]

    def commented(self) -> list[str]:
        """The statement as it was written, as comments."""
        statement = self.statement
        lines = statement.source.text[statement.start : statement.end].split("\n")
        return ["# " + line.strip(" \t\r").rstrip("\\ \t") for line in lines]


def value(node: Node) -> Token:
    """The first word or number of an option."""
    return next(token for token in tokens_of(node) if token.type in {STRING, NUMBER})


def has(node: Node, name: str) -> bool:
    """Whether an option has this part."""
    return any(child.data == name for child in options(node))


@dataclass(slots=True)
class Written:
    """What takes a statement's place: `lines`, and actions that must stand above it and its neighbours."""

    start: int
    end: int
    lines: list[str] | None = None  # None: as it was
    is_rule: bool = False
    actions: list[str] = field(default_factory=list)


class Page:
    """A file that is being rewritten."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.written: list[Written] = []

    @property
    def changed(self) -> bool:
        """Whether anything is written anew."""
        return any(written.lines is not None for written in self.written)

    def text(self) -> str:
        """The file as it is now."""
        out: list[str] = []
        pos = 0
        for run in _runs(self.written):
            actions = [line for written in run for line in written.actions]
            if actions:
                pos = self._put_actions(out, pos, run[0].start, actions)
            for written in run:
                out.append(self.source.text[pos : written.start])
                pos = written.end
                if written.lines is None:
                    out.append(self.source.text[written.start : written.end])
                else:
                    out.append(("\n" + self._indent(written.start)).join(written.lines))
        out.append(self.source.text[pos:])
        return "".join(out)

    def _put_actions(self, out: list[str], pos: int, start: int, actions: list[str]) -> int:
        """Write actions above a rule and the comment that belongs to it; returns how far the file is copied."""
        text, indent = self.source.text, self._indent(start)
        line = text.rfind("\n", pos, start) + 1
        above = self._above_comment(pos, line) if line else pos
        out.append(text[pos:above])
        if above and text[above - 1] != "\n":  # on the line of an include
            out.append("\n")
        out.append("".join(f"{indent}{action}\n" for action in actions))
        if above < line:
            out.append("\n")
        return above

    def _above_comment(self, pos: int, line: int) -> int:
        """Where the comment directly above this line begins; one at the head of the file belongs to the file."""
        text, above = self.source.text, line
        while above > pos:
            previous = text.rfind("\n", 0, above - 1) + 1
            if previous < pos or not text[previous:above].lstrip(" \t").startswith("#"):
                break
            above = previous
        return above if above else line

    def _indent(self, start: int) -> str:
        text = self.source.text
        begin = text.rfind("\n", 0, start) + 1
        before = text[begin:start]
        return before if not before.strip(" \t") else ""


def _runs(all_written: list[Written]) -> Iterable[list[Written]]:
    """Rules that follow one another, and each other statement by itself."""
    run: list[Written] = []
    for written in all_written:
        if run and not (written.is_rule and run[-1].is_rule):
            yield run
            run = []
        run.append(written)
    if run:
        yield run
