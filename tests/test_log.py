"""Log lines: one event is one line, whatever is in it."""

import io

import pytest

from pillarbox.log import Log


@pytest.mark.parametrize("text", ["a\nwarn: forged", "a\r\nb", "a\x85b", "a\u2028b", "a\x1b[31mb", "a\udc0ab"])
def test_what_a_peer_said_stays_in_its_line(text):
    stream = io.StringIO()
    Log(stream).event(1, "smtp failed-command", command=text)
    assert stream.getvalue().startswith("0000000000000001 smtp failed-command command=a\\x")
    assert len(stream.getvalue().splitlines()) == 1


def test_an_exception_is_logged_with_its_trace_line_by_line():
    stream = io.StringIO()
    try:
        raise ValueError("bad\nwarn: forged")
    except ValueError as error:
        Log(stream).exception("smtp: session", error)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "warn: smtp: session"
    assert lines[1] == "\tTraceback (most recent call last):"
    assert lines[-2:] == ["\tValueError: bad", "\twarn: forged"]
