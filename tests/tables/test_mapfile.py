"""The text of a map, and the file that replaces another."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.tables.berkeley import read_database
from pillarbox.tables.mapfile import Format, Kind, MapError, fold_key, parse_map, replace_database


def parse(text, kind=Kind.PLAIN, is_alias=str.isalnum):
    return parse_map(text.splitlines(keepends=True), name="map", kind=kind, is_alias=is_alias)


def test_keys_end_at_a_blank_or_a_colon_and_are_folded():
    text = b"Root: alice\n  B\tx  y \n#c\n\n # d\n:v\n[::1]:six\n[a b] c\n"
    assert parse(text) == {
        b"root\0": b"alice\0",
        b"b\0": b"x  y\0",
        b"\0": b"v\0",
        b"[::1]\0": b"six\0",
        b"[a b]\0": b"c\0",
    }


def test_a_set_has_whole_lines_and_takes_no_directive():
    assert parse(b"# @list\nA b:c \n", Kind.SET) == {b"a b:c\0": b"<set>\0"}


def test_what_is_behind_a_nul_does_not_count():
    assert parse(b"a b\0c\n\0x y\n") == {b"a\0": b"b\0"}


def test_there_is_no_continuation():
    assert parse(b"a b\\\nc d\n") == {b"a\0": b"b\\\0", b"c\0": b"d\0"}


@pytest.mark.parametrize("line", [b"alone\n", b"alone:\n", b"[open x\n", b"a\0b c\n"])
def test_an_entry_that_cannot_be_read_is_told_with_its_line(line):
    with pytest.raises(MapError, match=r"^map:3: invalid entry$"):
        parse(b"a b\n\n" + line)


def test_a_key_may_not_come_twice_in_any_case():
    with pytest.raises(MapError, match=r"^map:2: duplicate entry for a$"):
        parse(b"a b\nA c\n")
    with pytest.raises(MapError, match=r"^map:2: duplicate entry for a b$"):
        parse(b"a b\nA B\n", Kind.SET)


@pytest.mark.parametrize("value", [b"x,", b",x", b"x,,y", b"x, y z"])
def test_every_member_of_an_alias_is_looked_at(value):
    assert parse(b"a: b , c\n", Kind.ALIASES) == {b"a\0": b"b , c\0"}
    with pytest.raises(MapError, match=r"^map:1: invalid entry$"):
        parse(b"a: " + value, Kind.ALIASES)


def test_keys_beyond_ascii_are_folded_as_lookups_fold_them():
    assert fold_key("ÄB".encode()) == "äb".encode()
    assert fold_key(b"\xc4B") == b"\xc4b"  # Latin-1


@given(st.lists(st.binary(max_size=30), max_size=20), st.sampled_from(Kind))
def test_any_bytes_are_a_map_or_an_error(lines, kind):
    try:
        pairs = parse_map(lines, name="m", kind=kind, is_alias=lambda text: True)
    except MapError as error:
        assert str(error).startswith("m:")
    else:
        assert all(item.count(b"\0") == 1 and item.endswith(b"\0") for pair in pairs.items() for item in pair)


WORD = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters=":#["), min_size=1)


@given(st.dictionaries(WORD.filter(lambda word: word == word.lower()), WORD, max_size=30), st.sampled_from(Format))
def test_what_was_written_as_text_is_in_the_database(tmp_path_factory, entries, layout):
    text = "".join(f"{key}\t{value}\n" for key, value in entries.items()).encode()
    path = tmp_path_factory.getbasetemp() / "map.db"
    pairs = parse_map(text.split(b"\n"), name="map", kind=Kind.PLAIN, is_alias=str.isalnum)
    replace_database(str(path), pairs, layout, like=None)
    data = path.read_bytes()
    found = read_database(lambda at, size: data[at : at + size], len(data)).items()
    assert {k[:-1].decode(): v[:-1].decode() for k, v in found} == entries


@pytest.mark.parametrize("layout", Format)
def test_the_database_has_the_mode_of_its_source(tmp_path: Path, layout: Format):
    target = tmp_path / "x.db"
    target.write_text("old")
    source = tmp_path / "x"
    source.touch(0o640)
    replace_database(str(target), {b"a\0": b"b\0"}, layout, like=source.stat())
    data = target.read_bytes()
    assert dict(read_database(lambda at, size: data[at : at + size], len(data)).items()) == {b"a\0": b"b\0"}
    assert target.stat().st_mode & 0o7777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["x", "x.db"]


def test_without_a_source_it_is_the_caller_s_alone(tmp_path: Path):
    replace_database(str(tmp_path / "x.db"), {}, Format.HASH, like=None)
    assert (tmp_path / "x.db").stat().st_mode & 0o7777 == 0o600


def test_where_it_cannot_be_put_nothing_changes(tmp_path: Path):
    (tmp_path / "x.db").mkdir()
    (tmp_path / "x.db/kept").touch()
    with pytest.raises(MapError, match="directory"):
        replace_database(str(tmp_path / "x.db"), {}, Format.HASH, like=None)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["kept", "x.db"]
    with pytest.raises(MapError, match="No such file"):
        replace_database(str(tmp_path / "no/x.db"), {}, Format.HASH, like=None)


@pytest.mark.parametrize("stopped", [OSError(28, "No space left on device"), SystemExit(143), KeyboardInterrupt()])
def test_whatever_stops_it_leaves_the_old_database_alone(tmp_path: Path, monkeypatch, stopped):
    (tmp_path / "x.db").write_text("old")

    def fsync(descriptor):
        raise stopped

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(MapError if isinstance(stopped, OSError) else type(stopped)):
        replace_database(str(tmp_path / "x.db"), {b"a\0": b"b\0"}, Format.HASH, like=None)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.db", "old")]
