"""Where a configuration's problems are collected: each with its file, line, column and the line itself."""

import difflib
from collections.abc import Iterable

from pillarbox.conf.lexer import Source
from pillarbox.errors import Problem

MAX_PROBLEMS = 1000
_MAX_HINTS = 50  # nearest names are searched for that many problems, among that many names at most
_MAX_NAMES = 500
_SHOWN = 160  # characters of the source line


class TooManyProblems(Exception):
    """The rest of the file is not worth reading."""


class Report:
    """Problems and warnings as they are found."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._broken: dict[tuple[str, str], int] = {}

    def at(
        self, message: str, source: Source, line: int, pos: int, *, names: Iterable[str] = (), near: str = ""
    ) -> None:
        """A problem at offset `pos` of a file; the nearest of `names` to `near` is added.

        Raises TooManyProblems at the one after `MAX_PROBLEMS`.
        """
        if len(self.problems) >= MAX_PROBLEMS:
            raise TooManyProblems
        if names and len(self.problems) < _MAX_HINTS:
            message += self.nearest(near, names)
        self.problems.append(_problem(message, source, line, pos))

    def warn(self, message: str, source: Source, line: int, pos: int) -> None:
        """Something that is legal but hardly meant."""
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(_problem(f"warning: {message}", source, line, pos))

    def sorted_warnings(self) -> list[Problem]:
        """The warnings in the order of the lines, where there is only one file."""
        if len({problem.file for problem in self.warnings}) == 1:
            self.warnings.sort(key=lambda problem: problem.line)
        return self.warnings

    def broken(self, kind: str, name: str, line: int) -> None:
        """A statement that declares something (`kind` is its keyword) has an error, so the name will be missed."""
        self._broken.setdefault((kind, name), line)

    def missing(self, kind: str, name: str) -> str:
        """What to add where `name` is not declared: that it would be, but for an error."""
        line = self._broken.get((kind, name))
        return f"; its declaration in line {line} has an error" if line else ""

    def all(self) -> list[Problem]:
        """What there is to show, in the order of the file where there is only one."""
        if len({problem.file for problem in self.problems}) == 1:
            self.problems.sort(key=lambda problem: problem.line or 1 << 31)
        if len(self.problems) >= MAX_PROBLEMS:
            return [*self.problems, Problem("too many errors: the rest is not looked at")]
        return self.problems

    @staticmethod
    def nearest(word: str, names: Iterable[str]) -> str:
        """`; did you mean "…"?` or nothing."""
        candidates = [name for name in names if abs(len(name) - len(word)) <= 3][:_MAX_NAMES]
        close = difflib.get_close_matches(word[:60], candidates, n=1, cutoff=0.7)
        return f'; did you mean "{close[0]}"?' if close else ""


def _problem(message: str, source: Source, line: int, pos: int) -> Problem:
    start = source.text.rfind("\n", 0, pos) + 1
    end = source.text.find("\n", pos, pos + _SHOWN)
    if end < 0:
        end = min(len(source.text), pos + _SHOWN)
    # Of a very long line only the part around the place is shown.
    start = max(start, pos - _SHOWN)
    return Problem(message, source.name, line, pos - start + 1, source.text[start:end].rstrip("\r"))
