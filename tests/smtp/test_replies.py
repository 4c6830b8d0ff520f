"""Replies as they go out."""

from pillarbox.smtp import replies
from pillarbox.smtp.replies import Reply


def test_lines_of_a_reply():
    reply = Reply(250, "a", "b")
    assert reply.wire == b"250-a\r\n250 b\r\n"
    assert reply.text == "250 b"
    assert reply.positive and not Reply(451, "x").positive


def test_nothing_a_peer_sent_can_end_a_line_or_reach_a_terminal():
    assert replies.unsupported_rcpt_option("a\r\n250 x\x1b[2J\xe9").wire == b"503 Unsupported option a??250 x?[2J?\r\n"


def test_a_refusal_of_lookup_is_a_refusal():
    assert replies.expansion_refused(550, "no").wire == b"550 no\r\n"
    assert replies.expansion_refused(999, "odd") == replies.TEMPORARY_FAILURE
