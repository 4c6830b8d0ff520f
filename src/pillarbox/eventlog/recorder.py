"""The recorder: a report processor (smtpd-filters(7)) that registers every event and hands the lines to `files`.

One thread reads and nothing else, so the server never waits for a disk; the other compresses and writes. Between them
is a bounded backlog: what does not fit is dropped and counted, in the log and on standard error.
"""

import contextlib
import os
import re
import select
import threading
from collections import deque
from collections.abc import Callable, Collection

from pillarbox.eventlog.files import LogFiles
from pillarbox.eventlog.lines import render_note

FLUSH = 1.0  # seconds that a line waits for others, at most
_BATCH = 1 << 18  # bytes that are worth a write at once
_MOST = 1 << 22  # bytes that are written and synced at once
_CHUNK = 1 << 18
_MAX_LINE = 1 << 20
_MAX_HEAD = 1 << 16
_PAUSE = 1.0  # seconds before the disk is tried again
_QUIET = 60.0  # seconds between complaints
_SLOW = "more came than could be written"
_PATIENCE = 10.0  # seconds that the end waits for the disk
# OpenSMTPD reports AUTH as it came where it refuses it for standing where it may not: with the password.
_AUTH = re.compile(rb"(\|protocol-client\|[0-9a-f]{1,16}\|(?i:auth)[ \t]+[^ \t\n]+[ \t]+)[^\n]+")


class Backlog:
    """What was read and is not written: whole lines, `limit` bytes at most, those that are being written included."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0  # of the chunks
        self._taken = 0  # bytes that are being written
        self._before = 0  # chunks that came before the first that was dropped
        self._changed = threading.Condition()
        self.dropped = 0
        self.closed = False

    def add(self, data: bytes) -> bool:
        """Keep these lines, or, False, count them. Where nothing else is kept there is room for any number."""
        with self._changed:
            kept = self._size + self._taken
            if kept and kept + len(data) > self._limit:
                self._drop(data.count(b"\n"))
                return False
            self._chunks.append(data)
            self._size += len(data)
            self._changed.notify()
            return True

    def drop(self, count: int) -> None:
        """Count lines that nobody has."""
        with self._changed:
            self._drop(count)

    def _drop(self, count: int) -> None:
        if not self.dropped:
            self._before = len(self._chunks)
        self.dropped += count

    def missing(self) -> int:
        """How many lines are missing behind what was taken last; 0 where others come first."""
        return 0 if self._before else self.dropped

    def noted(self, count: int) -> None:
        """It is written that so many are missing."""
        with self._changed:
            self.dropped -= count
            self._before = len(self._chunks)  # those that were dropped meanwhile

    def close(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def take(self) -> bytes:
        """A batch, at most a second after its first line; empty where a second brought nothing, or at the end.

        The one before is written, unless it was given back.
        """
        with self._changed:
            self._taken = 0
            self._changed.wait_for(lambda: self._chunks or self.closed, FLUSH)
            if self._chunks:
                self._changed.wait_for(lambda: self._size >= _BATCH or self.closed, FLUSH)
            batch: list[bytes] = []
            while self._chunks and self._taken < _MOST:
                batch.append(self._chunks.popleft())
                self._taken += len(batch[-1])
            self._size -= self._taken
            self._before = max(0, self._before - len(batch))
        return b"".join(batch)

    def give_back(self, data: bytes) -> None:
        """What could not be written goes to the front again."""
        with self._changed:
            self._chunks.appendleft(data)
            self._size += len(data)
            self._taken = 0
            self._before += 1

    def is_empty(self) -> bool:
        """Is all of it written, or being written?"""
        return not self._chunks

    def wait(self, seconds: float) -> None:
        """Until the end, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed, seconds)


class Recorder:
    """Reads events from one descriptor and registers on another. `complain` gets what the server's log is to say."""

    def __init__(
        self,
        *,
        files: LogFiles,
        subsystems: Collection[str],
        limit: int,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        complain: Callable[[str], None],
    ) -> None:
        self._files = files
        self._subsystems = subsystems
        self._backlog = Backlog(limit)
        self._now = now
        self._monotonic = monotonic
        self._complain = complain
        self._complained: dict[str, float] = {}  # when, by what it was about
        self._rest = b""
        self._cut = False  # what comes until the next line's end belongs to a line that was too long
        self._reason = ""
        self._rotate = False
        self._untold = 0  # events that were dropped, which nobody has been told
        self._failing = False  # at the end, when there is no time left to wait for the disk
        self._written = False  # all that could be

    def rotate(self) -> None:
        """Begin a new file with the next events."""
        self._rotate = True

    def run(self, source: int, target: int) -> int:
        """Record until the end of the input; returns the exit status: 1 where events were lost, or none can come."""
        if not self._handshake(source, target):
            return 0
        if self._files.head == self._rest == b"":
            self._complain("this is no mail server: config|ready did not come")
            return 1
        writer = threading.Thread(target=self._write, name="writer", daemon=True)
        writer.start()
        data, self._rest = self._rest, b""
        self._take(data)
        while writer.is_alive() and (data := _read(source)):  # the writer only ends before us where it failed
            self._take(data)
        self._backlog.close()
        writer.join(_PATIENCE)
        return self._end(hangs=writer.is_alive())

    def _end(self, *, hangs: bool) -> int:
        """What is to be said at the end, and the exit status."""
        lost = self._backlog.dropped  # what no note in the log tells
        if hangs:
            self._complain(f"events were lost at the end: the disk did not answer for {_PATIENCE:g} s")
        elif not self._written:
            self._complain("the writer failed: events were lost")
        elif lost:
            self._complain(f"{lost} events were lost at the end: {self._reason or _SLOW}")
        if self._untold:
            self._complain(f"{self._untold} events were dropped")
        return 1 if hangs or not self._written or lost else 0

    def _handshake(self, source: int, target: int) -> bool:
        """Read what the server says of itself, register; False: there was nothing to read."""
        head = b""
        # A processor that never registers is sent its reports without a handshake.
        while not (_ready(head) or head.startswith(b"report|")):
            data = _read(source)
            if not data or len(head) > _MAX_HEAD:
                return bool(head)
            head += data
        if head.startswith(b"report|"):
            self._rest = head
            return True
        config, _, self._rest = head.partition(b"config|ready\n")
        self._files.head = config + b"config|ready\n"
        lines = config.decode(errors="replace").split("\n")
        offered = [line.removeprefix("config|subsystem|") for line in lines if line.startswith("config|subsystem|")]
        wanted = [name for name in dict.fromkeys(offered or ["smtp-in"]) if name in self._subsystems]
        answer = [f"register|report|{name}|*" for name in wanted]
        os.write(target, "".join(f"{line}\n" for line in [*answer, "register|ready"]).encode())
        return True

    def _take(self, data: bytes) -> None:
        """Keep the whole lines of what was read; a line without end is not kept for ever."""
        end = data.rfind(b"\n") + 1
        if self._cut and end:
            start = data.find(b"\n") + 1
            self._cut, data, end = False, data[start:], end - start
        if end:
            if not self._backlog.add(_AUTH.sub(rb"\1********", self._rest + data[:end])):
                self._say("full", f"events are being dropped: {self._reason or _SLOW}")
            self._rest = b""
        if not self._cut:
            self._rest += data[end:]
        if len(self._rest) > _MAX_LINE:
            self._cut, self._rest = True, b""
            self._backlog.drop(1)

    def _write(self) -> None:
        """The writer's thread."""
        ending = False
        while not (ending and self._backlog.is_empty()):
            ending = self._backlog.closed  # nothing comes from here on
            data = self._backlog.take()
            if self._rotate:
                self._rotate = False
                self._files.rotate()
            if self._failing:
                self._backlog.drop(data.count(b"\n"))
            elif data or self._backlog.missing():
                self._append(data)
            else:
                self._files.tick()
        self._files.rotate()
        self._written = True

    def _append(self, data: bytes) -> None:
        """Write a batch; the disk's failure keeps it, to be tried again a second later."""
        missing = self._backlog.missing()
        reason = self._reason or _SLOW
        note = render_note(self._now(), missing, reason) + "\n" if missing else ""
        try:
            self._files.append(data + note.encode())
        except OSError as error:
            self._failed(error, data)
            return
        if missing:
            self._backlog.noted(missing)
            self._untold += missing
            if self._say("dropped", f"{self._untold} events were dropped: {reason}"):
                self._untold = 0
        self._reason = ""

    def _failed(self, error: OSError, data: bytes) -> None:
        self._reason = error.strerror or str(error)
        self._say("disk", f"the event log cannot be written, events wait: {self._reason}")
        if self._backlog.closed:
            self._failing = True
            self._backlog.drop(data.count(b"\n"))
            return
        if data:
            self._backlog.give_back(data)
        self._backlog.wait(_PAUSE)

    def _say(self, about: str, text: str) -> bool:
        """A complaint, but not one after the other about the same; was it said?"""
        now = self._monotonic()
        if now - self._complained.get(about, float("-inf")) < _QUIET:
            return False
        self._complained[about] = now
        self._complain(text)
        return True


def _ready(head: bytes) -> bool:
    return head.startswith(b"config|ready\n") or b"\nconfig|ready\n" in head


def _read(source: int) -> bytes:
    try:
        return os.read(source, _CHUNK)
    except BlockingIOError:  # told to end, and all there was is read
        return b""
    except ConnectionError:  # the server died
        return b""


def write_soon(text: str) -> None:
    """A line on standard error, unless nobody reads there: that must not hold up anything."""
    with contextlib.suppress(OSError):  # nobody does any more
        if select.select([], [2], [], 0)[1]:
            os.write(2, text.encode("utf-8", "backslashreplace") + b"\n")
