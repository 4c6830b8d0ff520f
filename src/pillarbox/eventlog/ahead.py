"""Reads a log in a thread of its own, so that one that comes slowly, as through a pipe, holds up nothing else."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable

from pillarbox.roles.filters import Report

_LIMIT = 4096  # events that are read and not taken


class Ahead:
    """`wake` is called, in that thread, when there is something to take where there was nothing."""

    def __init__(self, reports: Iterable[Report], *, wake: Callable[[], object]) -> None:
        self._reports = reports
        self._wake = wake
        self._read: deque[Report] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._done = False
        self._error: Exception | None = None

    def start(self) -> None:
        """Begin to read. Nobody waits for the thread to end: a pipe may never say anything more."""
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def close(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> list[Report] | None:
        """What is there by now; None: that was all. Raises what reading raised, behind what was read before."""
        with self._changed:
            batch = list(self._read)
            self._read.clear()
            self._changed.notify()
            if batch or not self._done:
                return batch
        if self._error is not None:
            raise self._error
        return None

    def _run(self) -> None:
        try:
            for report in self._reports:
                if not self._add(report):
                    return
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self._error = error
        with self._changed:
            self._done = True
        self._tell()

    def _add(self, report: Report) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._read) < _LIMIT or self._closed)
            first = not self._read
            self._read.append(report)
        if first:
            self._tell()
        return not self._closed

    def _tell(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop that would hear it is closed
            self._wake()
