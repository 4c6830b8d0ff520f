"""Log lines: one event, one line, one function, in the reference's `key=value` form.

The one object is made by `daemon` and handed to everything that logs. `-d`: to stderr; otherwise to syslog
(LOG_MAIL), never blocking: a line that syslog does not take at once is dropped and counted.
"""

import logging
import socket
import sys
import time
from typing import TextIO

_MAIL = 2 << 3  # syslog(3) LOG_MAIL
_PRIORITY = {"debug": 7, "info": 6, "warn": 4}


class Log:
    """Writes lines. `verbose` turns `debug` on (`-v`, `smtpctl log verbose`)."""

    def __init__(
        self, stream: TextIO | None = None, *, verbose: bool = False, process: str = "smtpd", syslog: str = "/dev/log"
    ) -> None:
        self.verbose = verbose
        self.dropped = 0
        self._stream = stream
        self._tag = process
        self._address = syslog
        self._syslog: socket.socket | None = None

    def event(self, session: int, what: str, **fields: object) -> None:
        """`<session> <what> key=value …`, e.g. `event(s, "smtp connected", address=a, host=h)`. Values as given."""
        line = f"{session:016x} {what}"
        for key, value in fields.items():
            line += f" {key}={value}"
        self._write("info", line)

    def info(self, line: str) -> None:
        """A line for the operator."""
        self._write("info", line)

    def warn(self, line: str) -> None:
        """Something to look at; the text starts with the part that speaks, e.g. `smtp-out: …`."""
        self._write("warn", f"warn: {line}")

    def debug(self, line: str) -> None:
        """Only seen with `-v`. Guard costly arguments with `if log.verbose`."""
        if self.verbose:
            self._write("debug", f"debug: {line}")

    def exception(self, line: str, error: BaseException) -> None:
        """An unexpected exception, whole: the trace goes to the log, never to a peer."""
        trace = logging.Formatter().formatException((type(error), error, error.__traceback__))
        self._write("warn", f"warn: {line}")
        for part in trace.split("\n"):
            self._write("warn", f"\t{part}")  # set off: the error's text may have line breaks of a peer's

    def _write(self, level: str, line: str) -> None:
        # No line of ours may be forged by a peer's text: control characters are shown, not obeyed.
        if not line.isprintable():
            # A byte that is no UTF-8 came as U+DC80 and up (PEP 383).
            line = "".join(c if c.isprintable() or c == "\t" else f"\\x{_number(c):02x}" for c in line)
        if self._stream is not None:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except OSError:
                self.dropped += 1
            return
        self._send_syslog(level, line)

    def _send_syslog(self, level: str, line: str) -> None:
        try:
            if self._syslog is None:
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                connection.setblocking(False)
                connection.connect(self._address)
                self._syslog = connection
            stamp = time.strftime("%b %e %H:%M:%S")
            if self.dropped:
                line, self.dropped = f"{line} ({self.dropped} log lines before this one were dropped)", 0
            self._syslog.send(f"<{_MAIL | _PRIORITY[level]}>{stamp} {self._tag}: {line}".encode())
        except BlockingIOError:
            self.dropped += 1
        except OSError:
            self.dropped += 1
            if self._syslog is not None:
                self._syslog.close()
                self._syslog = None


def _number(character: str) -> int:
    point = ord(character)
    return point & 0xFF if 0xDC80 <= point <= 0xDCFF else point


def stderr_log(*, verbose: bool = False) -> Log:
    """The log of `smtpd -d`."""
    return Log(sys.stderr, verbose=verbose)
