"""Berkeley DB files (hash and btree, as versions 4 to 18 of the library write them), read without the library.

The library is C, gone from several systems, and hangs or ends the process on a file that is damaged. Here every
number that a file holds is checked before it is used, every walk is bounded by the file's own size, and what is wrong
is a `DatabaseError`. Only what maps need is read: one database a file, without encryption, checksums or duplicates.
What writes such files is `tables/berkeley_writer`; those of version 1.85 are `tables/berkeley_old`; what a map means is
`tables/db`.
"""

import struct
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

from pillarbox.tables.berkeley_old import is_old, read_old_database
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

BTREE_VERSION, HASH_VERSION = 9, 9  # of Berkeley DB 4.6 to 5.3
_READABLE_VERSIONS = range(8, 11)

# The kinds of pages (db_page.h of the library).
INTERNAL_PAGE, LEAF_PAGE, OVERFLOW_PAGE, HASH_META, BTREE_META, HASH_PAGE = 3, 5, 7, 8, 9, 13
UNSORTED_HASH_PAGE = 2
UNUSED_PAGE = 0  # a bucket that never held anything

# The kinds of items on hash pages, and of those on btree pages.
ON_PAGE, OFF_PAGE = 1, 3
_DELETED = 0x80

META_SIZE = 512
PAGE_HEADER = 26  # bytes
HASH_META_FIELDS = 72  # where they begin; those of a btree likewise
ROOT_FIELD = 88
SPARES_FIELD = 96
_SMALLEST_PAGE, _LARGEST_PAGE = 512, 65536

_SEVERAL_DATABASES = {HASH_MAGIC: 0x02, BTREE_MAGIC: 0x20}
_UNUSABLE_FLAGS = {HASH_MAGIC: 0x01 | 0x04, BTREE_MAGIC: 0x01 | 0x02 | 0x40 | 0x80}  # duplicates, records, compressed


class Page:
    """One page: its kind, the next one of its chain, and the offsets of its items."""

    def __init__(self, number: int, data: bytes, order: str) -> None:
        found, _, self.next, self.entries, self.offset, _, self.kind = struct.unpack_from(f"{order}IIIHHBB", data, 8)
        if found != number and self.kind != UNUSED_PAGE:
            raise DatabaseError(f"damaged: page {number} says that it is page {found}")
        self.number = number
        self.data = data
        self._order = order

    @cached_property
    def items(self) -> tuple[int, ...]:
        """Where the items begin."""
        if PAGE_HEADER + 2 * self.entries > len(self.data):
            raise self.damaged()
        return struct.unpack_from(f"{self._order}{self.entries}H", self.data, PAGE_HEADER)

    def unpack(self, fields: str, offset: int) -> tuple[int, ...]:
        """Numbers on the page."""
        try:
            return struct.unpack_from(self._order + fields, self.data, offset)
        except struct.error:
            raise self.damaged() from None

    def bytes(self, offset: int, size: int) -> bytes:
        """A piece of the page."""
        if size < 0 or offset + size > len(self.data):
            raise self.damaged()
        return self.data[offset : offset + size]

    def damaged(self) -> DatabaseError:
        """To raise."""
        return DatabaseError(f"damaged: page {self.number} cannot be read")


class _File:
    """Pages of the file by their numbers, and the long items that lie outside of the page that names them."""

    def __init__(self, read: Read, order: str, page_size: int, last: int) -> None:
        self._read = read
        self._page_size = page_size
        self.order = order
        self.last = last

    def page(self, number: int, *kinds: int) -> Page:
        """A page, which must be of one of these kinds. Raises `DatabaseError`, as all that reads here does."""
        if not 0 < number <= self.last:
            raise DatabaseError(f"damaged: there is no page {number}")
        data = self._read(number * self._page_size, self._page_size)
        if len(data) != self._page_size:
            raise DatabaseError(f"damaged: the file ends within page {number}")
        page = Page(number, data, self.order)
        if page.kind not in kinds:
            raise page.damaged()
        return page

    def chain(self, number: int, *kinds: int) -> Iterator[Page]:
        """A page and those that follow it."""
        for _ in range(self.last):
            page = self.page(number, *kinds)
            yield page
            if not page.next:
                return
            number = page.next
        raise DatabaseError("damaged: pages follow each other in a circle")

    def long_item(self, number: int, size: int) -> bytes:
        """An item that fills pages of its own."""
        if size > min(MAX_ITEM, self.last * self._page_size):
            raise DatabaseError(f"damaged: an item of {size} bytes")
        parts: list[bytes] = []
        left = size
        for page in self.chain(number, OVERFLOW_PAGE):
            parts.append(page.bytes(PAGE_HEADER, page.offset))
            left -= page.offset
            if left <= 0 or not page.offset:
                break
        if left:
            raise DatabaseError("damaged: an item has another length than it says")
        return b"".join(parts)


class HashDatabase(Database):
    """Linear hashing: a bucket is a chain of pages, found from the hash of the key and two masks."""

    def __init__(self, file: _File, meta: Page) -> None:
        self._file = file
        self._max_bucket, self._high, self._low, _, _, check = meta.unpack("6I", HASH_META_FIELDS)
        self._spares = meta.unpack("32I", SPARES_FIELD)
        if check != key_hash(HASH_CHECK):
            raise DatabaseError("its keys are hashed in a way that is not known here")
        if self._max_bucket > file.last or self._high < self._low:
            raise meta.damaged()

    def get(self, key: bytes) -> bytes | None:
        """See `Database`."""
        bucket = key_hash(key) & self._high
        if bucket > self._max_bucket:
            bucket &= self._low
        for page in self._bucket(bucket):
            for index in range(0, page.entries - 1, 2):
                if self._item(page, index) == key:
                    return self._item(page, index + 1)
        return None

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `Database`."""
        for bucket in range(self._max_bucket + 1):
            for page in self._bucket(bucket):
                for index in range(0, page.entries - 1, 2):
                    yield self._item(page, index), self._item(page, index + 1)

    def _bucket(self, bucket: int) -> Iterator[Page]:
        first = bucket + self._spares[bucket.bit_length()]
        for page in self._file.chain(first, HASH_PAGE, UNSORTED_HASH_PAGE, UNUSED_PAGE):
            # Items are laid out from the page's end on: an item ends where the one before it begins.
            if any(after >= before for before, after in pairwise(page.items)):
                raise page.damaged()
            yield page

    def _item(self, page: Page, index: int) -> bytes:
        offset = page.items[index]
        end = page.items[index - 1] if index else len(page.data)
        (kind,) = page.unpack("B", offset)
        if kind == ON_PAGE:
            return page.bytes(offset + 1, end - offset - 1)
        if kind != OFF_PAGE:
            raise page.damaged()
        return self._file.long_item(*page.unpack("II", offset + 4))


class BtreeDatabase(Database):
    """A tree of sorted pages; its leaves are a chain."""

    def __init__(self, file: _File, meta: Page) -> None:
        self._file = file
        (self._root,) = meta.unpack("I", ROOT_FIELD)

    def get(self, key: bytes) -> bytes | None:
        """See `Database`."""
        page = self._page(self._root)
        for _ in range(MAX_DEPTH):
            if page.kind == LEAF_PAGE:
                return self._in_leaf(page, key)
            page = self._page(self._child(page, key))
        raise DatabaseError("damaged: the tree has no leaves")

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """See `Database`."""
        page = self._page(self._root)
        for _ in range(MAX_DEPTH):
            if page.kind == LEAF_PAGE:
                break
            page = self._page(self._child(page, None))
        for leaf in self._file.chain(page.number, LEAF_PAGE):
            for index in range(0, leaf.entries - 1, 2):
                if not self._deleted(leaf, index):
                    yield self._item(leaf, index), self._item(leaf, index + 1)

    def _page(self, number: int) -> Page:
        return self._file.page(number, INTERNAL_PAGE, LEAF_PAGE)

    def _child(self, page: Page, key: bytes | None) -> int:
        """The page below an internal one that may hold the key; the first one for None."""
        if not page.entries:
            raise page.damaged()
        low, high = 0, page.entries  # the first separator is less than everything
        while key is not None and high - low > 1:
            middle = (low + high) // 2
            if self._separator(page, middle) <= key:
                low = middle
            else:
                high = middle
        return page.unpack("I", page.items[low] + 4)[0]

    def _separator(self, page: Page, index: int) -> bytes:
        offset = page.items[index]
        size, kind = page.unpack("HB", offset)
        if kind & ~_DELETED == ON_PAGE:
            return page.bytes(offset + 12, size)
        if kind & ~_DELETED != OFF_PAGE:
            raise page.damaged()
        return self._file.long_item(*page.unpack("II", offset + 16))

    def _in_leaf(self, page: Page, key: bytes) -> bytes | None:
        low, high = 0, page.entries // 2
        while low < high:
            middle = (low + high) // 2
            found = self._item(page, 2 * middle)
            if found == key:
                return None if self._deleted(page, 2 * middle) else self._item(page, 2 * middle + 1)
            low, high = (middle + 1, high) if found < key else (low, middle)
        return None

    def _deleted(self, page: Page, index: int) -> bool:
        return any(page.unpack("B", page.items[i] + 2)[0] & _DELETED for i in (index, index + 1))

    def _item(self, page: Page, index: int) -> bytes:
        offset = page.items[index]
        size, kind = page.unpack("HB", offset)
        if kind & ~_DELETED == ON_PAGE:
            return page.bytes(offset + 3, size)
        if kind & ~_DELETED != OFF_PAGE:
            raise page.damaged()
        return self._file.long_item(*page.unpack("II", offset + 4))


def read_database(read: Read, size: int) -> Database:
    """The database that a file of `size` bytes holds; raises DatabaseError. `read` is asked again at each lookup."""
    head = read(0, META_SIZE)
    if len(head) < META_SIZE:
        raise DatabaseError("not a Berkeley DB file")
    for order in "<>":
        magic, version, page_size = struct.unpack_from(f"{order}III", head, 12)
        if magic in (HASH_MAGIC, BTREE_MAGIC):
            break
    else:
        if is_old(head):
            return read_old_database(read, size, head)
        raise DatabaseError("not a Berkeley DB file")
    if version not in _READABLE_VERSIONS:
        raise DatabaseError(f"version {version} of the format is not known here: make it again with makemap")
    if page_size & (page_size - 1) or not _SMALLEST_PAGE <= page_size <= _LARGEST_PAGE:
        raise DatabaseError(f"damaged: pages of {page_size} bytes")
    meta = Page(0, head, order)
    if meta.kind != (HASH_META if magic == HASH_MAGIC else BTREE_META):
        raise meta.damaged()
    _refuse_unusual(meta, magic)
    kind = HashDatabase if magic == HASH_MAGIC else BtreeDatabase

    def open_with(read: Read) -> Database:
        return kind(_File(read, order, page_size, size // page_size - 1), meta)

    open_with(read)  # what is wrong with its header is told now
    return BoundedDatabase(open_with=open_with, read=read, size=size)


def _refuse_unusual(meta: Page, magic: int) -> None:
    """What makemap never writes and would be misread here."""
    encryption, _, features = meta.unpack("BBB", 24)
    (flags,) = meta.unpack("I", 48)
    if encryption or features:
        raise DatabaseError("encrypted, checksummed or divided: make it again with makemap")
    if flags & _SEVERAL_DATABASES[magic]:
        raise DatabaseError("it holds several databases")
    if flags & _UNUSABLE_FLAGS[magic]:
        raise DatabaseError("it holds duplicate keys, records or compressed pages")


def key_hash(key: bytes) -> int:
    """FNV-1 with 32 bits that begins at 0: what the library does by default."""
    value = 0
    for byte in key:
        value = (value * 16777619 & 0xFFFFFFFF) ^ byte
    return value
