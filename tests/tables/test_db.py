"""Tables in Berkeley DB files: every answer is that of a file table, and a file that is in trouble is a TempFail."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.conf.tables import parse_table_file
from pillarbox.errors import TempFail
from pillarbox.roles.parent import DatabasePart
from pillarbox.tables import db
from pillarbox.tables.berkeley_writer import write_btree, write_hash
from pillarbox.tables.db import DbTable, check_database
from pillarbox.tables.mapfile import Format, Kind, parse_map, replace_database
from pillarbox.tables.services import Service
from pillarbox.tables.table import MemoryTable

ENTRIES = {b"alice\0": b"a@example.org\0", b"*.example.org\0": b"x\0", b"192.0.2.0/24\0": b"net\0", b"@\0": b"all\0"}


async def nobody(path, offset):
    raise TempFail("the parent was asked")


def make(path, *, executor=None, read_by_parent=nobody, bad=None):
    return DbTable(
        name="t",
        path=str(path),
        delimiter="+",
        executor=executor or ThreadPoolExecutor(2),
        on_bad_regex=(lambda pattern, why: bad.append(pattern)) if bad is not None else (lambda pattern, why: None),
        read_by_parent=read_by_parent,
    )


@pytest.fixture(params=[write_hash, write_btree])
def path(request, tmp_path: Path) -> Path:
    """A database with ENTRIES."""
    made = tmp_path / "t.db"
    made.write_bytes(request.param(ENTRIES))
    return made


def run(coroutine):
    return asyncio.run(coroutine)


def test_lookup_ignores_case(path):
    table = make(path)
    assert run(table.lookup(Service.ALIAS, "ALICE")) == "a@example.org"
    assert run(table.lookup(Service.ALIAS, "bob")) is None
    assert run(table.match(Service.STRING, "Alice"))
    assert run(table.any_value()) in {value[:-1].decode() for value in ENTRIES.values()}
    assert not run(table.match(Service.STRING, "a.example.org"))


def test_patterns_match(path):
    table = make(path)
    assert run(table.match(Service.DOMAIN, "A.example.org"))
    assert not run(table.match(Service.DOMAIN, "a.b.example.org"))
    assert run(table.match(Service.NETADDR, "192.0.2.77"))
    assert run(table.match(Service.MAILADDR, "anybody@at.all"))


def test_fetch_goes_round(path):
    table = make(path)
    assert [run(table.fetch(Service.SOURCE)) for _ in range(5)] == [
        *sorted(k[:-1].decode() for k in ENTRIES),
        "*.example.org",
    ]


def test_an_empty_database_has_nothing(tmp_path):
    (tmp_path / "t.db").write_bytes(write_hash({}))
    table = make(tmp_path / "t.db")
    assert run(table.fetch(Service.SOURCE)) is None
    assert run(table.any_value()) == ""
    assert run(table.lookup(Service.ALIAS, "x")) is None
    assert not run(table.match(Service.DOMAIN, "x"))


def test_a_regex_that_does_not_compile_is_told(tmp_path):
    bad = []
    (tmp_path / "t.db").write_bytes(write_hash({b"^a+$\0": b"<set>\0", b"(\0": b"<set>\0"}))
    table = make(tmp_path / "t.db", bad=bad)
    assert run(table.match(Service.REGEX, "aaa"))
    assert bad == ["("]


def test_keys_and_values_may_be_anything(tmp_path):
    entries = {
        "ärger\0".encode(): "größe\0".encode(),
        b"latin\0": b"gr\xf6\xdfe\0",
        "Émile\0".encode(): b"raw\0",
        b"\xff\0": b"b\0",
    }
    (tmp_path / "t.db").write_bytes(write_hash(entries))
    table = make(tmp_path / "t.db")
    assert run(table.lookup(Service.ALIAS, "ÄRGER")) == "größe"
    assert run(table.lookup(Service.ALIAS, "latin")) == "größe"
    assert run(table.lookup(Service.ALIAS, "Émile")) == "raw"  # the reference's makemap folds ASCII only
    assert run(table.lookup(Service.ALIAS, "\udcff")) == "b"


# -- the file


def test_a_database_that_was_replaced_is_read_anew(path):
    async def go():
        table = make(path)
        assert await table.lookup(Service.ALIAS, "alice") == "a@example.org"
        assert await table.match(Service.DOMAIN, "a.example.org")
        replace_database(str(path), {b"alice\0": b"new\0"}, Format.HASH, like=None)
        assert await table.lookup(Service.ALIAS, "alice") == "new"
        assert not await table.match(Service.DOMAIN, "a.example.org")

    run(go())


def test_a_database_that_is_gone_or_damaged_is_a_temporary_failure(path):
    async def go():
        table = make(path)
        await table.lookup(Service.ALIAS, "alice")
        good = path.read_bytes()
        for bad, said in (
            (b"", "not a Berkeley DB file"),
            (good[:5000], "damaged"),
            (b"x" * 9000, "not a Berkeley DB"),
        ):
            path.write_bytes(bad)
            with pytest.raises(TempFail, match=f"table t: {path}: {said}"):
                await table.match(Service.DOMAIN, "alice")
        path.unlink()
        with pytest.raises(TempFail, match="No such file"):
            await table.lookup(Service.ALIAS, "alice")
        path.mkdir()
        with pytest.raises(TempFail, match="not a file"):
            await table.fetch(Service.SOURCE)
        path.rmdir()
        path.write_bytes(good)
        assert await table.lookup(Service.ALIAS, "alice") == "a@example.org"

    run(go())


def test_a_fifo_does_not_hold_anybody(tmp_path):
    os.mkfifo(tmp_path / "t.db")
    with pytest.raises(TempFail, match="not a file"):
        run(make(tmp_path / "t.db").lookup(Service.ALIAS, "alice"))


def test_what_was_read_while_the_file_changed_does_not_count(path, monkeypatch):
    """Somebody writes into the file during the first lookup: it is asked again."""
    real, writes = os.pread, [b"new@example.org\0"]

    def pread(descriptor, size, offset):
        data = real(descriptor, size, offset)
        if offset and writes:
            path.write_bytes(write_hash({b"alice\0": writes.pop()}))
        return data

    monkeypatch.setattr(db.os, "pread", pread)
    assert run(make(path).lookup(Service.ALIAS, "alice")) == "new@example.org"


def test_a_file_that_changes_all_the_time_is_a_temporary_failure(path, monkeypatch):
    real = os.pread

    def pread(descriptor, size, offset):
        os.utime(path)
        return real(descriptor, size, offset)

    monkeypatch.setattr(db.os, "pread", pread)
    with pytest.raises(TempFail, match="being written"):
        run(make(path).lookup(Service.ALIAS, "alice"))


def test_update_says_whether_the_file_can_be_used(path):
    table = make(path)
    run(table.update())
    path.write_bytes(b"no")
    with pytest.raises(TempFail, match="not a Berkeley DB file"):
        run(table.update())


def test_a_disk_that_hangs_costs_a_deadline_and_no_more(path):
    release = threading.Event()
    executor = ThreadPoolExecutor(1)
    executor.submit(release.wait)

    class Soon(DbTable):
        DEADLINE = 0.05

    table = Soon(
        name="t", path=str(path), delimiter="+", executor=executor,
        on_bad_regex=lambda pattern, why: None, read_by_parent=nobody,
    )  # fmt: skip
    with pytest.raises(TempFail, match="no answer"):
        run(table.lookup(Service.ALIAS, "alice"))
    release.set()


# -- read by the parent


class Parent:
    """Reads with root's eyes, a few bytes at a time."""

    def __init__(self, part=1500):
        self.part = part
        self.asked = []

    async def read_database(self, path, offset):
        self.asked.append(offset)
        with open(path, "rb") as file:  # noqa: ASYNC230 - nothing else runs
            file.seek(offset)
            return DatabasePart(db.stamp(os.fstat(file.fileno())), file.read(self.part))


def forbid(monkeypatch, what):
    """`what` ("open" or "stat") of paths is forbidden to this process, as files of others are to a user."""
    real = getattr(os, what)

    def refuse(path, *args, **kwargs):
        if isinstance(path, str) and path.endswith("t.db") and threading.current_thread().name.startswith("asked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(db.os, what, refuse)


@pytest.mark.parametrize("forbidden", [["open"], ["open", "stat"]], ids=["file", "folder"])
def test_what_lookup_may_not_read_the_parent_reads(path, monkeypatch, forbidden):
    for what in forbidden:
        forbid(monkeypatch, what)
    parent = Parent()

    async def go():
        table = make(path, executor=ThreadPoolExecutor(1, "asked"), read_by_parent=parent.read_database)
        assert await table.lookup(Service.ALIAS, "alice") == "a@example.org"
        assert len(parent.asked) == path.stat().st_size // 1500 + 1
        parent.asked.clear()
        assert await table.match(Service.DOMAIN, "a.example.org")
        # One question at most, whether it is still the same.
        assert parent.asked == ([path.stat().st_size] if "stat" in forbidden else [])
        replace_database(str(path), {b"alice\0": b"new\0"}, Format.BTREE, like=None)
        assert await table.lookup(Service.ALIAS, "alice") == "new"

    run(go())


def test_a_file_that_is_too_large_for_memory_says_what_to_do(path, monkeypatch):
    forbid(monkeypatch, "open")
    monkeypatch.setattr(DbTable, "MAX_SIZE", 100)
    with pytest.raises(TempFail, match="let _smtpl read the file"):
        run(make(path, executor=ThreadPoolExecutor(1, "asked"), read_by_parent=Parent().read_database).update())


def test_a_file_that_nobody_can_read_is_a_temporary_failure(path, monkeypatch):
    forbid(monkeypatch, "open")
    with pytest.raises(TempFail, match="the parent was asked"):
        run(make(path, executor=ThreadPoolExecutor(1, "asked")).lookup(Service.ALIAS, "x"))


# -- the same as a file table

WORDS = ["alice", "Bob", "alice+x", "bob@example.org", "Alice+t@Example.net", "@example.org", "@", "example.org",
         "*.example.org", "a.example.org", "192.0.2.1", "192.0.2.0/24", "[2001:db8::1]", "2001:DB8:0:0::1", "10",
         "::/0", "local", "^b", "o+b", "(", "ärger", "ÄRGER"]  # fmt: skip
VALUES = ["a", "b, c", "1:2:/home/a:b", "$6$x", "user:password", '"|x y"', "smtp://[::1]:25"]


@given(
    entries=st.dictionaries(st.sampled_from(WORDS), st.sampled_from(VALUES), max_size=12),
    keys=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    as_list=st.booleans(),
    layout=st.sampled_from(Format),
)
@settings(max_examples=80, deadline=None)
def test_every_answer_is_that_of_a_file_table(tmp_path_factory, entries, keys, as_list, layout):
    entries = dict({key.lower(): (key, value) for key, value in entries.items()}.values())
    text = "".join(f"{key}\n" if as_list else f"{key}\t{value}\n" for key, value in entries.items())
    file_entries = parse_table_file("t", ("# @list\n" if as_list else "") + text)[1]
    # makemap folds keys; a file table keeps them as they were written, and compares them folded.
    file_entries = tuple((key.lower(), value or "<set>") for key, value in file_entries)
    memory = MemoryTable(name="t", entries=file_entries, delimiter="+", on_bad_regex=lambda pattern, why: None)
    path = str(tmp_path_factory.getbasetemp() / "same.db")
    kind = Kind.SET if as_list else Kind.PLAIN
    pairs = parse_map(text.encode().splitlines(), name="t", kind=kind, is_alias=str.isalnum)
    replace_database(path, pairs, layout, like=None)

    async def go():
        with ThreadPoolExecutor(1) as executor:
            table = make(path, executor=executor)
            for service in Service:
                for key in keys:
                    assert await table.lookup(service, key) == await memory.lookup(service, key), (service, key)
                    assert await table.match(service, key) == await memory.match(service, key), (service, key)
            for _ in range(4):
                assert await table.fetch(Service.SOURCE) == await memory.fetch(Service.SOURCE)

    run(go())


def test_a_file_is_checked_before_it_is_used(path, tmp_path):
    assert check_database(str(path)) == ""
    assert "No such file" in check_database(str(tmp_path / "no"))
    assert check_database(str(tmp_path)) == "not a file"
    (tmp_path / "x").write_text("alice: bob\n")
    assert check_database(str(tmp_path / "x")) == "not a Berkeley DB file"
