"""What an alias, a virtual entry or a line of ~/.forward says (aliases(5), forward(5)). Pure: text to values.

A value is a list separated by commas; quotes protect commas, a backslash takes the next character as it is. What
becomes of the values is `routing/expand`.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from pillarbox.errors import PillarboxError, TempFail


class Kind(IntEnum):
    """What a member of a list is; the order is the one in which a list is worked through."""

    USER = 1
    FILE = 2
    COMMAND = 3
    INCLUDE = 4
    ADDRESS = 5
    ERROR = 6


class Member(NamedTuple):
    """One member: a user name, a path, a command, an address, or the text of a refusal (`550 5.1.1 gone`)."""

    kind: Kind
    text: str


class AliasError(PillarboxError):
    """A member that cannot be read."""


_USER = frozenset("_.-+")
_LOCAL = frozenset("!#$%*/?|^{}`~&'+-=_.")
_DOMAIN = frozenset("-.")


def parse_members(text: str) -> Iterator[Member]:
    """The members of a list in its order, one at a time; raises `AliasError` at the first that cannot be read."""
    for part in _split(text):
        stripped = part.strip(" \t\r\n\f\v")
        if stripped:
            yield parse_member(stripped)


def parse_addresses(text: str) -> list[str]:
    """The addresses of a senders table's value (mailaddrmap); TempFail where the list cannot be read."""
    try:
        return [part for part in (p.strip() for p in _split(text)) if part]
    except AliasError as error:
        raise TempFail(str(error)) from None


def parse_member(text: str) -> Member:
    """One member, without surrounding space. Raises `AliasError`."""
    lower = text[:9].lower()
    for prefix in (":error:", "error:"):
        if lower.startswith(prefix):
            return _parse_error(text[len(prefix) :])
    for prefix in (":include:", "include:"):
        if lower.startswith(prefix) and text[len(prefix) : len(prefix) + 1] == "/":
            return Member(Kind.INCLUDE, text[len(prefix) :])
    if text[0] == "|":
        return _parse_command(text[1:])
    if text[:2] == '"|':
        if text[-1] != '"':
            raise AliasError(f"unbalanced quote: {text}")
        return _parse_command(text[2:-1])
    if text[0] == "/":
        return Member(Kind.FILE, text)
    if "@" in text:
        return _parse_address(text)
    if not all(_is_word(c) or c in _USER for c in text):
        raise AliasError(f"neither a user, an address, a file nor a command: {text}")
    return Member(Kind.USER, text)


def read_lines(data: bytes) -> Iterator[str]:
    """The lines of a ~/.forward: comments from `#` to the end are dropped, a backslash at the end continues a line."""
    held = ""
    for raw in data.split(b"\n"):
        line = held + _uncomment(raw.decode("utf-8", "surrogateescape"))
        if _is_continued(line):
            held = line[:-1]
            continue
        held = ""
        yield line
    if held:
        yield held


def _parse_command(text: str) -> Member:
    # An envelope without a command is delivered by its action instead: not what was asked for.
    if not text.strip():
        raise AliasError("a command without words")
    return Member(Kind.COMMAND, text)


def _parse_error(text: str) -> Member:
    """`[45]xx text`: three digits, a space, and a letter or digit."""
    code, rest = text[:3], text[3:]
    if (
        len(text) < 5
        or code[0] not in "45"
        or not (code.isascii() and code.isdigit())
        or rest[0] != " "
        or not (rest[1].isascii() and rest[1].isalnum())
    ):
        raise AliasError(f"expected error:[45]xx text, got error:{text}")
    return Member(Kind.ERROR, text)


def _parse_address(text: str) -> Member:
    user, _, domain = text.partition("@")
    if (
        not user
        or not domain
        or not all(_is_word(c) or c in _LOCAL for c in user)
        or not all(_is_word(c) or c in _DOMAIN for c in domain)
    ):
        raise AliasError(f"not an address: {text}")
    return Member(Kind.ADDRESS, text)


def _is_word(character: str) -> bool:
    """A letter or digit; beyond ASCII anything that RFC 6531 lets into an address."""
    return character.isalnum() if character.isascii() else "\xa0" < character < "\ud800" or character > "\udfff"


def _split(text: str) -> Iterator[str]:
    """The parts between commas, quotes kept; raises `AliasError` where a quote or an escape is left open."""
    part: list[str] = []
    quote = ""
    escaped = False
    for character in text:
        if escaped:
            part.append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "," and not quote:
            yield "".join(part)
            part = []
        else:
            part.append(character)
            if character == quote:
                quote = ""
            elif character in "\"'" and not quote:
                quote = character
    if escaped or quote:
        raise AliasError(f"unbalanced quote or trailing backslash: {text}")
    yield "".join(part)


def _uncomment(line: str) -> str:
    """The line up to a `#` that no backslash stands before."""
    escaped = False
    for index, character in enumerate(line):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "#":
            return line[:index]
    return line


def _is_continued(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1
