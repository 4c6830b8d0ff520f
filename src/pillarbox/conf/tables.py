"""Tables while a configuration is built: what is written in it, files, references, and who may use which.

Entries stay as written. The reference compares and returns keys in lower case; `routing` does that when it indexes a
table. Of two entries with one key the later counts.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from enum import Flag, auto

from pillarbox.conf.model import UNNAMED_TABLE, Table, TableKind

MAX_NAME = 2047  # bytes
MAX_KEY = 1023  # bytes; the reference leaves longer ones out with a warning
BUILTIN = ("<anydestination>", "<anyhost>", "<localhost>", "<localnames>", "<getpwnam>")


class Shape(Flag):
    """What a table holds: decided by its backend, or by the first entry."""

    NONE = 0  # nothing yet, so nothing may use it
    DYNAMIC = auto()  # asked at run time
    LIST = auto()
    MAP = auto()


class TableFileError(Exception):
    """A table file that cannot be used; the text names the file and, where there is one, the line."""


class Tables:
    """All tables of one configuration by name, and their shapes."""

    def __init__(self, *, hostname: str, local_addresses: Callable[[], Sequence[str]]) -> None:
        self.all: dict[str, Table] = {}
        self._shapes: dict[str, Shape] = {}
        self._hostname = hostname
        self._local_addresses = local_addresses
        self._dynamic = 0
        self.add(Table(name="<getpwnam>", kind=TableKind.GETPWNAM), Shape.DYNAMIC)

    def add(self, table: Table, shape: Shape) -> str:
        """Declare a table; returns its name."""
        self.all[table.name] = table
        self._shapes[table.name] = shape
        return table.name

    def unnamed(self) -> str:
        """The name of the next table that is written where it is used."""
        while True:
            name = f"{UNNAMED_TABLE}{self._dynamic}>"
            self._dynamic += 1
            if name not in self.all:  # nothing keeps a file from declaring one of that name
                return name

    def knows(self, name: str) -> bool:
        """Whether a table of that name exists; the built-in ones come into being when they are first named."""
        if name not in self.all and name in BUILTIN:
            entries = tuple((entry, "") for entry in self._builtin(name))
            self.add(Table(name=name, kind=TableKind.STATIC, entries=entries), Shape.LIST)
        return name in self.all

    def may_serve(self, name: str, shapes: Shape, *, userinfo: bool = False) -> bool:
        """Whether a table has one of `shapes`; system users (getpwnam) serve only `userinfo`."""
        if self.all[name].kind is TableKind.GETPWNAM and not userinfo:
            return False
        return bool(self._shapes[name] & (shapes | Shape.DYNAMIC))

    def _builtin(self, name: str) -> Iterator[str]:
        if name == "<anydestination>":
            yield "*"
        elif name == "<anyhost>":
            yield from ("local", "0.0.0.0/0", "::/0")
        elif name == "<localhost>":
            yield from ("local", *self._local_addresses())
        else:
            yield from ("localhost", self._hostname, *self._local_addresses())


_BLANKS = " \t\n\r\v\f"
_KEY = re.compile(r"[^ \t:]*")


def parse_table_file(path: str, text: str) -> tuple[Shape, tuple[tuple[str, str], ...]]:
    """The shape and the entries of a `file:` table, table(5): `key value`, `key: value`, or a key a line.

    The first entry decides which; `# @list` before it makes any file a list. An empty file is a mapping.
    Raises TableFileError.
    """
    shape = Shape.NONE
    entries: list[tuple[str, str]] = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip(_BLANKS)
        if not line:
            continue
        if line[0] == "#":
            if shape is Shape.NONE and line[1:].lstrip(_BLANKS) == "@list":
                shape = Shape.LIST
            continue
        if shape is Shape.LIST:
            entries.append((line, ""))
            continue
        end = line.find("]") + 1 if line[0] == "[" else _KEY.match(line).end()  # type: ignore[union-attr]
        if line[0] == "[" and not end:
            raise TableFileError(f"{path}:{number} invalid map entry")
        value = line[end + 1 :].lstrip(" \t")
        if shape is Shape.NONE and end == len(line):
            shape = Shape.LIST
            entries.append((line, ""))
            continue
        shape = Shape.MAP
        if not value:
            raise TableFileError(f"{path}:{number} invalid map entry")
        entries.append((line[:end], value))
    return shape or Shape.MAP, tuple(entries)


def key_fits(key: str) -> bool:
    """Whether the reference would keep this key."""
    return len(key) * 4 <= MAX_KEY or len(key.encode("utf-8", "surrogatepass")) <= MAX_KEY
