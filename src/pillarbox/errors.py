"""The failures that cross layers: every other error is translated into one of these where it arises.

A policy "no" is a returned reply or outcome, never one of these. `TempFail` and `PermFail` mean that
machinery failed; `server/dispatch` maps them to a reply in one place, the queue to an outcome.
"""


class PillarboxError(Exception):
    """An error whose text is written for a person: what, where, and what to do."""


class TempFail(PillarboxError):
    """It may work later: a lookup without answer, a role that is being restarted, a full disk."""


class NoSpace(TempFail):
    """A `TempFail` because the disk is full: the client is told so (452), and tries again."""


class PermFail(PillarboxError):
    """It will not work however often it is tried."""


class ConfigError(PillarboxError):
    """A configuration that cannot be used; `problems` is in the order of the file."""

    def __init__(self, problems: "list[Problem] | tuple[Problem, ...]") -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = tuple(problems)


class Problem:
    """One thing wrong at one place: printed as `file:line: message`, or `message` alone where there is no line."""

    __slots__ = ("column", "file", "line", "message", "source")

    def __init__(self, message: str, file: str = "", line: int = 0, column: int = 0, source: str = "") -> None:
        self.message, self.file, self.line, self.column, self.source = message, file, line, column, source

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        text = f"{where}{self.message}"
        if self.source and self.column:
            pad = "".join("\t" if c == "\t" else " " for c in self.source[: self.column - 1])
            text += f"\n    {self.source}\n    {pad}^"
        return text
