"""How a transaction is put to a peer, by what that offers."""

import pytest

from pillarbox.smtp.client_events import Recipient, Transaction
from pillarbox.smtp.client_offer import NO_SMTPUTF8, Offer, Refusal, word

NEEDED = Refusal("553 5.6.7 SMTPUTF8 needed, but not offered by peer", NO_SMTPUTF8)


def offer(*lines):
    made = Offer()
    for line in lines:
        made.note(line)
    return made


def tx(sender="s@x", *recipients, **options):
    made = [r if isinstance(r, Recipient) else Recipient(r) for r in recipients or ("a@y",)]
    return Transaction(sender=sender, recipients=tuple(made), size=100, **options)


def lines(wording):
    return [wording.mail.decode(), *(line.decode() for _, line in wording.rcpts)]


def test_parameters_are_those_that_are_offered():
    message = tx("s@x", Recipient("a@y", "NEVER", "rfc822;a@y"), eight_bit=True, ret="HDRS", envid="q1")
    assert lines(word(offer(), message)) == ["MAIL FROM:<s@x>", "RCPT TO:<a@y>"]
    assert lines(word(offer("DSN", "8bitmime"), message)) == [
        "MAIL FROM:<s@x> RET=HDRS ENVID=q1 BODY=8BITMIME", "RCPT TO:<a@y> NOTIFY=NEVER ORCPT=rfc822;a@y",
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "fits"), [("", True), ("0", True), ("100", True), ("99", False), ("x", True)])
def test_a_message_beyond_the_size_is_refused(size, fits):
    assert isinstance(word(offer(f"SIZE {size}"), tx()), Refusal) is not fits


@pytest.mark.parametrize("message", [tx("jü@x"), tx("s@x", "a@y", "ü@y"), tx(smtputf8=True), tx("s@bücher.example")])
def test_smtputf8_is_asked_for_where_it_is_needed(message):
    assert lines(word(offer("SMTPUTF8"), message))[0] == f"MAIL FROM:<{message.sender}> SMTPUTF8"


def test_smtputf8_is_not_asked_for_in_vain():
    assert lines(word(offer("SMTPUTF8"), tx())) == ["MAIL FROM:<s@x>", "RCPT TO:<a@y>"]


@pytest.mark.parametrize("message", [tx("jü@x"), tx(smtputf8=True), tx("s@x", "ü@y"), tx("", "ü@y", "é@y")])
def test_what_cannot_be_downgraded_is_refused(message):
    assert word(offer("8BITMIME"), message) == NEEDED


def test_domains_are_downgraded_to_ascii():
    message = tx("s@bücher.example", "a@例え.テスト")
    assert lines(word(offer(), message)) == [
        "MAIL FROM:<s@xn--bcher-kva.example>", "RCPT TO:<a@xn--r8jz45g.xn--zckzah>",
    ]  # fmt: skip


def test_only_recipients_that_need_it_are_refused():
    wording = word(offer(), tx("s@x", "a@y", "ü@y", "b@bücher.example"))
    assert wording.refused == ((1, NEEDED),)
    assert [index for index, _ in wording.rcpts] == [0, 2]


def test_an_original_recipient_is_written_as_the_peer_reads_it():
    recipient = Recipient("a@y", orcpt="utf-8;jü@y")
    assert lines(word(offer("DSN"), tx("s@x", recipient)))[1] == "RCPT TO:<a@y> ORCPT=utf-8;j\\x{FC}@y"
    assert lines(word(offer("DSN", "SMTPUTF8"), tx("ü@x", recipient)))[1] == "RCPT TO:<a@y> ORCPT=utf-8;jü@y"


def test_requiretls_counts_over_tls_only():
    protecting = Offer(tls=True)
    protecting.note("REQUIRETLS")
    assert lines(word(protecting, tx(require_tls=True)))[0] == "MAIL FROM:<s@x> REQUIRETLS"
    assert lines(word(protecting, tx()))[0] == "MAIL FROM:<s@x>"
    refusal = word(offer("REQUIRETLS"), tx(require_tls=True))
    assert isinstance(refusal, Refusal) and refusal.code == 730
    assert lines(word(offer("REQUIRETLS"), tx("", require_tls=True)))[0] == "MAIL FROM:<>"


def test_a_line_break_in_an_address_goes_nowhere():
    assert word(offer(), tx("s@x", "a@y\r\nDATA")).text == "553 5.1.7 line break in address"
