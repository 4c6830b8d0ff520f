"""The recorder as a process of a server: it registers, never lets the server wait, and loses a second at most."""

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pillarbox.errors import PillarboxError
from pillarbox.eventlog.files import LogFiles
from pillarbox.eventlog.lines import render_report
from pillarbox.eventlog.reading import EventLog
from pillarbox.eventlog.recorder import Backlog, Recorder
from tests.eventlog.recorded import HANDSHAKE, whole_log
from tests.eventlog.test_files import full_disk

LINES = whole_log()
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small file system")


class Server:
    """Our end of the socket that is the recorder's standard input and output."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pillarbox.cli.events", "record", "--dir", str(folder), *options],
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.PIPE,
            )
        self.socket.settimeout(30)

    def tell(self, lines: list[str]) -> None:
        self.socket.sendall("".join(f"{line}\n" for line in lines).encode())

    def hear(self) -> list[str]:
        """What it registers."""
        heard = b""
        while not heard.endswith(b"register|ready\n"):
            data = self.socket.recv(4096)
            assert data, self.process.communicate()[1]
            heard += data
        return heard.decode().split("\n")[:-1]

    def start(self) -> None:
        self.tell(HANDSHAKE)
        self.hear()

    def stop(self) -> tuple[int, str]:
        """Close its input, as a server that ends; its exit status, and what it said."""
        self.socket.close()
        _, said = self.process.communicate(timeout=30)
        return self.process.returncode, said.decode()


@contextlib.contextmanager
def recorder(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, *options)
    try:
        yield server
    finally:
        server.socket.close()
        server.process.kill()
        server.process.communicate()


def read(folder: Path) -> list[str]:
    found = [render_report(report) for report in EventLog([str(folder)], warn=lambda _: None).reports()]
    return found


def eventually(folder: Path, lines: list[str], seconds: float = 20) -> float:
    """Wait until this can be read; how long it took."""
    began = time.monotonic()
    while not folder.exists() or not os.listdir(folder) or read(folder) != lines:
        assert time.monotonic() - began < seconds, read(folder)[-3:]
        select.select([], [], [], 0.05)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("offered", "options", "wanted"),
    [
        (["smtp-in"], [], ["smtp-in"]),
        (["smtp-in", "smtp-out", "mda"], [], ["smtp-in", "smtp-out", "mda"]),
        (["smtp-in", "brand-new"], [], ["smtp-in"]),
        (["smtp-in", "smtp-out"], ["--subsystem", "smtp-out", "--subsystem", "mda"], ["smtp-out"]),
        ([], [], ["smtp-in"]),
    ],
)
def test_it_registers_every_event_of_what_is_offered(
    tmp_path: Path, offered: list[str], options: list[str], wanted: list[str]
) -> None:
    with recorder(tmp_path, *options) as server:
        server.tell(["config|protocol|0.7", *(f"config|subsystem|{name}" for name in offered), "config|ready"])
        assert server.hear() == [*(f"register|report|{name}|*" for name in wanted), "register|ready"]
        assert server.stop() == (0, "")


def test_events_can_be_read_a_second_later_and_after_it_was_killed(tmp_path: Path) -> None:
    with recorder(tmp_path) as server:
        server.start()
        server.tell(LINES[:10])
        assert eventually(tmp_path, LINES[:10]) < 5
        server.tell(LINES[10:20])
        eventually(tmp_path, LINES[:20])
        server.process.kill()
        server.process.wait()
    assert read(tmp_path) == LINES[:20]
    with recorder(tmp_path) as server:
        server.start()
        server.tell(LINES[20:30])
        assert server.stop() == (0, "")
    assert read(tmp_path) == LINES[:30]


def test_what_came_before_the_end_is_all_there(tmp_path: Path) -> None:
    lines = LINES * 200
    with recorder(tmp_path) as server:
        server.start()
        server.tell(lines)
        assert server.stop() == (0, "")
    assert read(tmp_path) == lines


def test_told_to_end_it_takes_what_was_sent(tmp_path: Path) -> None:
    with recorder(tmp_path) as server:
        server.start()
        server.tell(LINES)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
    assert read(tmp_path) == LINES


def test_a_hangup_begins_a_new_file(tmp_path: Path) -> None:
    with recorder(tmp_path) as server:
        server.start()
        server.tell(LINES[:5])
        eventually(tmp_path, LINES[:5])
        server.process.send_signal(signal.SIGHUP)
        server.tell(LINES[5:10])
        eventually(tmp_path, LINES[:10])
        assert server.stop() == (0, "")
    assert len(os.listdir(tmp_path)) == 2


def test_reports_without_a_handshake_are_recorded(tmp_path: Path) -> None:
    with recorder(tmp_path) as server:
        server.tell(LINES[:10])
        assert server.stop() == (0, "")
    assert read(tmp_path) == LINES[:10]


class Hanging:
    """A file on a disk that does not answer until it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def append(self, data: bytes) -> bytes:
        assert self.go.wait(60)
        return data

    def finish(self) -> bytes:
        return b""


def test_a_disk_that_hangs_is_said_and_the_server_does_not_wait(tmp_path: Path) -> None:
    disk, said, dropping = Hanging(), [], threading.Event()

    def complain(text: str) -> None:
        said.append(text)
        dropping.set()

    files = LogFiles(str(tmp_path), size=1 << 30, period=0, keep=9, suffix=".log", stream=lambda: disk, now=time.time)
    made = Recorder(
        files=files, subsystems=("smtp-in",), limit=100_000, now=time.time, monotonic=lambda: 0.0, complain=complain
    )
    (source, feed), (answers, target) = os.pipe(), os.pipe()
    with ThreadPoolExecutor() as threads:
        running = threads.submit(made.run, source, target)
        for lines in [HANDSHAKE, *[LINES] * 50]:
            os.write(feed, "".join(f"{line}\n" for line in lines).encode())
        assert dropping.wait(30)
        disk.go.set()
        os.close(feed)
        assert running.result(60) == 0
    for fd in (source, target, answers):
        os.close(fd)
    missing = len(LINES) * 50 - len(read(tmp_path))
    assert said == [
        "events are being dropped: more came than could be written",
        f"{missing} events were dropped: more came than could be written",
    ]


def test_a_line_without_an_end_is_not_kept(tmp_path: Path) -> None:
    with recorder(tmp_path) as server:
        server.start()
        server.tell([LINES[0], "x" * (3 << 20), LINES[1]])
        status, said = server.stop()
    assert (status, read(tmp_path)) == (0, LINES[:2])
    assert said == "1 events were dropped: more came than could be written\n"


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        ("AUTH PLAIN AGEAc2VjcmV0", "AUTH PLAIN ********"),
        ("auth\tlogin  dXNlcg== more", "auth\tlogin  ********"),
        ("AUTH PLAIN ********", "AUTH PLAIN ********"),
        ("AUTH PLAIN", "AUTH PLAIN"),
        ("MAIL FROM:<AUTH@b> AUTH=<> x", "MAIL FROM:<AUTH@b> AUTH=<> x"),
    ],
)
def test_a_password_that_the_server_did_not_hide_is_not_written(tmp_path: Path, said: str, recorded: str) -> None:
    """OpenSMTPD 7.8 hides AUTH PLAIN where it may stand, and reports what it refuses elsewhere as it came."""
    event = "report|0.7|1700000000.500000|smtp-in|protocol-client|0000000000000001|"
    with recorder(tmp_path) as server:
        server.start()
        server.tell([LINES[0], event + said, LINES[1]])
        assert server.stop() == (0, "")
    assert read(tmp_path) == [LINES[0], event + recorded, LINES[1]]


@pytest.mark.parametrize("data", [b"hello\n", b"\0" * 100_000])
def test_what_is_no_server_is_said(tmp_path: Path, data: bytes) -> None:
    with recorder(tmp_path / "x") as server:
        server.socket.sendall(data)
        status, said = server.stop()
    assert (status, said) == (1, "this is no mail server: config|ready did not come\n")


def test_a_person_who_starts_it_is_told_who_does(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "pillarbox.cli.events", "record", "--dir", str(tmp_path / "x")]
    done = subprocess.run(words, stdin=theirs, capture_output=True, timeout=30, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 2
    assert b"a mail server starts the recorder" in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_folder_that_cannot_be_made_is_said_before_it_registers(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with recorder(tmp_path / "file" / "x") as server:
        server.process.wait(timeout=30)
        status, said = server.stop()
    assert status == 2
    assert said.startswith(f"smtpd-events: {tmp_path}/file/x: Not a directory; make the folder")


@needs_root
def test_a_full_disk_is_said_and_waited_out(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    with full_disk(folder, 1 << 20), recorder(folder, "--compress", "none", "--buffer", "0.5") as server:
        server.start()
        (folder / ".ballast").write_bytes(b"x" * (900 << 10))
        sent = LINES * 100  # 4.6 MB: more than there is room for on disk and in memory
        began = time.monotonic()
        server.tell(sent)
        assert time.monotonic() - began < 20
        assert server.process.stderr is not None
        said = ""
        while "No space left on device" not in said:
            said += os.read(server.process.stderr.fileno(), 4096).decode()
        (folder / ".ballast").unlink()
        deadline = time.monotonic() + 20
        while not _missing(folder) and time.monotonic() < deadline:
            select.select([], [], [], 0.1)
        assert server.stop()[0] == 0
        assert _missing(folder) > 0
        assert len(read(folder)) + _missing(folder) == len(sent)


def _missing(folder: Path) -> int:
    """How many events the log says are missing."""
    said: list[str] = []
    with contextlib.suppress(PillarboxError):  # nothing there yet
        list(EventLog([str(folder)], warn=said.append).reports())
    found = [re.search(r": (\d+) events are missing: No space left on device$", line) for line in said]
    return sum(int(match[1]) for match in found if match)


@needs_root
@pytest.mark.parametrize("buffer", ["32", "0.2"])
def test_what_the_disk_never_takes_is_counted_at_the_end(tmp_path: Path, buffer: str) -> None:
    folder = tmp_path / "small"
    with full_disk(folder, 64 << 10), recorder(folder, "--compress", "none", "--buffer", buffer) as server:
        server.start()
        server.tell(LINES * 10)
        status, said = server.stop()
        lost = len(LINES) * 10 - (len(read(folder)) if os.listdir(folder) else 0)
    assert status == 1
    assert f"{lost} events were lost at the end: No space left on device" in said


def test_a_backlog_keeps_what_fits_and_counts_the_rest() -> None:
    backlog = Backlog(10)
    for data in (b"one\n", b"two\nx\n", b"3\n4\n", b"\n"):
        backlog.add(data)
    backlog.close()
    assert (backlog.take(), backlog.dropped) == (b"one\ntwo\nx\n", 3)
    backlog.give_back(b"one\n")
    backlog.add(b"five\n")
    assert backlog.take() == b"one\nfive\n"


def test_what_is_being_written_counts_as_kept_and_is_a_batch_not_all() -> None:
    backlog, chunk = Backlog(16 << 20), b"x" * 65535 + b"\n"
    while backlog.add(chunk):
        pass
    batch = backlog.take()
    assert len(batch) == 4 << 20
    assert not backlog.add(chunk)
    backlog.give_back(batch)
    assert not backlog.add(chunk)
    assert backlog.take() == batch
    backlog.take()  # the one before is written
    assert backlog.add(chunk)


def test_what_is_missing_is_noted_where_it_is_missing() -> None:
    backlog, chunk = Backlog(16 << 20), b"x" * 65535 + b"\n"
    while backlog.add(chunk):
        pass
    missing = []
    for _ in range(4):
        backlog.take()
        missing.append(backlog.missing())
    assert missing == [0, 0, 0, 1]
    backlog.noted(1)
    assert (backlog.missing(), backlog.dropped) == (0, 0)


def test_a_chunk_larger_than_the_backlog_is_kept_where_nothing_else_is() -> None:
    backlog = Backlog(10)
    assert backlog.add(b"a long line, or many\n")
    assert not backlog.add(b"x\n")


class Broken:
    """A compression that fails as no compression should."""

    def append(self, data: bytes) -> bytes:
        raise MemoryError

    finish = append


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_fails_for_whatever_reason_is_no_success(tmp_path: Path) -> None:
    files = LogFiles(str(tmp_path), size=1 << 30, period=0, keep=9, suffix=".log", stream=Broken, now=time.time)
    said: list[str] = []
    made = Recorder(
        files=files, subsystems=("smtp-in",), limit=100_000, now=time.time, monotonic=lambda: 0.0, complain=said.append
    )
    (source, feed), (answers, target) = os.pipe(), os.pipe()
    os.write(feed, "".join(f"{line}\n" for line in [*HANDSHAKE, *LINES]).encode())
    os.close(feed)
    assert made.run(source, target) == 1
    assert said == ["the writer failed: events were lost"]
    for fd in (source, target, answers):
        os.close(fd)
