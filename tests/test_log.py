"""Log lines: one event is one line, whatever is in it."""

import contextlib
import io
import socket

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


def test_a_syslog_that_does_not_read_holds_up_nobody_and_is_told_what_it_missed(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        log = Log(syslog=str(tmp_path / "log"))
        for number in range(2000):
            log.info(f"line {number}")
        dropped = log.dropped
        assert dropped > 0
        syslog.setblocking(False)
        while log.dropped:
            seen = syslog.recv(4096)
            log.info("again")
            dropped = max(dropped, log.dropped)
        assert b"smtpd: line" in seen
        lines = []
        with contextlib.suppress(BlockingIOError):
            while True:
                lines.append(syslog.recv(4096))
        assert lines[-1].endswith(f"again ({dropped} log lines before this one were dropped)".encode())


def test_without_a_syslog_lines_are_counted_not_waited_for(tmp_path):
    log = Log(syslog=str(tmp_path / "nothing"))
    log.info("x")
    assert log.dropped == 1
