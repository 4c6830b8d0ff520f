"""`python3 faulty_filter.py FILE MARK`: a filter that adds the header `X-Filter: MARK` to every message, and does as a
file tells it: "PHASE FAULT" misbehaves at each request of that phase, an empty file is no fault. Runs as any user, with
the system's Python, and without this package."""

import os
import sys
import time
from collections.abc import Callable

PHASES = ("mail-from", "rcpt-to", "data-line", "commit")


def write(text: str) -> None:
    """Write lines at once: what is written before a death must have been written."""
    data = text.encode("latin-1")
    while data:
        data = data[os.write(1, data) :]


def mute(session: str, token: str) -> None:
    """No answer."""


def deaf(session: str, token: str) -> None:
    """Read nothing any more."""
    while True:
        time.sleep(3600)


def death(session: str, token: str) -> None:
    """An end without a word."""
    os._exit(3)


def garbage(session: str, token: str) -> None:
    """A line of no meaning."""
    write("hello there\n")


def noise(session: str, token: str) -> None:
    """Bytes of no meaning."""
    write(os.urandom(50_000).decode("latin-1"))


def unknown_decision(session: str, token: str) -> None:
    """A decision that there is not."""
    write(f"filter-result|{session}|{token}|explode|x\n")


def wrong_token(session: str, token: str) -> None:
    """An answer to what was not asked."""
    write(f"filter-result|{session}|{int(token, 16) ^ 1:016x}|proceed\n")


def twice(session: str, token: str) -> None:
    """Two answers."""
    write(f"filter-result|{session}|{token}|proceed\n" * 2)


def hung_up(session: str, token: str) -> None:
    """Its output closed, and still there."""
    os.close(1)


def endless_line(session: str, token: str) -> None:
    """A line that does not end."""
    while True:
        write("x" * 65536)


def flood(session: str, token: str) -> None:
    """Well-formed answers for sessions that there are not, without end."""
    line = "filter-result|feedfacefeedface|feedfacefeedface|proceed\n" * 1000
    while True:
        write(line)


def endless_message(session: str, token: str) -> None:
    """Output for one message that does not end."""
    lines = f"filter-dataline|{session}|{token}|{'x' * 70}\n" * 1000
    while True:
        write(lines)


FAULTS: dict[str, Callable[[str, str], None]] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        mute, deaf, death, garbage, noise, unknown_decision, wrong_token, twice, hung_up, endless_line, flood,
        endless_message,
    )
}  # fmt: skip


class Filter:
    """Reads requests and answers them."""

    def __init__(self, path: str, mark: str) -> None:
        self._path, self._mark = path, mark
        self._inside: set[str] = set()  # sessions whose message is read
        self._lost: set[str] = set()  # those whose message goes on unanswered

    def run(self) -> None:
        """Until the input ends."""
        for raw in sys.stdin.buffer:
            line = raw.decode("latin-1").rstrip("\n")
            if line == "config|ready":
                write("".join(f"register|filter|smtp-in|{phase}\n" for phase in PHASES) + "register|ready\n")
            kind, _, rest = line.partition("|")
            if kind == "filter":
                _, _, _, phase, session, token, param = rest.split("|", 6)
                self._request(phase, session, token, param)

    def _request(self, phase: str, session: str, token: str, param: str) -> None:
        if phase == "data-line":
            self._line(session, token, param)
        elif fault := self._fault(phase):
            fault(session, token)
        else:
            write(f"filter-result|{session}|{token}|proceed\n")

    def _line(self, session: str, token: str, line: str) -> None:
        first = session not in self._inside
        self._inside.add(session)
        if first and (fault := self._fault("data-line")):
            self._lost.add(session)
            fault(session, token)
        if session not in self._lost:
            head = f"filter-dataline|{session}|{token}|X-Filter: {self._mark}\n" if first else ""
            write(f"{head}filter-dataline|{session}|{token}|{line}\n")
        if line == ".":
            self._inside.discard(session)
            self._lost.discard(session)

    def _fault(self, phase: str) -> Callable[[str, str], None] | None:
        with open(self._path) as file:
            where, _, fault = file.read().strip().partition(" ")
        return FAULTS[fault] if where == phase else None


if __name__ == "__main__":
    Filter(sys.argv[1], sys.argv[2]).run()
