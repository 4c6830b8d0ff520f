"""A message on its way in: what it costs to take it in small pieces."""

import time

from pillarbox.server.message import HEADER_MAX, Incoming
from pillarbox.smtp import replies


def incoming() -> Incoming:
    return Incoming(b"Received: x\r\n", domain=b"example.org", masquerade=b"", additions=lambda _header: b"")


def spent(pieces: int) -> float:
    """Seconds of CPU for a header in so many single bytes."""
    message = incoming()
    message.add(b"Subject: ", 0)
    began = time.process_time()
    for _ in range(pieces):
        message.add(b"x", 0)
    return time.process_time() - began


def test_a_header_in_single_bytes_costs_in_proportion_to_its_length():
    few = min(spent(HEADER_MAX // 16) for _ in range(5))
    many = min(spent(HEADER_MAX - 100) for _ in range(3))
    assert many < few * 16 * 3


def test_the_end_of_the_header_is_found_however_it_is_cut():
    text = b"Subject: x\r\nBcc: y\r\n\r\nbody\r\n\r\nmore\r\n"
    for cut in range(len(text) + 1):
        for second in range(cut, len(text) + 1):
            message = incoming()
            for piece in (text[:cut], text[cut:second], text[second:]):
                message.add(piece, piece.count(b"\n"))
            message.finish()
            assert message.take_chunk() == b"Received: x\r\nSubject: x\r\n\r\nbody\r\n\r\nmore\r\n"


def test_a_header_without_end_is_refused_in_time():
    message = incoming()
    for _ in range(HEADER_MAX // 1000 + 1):
        message.add(b"x" * 1000, 0)
    assert message.failure is replies.HEADER_TOO_BIG
