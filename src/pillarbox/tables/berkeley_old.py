"""Berkeley DB 1.85 files (hash and btree), which makemap writes on OpenBSD, FreeBSD and macOS. Read only.

The formats have little in common with those of later versions (`tables/berkeley`), but the same rule holds: every
number that the file holds is checked before it is used, and every walk is bounded.
"""

import struct
from collections.abc import Iterator

from pillarbox.tables.database import (
    BTREE_MAGIC,
    HASH_CHECK,
    HASH_MAGIC,
    MAX_DEPTH,
    MAX_ITEM,
    BoundedDatabase,
    Database,
    DatabaseError,
    Read,
)

_HASH_VERSIONS, _BTREE_VERSION = (1, 2), 3
_PAGE_SIZES = [1 << n for n in range(6, 17)]

# What stands in place of an item's offset on a hash page.
_OVERFLOW, _PART_OF_KEY, _WHOLE_KEY, _LAST_OF_DATA, _FIRST_OFFSET = 0, 1, 2, 3, 4

_RECORDS = 0x80  # flag of a btree: it has numbered records
_BTREE_HEADER = 20  # bytes of a btree page
_INTERNAL, _LEAF, _LONG = 1, 2, 4  # kinds of btree pages
_LONG_DATA, _LONG_KEY = 1, 2  # flags of an item
_ROOT = 1

Words = tuple[int, ...]


def is_old(head: bytes) -> bool:
    """Whether a file begins as those of Berkeley DB 1.85."""
    return struct.unpack_from(">I", head)[0] == HASH_MAGIC or _btree_order(head) != ""


def read_old_database(read: Read, size: int, head: bytes) -> Database:
    """The database that a file of `size` bytes holds, which begins with `head`; raises DatabaseError."""
    order = _btree_order(head)

    def open_with(read: Read) -> Database:
        return OldBtree(read, size, head, order) if order else OldHash(read, size, head)

    open_with(read)  # what is wrong with its header is told now
    return BoundedDatabase(open_with=open_with, read=read, size=size)


def _btree_order(head: bytes) -> str:
    return next((order for order in "<>" if struct.unpack_from(f"{order}I", head)[0] == BTREE_MAGIC), "")


def _damaged(page: int) -> DatabaseError:
    return DatabaseError(f"damaged: page {page} cannot be read")


def _piece(data: bytes, start: int, end: int, page: int) -> bytes:
    if not 0 <= start <= end <= len(data):
        raise _damaged(page)
    return data[start:end]


class OldHash(Database):
    """Linear hashing. A page begins with the number of its entries; after each bucket follow its overflow pages.

    The header is big-endian on every machine, and says in which order the pages are.
    """

    def __init__(self, read: Read, size: int, head: bytes) -> None:
        fields = struct.unpack_from(">17I", head)
        _, version, order, self._page_size = fields[:4]
        self._max_bucket, self._high, self._low = fields[10:13]
        self._header_pages, check = fields[15:17]
        self._spares = struct.unpack_from(">32I", head, 68)
        self._read = read
        if version not in _HASH_VERSIONS or order not in (1234, 4321) or self._page_size not in _PAGE_SIZES:
            raise DatabaseError("damaged: its header cannot be read")
        self._order = "<" if order == 1234 else ">"
        self._pages = size // self._page_size
        if check != old_key_hash(HASH_CHECK):
            raise DatabaseError("its keys are hashed in a way that is not known here")
        if self._max_bucket > self._pages:
            raise DatabaseError("damaged: the file ends before its last bucket")

    def get(self, key: bytes) -> bytes | None:
        """See `Database`."""
        value = old_key_hash(key)
        bucket = value & self._high
        if bucket > self._max_bucket:
            bucket &= self._low
        return next((data for found, data in self._bucket(bucket) if found == key), None)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `Database`."""
        for bucket in range(self._max_bucket + 1):
            yield from self._bucket(bucket)

    def _bucket(self, bucket: int) -> Iterator[tuple[bytes, bytes]]:
        number = self._page_of(bucket)
        for _ in range(self._pages + 1):
            data, entries = self._page(number)
            following = 0
            if len(entries) >= 2 and _OVERFLOW < entries[1] < _FIRST_OFFSET:
                key, value, following = self._long_pair(number)
                yield key, value
            else:
                end = len(data)
                for start, second in zip(entries[::2], entries[1::2], strict=True):
                    if second == _OVERFLOW:
                        following = start
                        break
                    yield _piece(data, start, end, number), _piece(data, second, start, number)
                    end = second
            if not following:
                return
            number = self._overflow_page(following)
        raise DatabaseError("damaged: pages follow each other in a circle")

    def _page_of(self, bucket: int) -> int:
        before: int = self._spares[bucket.bit_length() - 1] if bucket else 0
        return int(bucket + self._header_pages + before)

    def _overflow_page(self, address: int) -> int:
        """Eleven bits count within those that were made at one doubling of the table, which the others number."""
        return self._page_of((1 << (address >> 11)) - 1) + (address & 0x7FF)

    def _page(self, number: int) -> tuple[bytes, Words]:
        data = self._read(number * self._page_size, self._page_size)
        if not data:
            return b"", ()  # a bucket that was never written
        if len(data) != self._page_size:
            raise DatabaseError(f"damaged: the file ends within page {number}")
        (count,) = struct.unpack_from(f"{self._order}H", data)
        if count % 2 or 2 * count + 6 > len(data):
            raise _damaged(number)
        return data, struct.unpack_from(f"{self._order}{count}H", data, 2)

    def _long_pair(self, number: int) -> tuple[bytes, bytes, int]:
        """A pair that has pages of its own, and what follows it in its bucket (0: nothing).

        Each page holds a piece of the key, or of the data; where the key ends, data may begin on the same page.
        """
        key, value = bytearray(), bytearray()
        in_key = True
        for _ in range(self._pages + 1):
            data, entries = self._page(number)
            if len(entries) < 2 or len(key) + len(value) > MAX_ITEM:
                raise _damaged(number)
            (key if in_key else value).extend(_piece(data, entries[0], len(data), number))
            last = entries[1] == _LAST_OF_DATA
            if in_key and last:
                value += _piece(data, entries[-1], entries[0], number)
                # COMPAT: data that fills its page to the end goes on; what is complete leaves a byte free.
                last = struct.unpack_from(f"{self._order}H", data, 2 + 2 * len(entries))[0] != 0
            in_key = in_key and entries[1] == _PART_OF_KEY
            following = entries[-2] if len(entries) > 2 else 0
            if last:
                return bytes(key), bytes(value), following
            number = self._overflow_page(following)
        raise DatabaseError("damaged: pages follow each other in a circle")


class OldBtree(Database):
    """A tree of sorted pages; its root is page 1, its leaves are a chain."""

    def __init__(self, read: Read, size: int, head: bytes, order: str) -> None:
        _, version, self._page_size, _, _, flags = struct.unpack_from(f"{order}6I", head)
        self._read = read
        self._order = order
        if version != _BTREE_VERSION or self._page_size not in _PAGE_SIZES or self._page_size < 512:
            raise DatabaseError("damaged: its header cannot be read")
        if flags & _RECORDS:
            raise DatabaseError("it holds numbered records")
        self._pages = size // self._page_size

    def get(self, key: bytes) -> bytes | None:
        """See `Database`."""
        data, items, _ = self._leaf(key)
        low, high = 0, len(items)
        while low < high:
            middle = (low + high) // 2
            found = self._key(data, items[middle])
            if found == key:
                return self._value(data, items[middle])
            low, high = (middle + 1, high) if found < key else (low, middle)
        return None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `Database`."""
        data, items, following = self._leaf(None)
        for _ in range(self._pages):
            for item in items:
                yield self._key(data, item), self._value(data, item)
            if not following:
                return
            data, items, following = self._page(following, _LEAF)
        raise DatabaseError("damaged: pages follow each other in a circle")

    def _leaf(self, key: bytes | None) -> tuple[bytes, Words, int]:
        """The leaf that may hold the key; the first one for None."""
        number = _ROOT
        for _ in range(MAX_DEPTH):
            kind = self._unpack("I", self._raw(number), 12)[0] & 0x1F
            data, items, following = self._page(number, kind)
            if kind == _LEAF:
                return data, items, following
            if kind != _INTERNAL or not items:
                raise _damaged(number)
            low, high = 0, len(items)  # the first separator is less than everything
            while key is not None and high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._key(data, items[middle]) <= key else (low, middle)
            number = self._unpack("I", data, items[low] + 4)[0]
        raise DatabaseError("damaged: the tree has no leaves")

    def _raw(self, number: int) -> bytes:
        if not 0 < number < self._pages:
            raise DatabaseError(f"damaged: there is no page {number}")
        data = self._read(number * self._page_size, self._page_size)
        if len(data) != self._page_size or self._unpack("I", data, 0)[0] != number:
            raise _damaged(number)
        return data

    def _page(self, number: int, kind: int) -> tuple[bytes, Words, int]:
        """A page of this kind, the offsets of its items, and the page that follows it."""
        data = self._raw(number)
        _, _, following, flags, lower = self._unpack("IIIIH", data, 0)
        if flags & 0x1F != kind or not _BTREE_HEADER <= lower <= len(data):
            raise _damaged(number)
        return data, self._unpack(f"{(lower - _BTREE_HEADER) // 2}H", data, _BTREE_HEADER), following

    def _unpack(self, fields: str, data: bytes, offset: int) -> Words:
        try:
            return struct.unpack_from(self._order + fields, data, offset)
        except struct.error:
            raise DatabaseError("damaged: an item lies outside of its page") from None

    def _key(self, data: bytes, item: int) -> bytes:
        """The key of an item; on an internal page it is followed by a page's number, on a leaf by a length."""
        size, _, flags = self._unpack("IIB", data, item)
        return self._bytes(data, item + 9, size, long=bool(flags & _LONG_KEY))

    def _value(self, data: bytes, item: int) -> bytes:
        key_size, size, flags = self._unpack("IIB", data, item)
        return self._bytes(data, item + 9 + key_size, size, long=bool(flags & _LONG_DATA))

    def _bytes(self, data: bytes, start: int, size: int, *, long: bool) -> bytes:
        if not long:
            return _piece(data, start, start + size, 0)
        number, left = self._unpack("II", data, start)
        if left > min(MAX_ITEM, self._pages * self._page_size):
            raise DatabaseError(f"damaged: an item of {left} bytes")
        parts: list[bytes] = []
        while left > 0:
            page = self._raw(number)
            _, _, number, flags = self._unpack("IIII", page, 0)
            if flags & 0x1F != _LONG:
                raise DatabaseError("damaged: an item goes on where there is none")
            parts.append(page[_BTREE_HEADER : _BTREE_HEADER + left])
            left -= len(parts[-1])
        return b"".join(parts)


def old_key_hash(key: bytes) -> int:
    """What version 1.85 hashes keys with by default: times 33, plus the byte, in 32 bits."""
    value = 0
    for byte in key:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value
