"""Sessions that a filter knows: how many, and which are forgotten."""

import pytest

from pillarbox.sdk.filter.hooks import WholeMessage, build_handler
from pillarbox.sdk.filter.session import Session
from pillarbox.sdk.filter.stream import MessageStage, Place, Room
from pillarbox.sdk.filter.tracks import SILENT, Track, Tracks


def tracks(limit: int, now: list[float]) -> Tracks[None]:
    def start(id: str, subsystem: str) -> Session[None]:
        return Session(id=id, subsystem=subsystem, state=None, report=lambda session, text: None)

    return Tracks(limit=limit, start=start, now=lambda: now[0])


def ids(known: Tracks[None]) -> list[str]:
    return [track.session.id for track in known]


def test_one_in_the_middle_of_a_message_is_forgotten_only_when_it_cannot_go_on() -> None:
    now = [0.0]
    known = tracks(2, now)

    def begin(id: str) -> Track[None]:
        track = known.get(id, "smtp-in")
        track.streams["7"] = []
        return track

    begin("a"), begin("b")
    now[0] = SILENT - 1
    begin("c")
    begin("b")
    assert ids(known) == ["a", "c", "b"]  # something is under way for all of them
    now[0] = SILENT
    begin("d")
    assert ids(known) == ["c", "b", "d"]
    now[0] = 2 * SILENT
    for n in range(10):
        begin(f"new {n}")
    assert ids(known) == [f"new {n}" for n in range(10)]  # instead of old ones, as long as there are any


def test_what_a_forgotten_session_held_is_free_again() -> None:
    now = [0.0]
    known, room = tracks(1, now), Room(1000)
    track = known.get("a", "smtp-in")
    place = Place(track.session, room, lambda: 0.0, lambda decision: None, lambda error: None, lambda why: None)
    stage = MessageStage(WholeMessage(build_handler(lambda session, message: None), 1000, None), place)
    with pytest.raises(StopIteration, match=r"\[\]"):
        stage.feed(["x" * 500]).send(None)  # it waits for nothing
    assert not room.take(600)
    track.streams["7"] = [stage]
    now[0] = SILENT
    known.get("b", "smtp-in")
    assert ids(known) == ["b"] and room.take(1000)
