"""Whom a user who is not there resembles: somebody of the same table, the same one each time.

What an answer takes, and how a made-up salt looks, is then what it is of some user who exists. Tables in memory are
looked through once. Others are not: there it is one of the last who were asked for.
"""

import hmac
import secrets
from typing import TypeVar
from weakref import WeakKeyDictionary

import msgspec

from pillarbox.errors import TempFail
from pillarbox.mail.idn import fold_address
from pillarbox.routing.auth import takes_time
from pillarbox.smtp.sasl import verifier
from pillarbox.smtp.sasl.verifier import Verifier
from pillarbox.tables.db import DbTable
from pillarbox.tables.services import parse_credentials
from pillarbox.tables.table import MemoryTable, Table

_Choice = TypeVar("_Choice")


class Shape(msgspec.Struct, frozen=True, order=True):
    """What is told of a verifier to whoever asks."""

    iterations: int
    salt_size: int


_USUAL = Shape(iterations=verifier.ITERATIONS, salt_size=verifier.SALT_SIZE)


class _Entries(msgspec.Struct, frozen=True):
    """What a table in memory has. `complete`: a verifier for every user. `shapes`: of all verifiers, sorted."""

    complete: bool
    shapes: tuple[Shape, ...]
    hashes: tuple[str, ...]


class Decoys:
    """Chooses them. The hash that a user's password is compared with is chosen anew when the server starts."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._entries: WeakKeyDictionary[MemoryTable, _Entries] = WeakKeyDictionary()
        self._last_hash: WeakKeyDictionary[Table, str] = WeakKeyDictionary()
        self._first_shape: WeakKeyDictionary[Table, Shape] = WeakKeyDictionary()

    def all_verifiers(self, table: Table) -> bool:
        """Is every password of the table a SCRAM verifier, as far as that can be seen?"""
        return isinstance(table, MemoryTable) and self._look_through(table).complete

    def note(self, table: Table, stored: str | None) -> None:
        """This is what a table that is not in memory has of somebody."""
        if stored is None or isinstance(table, MemoryTable) or not takes_time(stored):
            return
        self._last_hash[table] = stored
        found = parse_verifier(stored)
        if found is not None:
            self._first_shape.setdefault(table, _shape(found))

    async def hash_for(self, table: Table, user: str) -> str:
        """The hash to compare the user's password with where there is none of theirs; "" where none is known."""
        if isinstance(table, MemoryTable):
            name = fold_address(user).encode("utf-8", "surrogateescape")
            return _at(self._look_through(table).hashes, hmac.digest(self._key, name, "sha256"), "")
        return self._last_hash.get(table) or await _any_hash(table)

    async def shape_for(self, table: Table, point: bytes) -> Shape:
        """How a made-up salt looks. `point`: eight bytes or more, the user's own, which choose."""
        if isinstance(table, MemoryTable):
            return _at(self._look_through(table).shapes, point, _USUAL)
        found = parse_verifier(await _any_hash(table))
        return self._first_shape.get(table, _USUAL) if found is None else _shape(found)

    def _look_through(self, table: MemoryTable) -> _Entries:
        found = self._entries.get(table)
        if found is None:
            stored = [parse_stored(key, value) for key, value in table.entries]
            verifiers = [one for one in map(parse_verifier, stored) if one is not None]
            found = self._entries[table] = _Entries(
                complete=bool(stored) and len(verifiers) == len(stored),
                shapes=tuple(sorted(map(_shape, verifiers))),
                hashes=tuple(sorted(filter(takes_time, stored))),
            )
        return found


def parse_stored(user: str, value: str) -> str:
    """The hash in the user's value; "" where the value cannot be read."""
    try:
        return parse_credentials(user, value)[1]
    except TempFail:
        return ""


def parse_verifier(stored: str) -> Verifier | None:
    """The verifier, None where it is something else."""
    try:
        return verifier.parse(stored)
    except ValueError:
        return None


def _shape(one: Verifier) -> Shape:
    return Shape(iterations=one.iterations, salt_size=len(one.salt))


def _at(choices: tuple[_Choice, ...], point: bytes, otherwise: _Choice) -> _Choice:
    """The choice at that part of the way through all; few change theirs when one is added."""
    return choices[int.from_bytes(point[:8]) * len(choices) >> 64] if choices else otherwise


async def _any_hash(table: Table) -> str:
    found = parse_stored("", await table.any_value()) if isinstance(table, DbTable) else ""
    return found if takes_time(found) else ""
