"""The header of a message: its fields as milters see them, and as they change them. Pure.

Numbers are sendmail's. A change counts the fields of a name from 1, as the milter saw them: a field that was deleted
goes on counting, so does one that a milter added, and the Received field of this server, which milters are not shown,
does not. An insertion counts all fields from 0, that Received field too.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pillarbox.milter.wire import AddHeader, ChangeHeader, InsertHeader

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)  # RFC 5322 §3.6.8, and the obsolete blanks of §4.5.8
_BREAK = re.compile(rb"\r\n|\r|\n")


@dataclass(slots=True)
class Field:
    """`value`: what follows the colon, lines joined by LF. `gone`: deleted. `ours`: not shown to milters."""

    name: bytes
    value: bytes
    raw: bytes | None = None  # the lines as they came, while nobody changed them
    gone: bool = False
    ours: bool = False

    def lines(self) -> list[bytes]:
        """The lines without their ends; none where it was deleted."""
        if self.gone:
            return []
        return (self.name + b":" + self.value if self.raw is None else self.raw).split(b"\n")


class Header:
    """The fields of a message, in their order. `leading_space`: the milter writes the space behind the colon itself."""

    def __init__(self, fields: list[Field], *, leading_space: bool = False) -> None:
        self.fields = fields
        self.leading_space = leading_space

    def shown(self) -> list[tuple[bytes, bytes]]:
        """Names and values for a milter."""
        return [(field.name, self._as_seen(field.value)) for field in self.fields if not field.ours]

    def _as_seen(self, value: bytes) -> bytes:
        return value if self.leading_space else value.removeprefix(b" ")

    def first(self, name: bytes) -> bytes | None:
        """The value of the first field of the name, without blanks around it."""
        for field in self.fields:
            if not field.gone and field.name.lower() == name:
                return field.value.strip()
        return None

    def lines(self) -> list[bytes]:
        """All lines of it, without their ends."""
        return [line for field in self.fields for line in field.lines()]

    def add(self, change: AddHeader) -> None:
        """Below all others."""
        self.fields.append(Field(change.name, self._as_written(change.value)))

    def insert(self, change: InsertHeader) -> None:
        """Above the field of that number, below all where there are fewer."""
        self.fields.insert(change.index, Field(change.name, self._as_written(change.value)))

    def change(self, change: ChangeHeader) -> None:
        """Replace or delete it; where there are fewer of the name, a value is added and nothing is deleted."""
        field = self._find(change.name.lower(), max(1, change.index))
        if field is None:
            if change.value:
                self.add(AddHeader(change.name, change.value))
            return
        field.raw = None
        field.gone = not change.value
        field.name, field.value = change.name, self._as_written(change.value)

    def _find(self, name: bytes, number: int) -> Field | None:
        for field in self.fields:
            if not field.ours and field.name.lower() == name:
                number -= 1
                if not number:
                    return field
        return None

    def _as_written(self, value: bytes) -> bytes:
        """A value with lines that belong to it: one that begins a field, or ends the header, would be smuggled in."""
        first, *rest = _BREAK.split(value)
        folded = [line if line[:1] in (b" ", b"\t") else b"\t" + line for line in rest if line.strip()]
        return b"\n".join([first if self.leading_space else b" " + first, *folded])


def parse_header(lines: Iterable[bytes], msgid: str) -> tuple[Header, int]:
    """The header that a message begins with, and how many of its lines that is; the line that ends it is not counted.

    The header ends at the first line that is none of it, and nothing is read beyond. `msgid` names the message in the
    Received field of this server.
    """
    found: list[list[bytes]] = []
    used = 0
    for line in lines:
        if line[:1] in (b" ", b"\t") and found:
            found[-1].append(line)
        elif _FIELD.fullmatch(line):
            found.append([line])
        else:
            break
        used += 1
    fields = [_field(b"\n".join(group)) for group in found]
    for field in fields:
        if field.name.lower() == b"received" and _stamped(field.value, msgid):
            field.ours = True
            break
    return Header(fields), used


def _field(raw: bytes) -> Field:
    match = _FIELD.fullmatch(raw)
    assert match
    return Field(match[1], match[2], raw)


def _stamped(value: bytes, msgid: str) -> bool:
    """Does a Received field name our message? Others may have been put above it."""
    return bool(msgid) and re.search(rb"\sid " + re.escape(msgid.encode()) + rb"(?![0-9A-Za-z])", value) is not None
