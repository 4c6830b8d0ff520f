"""Berkeley DB files written in one go: all pairs are known, so pages are filled from front to back.

What comes out is what Berkeley DB 4.6 to 5.3 reads (and OpenSMTPD's table_db and makemap with it): a hash table with as
many buckets as keep most of them on one page, or a btree of full leaves. `tables/berkeley` has the format's numbers.
"""

import os
import struct
from collections.abc import Iterable, Mapping, Sequence

from pillarbox.tables.berkeley import (
    BTREE_META,
    BTREE_VERSION,
    HASH_META,
    HASH_PAGE,
    HASH_VERSION,
    INTERNAL_PAGE,
    LEAF_PAGE,
    OFF_PAGE,
    ON_PAGE,
    OVERFLOW_PAGE,
    PAGE_HEADER,
    key_hash,
)
from pillarbox.tables.database import BTREE_MAGIC, HASH_CHECK, HASH_MAGIC

PAGE_SIZE = 4096
_HASH_LONG = PAGE_SIZE // 4  # bytes; longer items get pages of their own, where the library puts them too
_BTREE_LONG = (PAGE_SIZE - PAGE_HEADER) // 4 - 10
_FILL = 0.6  # of the pages of a hash table, when it outgrows its first two buckets
_MIN_KEYS = 2  # of a btree page
_ROOT = 1  # where the library's own check wants the root of a btree

Pairs = Mapping[bytes, bytes]


def write_hash(pairs: Pairs) -> bytes:
    """The bytes of a hash database."""
    buckets = _spread(pairs)
    pages = _Pages(first=1 + len(buckets))
    heads: list[bytes] = []
    for number, bucket in enumerate(buckets, 1):
        heads.append(_bucket_pages(pages, number, bucket))
    last_bucket = len(buckets) - 1
    fields = struct.pack("<6I", last_bucket, last_bucket, last_bucket >> 1, 0, len(pairs), key_hash(HASH_CHECK))
    # Bucket n is on page n + spares[log2(n + 1), rounded up]: here all buckets follow each other, from page 1.
    spares = [1] * (last_bucket.bit_length() + 1)
    fields += struct.pack("<32I", *spares, *[0] * (32 - len(spares)))
    return _meta(HASH_MAGIC, HASH_VERSION, HASH_META, pages.last, fields) + b"".join(heads) + pages.join()


def write_btree(pairs: Pairs) -> bytes:
    """The bytes of a btree database."""
    pages = _Pages(first=_ROOT)
    pages.reserve()
    level = _leaves(pages, sorted(pairs.items()))
    height = 1
    while len(level) > 1:
        height += 1
        level = _internals(pages, level, height)
    fields = struct.pack("<6I", 0, _MIN_KEYS, 0, ord(" "), _ROOT, 0)
    return _meta(BTREE_MAGIC, BTREE_VERSION, BTREE_META, pages.last, fields) + pages.join()


class _Pages:
    """Pages by their numbers, from `first` on; each is put in its place when it is complete."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._pages: list[bytes] = []

    @property
    def last(self) -> int:
        """The number of the last page."""
        return self._first + len(self._pages) - 1

    def reserve(self) -> int:
        """A number for a page that is put later."""
        self._pages.append(b"")
        return self.last

    def put(self, number: int, page: bytes) -> None:
        """Fill a place that was reserved."""
        self._pages[number - self._first] = page

    def join(self) -> bytes:
        """All of them."""
        return b"".join(self._pages)

    def put_long(self, data: bytes) -> tuple[int, int]:
        """Lay an item out on pages of its own; the first of them, and the length."""
        room = PAGE_SIZE - PAGE_HEADER
        numbers = [self.reserve() for _ in range(0, len(data), room)]
        for index, number in enumerate(numbers):
            part = data[index * room : (index + 1) * room]
            before = numbers[index - 1] if index else 0
            after = numbers[index + 1] if index + 1 < len(numbers) else 0
            # Of an overflow page `entries` counts who refers to it, and the offset is the length of its part.
            head = _page_header(number, OVERFLOW_PAGE, before=before, after=after, entries=1, offset=len(part))
            self.put(number, (head + part).ljust(PAGE_SIZE, b"\0"))
        return numbers[0], len(data)


def _spread(pairs: Pairs) -> list[list[tuple[bytes, bytes]]]:
    """The pairs by bucket. Two, as the library begins, while each fits a page; else enough for a good fill."""
    hashes = [(key_hash(pair[0]), pair) for pair in pairs.items()]
    count = 2
    buckets = _distribute(hashes, count)
    room = PAGE_SIZE - PAGE_HEADER
    if any(sum(map(_hash_room, bucket)) > room for bucket in buckets):
        total = sum(_hash_room(pair) for _, pair in hashes)
        while total > _FILL * count * room and count < 1 << 30:
            count *= 2
        buckets = _distribute(hashes, count)
    for bucket in buckets:
        bucket.sort()  # the library searches a page by bisection
    return buckets


def _distribute(hashes: Iterable[tuple[int, tuple[bytes, bytes]]], count: int) -> list[list[tuple[bytes, bytes]]]:
    buckets: list[list[tuple[bytes, bytes]]] = [[] for _ in range(count)]
    for value, pair in hashes:
        buckets[value & (count - 1)].append(pair)
    return buckets


def _hash_room(pair: tuple[bytes, bytes]) -> int:
    return sum(2 + (12 if len(item) > _HASH_LONG else 1 + len(item)) for item in pair)


def _bucket_pages(pages: _Pages, number: int, bucket: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The first page of a bucket, which has its place already; what does not fit it goes to further pages."""
    filled: list[list[bytes]] = [[]]
    room = PAGE_SIZE - PAGE_HEADER
    for pair in bucket:
        size = _hash_room(pair)
        if size > room:
            filled.append([])
            room = PAGE_SIZE - PAGE_HEADER
        room -= size
        filled[-1] += [_hash_item(pages, item) for item in pair]
    numbers = [number, *(pages.reserve() for _ in filled[1:])]
    made = []
    for index, items in enumerate(filled):
        before = numbers[index - 1] if index else 0
        after = numbers[index + 1] if index + 1 < len(numbers) else 0
        made.append(_page(numbers[index], HASH_PAGE, items, before=before, after=after))
    for further, page in zip(numbers[1:], made[1:], strict=True):
        pages.put(further, page)
    return made[0]


def _hash_item(pages: _Pages, data: bytes) -> bytes:
    if len(data) > _HASH_LONG:
        return struct.pack("<B3xII", OFF_PAGE, *pages.put_long(data))
    return bytes((ON_PAGE,)) + data


Level = list[tuple[bytes, int]]  # of a btree: for each page the least key that leads to it, and its number


def _leaves(pages: _Pages, pairs: Sequence[tuple[bytes, bytes]]) -> Level:
    groups: list[list[bytes]] = [[]]
    separators = [b""]
    room, before = PAGE_SIZE - PAGE_HEADER, b""
    for key, value in pairs:
        items = [_btree_item(pages, key), _btree_item(pages, value)]
        size = sum(2 + len(item) for item in items)
        if size > room:
            groups.append([])
            separators.append(_shortest_between(before, key))
            room = PAGE_SIZE - PAGE_HEADER
        room -= size
        groups[-1] += items
        before = key
    return _put_level(pages, groups, separators, 1, LEAF_PAGE)


def _internals(pages: _Pages, below: Level, height: int) -> Level:
    groups: list[list[bytes]] = [[]]
    separators = [b""]
    room = PAGE_SIZE - PAGE_HEADER
    for separator, child in below:
        # Nothing is compared with the first separator of a page: it may be empty.
        item = _separator(pages, separator if groups[-1] else b"", child)
        if 2 + len(item) > room:
            groups.append([])
            separators.append(separator)
            room = PAGE_SIZE - PAGE_HEADER
            item = _separator(pages, b"", child)
        room -= 2 + len(item)
        groups[-1].append(item)
    return _put_level(pages, groups, separators, height, INTERNAL_PAGE)


def _put_level(
    pages: _Pages, groups: Sequence[Sequence[bytes]], separators: Sequence[bytes], height: int, kind: int
) -> Level:
    """Put the pages of one level; the leaves are a chain, and a level of one page is the root."""
    numbers = [pages.reserve() for _ in groups] if len(groups) > 1 else [_ROOT]
    for index, items in enumerate(groups):
        before = numbers[index - 1] if kind == LEAF_PAGE and index else 0
        after = numbers[index + 1] if kind == LEAF_PAGE and index + 1 < len(numbers) else 0
        page = _page(numbers[index], kind, items, before=before, after=after, level=height)
        pages.put(numbers[index], page)
    return list(zip(separators, numbers, strict=True))


def _separator(pages: _Pages, key: bytes, child: int) -> bytes:
    if len(key) > _BTREE_LONG:
        item = struct.pack("<HBxII", 0, OFF_PAGE, *pages.put_long(key))
        return struct.pack("<HBxII", len(item), OFF_PAGE, child, 0) + item
    return _aligned(struct.pack("<HBxII", len(key), ON_PAGE, child, 0) + key)


def _btree_item(pages: _Pages, data: bytes) -> bytes:
    if len(data) > _BTREE_LONG:
        return struct.pack("<HBxII", 0, OFF_PAGE, *pages.put_long(data))
    return _aligned(struct.pack("<HB", len(data), ON_PAGE) + data)


def _shortest_between(low: bytes, high: bytes) -> bytes:
    """The shortest beginning of `high` that is greater than `low`."""
    same = next((n for n, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return high[: same + 1]


def _aligned(item: bytes) -> bytes:
    return item + bytes(-len(item) % 4)


def _page(number: int, kind: int, items: Sequence[bytes], *, before: int = 0, after: int = 0, level: int = 0) -> bytes:
    """A page: offsets grow from the front, the items they name from the back."""
    offsets: list[int] = []
    end = PAGE_SIZE
    for item in items:
        end -= len(item)
        offsets.append(end)
    head = _page_header(number, kind, before=before, after=after, entries=len(items), offset=end, level=level)
    head += struct.pack(f"<{len(offsets)}H", *offsets)
    return head.ljust(end, b"\0") + b"".join(reversed(items))


def _page_header(
    number: int, kind: int, *, before: int, after: int, entries: int, offset: int, level: int = 0
) -> bytes:
    return struct.pack("<IIIIIHHBB", 0, 1, number, before, after, entries, offset, level, kind)


def _meta(magic: int, version: int, kind: int, last: int, fields: bytes) -> bytes:
    head = struct.pack("<IIIIII", 0, 1, 0, magic, version, PAGE_SIZE)
    head += struct.pack("<BBBBIIIIII", 0, kind, 0, 0, 0, last, 0, 0, 0, 0)
    head += os.urandom(20)  # tells files apart for whoever keeps several open
    return (head + fields).ljust(PAGE_SIZE, b"\0")
