"""The file of a table program: a key and a value a line, `key value` or `key: value`, `#` before a comment."""

import difflib
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pillarbox.sdk.table import TableError

_INT_MAX = 2**31 - 1
# The key ends at a blank or a colon; then blanks, and colons with a blank behind them, are skipped.
_LINE = re.compile(r"([^ \t:]*)[ \t:]?(?:\s|:(?=\s))*(.*)", re.DOTALL)
_log = logging.getLogger("pillarbox.backends")


@dataclass(frozen=True, slots=True)
class Format:
    """The keys of one program, and how its file is taken.

    COMPAT: table-sqlite and table-ldap warn of a line without a value or of a key given again, and go on (with the
    first value, for the keys in `last` with the last one); the others refuse the file.
    """

    keys: Collection[str]
    lenient: bool = False
    last: Collection[str] = ()


class Settings:
    """What a file says; a method for each kind of value, which names the file where something is wrong."""

    def __init__(self, path: str, values: Mapping[str, str]) -> None:
        self.path = path
        self._values = values

    def get(self, key: str) -> str | None:
        """The value, None where there is none."""
        return self._values.get(key)

    def required(self, key: str) -> str:
        """The value. Raises TableError where there is none."""
        value = self._values.get(key)
        if value is None:
            raise TableError(f'{self.path}: "{key}" is missing')
        return value

    def number(self, key: str, default: int, most: int = _INT_MAX) -> int:
        """A whole number from 0 to `most`. Raises TableError."""
        text = self._values.get(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()) or int(text) > most:
            raise TableError(f'{self.path}: {key} must be a number from 0 to {most}, not "{text}"')
        return int(text)


def read_settings(path: str, form: Format) -> Settings:
    """The file, read and checked. Raises TableError; unknown keys are only warned of, as by the reference."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from None
    values: dict[str, str] = {}
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if line and not line.startswith("#"):
            _take(line, f"{path}:{number}", form, values)
    return Settings(path, values)


def _take(line: str, where: str, form: Format, values: dict[str, str]) -> None:
    match = _LINE.fullmatch(line)
    key, value = match.groups() if match else (line, "")
    if not value:
        _complain(f'{where}: "{key}" has no value', form)
        return
    if key not in form.keys:
        near = difflib.get_close_matches(key, form.keys, 1)
        _log.warning('%s: unknown key "%s"%s', where, key, f'; did you mean "{near[0]}"?' if near else "")
        return
    if key in values:
        _complain(f'{where}: "{key}" was given before', form)
        if key not in form.last:
            return
    values[key] = value


def _complain(text: str, form: Format) -> None:
    if not form.lenient:
        raise TableError(text)
    _log.warning("%s", text)
