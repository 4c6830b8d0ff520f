"""Leaves out of a log the sessions that began before it: no server tells a filter of the rest of one. Does no I/O."""

from collections.abc import Iterable, Iterator
from itertools import chain

from pillarbox.eventlog.transcript import begins
from pillarbox.roles.filters import Report

_LOOKED_AT = 10_000  # events among which there is a beginning, where the log has any
_SESSIONS = 50_000  # known at a time


class WholeSessions:
    """To be iterated over once. A log that has no beginnings, because nobody recorded them, is passed on as it is."""

    def __init__(self, reports: Iterable[Report]) -> None:
        self._reports = iter(reports)
        self._begun: dict[int, None] = {}
        self._cut: dict[int, None] = {}
        self.left_out = 0  # sessions

    def __iter__(self) -> Iterator[Report]:
        head: list[Report] = []
        for report in self._reports:
            head.append(report)
            if report.event == "link-connect":
                return filter(self._is_whole, chain(head, self._reports))
            if len(head) == _LOOKED_AT:
                break
        return chain(head, self._reports)

    def _is_whole(self, report: Report) -> bool:
        number = report.session
        if begins(report):
            _remember(self._begun, number)
            self._cut.pop(number, None)
            return True
        if number in self._begun:
            return True
        if number not in self._cut:
            self.left_out += 1
            _remember(self._cut, number)
        return False


def _remember(sessions: dict[int, None], number: int) -> None:
    sessions.pop(number, None)
    sessions[number] = None
    if len(sessions) > _SESSIONS:
        del sessions[next(iter(sessions))]
