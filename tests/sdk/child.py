"""A table program as the server runs it: a child process on two pipes, spoken to in lines."""

import itertools
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

TIMEOUT = 20.0  # seconds for one answer
HANDSHAKE = ["config|smtpd-version|7.8.0", "config|protocol|0.1", "config|tablename|users", "config|ready"]


def installed(name: str) -> str:
    """The path of one of our programs."""
    return str(Path(sys.executable).parent / name)


class Child:
    """Starts the program and shakes hands with it."""

    def __init__(self, argv: Sequence[str], *, handshake: Sequence[str] = HANDSHAKE) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._in, self._out, self._err = self.process.stdin, self.process.stdout, self.process.stderr
        os.set_blocking(self._err.fileno(), False)
        self._buffer = b""
        self._ids = itertools.count(0xABC)
        self._log = b""
        self.registered: list[str] = []
        if handshake:
            self.send(*handshake)
            while (line := self.line()) != "register|ready":
                self.registered.append(line.removeprefix("register|"))

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pipe in (self._in, self._out, self._err):
            pipe.close()

    def send(self, *lines: str) -> None:
        """Write lines."""
        self._in.write("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
        self._in.flush()

    def line(self) -> str:
        """The next line that it writes."""
        end = time.monotonic() + TIMEOUT
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                assert selector.select(max(0, end - time.monotonic())), f"no line within {TIMEOUT} s: {self.log()}"
                piece = os.read(self._out.fileno(), 1 << 16)
                assert piece, f"it ended: {self.log()}"
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="surrogateescape")

    def lookup(self, service: str, key: str) -> str:
        """The result: `found|value`, `not-found` or `error|reason`."""
        return self.ask("lookup", f"{service}|", f"|{key}")

    def check(self, service: str, key: str) -> str:
        """The result: `found`, `not-found` or `error|reason`."""
        return self.ask("check", f"{service}|", f"|{key}")

    def fetch(self, service: str) -> str:
        """The result: `found|value`, `not-found` or `error|reason`."""
        return self.ask("fetch", f"{service}|")

    def update(self) -> str:
        """The result: `ok` or `error|reason`."""
        return self.ask("update")

    def ask(self, operation: str, before: str = "", after: str = "") -> str:
        """One request and the result in its answer."""
        request = f"{next(self._ids):08x}"
        self.send(f"table|0.1|{time.time():.6f}|users|{operation}|{before}{request}{after}")
        answer, start = self.line(), f"{operation}-result|{request}|"
        assert answer.startswith(start), answer
        return answer.removeprefix(start)

    def end(self) -> int:
        """Close its input, as a server that stops; the exit status."""
        self._in.close()
        return self.process.wait(TIMEOUT)

    def log(self) -> str:
        """What it wrote to standard error so far."""
        self._log += self._err.read() or b""
        return self._log.decode(errors="replace")
