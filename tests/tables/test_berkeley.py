"""Berkeley DB files: what is written is read again, and no file whatever does more harm than an error."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox.tables.berkeley import key_hash, read_database
from pillarbox.tables.berkeley_writer import PAGE_SIZE, write_btree, write_hash
from pillarbox.tables.database import DatabaseError

both = pytest.mark.parametrize("write", [write_hash, write_btree])
# Around the lengths at which items get pages of their own, and those at which these are full.
SIZES = [0, 1, 30, 1005, 1007, 1008, 1024, 1025, PAGE_SIZE - 26, PAGE_SIZE - 25, 3 * PAGE_SIZE]


def items():
    return st.one_of(
        st.binary(max_size=40),
        st.builds(lambda seed, size: (seed * size)[:size], st.binary(min_size=1, max_size=4), st.sampled_from(SIZES)),
    )


def opened(data):
    return read_database(lambda offset, size: data[offset : offset + size], len(data))


@both
@given(pairs=st.dictionaries(items(), items(), max_size=60), absent=items())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large])
def test_what_is_written_is_found_again(write, pairs, absent):
    database = opened(write(pairs))
    assert dict(database.items()) == pairs
    assert all(database.get(key) == value for key, value in pairs.items())
    assert database.get(absent) == pairs.get(absent)


@both
def test_many_entries(write):
    pairs = {f"user{n}@example.org\0".encode(): f"box{n}\0".encode() for n in range(20_000)}
    data = write(pairs)
    database = opened(data)
    assert dict(database.items()) == pairs
    assert all(database.get(b"user%d@example.org\0" % n) == b"box%d\0" % n for n in range(0, 20_000, 37))
    assert database.get(b"user20000@example.org\0") is None
    assert len(data) < 4 * sum(len(k) + len(v) for k, v in pairs.items())


def test_a_btree_is_in_the_order_of_its_keys():
    pairs = {bytes([n]): b"" for n in range(255, 0, -1)}
    assert [key for key, _ in opened(write_btree(pairs)).items()] == sorted(pairs)


@both
def test_a_lookup_reads_a_few_pages_only(write):
    data = write({b"key%d" % n: b"value" * 10 for n in range(5000)})
    asked = []

    def read(offset, size):
        asked.append(offset)
        return data[offset : offset + size]

    database = read_database(read, len(data))
    asked.clear()
    assert database.get(b"key4711") == b"value" * 10
    assert len(asked) <= 4


@both
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_an_error_and_nothing_else(write, data):
    content = bytearray(write({b"key%d\0" % n: b"value" * (n % 400) for n in range(120)}))
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(content) - 1))
        # Anywhere, or in the header of a page, where it hurts.
        at = data.draw(st.sampled_from([at, at - at % PAGE_SIZE + at % 40]))
        content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        database = opened(bytes(content[:end]))
        for _ in zip(range(10_000), database.items(), strict=False):
            pass
        database.get(b"key77\0")
        database.get(b"key399\0")
    except DatabaseError as error:
        assert str(error)


@given(data=st.binary(max_size=2000))
def test_any_bytes_are_an_error(data):
    with pytest.raises(DatabaseError):
        opened(data)


@pytest.mark.parametrize(
    ("at", "fields", "said"),
    [
        (12, "I", "not a Berkeley DB file"),
        (16, "I", "version 3735928559 "),
        (20, "I", "pages of"),
        (24, "B", "encrypted"),
        (26, "B", "checksummed"),
        (92, "I", "hashed in a way"),
    ],
)
def test_files_of_another_kind_are_named(at, fields, said):
    data = bytearray(write_hash({b"a": b"b"}))
    struct.pack_into("<" + fields, data, at, 0xDEADBEEF & (1 << 8 * struct.calcsize(fields)) - 1)
    with pytest.raises(DatabaseError, match=said):
        opened(bytes(data))


def test_duplicates_and_several_databases_are_refused():
    for flag, said in ((0x01, "duplicate"), (0x02, "several")):
        data = bytearray(write_hash({b"a": b"b"}))
        struct.pack_into("<I", data, 48, flag)
        with pytest.raises(DatabaseError, match=said):
            opened(bytes(data))


@pytest.mark.parametrize("kind", [8, 9])
def test_a_file_of_the_other_byte_order_is_read(kind):
    """Of a big-endian machine: every number of a file with one entry, turned round."""
    write = write_hash if kind == 8 else write_btree
    data = bytearray(write({b"key\0": b"value\0"}))
    _turn(data, 0, "QIIII4sIIIIII")
    _turn(data, 72, "6I32I" if kind == 8 else "6I")
    for page in range(PAGE_SIZE, len(data), PAGE_SIZE):
        (entries,) = struct.unpack_from("<H", data, page + 20)
        offsets = struct.unpack_from(f"<{entries}H", data, page + 26)
        _turn(data, page, f"QIIIHHBB{entries}H")
        for offset in offsets if kind == 9 else ():
            _turn(data, page + offset, "H")
    assert dict(opened(bytes(data)).items()) == {b"key\0": b"value\0"}
    assert opened(bytes(data)).get(b"key\0") == b"value\0"


def _turn(data, at, fields):
    struct.pack_into(">" + fields, data, at, *struct.unpack_from("<" + fields, data, at))


def test_the_hash_is_the_library_s():
    assert key_hash(b"%$sniglet^&\0") == 0x5E688DD1  # what Debian's makemap wrote into its files


PAGES = 2000


def counted(data):
    """A database, and how many bytes of it were read."""
    read = [0]

    def piece(offset, size):
        read[0] += size
        return data[offset : offset + size]

    return read_database(piece, len(data)), read


def hash_page(number, *offsets, after=0, content=b""):
    head = struct.pack("<QIIIHHBB", 0, number, 0, after, len(offsets), 0, 0, 13)
    return (head + struct.pack(f"<{len(offsets)}H", *offsets)).ljust(PAGE_SIZE - len(content), b"\0") + content


def crafted(*pages, buckets):
    """A hash database of these pages; a bucket is on the page of its number, plus one."""
    data = bytearray(write_hash({}))[:PAGE_SIZE]
    high = (1 << (buckets - 1).bit_length()) - 1
    struct.pack_into("<III", data, 72, buckets - 1, high, high >> 1)
    struct.pack_into("<32I", data, 96, *[1] * 32)
    return bytes(data) + b"".join(pages)


def test_buckets_that_share_one_long_chain_are_not_walked_again_and_again():
    pages = [hash_page(n, after=n + 1 if n < PAGES else 0) for n in range(1, PAGES + 1)]
    data = crafted(*pages, buckets=PAGES)
    database, read = counted(data)
    with pytest.raises(DatabaseError, match="lead to one another"):
        list(database.items())
    assert read[0] <= 9 * len(data)


def test_entries_that_share_one_long_item_do_not_fill_the_memory():
    long = b"x" * (PAGE_SIZE - 26) * 100
    stored = write_hash({b"k": long})
    (where,) = [n for n in range(0, len(stored), PAGE_SIZE) if stored[n + 25] == 13 and stored[n + 20]]
    first, size = struct.unpack_from("<II", stored, where + struct.unpack_from("<H", stored, where + 28)[0] + 4)
    item = struct.pack("<BxxxII", 3, first, size)
    data = bytearray(stored)
    number = where // PAGE_SIZE
    offsets = [PAGE_SIZE - 12 * n for n in range(1, 281)]
    data[where : where + PAGE_SIZE] = hash_page(number, *offsets, content=item * 280)
    database, read = counted(bytes(data))
    taken = 0
    with pytest.raises(DatabaseError):
        for key, value in database.items():
            taken += len(key) + len(value)
    assert taken <= len(data)
    with pytest.raises(DatabaseError):
        [database.get(key) for key in (b"a", b"b")]
    assert read[0] <= 20 * len(data)


def test_items_that_lie_over_one_another_are_damage():
    page = hash_page(1, *[PAGE_SIZE - 10, 600] * 100, content=b"\1" * 3400)
    database = opened(crafted(page, hash_page(2), buckets=2))
    with pytest.raises(DatabaseError, match="page 1"):
        list(database.items())
    with pytest.raises(DatabaseError, match="page 1"):
        [database.get(key) for key in (b"a", b"b")]
