import time

import pytest

from pillarbox.mail.headers import (
    format_date,
    format_duration,
    format_message_id,
    header_end,
    iterate_fields,
    unfold,
)


@pytest.fixture
def zone(monkeypatch):
    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("UTC", "Sun, 1 Mar 2026 12:00:00 +0000 (UTC)"),
        ("XST-5:30", "Sun, 1 Mar 2026 17:30:00 +0530 (XST)"),
        ("NST3:30", "Sun, 1 Mar 2026 08:30:00 -0330 (NST)"),
    ],
)
def test_date_is_local_with_its_offset(zone, name, expected):
    zone(name)
    assert format_date(1772366400.9) == expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (3600, "1h"), (90061, "1d1h1m1s"), (86460, "1d1m"), (-61, "-1m1s")]
)
def test_duration_leaves_out_what_is_zero(seconds, text):
    assert format_duration(seconds) == text


def test_message_id_is_unique_part_and_host():
    assert format_message_id(0xABC, "mx.example.org") == "<0000000000000abc@mx.example.org>"


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_header_ends_behind_the_first_empty_line(end):
    header = b"A: b" + end + end
    assert header_end(header + b"x" + end + end + b"y") == len(header)
    assert header_end(end + b"x" + end + end) == len(end)
    assert header_end(b"A: b" + end) == -1


def test_fields_come_with_their_folded_lines_and_stop_at_the_body():
    header = b"A: 1\r\n\t2\r\nB-c : x\ry\r\nno field\r\nD: 4\r\n"
    assert list(iterate_fields(header)) == [(b"a", b"A: 1\r\n\t2\r\n"), (b"b-c", b"B-c : x\ry\r\n")]
    assert list(iterate_fields(b"A: 1\n\nB: 2\n")) == [(b"a", b"A: 1\n")]
    assert list(iterate_fields(b"A: 1\r\nB: 2")) == [(b"a", b"A: 1\r\n"), (b"b", b"B: 2\n")]
    assert list(iterate_fields(b"")) == []


def test_unfolded_value_is_one_line():
    assert unfold(b"A:  1\r\n\t2 \r\n") == b"1\t2"
