"""Dialogues of the client's protocol core, fed whole and byte by byte."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.mail.envelope import Result
from pillarbox.smtp.client_data import DotStuffer
from pillarbox.smtp.client_events import (
    Answered,
    BodyWanted,
    Closed,
    Failed,
    Finished,
    Ready,
    Recipient,
    TlsWanted,
    Transaction,
)
from pillarbox.smtp.client_protocol import Client

OK, TEMP, PERM = Result.OK, Result.TEMPFAIL, Result.PERMFAIL


def say(client, *lines):
    """The peer says these lines; events and what the client writes."""
    events = client.feed("".join(line + "\r\n" for line in lines).encode())
    return events, client.output().decode("latin-1").split("\r\n")[:-1]


def greeted(*extensions, **options):
    client = Client(helo="h.example", **options)
    assert say(client, "220 hi") == ([], ["LHLO h.example" if options.get("lmtp") else "EHLO h.example"])
    lines = ["250-x", *(f"250-{e}" for e in extensions)]
    lines[-1] = "250 " + lines[-1][4:]
    events, _ = say(client, *lines)
    assert events == [Ready()]
    return client


def begin(client, *rcpts, body=b"a\r\n", **options):
    tx = Transaction(sender="s@x", recipients=tuple(map(Recipient, rcpts)), size=len(body), body=body, **options)
    return client.begin(tx), client.output().decode("latin-1").split("\r\n")[:-1]


def test_one_message_without_pipelining_goes_command_by_command():
    client = greeted()
    assert begin(client, "a@x", "b@x") == ([], ["MAIL FROM:<s@x>"])
    assert say(client, "250 ok") == ([], ["RCPT TO:<a@x>"])
    assert say(client, "250 ok") == ([], ["RCPT TO:<b@x>"])
    assert say(client, "250 ok") == ([], ["DATA"])
    assert say(client, "354 go") == ([], ["a", "."])
    events, written = say(client, "250 2.0.0 taken")
    assert events == [Answered(0, OK, "250 2.0.0 taken"), Answered(1, OK, "250 2.0.0 taken"), Finished()]
    assert written == []
    assert client.delivered == 1
    client.quit()
    assert client.output() == b"QUIT\r\n"
    assert say(client, "221 bye") == ([Closed()], [])
    assert client.eof() == []


def test_pipelining_sends_the_envelope_at_once():
    client = greeted("PIPELINING")
    assert begin(client, "a@x", "b@x")[1] == ["MAIL FROM:<s@x>", "RCPT TO:<a@x>", "RCPT TO:<b@x>", "DATA"]
    events, written = say(client, "250 ok", "550 no", "250 ok", "354 go")
    assert events == [Answered(0, PERM, "550 no")]
    assert written == ["a", "."]
    assert say(client, "250 ok")[0] == [Answered(1, OK, "250 ok"), Finished()]


def test_pipelined_refusal_of_mail_waits_for_the_echoes_before_rset():
    client = greeted("PIPELINING")
    begin(client, "a@x")
    assert say(client, "451 later") == ([Answered(0, TEMP, "451 later")], [])
    assert say(client, "503 no mail", "503 no rcpt") == ([], ["RSET"])
    assert say(client, "250 ok") == ([Finished()], [])


def test_data_taken_without_recipients_sends_no_body():
    client = greeted("PIPELINING")
    begin(client, "a@x", body=b"secret\r\n")
    events, written = say(client, "250 ok", "550 no", "354 go")
    assert events == [Answered(0, PERM, "550 no")]
    assert written == ["."]
    assert say(client, "554 nobody") == ([Finished()], [])
    assert client.delivered == 0


@pytest.mark.parametrize(
    ("replies", "result"), [(["451 m"], (TEMP, "451 m")), (["250 ok", "550 r"], (PERM, "550 r")),
                            (["250 ok", "250 ok", "452 d"], (TEMP, "452 d"))]
)  # fmt: skip
def test_refusals_end_in_rset(replies, result):
    client = greeted()
    begin(client, "a@x")
    for reply in replies[:-1]:
        say(client, reply)
    assert say(client, replies[-1]) == ([Answered(0, *result)], ["RSET"])
    assert say(client, "250 ok") == ([Finished()], [])


def test_multi_line_reply_becomes_one_line():
    client = greeted()
    begin(client, "a@x")
    say(client, "250 ok")
    events, _ = say(client, "550-5.1.1 first", "550-5.1.1 second", "550 5.1.1 last")
    assert events == [Answered(0, PERM, "550-5.1.1 first second last")]


@pytest.mark.parametrize("extensions", [(), ("PIPELINING",)])
def test_a_recipient_the_peer_cannot_have_is_left_out(extensions):
    client = greeted(*extensions or ("DSN",))
    events, written = begin(client, "a@x", "ü@x", "b@x")
    assert [(e.index, e.result, e.code) for e in events] == [(1, PERM, 67)]
    written += say(client, "250 ok")[1] + say(client, "250 ok")[1]
    events, more = say(client, "550 no")
    assert events == [Answered(2, PERM, "550 no")]
    assert [line for line in written + more if line.startswith("RCPT")] == ["RCPT TO:<a@x>", "RCPT TO:<b@x>"]
    assert say(client, "354 go")[1] == ["a", "."]
    assert say(client, "250 taken")[0] == [Answered(0, OK, "250 taken"), Finished()]


def test_lmtp_answers_for_each_accepted_recipient():
    client = greeted("PIPELINING", lmtp=True)
    begin(client, "a@x", "b@x", "c@x")
    assert say(client, "250 ok", "250 ok", "550 no", "250 ok", "354 go")[0] == [Answered(1, PERM, "550 no")]
    assert say(client, "250 one") == ([Answered(0, OK, "250 one")], [])
    assert say(client, "452 full") == ([Answered(2, TEMP, "452 full"), Finished()], [])


def test_ehlo_refused_falls_back_to_helo():
    client = Client(helo="h.example", tls="opportunistic")
    say(client, "220 hi")
    assert say(client, "502 what") == ([], ["HELO h.example"])
    assert say(client, "250 x") == ([Ready()], [])


@pytest.mark.parametrize("options", [{"tls": "required"}, {"tls": "immediate"}, {"credentials": ("u", "p")}])
def test_ehlo_refused_is_fatal_where_extensions_are_needed(options):
    client = Client(helo="h.example", **options)
    say(client, "220 hi")
    assert say(client, "502 what") == ([Failed("EHLO rejected: 502 what")], [])


def test_starttls_forgets_what_was_said_in_clear():
    client = Client(helo="h", tls="opportunistic")
    say(client, "220 hi")
    assert say(client, "250-x", "250-PIPELINING", "250 STARTTLS") == ([], ["STARTTLS"])
    assert client.handshaking
    assert say(client, "220 go") == ([TlsWanted()], [])
    assert client.tls_started() == []
    assert client.output() == b"EHLO h\r\n"
    assert say(client, "250 x") == ([Ready()], [])
    assert begin(client, "a@x")[1] == ["MAIL FROM:<s@x>"]


def test_text_behind_the_starttls_reply_is_an_injection():
    client = Client(helo="h", tls="required")
    say(client, "220 hi")
    say(client, "250-x", "250 STARTTLS")
    assert Failed("Remote host sent too much data") in say(client, "220 go", "250 injected")[0]


def test_replies_before_the_question_are_refused():
    client = Client(helo="h")
    assert Failed("Remote host sent too much data") in say(client, "220 hi", "250 early")[0]


@pytest.mark.parametrize(("tls", "failed"), [("required", True), ("opportunistic", False)])
def test_missing_and_refused_starttls(tls, failed):
    missing = Client(helo="h", tls=tls)
    say(missing, "220 hi")
    assert say(missing, "250 x")[0] == [Failed("TLS required but not supported by remote host") if failed else Ready()]
    refused = Client(helo="h", tls=tls)
    say(refused, "220 hi")
    say(refused, "250-x", "250 STARTTLS")
    assert say(refused, "454 no")[0] == [Failed("STARTTLS rejected: 454 no") if failed else Ready()]
    assert not refused.handshaking


@pytest.mark.parametrize(
    ("reply", "protects"), [("454 not now", "later"), ("421 busy", "unknown"), ("502 never", "never")]
)
def test_a_refusal_of_starttls_says_when_a_peer_protects(reply, protects):
    client = Client(helo="h", tls="required", require_tls=True)
    say(client, "220 hi")
    say(client, "250-x", "250 STARTTLS")
    assert say(client, reply)[0] == [Failed(f"STARTTLS rejected: {reply}")]
    assert (bool(client.unprotected), client.for_now) == (protects != "unknown", protects == "later")


def with_auth(*extensions):
    client = Client(helo="h", tls="immediate", credentials=("user1", "secret1"))
    client.tls_started()
    say(client, "220 hi")
    lines = ["250-x", *(f"250-{e}" for e in extensions), "250 HELP"]
    return client, *say(client, *lines)


def test_auth_plain():
    client, events, written = with_auth("AUTH LOGIN PLAIN")
    assert (events, written) == ([], ["AUTH PLAIN AHVzZXIxAHNlY3JldDE="])
    assert say(client, "235 ok")[0] == [Ready()]


def test_auth_login():
    client, _, written = with_auth("AUTH LOGIN CRAM-MD5")
    assert written == ["AUTH LOGIN"]
    assert say(client, "334 VXNlcm5hbWU6")[1] == ["dXNlcjE="]
    assert say(client, "334 UGFzc3dvcmQ6")[1] == ["c2VjcmV0MQ=="]
    assert say(client, "535 no")[0] == [Failed("AUTH rejected: 535 no")]


@pytest.mark.parametrize(
    ("extensions", "text"), [((), "AUTH not advertised"), (("AUTH CRAM-MD5",), "no supported AUTH method")]
)
def test_auth_that_cannot_be(extensions, text):
    assert with_auth(*extensions)[1] == [Failed(text)]


def test_password_never_goes_in_clear():
    client = Client(helo="h", tls="opportunistic", credentials=("u", "p"))
    say(client, "220 hi")
    assert say(client, "250 AUTH PLAIN") == ([Failed("Refuse to AUTH over insecure channel")], [])


def test_parameters_are_sent_when_offered():
    tx = Transaction(
        sender="", recipients=(Recipient("a@x", "SUCCESS,DELAY", "rfc822;b@x"),), size=1, body=b"x",
        eight_bit=True, smtputf8=True, ret="HDRS", envid="e+3D",
    )  # fmt: skip
    client = greeted("DSN", "8BITMIME", "SMTPUTF8", "PIPELINING")
    client.begin(tx)
    assert client.output().split(b"\r\n")[:2] == [
        b"MAIL FROM:<> RET=HDRS ENVID=e+3D BODY=8BITMIME SMTPUTF8",
        b"RCPT TO:<a@x> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;b@x",
    ]
    assert client.offers_dsn
    plain = greeted("SMTPUTF8")
    plain.begin(tx)
    assert plain.output() == b"MAIL FROM:<> SMTPUTF8\r\n"


def test_what_the_peer_cannot_take_is_refused_without_asking():
    client = greeted("SIZE 10")
    events, written = begin(client, "a@x", body=b"x" * 11)
    assert (events, written) == ([Answered(0, PERM, "message too large for peer"), Finished()], [])
    assert begin(client, "a@x", body=b"x" * 10)[1] == ["MAIL FROM:<s@x>"]
    events, written = begin(greeted(), "a@x", smtputf8=True)
    assert events[0].result is PERM and "5.6.7" in events[0].text and not written


def test_address_cannot_smuggle_a_command():
    events, written = begin(greeted("PIPELINING"), "a@x>\r\nRCPT TO:<b@x")
    assert events[0].result is PERM and not written


def test_too_many_refused_recipients_end_the_session():
    client = greeted(failures_max=2)
    begin(client, "a@x", "b@x", "c@x")
    say(client, "250 ok")
    say(client, "550 no")
    events, written = say(client, "550 no")
    assert events == [
        Answered(1, PERM, "550 no"),
        Answered(2, TEMP, "Too many consecutive errors, closing connection"),
        Finished(),
    ]
    assert client.spent and written == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("what is this", "Bad response: reply code out of range"),
        ("99", "Bad response: line too short"),
        ("650 x", "Bad response: reply code out of range"),
    ],
)
def test_garbage_is_a_temporary_failure(line, text):
    client = greeted()
    begin(client, "a@x")
    assert say(client, line)[0] == [Failed(text), Answered(0, TEMP, text)]


def test_endless_lines_and_replies_are_bounded():
    assert Client(helo="h").feed(b"220 " + b"x" * 5000) == [Failed("Input too long")]
    client = Client(helo="h")
    assert client.feed(b"220-x\r\n" * 5000) == [Failed("Input too long")]


def test_end_of_connection_fails_what_is_open():
    client = greeted()
    begin(client, "a@x", "b@x")
    text = "Connection closed unexpectedly"
    assert client.eof() == [Failed(text), Answered(0, TEMP, text), Answered(1, TEMP, text)]
    assert client.eof() == []


def test_early_reply_while_a_body_streams_is_the_answer_to_it():
    client = greeted("PIPELINING")
    client.begin(Transaction(sender="", recipients=(Recipient("a@x"),), size=6, body=None))
    client.output()
    assert say(client, "250 ok", "250 ok", "354 go")[0] == [BodyWanted()]
    client.body_chunk(b".abc\r\n")
    assert client.feed(b"552 too much\r\n") == []
    assert client.body_end() == [Answered(0, PERM, "552 too much"), Finished()]
    assert client.output() == b"..abc\r\n.\r\n"


TALK = (
    b"220-hi\r\n220 there\r\n",
    b"250-x\r\n250-DSN\r\n250 PIPELINING\r\n",
    b"250 ok\r\n550-5.1.1 no\r\n550 5.1.1 way\r\n354 go\r\n",
)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_it_does_not_matter_how_the_replies_are_cut(size):
    client = Client(helo="h")
    seen = []
    for number, reply in enumerate(TALK):
        if number == 2:
            seen += begin(client, "a@x")[0]
        for start in range(0, len(reply), size):
            seen += client.feed(reply[start : start + size])
    assert seen == [Ready(), Answered(0, PERM, "550-5.1.1 no way")]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=20), st.booleans())
def test_no_input_raises(chunks, lmtp):
    client = Client(helo="h", lmtp=lmtp, tls="opportunistic", failures_max=3)
    for chunk in chunks:
        if client.failed:
            break
        for event in client.feed(chunk):
            if isinstance(event, Ready | Finished) and not client.failed:
                begin(client, "a@x", "b@x")
            elif isinstance(event, TlsWanted) and not client.failed:
                client.tls_started()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b".", b"\r", b"\n", b"\r\n", b"x"]), max_size=30), st.data())
def test_dot_stuffing_does_not_depend_on_the_pieces(parts, data):
    body = b"".join(parts)
    cut = data.draw(st.lists(st.integers(0, len(body)), max_size=6).map(sorted))
    stuffer, pieces = DotStuffer(), b""
    for start, end in zip([0, *cut], [*cut, len(body)], strict=True):
        pieces += stuffer.feed(body[start:end])
    pieces += stuffer.end()
    lines = body.split(b"\r\n")
    expected = b"\r\n".join(b"." + line if line.startswith(b".") else line for line in lines)
    assert pieces == expected + (b".\r\n" if body.endswith(b"\r\n") or not body else b"\r\n.\r\n")


def test_what_a_peer_says_controls_no_terminal():
    client = greeted()
    begin(client, "a@x")
    events, _ = say(client, "550 5.1.1 no\x00\x1b[31m\tone \x7f\x85 Größe")
    assert events[0] == Answered(0, PERM, "550 5.1.1 no??[31m\tone ?? Größe")
