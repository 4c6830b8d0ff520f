"""Event logs as they are found: in files and folders, compressed, cut off, damaged, growing."""

import gzip
import os
import tracemalloc
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.files import zstd_module
from pillarbox.eventlog.lines import render_report
from pillarbox.eventlog.reading import EventLog
from tests.eventlog.recorded import BEGIN, HANDSHAKE, whole_log, write_log

LINES = whole_log()
TEXT = "".join(f"{line}\n" for line in LINES).encode()


def read(paths: Sequence[Path | str], **options: float) -> tuple[list[str], list[str]]:
    """The events as lines, and what was said about the files."""
    said: list[str] = []
    log = EventLog([str(path) for path in paths], warn=said.append, **options)
    return [render_report(report) for report in log.reports()], said


def flushed(data: bytes) -> bytes:
    """A gzip file that is still being written."""
    stream = zlib.compressobj(6, zlib.DEFLATED, 31)
    return stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT.removesuffix(b"\n"),
        gzip.compress(TEXT),
        gzip.compress(TEXT.removesuffix(b"\n")),
        flushed(TEXT),
        gzip.compress(TEXT[:999]) + gzip.compress(TEXT[999:]),
    ],
    ids=["plain", "no last newline", "gzip", "gzip, no last newline", "unfinished", "members"],
)
def test_whole_logs_are_read_whole(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)  # the name says nothing
    assert read([tmp_path / "x"]) == (LINES, [])


@pytest.mark.skipif(zstd_module() is None, reason="this Python has no zstd")
def test_zstd_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(zstd_module().compress(TEXT))
    assert read([tmp_path / "x"]) == (LINES, [])


def test_zstd_without_python_s_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.eventlog.reading.zstd_module", lambda: None)
    (tmp_path / "x").write_bytes(b"\x28\xb5\x2f\xfd rest")
    with pytest.raises(PillarboxError, match="zstd -dc"):
        read([tmp_path / "x"])


def test_a_rotated_set_is_read_in_the_order_of_its_events(tmp_path: Path) -> None:
    third = len(LINES) // 3
    parts = [LINES[:third], LINES[third : 2 * third], LINES[2 * third :]]
    lines = [f"report|0.7|{BEGIN + n:.6f}|smtp-in|protocol-client|{n:016x}|NOOP" for n in range(30)]
    parts = [lines[:10], lines[10:20], lines[20:]]
    write_log(tmp_path / "events.log", parts[2])
    write_log(tmp_path / "events.log.1", parts[1])
    (tmp_path / "events.log.2.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in parts[0]).encode()))
    (tmp_path / ".hidden").write_text("no log")
    (tmp_path / "folder").mkdir()
    assert read([tmp_path]) == (lines, [])
    assert read(sorted(tmp_path.glob("events.log*"))) == (lines, [])


def test_since_and_until_leave_out_what_happened_elsewhen(tmp_path: Path) -> None:
    lines = [f"report|0.7|{BEGIN + n:.6f}|smtp-in|protocol-client|{n:016x}|NOOP" for n in range(30)]
    for n in range(3):
        write_log(tmp_path / f"{n}", lines[10 * n : 10 * n + 10])
    os.utime(tmp_path / "0", (BEGIN + 9, BEGIN + 9))
    assert read([tmp_path], since=BEGIN + 12, until=BEGIN + 15) == (lines[12:15], [])
    (tmp_path / "0").write_text("not looked at")
    os.utime(tmp_path / "0", (BEGIN + 9, BEGIN + 9))
    assert read([tmp_path], since=BEGIN + 12) == (lines[12:], [])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 4000))
def test_a_log_that_is_cut_off_gives_its_whole_lines(tmp_path: Path, at: int) -> None:
    data = gzip.compress(TEXT)
    path = tmp_path / "x"
    path.write_bytes(data[: min(at, len(data) - 1)])
    found, said = read([path])
    assert found == LINES[: len(found)]
    assert all("ends in the middle" in line for line in said)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 4000), value=st.integers(1, 255))
def test_a_damaged_byte_hides_only_what_is_behind_it(tmp_path: Path, at: int, value: int) -> None:
    data = bytearray(flushed(TEXT))
    at = min(at, len(data) - 1)
    before = zlib.decompressobj(31).decompress(bytes(data[: at // 512 * 512])).count(b"\n")
    data[at] ^= value
    path = tmp_path / "x"
    path.write_bytes(data)
    found, _ = read([path])
    assert found[:before] == LINES[:before]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=2000),
    start=st.sampled_from([b"", b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\3", b"report|0.7|"]),
)
def test_any_bytes_are_a_log_of_few_events(tmp_path: Path, data: bytes, start: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(start + data)
    found, said = read([path])
    assert found == [] or b"report|" in start + data
    assert all(str(path) in line and line.isprintable() for line in said)


def test_lines_that_are_none_are_named_once(tmp_path: Path) -> None:
    path = write_log(tmp_path / "x", [*HANDSHAKE, LINES[0], "what \x1b is this", "", "and this", LINES[1]])
    assert read([path]) == (LINES[:2], [f"{path}:6: not an event: 'what \\x1b is this' (and 1 more lines)"])


def test_lines_that_are_none_are_counted_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(b"x\n" * 300_000))
    tracemalloc.start()
    try:
        assert read([path]) == ([], [f"{path}:1: not an event: 'x' (and 299999 more lines)"])
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_the_recorder_s_notes_are_passed_on(tmp_path: Path) -> None:
    path = write_log(tmp_path / "x", [LINES[0], "note|1|1700000000.5|dropped|12|No space left on device", LINES[1]])
    assert read([path]) == (LINES[:2], [f"{path}:2: 12 events are missing: No space left on device"])


def test_a_line_of_megabytes_in_a_log_hides_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(f"{LINES[0]}\n{'x' * (5 << 20)}\n{LINES[1]}\n".encode())
    assert read([path]) == (LINES[:2], [f"{path}:2: a line of more than 2097152 bytes"])


def test_a_piece_of_a_line_that_a_recorder_could_not_finish_is_no_event(tmp_path: Path) -> None:
    torn = "\n".join(
        [*HANDSHAKE, LINES[0], "report|0.7|1700000000.5|smtp-in|tx-mail|0000000000000001|0badcafe|ok|user@exam"]
    )
    (tmp_path / "x").write_text(torn)
    found, said = read([tmp_path / "x"])
    assert (found, said) == (LINES[:1], [f"{tmp_path}/x: ends in the middle of a line; 78 bytes are left out"])


def test_pipes_are_read_once(tmp_path: Path) -> None:
    """As `smtpd-events stats <(zcat a) <(zcat b)` has them."""
    (one, feed_one), (other, feed_other) = os.pipe(), os.pipe()
    for feed, lines in ((feed_one, LINES[:5]), (feed_other, LINES[5:10])):
        os.write(feed, "".join(f"{line}\n" for line in lines).encode())
        os.close(feed)
    assert read([f"/dev/fd/{one}", f"/dev/fd/{other}"]) == (LINES[:10], [])
    os.close(one)
    os.close(other)


def test_a_file_of_a_folder_that_is_deleted_meanwhile_is_left_out(tmp_path: Path) -> None:
    lines = [f"report|0.7|{BEGIN + n:.6f}|smtp-in|protocol-client|{n:016x}|NOOP" for n in range(3)]
    for n in range(3):
        write_log(tmp_path / f"{n}", lines[n : n + 1])
    found = EventLog([str(tmp_path)], warn=pytest.fail).reports()
    assert render_report(next(found)) == lines[0]
    (tmp_path / "1").unlink()  # as the recorder does
    assert [render_report(report) for report in found] == [lines[2]]


def test_a_line_of_megabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b"x" * (3 << 20)))
    with pytest.raises(PillarboxError, match="not an event log"):
        read([tmp_path / "x"])


@pytest.mark.parametrize(("path", "why"), [("missing", "No such file"), (".", "no event log here")])
def test_what_is_not_there_is_named(tmp_path: Path, path: str, why: str) -> None:
    with pytest.raises(PillarboxError, match=why):
        read([tmp_path / path])


def test_following_goes_on_with_what_is_written_and_with_new_files(tmp_path: Path) -> None:
    stream = zlib.compressobj(6, zlib.DEFLATED, 31)
    pieces = [f"{LINES[0]}\n{LINES[1][:9]}".encode(), f"{LINES[1][9:]}\n".encode()]
    with open(tmp_path / "1.gz", "wb", buffering=0) as first:
        todo = [
            lambda: first.write(stream.compress(pieces[0]) + stream.flush(zlib.Z_SYNC_FLUSH)),
            lambda: first.write(stream.compress(pieces[1]) + stream.flush(zlib.Z_SYNC_FLUSH)),
            lambda: write_log(tmp_path / "2", LINES[2:4]),
            (tmp_path / "1.gz").unlink,
            lambda: write_log(tmp_path / "3", LINES[4:5]),
        ]
        followed = EventLog([str(tmp_path)], warn=pytest.fail, sleep=lambda _: todo.pop(0)() and None).follow()
        assert [render_report(next(followed)) for _ in range(5)] == LINES[:5]


def test_following_reads_old_files_only_where_they_grow(tmp_path: Path) -> None:
    lines = [f"report|0.7|{BEGIN + n:.6f}|smtp-in|protocol-client|{n:016x}|NOOP" for n in range(30)]
    old, now = write_log(tmp_path / "0", ["this would be named"]), write_log(tmp_path / "1", lines[:10])
    os.utime(old, (BEGIN - 99, BEGIN - 99))
    idle = write_log(tmp_path / "2", lines[10:11])
    os.utime(idle, (BEGIN - 99, BEGIN - 99))
    opened: list[str] = []

    def add() -> None:
        opened.extend(os.readlink(link.path) for link in os.scandir("/proc/self/fd") if os.path.exists(link.path))
        write_log(idle, lines[10:12])

    todo = [lambda: None, add]
    followed = EventLog([str(tmp_path)], warn=pytest.fail, since=BEGIN, sleep=lambda _: todo.pop(0)()).follow()
    assert [render_report(next(followed)) for _ in range(12)] == [*lines[:10], *lines[10:12]]
    assert str(now) in opened
    assert str(old) not in opened
