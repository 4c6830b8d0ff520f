"""Maps of OpenBSD and FreeBSD: the files in `bsd/`, which the Berkeley DB 1.85 of OpenBSD's libc wrote.

They hold `entries`, each ending with a NUL as makemap stores them, in the byte order that their names say.
"""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.tables.berkeley import read_database
from pillarbox.tables.berkeley_old import old_key_hash
from pillarbox.tables.database import DatabaseError
from pillarbox.tables.db import check_database

FILES = sorted((Path(__file__).parent / "bsd").glob("*.gz"))
LENGTHS = (1, 30, 300, 1000, 1010, 2000, 4070, 4080, 4090, 4096, 4100, 9000)


def entries(name):
    """What the files of a name hold: few, many, none, or values (and in a hash keys) longer than a page."""
    if name == "many":
        return {f"user{n}@example.org": f"box{n * n}" for n in range(900)}
    if name == "long":
        return {f"key{n}": f"{n}" + "v" * n for n in LENGTHS} | {f"{'k' * 300}{n}": "v" for n in range(30)}
    if name == "keys":
        return {f"{n}" + "k" * n: "v" * 10 for n in LENGTHS} | {f"{n}" + "l" * n: "w" * n for n in LENGTHS}
    return {f"user{n}": f"target{n}" for n in range(7)} if name == "small" else {}


def stored(name):
    return {f"{key}\0".encode(): f"{value}\0".encode() for key, value in entries(name).items()}


def opened(data):
    return read_database(lambda offset, size: data[offset : offset + size], len(data))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name.removesuffix(".db.gz"))
def test_what_was_stored_is_found(file):
    name, layout = file.name.split(".")[:2]
    database = opened(gzip.decompress(file.read_bytes()))
    assert dict(database.items()) == stored(name)
    assert all(database.get(key) == value for key, value in stored(name).items())
    assert database.get(b"no such key\0") is None
    assert database.get(b"user1") is None
    if layout == "btree":
        assert [key for key, _ in database.items()] == sorted(stored(name))


def test_all_kinds_of_files_are_there():
    assert {file.name.removesuffix(".db.gz") for file in FILES} >= {
        f"{name}.{layout}.{order}"
        for name in ("small", "many")
        for layout in ("hash", "btree")
        for order in ("le", "be")
    } | {"empty.hash.le", "long.hash.le", "long.btree.le", "keys.hash.le"}


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.name.startswith(("many", "long", "keys"))], ids=lambda f: f.name
)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_file_is_an_error_and_nothing_else(file, data):
    content = bytearray(gzip.decompress(file.read_bytes()))
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(content) - 1))
        # Anywhere, in the header of the file, or in that of a page, where it hurts.
        at = data.draw(st.sampled_from([at, at % 260, at - at % 4096 + at % 40]))
        content[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    try:
        database = opened(bytes(content[:end]))
        for _ in zip(range(10_000), database.items(), strict=False):
            pass
        database.get(b"user77@example.org\0")
    except DatabaseError as error:
        assert str(error)


def test_such_a_file_is_a_table(tmp_path):
    for file in FILES:
        path = tmp_path / file.name.removesuffix(".gz")
        path.write_bytes(gzip.decompress(file.read_bytes()))
        assert check_database(str(path)) == ""


def test_the_hash_is_the_library_s():
    assert old_key_hash(b"%$sniglet^&\0") == 0x956E7DE3  # what it wrote into its files
