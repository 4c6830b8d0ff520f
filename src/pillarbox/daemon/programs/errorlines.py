"""The error output of a program, line by line into the log, and no faster than a log can take."""

import asyncio
import os

from pillarbox.log import Log

MAX_LINE = 1000  # bytes; the rest of a line is left out
BUDGET_BYTES = 64 * 1024  # read a second; then the program has to wait, and is not answering meanwhile
BUDGET_LINES = 100  # logged a second; more are counted


class ErrorLines:
    """Reads a non-blocking descriptor, which it closes at the end of file. `name` is said before each line."""

    def __init__(self, descriptor: int, name: str, log: Log) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = descriptor
        self._name = name
        self._log = log
        self._part = b""  # of a line that has not ended
        self._cut = False  # the rest of this line is left out
        self._bytes = self._lines = self._left_out = 0  # of this second
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(descriptor, self._readable)

    def finish(self) -> None:
        """The program has ended: log what is left, and close. What it has started may still hold the pipe."""
        if self._fd < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._take(self._read() or b"")
        self._close()

    def _readable(self) -> None:
        data = self._read()
        if data is None:
            return
        if not data:
            self._close()
            return
        if self._pause is None:
            self._pause = self._loop.call_later(1.0, self._next_second)
        self._take(data)
        self._bytes += len(data)
        if self._bytes >= BUDGET_BYTES:
            self._loop.remove_reader(self._fd)

    def _read(self) -> bytes | None:
        """What there is; b"" at the end, None: nothing now."""
        try:
            return os.read(self._fd, BUDGET_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _next_second(self) -> None:
        self._pause = None
        self._say_left_out()
        if self._bytes >= BUDGET_BYTES:
            self._loop.add_reader(self._fd, self._readable)
        self._bytes = self._lines = 0

    def _take(self, data: bytes) -> None:
        *lines, part = data.split(b"\n")
        for line in lines:
            self._end_line(line)
        self._extend(part)

    def _end_line(self, rest: bytes) -> None:
        self._extend(rest)
        line, self._part, self._cut = self._part, b"", False
        if not line.strip():
            return
        self._lines += 1
        if self._lines > BUDGET_LINES:
            self._left_out += 1
        else:
            self._log.warn(f"{self._name}: {line.decode('utf-8', 'replace')}")

    def _extend(self, data: bytes) -> None:
        if self._cut:
            return
        self._part += data
        if len(self._part) > MAX_LINE:
            self._part, self._cut = self._part[:MAX_LINE] + b"...", True

    def _say_left_out(self) -> None:
        if self._left_out:
            self._log.warn(f"{self._name}: {self._left_out} more lines in a second: left out")
        self._left_out = 0

    def _close(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._pause is not None:
            self._pause.cancel()
        self._end_line(b"")
        self._say_left_out()
