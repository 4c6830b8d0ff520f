"""The text that makemap(8) reads, and the file that it writes: `key value` lines to a Berkeley DB file.

A line is bytes: what is no UTF-8 passes through as it is. Keys and values end with a NUL in the database, as the
reference's do; how they are found again is `tables/db`.
"""

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import BinaryIO

from pillarbox.errors import PillarboxError
from pillarbox.replacement import Replacement
from pillarbox.tables.berkeley_writer import write_btree, write_hash

_BLANKS = b" \t\n\v\f\r"
_KEY = re.compile(rb"[^ \t:]*")
SET_VALUE = b"<set>"
MODE = 0o7777


class MapError(PillarboxError):
    """What is wrong, as makemap says it: `FILE:LINE: invalid entry`."""


class Kind(StrEnum):
    """What a map holds: any values, lists of aliases, or keys alone."""

    PLAIN = "plain"
    ALIASES = "aliases"
    SET = "set"


class Format(StrEnum):
    """How the database is laid out."""

    HASH = "hash"
    BTREE = "btree"


def parse_map(lines: Iterable[bytes], *, name: str, kind: Kind, is_alias: Callable[[str], bool]) -> dict[bytes, bytes]:
    """The pairs of a map as they are stored; raises `MapError`, which names the source and the line.

    `is_alias`: is this one member of an alias that mail can be delivered to? COMPAT: makemap splits a list of them at
    every comma, within quotes too.
    """
    pairs: dict[bytes, bytes] = {}
    for number, raw in enumerate(lines, 1):
        line = _strip(raw)
        if not line or line[:1] == b"#":
            continue
        entry = _parse_entry(line, kind)
        if entry is None:
            raise MapError(f"{name}:{number}: invalid entry")
        key, value = entry
        stored = fold_key(key) + b"\0"
        if stored in pairs:
            raise MapError(f"{name}:{number}: duplicate entry for {os.fsdecode(stored[:-1])}")
        if kind is Kind.ALIASES and not all(map(is_alias, _members(value))):
            raise MapError(f"{name}:{number}: invalid entry")
        pairs[stored] = value + b"\0"
    return pairs


def _strip(raw: bytes) -> bytes:
    line = raw.lstrip(_BLANKS)
    # The reference reads C strings: what is behind a NUL does not count.
    return line.rstrip(_BLANKS).partition(b"\0")[0]


def _parse_entry(line: bytes, kind: Kind) -> tuple[bytes, bytes] | None:
    """Key and value; None where they cannot be told."""
    end = line.find(b"]") + 1 if line[:1] == b"[" else _KEY.match(line).end()  # type: ignore[union-attr]
    if line[:1] == b"[" and not end:
        return None
    if kind is Kind.SET:
        return line, SET_VALUE
    value = line[end + 1 :].lstrip(b" \t")
    return (line[:end], value) if value else None


def _members(value: bytes) -> list[str]:
    return [part.strip(_BLANKS).decode("utf-8", "surrogateescape") for part in value.split(b",")]


def fold_key(key: bytes) -> bytes:
    """A key as it is looked up: in lower case, also beyond ASCII (RFC 6531 addresses) where it is UTF-8."""
    if key.isascii():
        return key.lower()
    try:
        return key.decode().lower().encode()
    except UnicodeDecodeError:
        return key.lower()


def lock_source(file: BinaryIO, name: str) -> None:
    """Share a lock on the source while it is read; raises `MapError` where somebody writes it."""
    if file.isatty():
        return
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise MapError(f"{name} is locked") from None
        raise MapError(f"{name}: flock: {error.strerror}") from None


def replace_database(path: str, pairs: Mapping[bytes, bytes], layout: Format, *, like: os.stat_result | None) -> None:
    """Write a database beside `path` and put it in that place, durably; on any error `path` is as it was.

    `like`: the source, whose owner and mode it gets; without one it is the caller's alone. Raises `MapError`.
    """
    data = write_hash(pairs) if layout is Format.HASH else write_btree(pairs)
    try:
        replacement = Replacement(path)
    except OSError as error:
        raise MapError(f"mkstemp: {path}: {error.strerror}") from None
    try:
        with replacement as file:
            if like is not None:
                _carry_ownership(file, like, replacement.temporary)
            file.write(data)
    except OSError as error:
        raise MapError(f"{path}: {error.strerror}") from None


def _carry_ownership(file: BinaryIO, like: os.stat_result, name: str) -> None:
    try:
        os.fchown(file.fileno(), like.st_uid, like.st_gid)
        os.fchmod(file.fileno(), like.st_mode & MODE)
    except OSError as error:
        raise MapError(f"couldn't carry ownership and perms to {name}: {error.strerror}") from None
