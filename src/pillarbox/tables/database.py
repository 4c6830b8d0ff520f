"""What a Berkeley DB file is to whoever asks a map, whichever version of the library wrote it."""

from collections.abc import Callable, Iterator
from typing import Protocol

from pillarbox.errors import PillarboxError

Read = Callable[[int, int], bytes]  # (offset, size): what the file holds there, shorter at its end

BTREE_MAGIC, HASH_MAGIC = 0x053162, 0x061561
HASH_CHECK = b"%$sniglet^&\0"  # its hash is kept in the file, so that a reader can tell whether it hashes alike

MAX_ITEM = 64 << 20  # bytes
MAX_DEPTH = 64  # pages from the root of a btree to a leaf
# How often one question may read what the file holds. Once does for a walk; but the first page of a long item of
# version 1.85 is read twice, and on the way through a btree each level may name the same long key.
_READ_TIMES = 8
_PAIR = 4  # bytes that a pair takes on its page, besides key and value


class DatabaseError(PillarboxError):
    """The file is no database that can be read, or it is damaged."""


class Database(Protocol):
    """What a map is asked. Every method may raise `DatabaseError`."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None where there is none."""
        ...

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All pairs, in the order of the file."""
        ...


class BoundedDatabase(Database):
    """A database of `size` bytes, whose every question ends: no crafted file is read over and over.

    `open_with(read)`: the database, for one question; the file was looked at before.
    """

    def __init__(self, *, open_with: Callable[[Read], Database], read: Read, size: int) -> None:
        self._open_with = open_with
        self._read = read
        self._size = size

    def get(self, key: bytes) -> bytes | None:
        """See `Database`."""
        return self._open_with(self._metered()).get(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `Database`."""
        # Every pair of a sound file has bytes of its own, and where they lie is told in four more.
        left = self._size
        for key, value in self._open_with(self._metered()).items():
            left -= len(key) + len(value) + _PAIR
            if left < 0:
                raise DatabaseError("damaged: its entries are longer than the file")
            yield key, value

    def _metered(self) -> Read:
        left = _READ_TIMES * self._size

        def read(offset: int, size: int) -> bytes:
            nonlocal left
            data = self._read(offset, size)
            left -= len(data)
            if left < 0:
                raise DatabaseError("damaged: its pages lead to one another")
            return data

        return read
