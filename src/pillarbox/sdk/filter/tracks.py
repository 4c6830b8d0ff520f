"""The sessions that a filter knows, each with what is under way for it."""

import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic

from pillarbox.sdk.filter.decisions import Decision
from pillarbox.sdk.filter.protocol import SMTP_IN, SMTP_OUT
from pillarbox.sdk.filter.session import S, Session
from pillarbox.sdk.filter.stream import Stage

Work = tuple[Callable[..., Coroutine[Any, Any, None]], tuple[Any, ...], int]  # what to do, with what, its size

SILENT = 3600.0  # seconds; no server waits for so long for the next line of a message
_LOOKED_AT = 1000  # sessions; not all of them each time

_log = logging.getLogger("pillarbox.sdk.filter")


@dataclass(slots=True)
class Track(Generic[S]):
    """A session and what is under way for it.

    `waiting`: behind the task that works for it, each with the time by which it is to be done; None: no task does.
    `until`: that time (of time.monotonic) of what the task does now.
    """

    session: Session[S]
    streams: dict[str, list[Stage]] = field(default_factory=dict)  # by token: a filter can be in a chain twice
    verdicts: dict[str, Decision] = field(default_factory=dict)  # to be said at commit, by token
    waiting: deque[tuple[Work, float]] | None = None
    until: float = 0.0
    heard: float = 0.0  # when something came for it last, of the same clock

    def close(self) -> None:
        """The session is over."""
        for stages in self.streams.values():
            for stage in stages:
                stage.close()
        self.streams.clear()

    @property
    def idle(self) -> bool:
        """Nothing would be lost with it but what is known of the session."""
        return self.waiting is None and not self.streams and not self.verdicts


class Tracks(Generic[S]):
    """By session id, the one that was silent for longest first. `start(id, subsystem)` makes a session."""

    def __init__(
        self, *, limit: int, start: Callable[[str, str], Session[S]], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._start = start
        self._now = now
        self._tracks: dict[str, Track[S]] = {}
        self._warned = False

    def __iter__(self) -> Iterator[Track[S]]:
        return iter(self._tracks.values())

    def get(self, session: str, subsystem: str) -> Track[S]:
        """The track of a session, a new one where it was not heard of before."""
        if subsystem not in (SMTP_IN, SMTP_OUT):  # no sessions: there is no end to be told
            return Track(self._start(session, subsystem))
        track = self._tracks.pop(session, None)
        if track is None:
            track = Track(self._start(session, subsystem))
            if len(self._tracks) >= self._limit:
                self._forget()
        self._tracks[session] = track
        track.heard = self._now()
        return track

    def drop(self, track: Track[S]) -> None:
        """The session is over."""
        track.close()
        if self._tracks.get(track.session.id) is track:
            del self._tracks[track.session.id]

    def _forget(self) -> None:
        """Forget one whose end was never told, it seems; where something is under way for all of them, none."""
        over = self._now() - SILENT
        for key, track in islice(self._tracks.items(), _LOOKED_AT):
            if track.idle or (track.waiting is None and track.heard <= over):
                if not self._warned:
                    _log.warning("more than %d sessions: %s is forgotten, and so will others be", self._limit, key)
                self._warned = True
                self.drop(track)
                return
