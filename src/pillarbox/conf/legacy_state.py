"""What is known about a file of the old grammar while it is converted, and where remarks about it go."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lark import Token

from pillarbox.conf.draft import Wrong, options, place
from pillarbox.conf.legacy_read import LegacyStatement
from pillarbox.conf.legacy_text import Rewrite, has, spell, value
from pillarbox.conf.report import Report
from pillarbox.errors import Problem

BUILTIN_TABLES = ("<anydestination>", "<anyhost>", "<localhost>", "<localnames>", "<getpwnam>")
CERTIFICATES = "/etc/mail/certs"  # where 5.3 looked for NAME.crt and NAME.key


@dataclass(frozen=True, slots=True)
class Remark:
    """Something to be told about a line. `attention`: a person has to look at it; else it only should be known."""

    file: str
    line: int
    message: str
    attention: bool

    def __str__(self) -> str:
        """As it is printed."""
        return str(Problem(f"{'warning' if self.attention else 'note'}: {self.message}", self.file, self.line))


@dataclass(slots=True)
class Declared:
    """What all statements together declare, known before the first is converted."""

    pki: dict[str, str] = field(default_factory=dict)  # lower-cased name → as it is written today
    pki_ca: set[str] = field(default_factory=set)  # pki that brought a CA file along
    auth_tags: set[str] = field(default_factory=set)  # of listeners that let clients authenticate
    whole: bool = True  # no included file is missing

    def note(self, statement: LegacyStatement) -> None:
        """Remember what a statement declares."""
        tree = statement.tree
        if statement.kind == "pki":
            name = value(tree)
            self.pki.setdefault(str(name).lower(), spell(str(name).lower()))
            if has(tree, "pki_ca"):
                self.pki_ca.add(str(name).lower())
        elif statement.kind == "listen_on":
            kinds = {str(part.data): part for part in options(tree)}
            if "listen_auth" in kinds or "listen_auth_optional" in kinds:
                self.auth_tags.add(str(value(kinds["listen_tag"])) if "listen_tag" in kinds else "")


class State:
    """Shared by the converters of statements: what was declared, what was said, which actions there are."""

    def __init__(self, *, hostname: str, report: Report) -> None:
        self.hostname = hostname
        self.report = report
        self.declared = Declared()
        self.tables: set[str] = set(BUILTIN_TABLES)
        self.actions: dict[tuple[object, ...], str] = {}
        self.rules = 0
        self.remarks: list[Remark] = []
        self.certificates: set[str] = set()  # pki statements written for certificates of 5.3
        self.pki: set[str] = set()  # declared above
        self.seen_accept = False
        self.silent = False  # in a file that is only read

    def remark(self, statement: LegacyStatement, message: str, *, attention: bool = True) -> None:
        """Say something about a statement."""
        message = " ".join(message.split())
        if not self.silent:
            self.remarks.append(Remark(statement.source.name, statement.line, message, attention))

    @contextmanager
    def collecting(self, statement: LegacyStatement) -> Iterator[None]:
        """Turn a Wrong into a problem of the file."""
        try:
            yield
        except Wrong as wrong:
            line, pos = place(wrong.node)
            self.report.at(wrong.message, statement.source, line, pos, names=wrong.names, near=wrong.near)

    def check_tables(self, statement: LegacyStatement) -> None:
        """Refuse references to tables that nobody has declared by now; inline ones are declared where they are used."""
        if not self.declared.whole:
            return
        for node in statement.tree.iter_subtrees():
            if node.data == "reference" and (name := str(value(node))) not in self.tables:
                raise Wrong(value(node), f"no such table: {name}", names=self.tables, near=name)

    def use_pki(self, rewrite: Rewrite, token: Token) -> None:
        """Name a pki as it is looked for today, in lower case; one that nobody declares is refused."""
        if token != token.lower():
            rewrite.replace(token, spell(token.lower()))
        if self.declared.whole and str(token).lower() not in self.declared.pki:
            raise Wrong(token, f"pki name not found: {token}", names=self.declared.pki, near=str(token))

    def certificate(self, name: str) -> list[str]:
        """The statements for a certificate that 5.3 knew by its place, where they are not written yet."""
        if name.lower() in self.certificates or name.lower() in self.declared.pki:
            return []
        self.certificates.add(name.lower())
        written = spell(name)
        return [f'pki {written} cert "{CERTIFICATES}/{name}.crt"', f'pki {written} key "{CERTIFICATES}/{name}.key"']
