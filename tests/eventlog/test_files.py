"""Where the recorder writes: files that can be read while they grow, and follow each other."""

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.files import PERIODS, SUFFIXES, LogFiles, stream_factory, zstd_module
from pillarbox.eventlog.reading import EventLog
from tests.eventlog.recorded import whole_log

LINES = whole_log()
COMPRESSIONS = [
    "gzip",
    "none",
    pytest.param("zstd", marks=pytest.mark.skipif(zstd_module() is None, reason="this Python has no zstd")),
]


class Clock:
    def __init__(self, time: float = 1_700_000_000.0) -> None:
        self.time = time

    def __call__(self) -> float:
        return self.time


def log_files(folder: Path, clock: Clock, **changes: object) -> LogFiles:
    compression = str(changes.pop("compression", "gzip"))
    settings = {"size": 1 << 20, "period": 0, "keep": 10, **changes}
    return LogFiles(
        str(folder), suffix=SUFFIXES[compression], stream=stream_factory(compression), now=clock, **settings
    )


def encoded(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def read(folder: Path) -> list[str]:
    complaints: list[str] = []
    found = [report.text for report in EventLog([str(folder)], warn=complaints.append).reports()]
    assert complaints == []
    return found


def texts(lines: list[str]) -> list[str]:
    return [[*line.split("|", 6), ""][6] for line in lines]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_each_append_can_be_read_at_once(tmp_path: Path, compression: str) -> None:
    files = log_files(tmp_path, Clock(), compression=compression)
    for start in range(0, len(LINES), 100):
        files.append(encoded(LINES[start : start + 100]))
        assert read(tmp_path) == texts(LINES[: start + 100])
    files.rotate()
    assert read(tmp_path) == texts(LINES)


def test_a_finished_file_is_what_every_program_reads(tmp_path: Path) -> None:
    files = log_files(tmp_path, Clock())
    files.head = b"config|ready\n"
    files.append(encoded(LINES))
    files.rotate()
    (name,) = names(tmp_path)
    assert name == "events-20231114T221320.000000Z.log.gz"
    assert gzip.decompress((tmp_path / name).read_bytes()) == b"config|ready\n" + encoded(LINES)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_files_follow_each_other_by_size_and_the_oldest_go(tmp_path: Path) -> None:
    files = log_files(tmp_path, Clock(), size=1000, keep=3, compression="none")
    for line in LINES[:100]:
        files.append(encoded([line]))
    files.rotate()
    assert len(names(tmp_path)) == 3
    kept = read(tmp_path)
    assert kept == texts(LINES[:100])[-len(kept) :]
    assert all(1000 <= (tmp_path / name).stat().st_size < 1400 for name in names(tmp_path)[:2])


def test_a_day_ends_at_midnight_utc_also_where_nothing_happens(tmp_path: Path) -> None:
    clock = Clock(1_700_006_399.0)  # 23:59:59
    files = log_files(tmp_path, clock, period=PERIODS["day"])
    files.append(encoded(LINES[:1]))
    files.tick()
    assert not _ended(tmp_path / names(tmp_path)[0])
    clock.time += 1
    files.tick()
    assert _ended(tmp_path / names(tmp_path)[0])
    files.append(encoded(LINES[1:2]))
    assert [name[7:22] for name in names(tmp_path)] == ["20231114T235959", "20231115T000000"]


def _ended(path: Path) -> bool:
    decoder = zlib.decompressobj(31)
    decoder.decompress(path.read_bytes())
    return decoder.eof


def test_a_clock_that_goes_back_does_not_change_the_order(tmp_path: Path) -> None:
    clock = Clock()
    for lines in (LINES[:5], LINES[5:10], LINES[10:15]):
        files = log_files(tmp_path, clock)
        files.append(encoded(lines))
        files.rotate()
        clock.time -= 1000
    assert read(tmp_path) == texts(LINES[:15])
    assert [name[7:29] for name in names(tmp_path)] == [f"20231114T221320.{n:06}" for n in range(3)]


def test_events_of_a_clock_that_went_back_are_read_in_the_order_that_they_were_written_in(tmp_path: Path) -> None:
    lines = [f"report|0.7|{time}.000000|smtp-in|protocol-client|{time:016x}|NOOP {time}" for time in (5000, 1000, 6000)]
    for line in lines:
        files = log_files(tmp_path, Clock(1_700_000_000.0))
        files.append(encoded([line]))
        files.rotate()
    assert read(tmp_path) == texts(lines)
    since = EventLog([str(tmp_path)], warn=pytest.fail, until=2000.0).reports()
    assert [report.time for report in since] == [1000.0]


def test_a_clock_that_was_years_ahead_does_not_keep_files_from_ending(tmp_path: Path) -> None:
    clock = Clock(1_900_000_000.0)
    files = log_files(tmp_path, clock, period=PERIODS["day"])
    files.append(encoded(LINES[:1]))
    clock.time = 1_700_000_000.0
    files.append(encoded(LINES[1:2]))
    assert len(names(tmp_path)) == 2
    clock.time += PERIODS["day"]
    files.append(encoded(LINES[2:3]))
    assert len(names(tmp_path)) == 3
    assert read(tmp_path) == texts(LINES[:3])


def test_a_name_behind_which_there_is_none_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "events-99991231T235959.999999Z.log").write_text("")
    files = log_files(tmp_path, Clock())
    files.append(encoded(LINES[:2]))
    assert read(tmp_path) == texts(LINES[:2])


def test_two_recorders_share_a_folder(tmp_path: Path) -> None:
    clock = Clock()
    one, other = log_files(tmp_path, clock), log_files(tmp_path, clock)
    one.append(encoded(LINES[:5]))
    other.append(encoded(LINES[5:10]))
    one.append(encoded(LINES[10:15]))
    assert sorted(read(tmp_path)) == sorted(texts(LINES[:15]))


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "events-notes.log").write_text("mine")
    (tmp_path / "a").write_text("mine")
    files = log_files(tmp_path, Clock(), size=1, keep=1)
    for line in LINES[:3]:
        files.append(encoded([line]))
    assert len(names(tmp_path)) == 3


def test_nothing_is_written_where_nothing_happens(tmp_path: Path) -> None:
    files = log_files(tmp_path / "made", Clock())
    files.check()
    files.tick()
    files.rotate()
    assert names(tmp_path / "made") == []


def test_zstd_is_said_to_be_missing_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.eventlog.files.zstd_module", lambda: None)
    with pytest.raises(PillarboxError, match=r"3\.14"):
        stream_factory("zstd")


@contextlib.contextmanager
def full_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes (needs root)."""
    import subprocess

    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")
def test_what_does_not_fit_leaves_what_was_written_whole(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with full_disk(folder, 64 << 10):
        files = log_files(folder, Clock(), compression="none")
        kept: list[str] = []
        with pytest.raises(OSError, match="No space"):
            while True:
                files.append(encoded(LINES[:100]))
                kept += LINES[:100]
        with pytest.raises(OSError, match="No space"):
            files.append(encoded(LINES))
        assert len(names(folder)) == 1
        assert read(folder) == texts(kept)
        (folder / names(folder)[0]).unlink()
        files.append(encoded(LINES[:3]))
        assert read(folder) == texts(LINES[:3])


def test_nobody_else_may_read_what_people_wrote_to_whom(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files = log_files(tmp_path / "log", Clock())
        files.check()
        files.append(encoded(LINES[:1]))
    finally:
        os.umask(before)
    (name,) = names(tmp_path / "log")
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "log", tmp_path / "log" / name)] == [0o750, 0o640]
