"""What a Berkeley DB file is to whoever asks a map, whichever version of the library wrote it."""

from collections.abc import Callable, Iterator
from typing import Protocol

from pillarbox.errors import PillarboxError

Read = Callable[[int, int], bytes]  # (offset, size): what the file holds there, shorter at its end

MAX_ITEM = 64 << 20  # bytes
MAX_DEPTH = 64  # pages from the root of a btree to a leaf


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
