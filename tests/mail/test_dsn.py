import email
import email.policy

import pytest

from pillarbox.mail.dsn import (
    ReportedRecipient,
    StatusReport,
    decode_xtext,
    format_reason,
    format_span,
    format_status,
    report_head,
    report_tail,
)

HEADER = b"From: a@b\r\nSubject: x\r\n"


def make(action: str = "failed", **more: object) -> StatusReport:
    values: dict[str, object] = {
        "to": "s@example.net",
        "smtpname": "mail.example.org",
        "hostname": "mx.example.org",
        "msgid": 0x1234,
        "date": 1772366400.0,
        "boundary": 42,
        "unique": 7,
        "recipients": [ReportedRecipient("a@b.example", "550 no such user", "5.1.1")],
    }
    return StatusReport(action=action, **(values | more))  # type: ignore[arg-type]


def parse(report: StatusReport, returned: bytes = HEADER) -> email.message.EmailMessage:
    data = report_head(report) + returned + report_tail(report)
    assert b"\n" not in data.replace(b"\r\n", b"")
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert not message.defects
    return message  # type: ignore[return-value]


def test_failure_is_a_multipart_report():
    message = parse(make())
    assert message.get_content_type() == "multipart/report"
    assert message.get_param("report-type") == "delivery-status"
    assert message["Subject"] == "Delivery status notification: failed"
    assert message["From"] == "Mailer Daemon <MAILER-DAEMON@mail.example.org>"
    assert message["Message-ID"] == "<0000000000000007@mx.example.org>"
    assert [p.get_content_type() for p in message.iter_parts()] == [
        "text/plain",
        "message/delivery-status",
        "text/rfc822-headers",
    ]
    notice, status, returned = message.iter_parts()
    assert "a@b.example: 550 no such user" in notice.get_content().splitlines()
    about_message, about_recipient = status.get_payload()
    assert about_message.items() == [("Reporting-MTA", "dns; mail.example.org")]
    assert about_recipient.items() == [
        ("Final-Recipient", "rfc822; a@b.example"),
        ("Action", "failed"),
        ("Status", "5.1.1"),
    ]
    assert returned.get_payload().encode() == HEADER


def test_received_says_where_it_was_made():
    head = report_head(make()).split(b"\r\nSubject")[0]
    assert head.startswith(
        b"Received: from mail.example.org (mx.example.org [local])\r\n"
        b"\tby mx.example.org (Pillarbox) with ESMTPA id 00001234\r\n\tfor <s@example.net>;\r\n\t"
    )


def test_delay_says_how_long_it_is_kept():
    text = report_head(make("delayed", delay=4 * 3600, ttl=5 * 86400)).decode()
    assert "    A message is delayed for more than 4 hours for the following\r\n    list of recipients:\r\n" in text
    assert "    The message is kept in the queue for up to 5 days.\r\n" in text


def test_whole_message_is_labelled_and_keeps_its_dots():
    original = b"From: a@b\r\n\r\n.\r\n..\r\n.x\r\n"
    *_, returned = parse(make(full=True), original).iter_parts()
    assert returned.get_content_type() == "message/rfc822"
    assert returned.get_payload(0).get_payload() == ".\r\n..\r\n.x\r\n"


@pytest.mark.parametrize(
    ("full", "utf8", "kind"),
    [(True, True, "message/global"), (True, False, "message/rfc822"), (False, True, "message/global-headers"),
     (False, False, "text/rfc822-headers")],
)  # fmt: skip
def test_what_is_returned_is_global_only_where_its_header_is_utf8(full, utf8, kind):
    head = report_head(make(full=full, eight_bit=True, utf8_header=utf8)).decode()
    assert head.endswith(f"\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n")


def test_no_line_is_longer_than_a_message_may_have():
    recipients = [ReportedRecipient("ж" * 150 + "@b.example", format_reason("550 " + "漢字" * 500), "5.0.0")]
    lines = report_head(make(recipients=recipients)).split(b"\r\n")
    assert 990 < max(map(len, lines)) <= 998
    assert len(format_reason("550 " + "漢" * 500).encode()) in range(898, 901)


def test_envelope_id_and_original_recipient_are_told():
    recipients = [ReportedRecipient("a@b.example", "", "2.0.0", original="rfc822;x+2By@c.example")]
    status = list(parse(make("relayed", recipients=recipients, envelope_id="Q+2B1")).iter_parts())[1]
    about_message, about_recipient = status.get_payload()
    assert about_message["Original-Envelope-Id"] == "Q+1"
    assert about_recipient["Original-Recipient"] == "rfc822; x+y@c.example"
    assert about_recipient["Action"] == "relayed"


def test_address_that_is_not_ascii_makes_it_a_global_report():
    report = make(recipients=[ReportedRecipient("é@b.example", "no", "5.1.1")], eight_bit=True, utf8_header=True)
    assert report.is_utf8 and not report.has_utf8_header  # it can travel where only 8-bit bodies can
    head = report_head(report).decode()
    assert "Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: 8bit\r\n" in head
    assert "Final-Recipient: utf-8; é@b.example\r\n" in head
    assert "Content-Type: message/global-headers\r\n" in head
    assert make(recipients=[ReportedRecipient("a@b", "é", "5.0.0")]).is_utf8


def test_a_sender_that_ascii_can_write_is_written_so():
    report = make(to="s@bücher.example")
    assert b"\r\nTo: s@xn--bcher-kva.example\r\n" in report_head(report) and not report.has_utf8_header
    report = make(to="jürgen@bücher.example")
    assert "\r\nTo: jürgen@bücher.example\r\n".encode() in report_head(report) and report.has_utf8_header


def test_an_original_recipient_in_utf8_is_told_in_it():
    recipients = [ReportedRecipient("a@b.example", "", "2.0.0", original="utf-8;j\\x{FC}rgen+2Ba@c.example")]
    report = make("relayed", recipients=recipients)
    assert "Original-Recipient: utf-8; jürgen+a@c.example\r\n" in report_head(report).decode()
    assert "Content-Type: message/global-delivery-status" in report_head(report).decode()


@pytest.mark.parametrize(
    ("action", "esc_class", "esc_code", "expected"),
    [("failed", 5, 47, "5.4.7"), ("failed", 4, 46, "5.4.6"), ("failed", 0, 0, "5.0.0"), ("delayed", 4, 30, "4.3.0"),
     ("failed", 5, 730, "5.7.30"),
     ("delivered", 2, 0, "2.0.0")],
)  # fmt: skip
def test_status_fits_the_action(action, esc_class, esc_code, expected):
    assert format_status(action, esc_class, esc_code) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1 second"), (59, "59 seconds"), (60, "1 minute"), (7200, "2 hours"), (86400, "1 day"),
     (345600, "4 days"), (0, "0 seconds")],
)  # fmt: skip
def test_span_is_told_in_its_largest_unit(seconds, text):
    assert format_span(seconds) == text


def test_reason_and_parameters_cannot_add_lines():
    assert format_reason("550 a\r\nb\n\x0bc") == "550 a b  c"
    assert format_reason("150 ours") == "ours"
    assert decode_xtext("a+0D+0Ab") == "a+0D+0Ab"


def test_xtext_may_be_of_utf8():
    assert decode_xtext("+E7+94+A8+E6+88+B7@x") == "用户@x"  # as Postfix writes it
    assert decode_xtext("a+FFb") == "a+FFb"
