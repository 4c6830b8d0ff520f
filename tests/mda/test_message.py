import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.mail.envelope import Result
from pillarbox.mda.message import Failure, Message, escape_from
from pillarbox.mda.wire import Job


def make(body: bytes, *, pieces: int = 0, sender: str = "s@x", dest: str = "a@b") -> Message:
    """`pieces`: bytes that the queue hands out at a time; 0: the body comes with the job."""
    job = Job(
        index=0, method="maildir", sender=sender, rcpt="r@b", dest=dest, user="a", directory="/", home="/",
        size=len(body), body=b"" if pieces else body,
    )  # fmt: skip
    return Message(job, lambda at: body[at : at + pieces])


@pytest.mark.parametrize("pieces", range(9))
def test_lines_end_in_lf_wherever_the_pieces_are_cut(pieces):
    body = b"A: b\r\n\r\nx\r\n\r\r\ny\rz\r\n"
    expected = b"Return-Path: <s@x>\nDelivered-To: r@b\n" + body.replace(b"\r\n", b"\n")
    assert b"".join(make(body, pieces=pieces).chunks()) == expected


def test_last_line_gets_its_end():
    assert b"".join(make(b"A: b\r\n\r\nx", sender="").chunks()) == b"Delivered-To: r@b\nA: b\n\nx\n"


def test_empty_message_has_its_trace_lines():
    assert b"".join(make(b"").chunks()) == b"Return-Path: <s@x>\nDelivered-To: r@b\n"


def test_body_that_is_cut_short_is_a_temporary_failure():
    job = make(b"A: b\r\n\r\nx\r\n", pieces=3).job
    with pytest.raises(Failure) as caught:
        b"".join(Message(job, lambda at: b"A: b"[at : at + 2]).chunks())
    assert caught.value.result is Result.TEMPFAIL


@pytest.mark.parametrize("pieces", [0, 5])
def test_loop_is_found_in_any_case_and_only_in_the_header(pieces):
    with pytest.raises(Failure) as caught:
        make(b"Subject: x\r\ndelivered-to: A@B\r\n\r\n", pieces=pieces).check_loop()
    assert caught.value.result is Result.LOOP
    make(b"Delivered-To: c@b\r\nX: Delivered-To: a@b\r\n\r\nDelivered-To: a@b\r\n", pieces=pieces).check_loop()


@pytest.mark.parametrize(
    ("header", "junk"),
    [(b"x-spam: YES", True), (b"X-Spam-Flag: Yes", True), (b"X-Spam: no", False), (b"A: b\r\n\r\nX-Spam: yes", False)],
)
def test_junk_is_what_the_header_says(header, junk):
    assert make(header + b"\r\n\r\n").is_junk() is junk


@given(
    st.lists(st.sampled_from([b"From ", b"F", b"rom ", b"\n", b"\n\n", b"x", b">From "]), max_size=20), st.booleans()
)
def test_from_is_escaped_wherever_the_chunks_are_cut(chunks, after_empty):
    text = b"".join(chunks)
    pattern = rb"(?<![^\n])(?<![^\n]\n)From " if after_empty else rb"(?m)^From "
    expected = re.sub(pattern, b">From ", b"\n\n" + text)[2:] if after_empty else re.sub(pattern, b">From ", text)
    assert b"".join(escape_from(chunks, after_empty_only=after_empty)) == expected
