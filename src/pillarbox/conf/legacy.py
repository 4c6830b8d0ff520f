"""smtpd.conf of OpenSMTPD 5.3 to 6.3 → today's grammar: the entry of `smtpd-convert`.

The file is read twice: once to know what it declares, then statement by statement, each rewritten where it stands.
Rules become matches in the same order, with one action for each distinct right-hand side. Comments, layout, macros and
includes stay; what has no equivalent becomes a comment. docs/convert.md says what becomes what.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pillarbox.conf.draft import Wrong, word
from pillarbox.conf.legacy_read import LegacyReader, LegacyStatement
from pillarbox.conf.legacy_rules import convert_rule
from pillarbox.conf.legacy_state import Remark, State
from pillarbox.conf.legacy_statements import convert_statement
from pillarbox.conf.legacy_text import Page, Written
from pillarbox.conf.lexer import Lexer, Source
from pillarbox.conf.parser import Parser
from pillarbox.conf.report import Report, TooManyProblems
from pillarbox.errors import ConfigError, Problem

__all__ = ["Conversion", "Remark", "convert_config", "is_legacy"]

_RULES = ("accept", "reject")
# Lines that begin no statement of today. A macro may be called like any of these words.
_LEGACY_LINE = re.compile(
    r"^[ \t]*(?:(?:accept|reject|expire|bounce-warn|max-message-size|max-mta-deferred|subaddressing-delimiter|ciphers)"
    r"[ \t]+(?!=)|limit[ \t]+(?:session|mta|mda|scheduler)\b|(?:pki|ca)[ \t]+\S+[ \t]+certificate\b"
    r"|queue[ \t]+encryption[ \t]+key\b|listen[ \t]+on[ \t][^#\n]*[ \t](?:secure|mask-source)\b)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """A file in today's grammar. `files`: path → text, the file itself first; included ones where they are followed."""

    files: Mapping[str, str]
    remarks: tuple[Remark, ...] = ()
    rules: int = 0
    actions: int = 0
    changed: bool = True

    @property
    def complete(self) -> bool:
        """Whether nothing wants anybody's attention."""
        return not any(remark.attention for remark in self.remarks)


def is_legacy(text: str) -> bool:
    """Whether a file looks as if it were written before 6.4."""
    return _LEGACY_LINE.search(text) is not None


def convert_config(
    *, file: str, read: Callable[[str], str], macros: Mapping[str, str], hostname: str, follow: bool
) -> Conversion:
    """Convert `file`, which `read` returns, as it does what it includes (or raises OSError).

    `hostname` is the server's name: listeners took its certificate. With `follow` included files are converted too.
    A file in today's grammar is returned as it is. Raises ConfigError with all problems.
    """
    report = Report()
    try:
        text = read(file)
    except OSError as error:
        raise ConfigError([Problem(f"cannot read {file}: {error.strerror or error}")]) from None
    converter = _Converter(file=file, text=text, read=read, macros=macros, hostname=hostname, report=report)
    try:
        converter.read(follow=follow)
        if report.problems:
            if _is_todays(file, text, macros):
                return Conversion({file: text}, changed=False)
            converter.doubt()
        converter.convert(follow=follow)
    except TooManyProblems:
        raise ConfigError(report.all()) from None
    if report.problems:
        raise ConfigError(report.all())
    return converter.result(follow=follow)


def _is_todays(file: str, text: str, macros: Mapping[str, str]) -> bool:
    """Whether today's grammar has no fault to find with a file; what it includes is not looked at."""
    report = Report()
    lexer = Lexer(name=file, text=text, macros=macros)
    for statement in Parser(lexer=lexer, report=report).statements():
        if statement.tree.data == "macro":
            lexer.define(word(statement.tree), word(statement.tree, 1))
    return not report.problems


@dataclass(slots=True)
class _Included:
    """A file that is named by an include: where, and what it brought."""

    statement: LegacyStatement
    path: str
    source: Source


class _Converter:
    """One run over a file and what it includes."""

    def __init__(
        self,
        *,
        file: str,
        text: str,
        read: Callable[[str], str],
        macros: Mapping[str, str],
        hostname: str,
        report: Report,
    ) -> None:
        self._file, self._read = file, read
        self._report = report
        self._reader = LegacyReader(name=file, text=text, macros=macros, report=report)
        self._state = State(hostname=hostname, report=report)
        self._main = self._reader.lexer.source
        self._pages: dict[int, Page] = {id(self._main): Page(self._main)}
        self._statements: list[LegacyStatement] = []
        self._includes: list[_Included] = []

    def read(self, *, follow: bool) -> None:
        """Read all statements. What is wrong in a file that is not converted is no problem of this one."""
        for statement in self._reader.statements(self._include):
            self._statements.append(statement)
            self._pages.setdefault(id(statement.source), Page(statement.source))
            self._state.declared.note(statement)
        if not follow:
            own = [problem for problem in self._report.problems if problem.file == self._file]
            if len(own) < len(self._report.problems):
                self.doubt()
            self._report.problems = own

    def doubt(self) -> None:
        """Statements are missing: what nobody declares may be declared by them."""
        self._state.declared.whole = False

    def _include(self, statement: LegacyStatement) -> None:
        path = word(statement.tree)
        try:
            self._reader.lexer.include(path, self._read)
        except (OSError, LookupError) as error:
            self.doubt()
            reason = getattr(error, "strerror", None) or error
            self._state.remark(statement, f"failed to include file {path}: {reason}; what it declares is not known")
            return
        self._includes.append(_Included(statement, path, self._reader.lexer.source))

    def convert(self, *, follow: bool) -> None:
        """Rewrite each statement; in files that are not converted only what they declare counts."""
        for statement in self._statements:
            page = self._pages[id(statement.source)]
            self._state.silent = not follow and statement.source is not self._main
            if self._state.silent:
                self._look(statement, page)
                continue
            with self._state.collecting(statement):
                page.written.append(self._written(statement))
        self._state.silent = False
        if not follow:
            self._tell_includes()

    def _written(self, statement: LegacyStatement) -> Written:
        if statement.kind in _RULES:
            lines, actions = convert_rule(self._state, statement)
            return Written(statement.start, statement.end, lines, is_rule=True, actions=actions)
        return Written(statement.start, statement.end, convert_statement(self._state, statement))

    def _look(self, statement: LegacyStatement, page: Page) -> None:
        """Note what an included file declares, and whether it would have to be converted."""
        if statement.kind in _RULES:
            page.written.append(Written(statement.start, statement.end, [], is_rule=True))
            return
        try:
            page.written.append(Written(statement.start, statement.end, convert_statement(self._state, statement)))
        except Wrong:
            self.doubt()

    def _tell_includes(self) -> None:
        for included in self._includes:
            if included.statement.source is not self._main:
                continue
            if any(self._pages[key].changed for key in self._below(included)):
                message = f"{included.path} is in the old grammar too: -r converts it together with this one"
                self._state.remark(included.statement, message)

    def _below(self, included: _Included) -> list[int]:
        """The pages of an included file and of those that it includes."""
        keys = [id(included.source)]
        for other in self._includes:
            if id(other.statement.source) in keys:
                keys.append(id(other.source))
        return [key for key in keys if key in self._pages]

    def result(self, *, follow: bool) -> Conversion:
        """What came of it."""
        pages = list(self._pages.values()) if follow else [self._pages[id(self._main)]]
        files: dict[str, str] = {}
        for page in pages:
            if page.source.name in files and page.changed:
                raise ConfigError([Problem(f"cannot convert {page.source.name}: it is included twice", self._file)])
            if page.changed or page.source is self._main:
                files[page.source.name] = page.text()
        return Conversion(
            files=files,
            remarks=tuple(self._state.remarks),
            rules=self._state.rules,
            actions=len(self._state.actions),
            changed=any(page.changed for page in pages),
        )
