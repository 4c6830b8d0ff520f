"""Frames of the control socket: what is not one of ours is refused, whatever it is."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.control import wire

REQUESTS = [
    wire.ShowQueue(5, 7),
    wire.ShowEnvelope(1 << 40),
    wire.ReadMessage(3, 4),
    wire.ShowMta("hosts"),
    wire.ShowStats(),
    wire.ShowStatus(),
    wire.Change("remove", 0),
    wire.Pause("mda", True),
    wire.PauseRoute("::1", "far.example", False),
    wire.ResumeRoute(9),
    wire.LogLevel(True),
    wire.Trace("smtp", True),
    wire.UpdateTable("aliases"),
    wire.ShowFilters(100),
    wire.RestartFilter("rspamd"),
    wire.Stop(),
    wire.Submit(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: type(r).__name__)
def test_requests_survive_the_wire(request_: wire.Request) -> None:
    data = wire.frame(request_)
    assert wire.body_length(data[: wire.HEADER], wire.REQUEST_MAX) == len(data) - wire.HEADER
    assert wire.decode_request(data[wire.HEADER :]) == request_


def test_another_version_is_named_as_such() -> None:
    with pytest.raises(wire.Bad, match="incompatible smtpctl and smtpd"):
        wire.body_length(b"PBC\x02\x00\x00\x00\x01", wire.REQUEST_MAX)


def test_a_frame_is_bounded_before_it_is_read() -> None:
    with pytest.raises(wire.Bad, match="too large"):
        wire.body_length(b"PBC\x01\xff\xff\xff\xff", wire.REQUEST_MAX)


def test_nested_arrays_are_refused_and_not_followed() -> None:
    with pytest.raises(wire.Bad):
        wire.decode_request(b"\x92\xa5queue" + b"\x91" * (wire.REQUEST_MAX - 8) + b"\xc0")
    with pytest.raises(wire.Bad):
        wire.decode_request(b"\x93\xa5queue\x00" + b"\x91" * (wire.REQUEST_MAX - 8) + b"\xc0")


NESTED = st.recursive(st.integers(-(2**63), 2**64 - 1) | st.text(), st.lists).map(msgspec.msgpack.encode)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | NESTED)
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        request = wire.decode_request(data)
    except wire.Bad:
        return
    assert isinstance(request, wire.Request)
