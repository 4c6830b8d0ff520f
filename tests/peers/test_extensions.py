"""SMTPUTF8, CHUNKING and REQUIRETLS with real clients and servers, through whole servers of ours."""

import smtplib
import ssl
import subprocess
from pathlib import Path

import pytest

from bench.servers import LOCAL, PORT, Postfix
from tests.corpus.runner.place import fresh
from tests.corpus.runner.sink import Sink
from tests.corpus.runner.text import ROOT
from tests.peers.programs import exim, program
from tests.peers.test_deliver import mail_in, server_with
from tests.system.server import Wiring, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")

HEADER = "From: Jürgen <jürgen@bücher.example>\nSubject: Grüße\nDate: Thu, 1 Jan 2026 00:00:00 +0000\n"
TEXT = f"{HEADER}\nschöne\n.\nGrüße\n".replace("\n", "\r\n").encode()
LOCALLY = """\
action "a" maildir virtual { "jürgen@bücher.example" = alice, "alice@example.org" = alice }
match from any for domain { "xn--bcher-kva.example", "example.org" } action "a"
"""


def submit(port: int, sender: str, rcpt: str, *options: str, text: bytes = TEXT) -> None:
    """Send one message as Python's client does it."""
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.ehlo("client.example.net")
        client.sendmail(sender, [rcpt], text, mail_options=options)


def told(sink: Sink) -> list[str]:
    """All that was said to a sink."""
    return [line for session in sink.sessions for line in session]


def test_utf8_arrives_in_a_maildir(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with server_with(folder, wiring, port, LOCALLY) as server:
        submit(port, "用户@例え.テスト", "jürgen@bücher.example", "SMTPUTF8", "BODY=8BITMIME")
        assert wait_for(lambda: mail_in("/home/alice"), 10), server.log()
        (text,) = mail_in("/home/alice")
        assert text.startswith("Return-Path: <用户@例え.テスト>\nDelivered-To: jürgen@bücher.example\nReceived: ")
        assert " with UTF8SMTP id " in text and text.endswith("\n\nschöne\n.\nGrüße\n")
        for sender, parameters in (("jürgen@x.example", ()), ("a@x.example", ("BODY=8BITMIME",))):
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                client.ehlo("client.example.net")
                client.command_encoding = "utf-8"
                code, _ = client.mail(sender, parameters)
                assert code == (250 if sender.isascii() else 553)
                code, _ = client.rcpt("jürgen@bücher.example")
                assert code in (501, 503)


def test_sendmail_takes_addresses_in_utf8(folder: Path, wiring: Wiring) -> None:
    with server_with(folder, wiring, free_port(), LOCALLY) as server:
        text = f"To: jürgen@bücher.example\n{HEADER}\nhällo\n".encode().decode("latin-1")  # one character a byte
        done = server.ctl("-t", program="sendmail", stdin=text, user="bob")
        assert done.exit == 0, done
        assert wait_for(lambda: mail_in("/home/alice"), 10), server.log()
        (text,) = mail_in("/home/alice")
        assert "\nSubject: Grüße\n" in text and text.endswith("\n\nhällo\n")
        assert " with UTF8SMTPA id " in text


def test_utf8_goes_through_us_into_postfix(folder: Path, wiring: Wiring) -> None:
    program("postfix")
    port, other = free_port(), Postfix(folder / "peer", deliver=True)
    rules = f'action "out" relay host smtp://127.0.0.1:{PORT}\nmatch from any for any action "out"\n'
    other.start()
    try:
        with server_with(folder, wiring, port, rules) as server:
            submit(port, "jürgen@bücher.example", LOCAL, "SMTPUTF8", "BODY=8BITMIME")
            assert wait_for(lambda: other.delivered() == 1, 30), server.log()[-3000:] + other.log()
            assert server.wait_empty(5)
            (file,) = (other.maildir / "new").iterdir()
            text = file.read_text()
            assert text.startswith("Return-Path: <jürgen@bücher.example>\n") and "\nSubject: Grüße\n" in text
            assert "with UTF8SMTP id" in text.partition("(Postfix)")[2].partition("\n")[0]  # it was asked for SMTPUTF8
    finally:
        other.stop()


def test_utf8_comes_from_postfix_to_us(folder: Path, wiring: Wiring) -> None:
    program("postfix")
    other = Postfix(folder / "peer", deliver=True)
    rules = 'action "a" maildir virtual { "@" = alice }\nmatch from any for any action "a"\n'
    other.start()
    try:
        with server_with(folder, wiring, 20126, rules) as server:  # where it relays to
            submit(PORT, "jürgen@bücher.example", "用户@elsewhere.example", "SMTPUTF8", "BODY=8BITMIME")
            assert wait_for(lambda: mail_in("/home/alice"), 30), server.log()[-3000:] + other.log()
            (text,) = mail_in("/home/alice")
            assert "Delivered-To: 用户@elsewhere.example\n" in text and "(Pillarbox) with UTF8SMTP id " in text
    finally:
        other.stop()


def test_what_cannot_be_downgraded_comes_back(folder: Path, wiring: Wiring) -> None:
    port, sink_port = free_port(), free_port()
    sink = Sink(sink_port, {})
    rules = f'{LOCALLY}action "out" relay host smtp://127.0.0.1:{sink_port}\nmatch from any for any action "out"\n'
    try:
        with server_with(folder, wiring, port, rules) as server:
            submit(port, "alice@example.org", "用户@far.example", "SMTPUTF8", "BODY=8BITMIME")
            assert wait_for(lambda: mail_in("/home/alice"), 30), server.log()
            assert server.wait_empty(10)
            (bounce,) = mail_in("/home/alice")
            assert "\nContent-Type: message/global-delivery-status\n" in bounce
            assert "\nFinal-Recipient: utf-8; 用户@far.example\nAction: failed\nStatus: 5.6.7\n" in bounce
            assert "\n用户@far.example: 553 5.6.7 SMTPUTF8 needed, but not offered by peer\n" in bounce
            assert not any(line.startswith("C: MAIL") for line in told(sink))
            submit(port, "alice@example.org", "bob@bücher.test", "SMTPUTF8", text=b"Subject: plain\r\n\r\nb\r\n")
            assert wait_for(lambda: "C: RCPT TO:<bob@xn--bcher-kva.test>" in told(sink), 30), server.log()
    finally:
        sink.close()


def test_no_second_message_is_born_of_what_is_in_a_chunk(folder: Path, wiring: Wiring) -> None:
    program("postfix")
    port, other = free_port(), Postfix(folder / "peer", deliver=True)
    rules = f'action "out" relay host smtp://127.0.0.1:{PORT}\nmatch from any for any action "out"\n'
    evil = f"MAIL FROM:<evil@x.example>\r\nRCPT TO:<{LOCAL}>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
    other.start()
    try:
        with server_with(folder, wiring, port, rules) as server:
            text = f"Subject: outer\r\n\r\nb\r\n.\r\n{evil}".encode()
            ends = (b"\n.\r\n", b"\r\n.\n", b"\n.\n", b"\r.\r\n", b"\r\r\n.\r\r\n")
            refused = [b"Subject: refused\r\n\r\nb" + end + evil.encode() for end in ends]
            for content in (text, *refused):
                with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                    client.ehlo("client.example.net")
                    client.mail("s@client.example.net")
                    client.rcpt(LOCAL)
                    client.send(f"BDAT {len(content)} LAST\r\n".encode() + content)
                    code, _ = client.getreply()
                    assert code == (250 if content is text else 550)
                    assert client.noop()[0] == 250  # nothing of it was taken for a command
            assert server.wait_empty(20), server.log()
            assert wait_for(lambda: other.delivered() == 1, 10)
            (file,) = (other.maildir / "new").iterdir()
            assert "\n\nb\n.\nMAIL FROM:<evil@x.example>\n" in file.read_text()
    finally:
        other.stop()


def test_exim_sends_chunks(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    command = exim(folder / "exim", port)
    with server_with(folder, wiring, port, LOCALLY) as server:
        body = "".join(f"line {n} of many\n.\n..\n" for n in range(100_000))  # 2.4 MB: several chunks
        for text in ("first\n.\nlast\n", body):
            done = subprocess.run(
                [*command, "s@client.example.net", "alice@example.org"],
                input=f"Subject: by chunks\n\n{text}", text=True, capture_output=True, timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done
            assert wait_for(lambda: mail_in("/home/alice"), 20), server.log() + (folder / "exim/mainlog").read_text()
            (arrived,) = mail_in("/home/alice")
            assert arrived.partition("\n\n")[2] == text
            for file in Path("/home/alice/Maildir/new").iterdir():
                file.unlink()
        log = (folder / "exim/mainlog").read_text()
        assert log.count(" K C=") == 2, log  # Exim's mark for BDAT


@pytest.mark.parametrize("offered", [True, False])
def test_what_requires_tls_goes_on_over_it_or_comes_back(folder: Path, wiring: Wiring, offered: bool) -> None:
    fresh()
    port, tls_port, sink_port = free_port(), free_port(), free_port()
    extensions = ["250-sink", "250-STARTTLS", "250 REQUIRETLS" if offered else "250 DSN"]
    starttls = {"cmd": "^STARTTLS", "reply": "220 go", "starttls": True}
    script = {"replies": [{"cmd": "^EHLO", "reply": extensions}, starttls]}
    sink = Sink(sink_port, script)
    rules = f"""\
{LOCALLY}ca "test" cert "{ROOT}/certs/ca.crt"
action "out" relay host smtp://127.0.0.1:{sink_port} ca "test"
match from any for any action "out"
pki "mx" cert "{ROOT}/certs/rsa.crt"
pki "mx" key "{ROOT}/certs/rsa.key"
listen on 127.0.0.1 port {tls_port} tls pki "mx"
"""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        with server_with(folder, wiring, port, rules) as server:
            with smtplib.SMTP("127.0.0.1", tls_port, timeout=20) as client:
                client.ehlo("client.example.net")
                assert not client.has_extn("requiretls")
                client.starttls(context=trusting)
                client.ehlo("client.example.net")
                assert client.has_extn("requiretls")
                text = b"Subject: secret\r\n\r\nthe body\r\n"
                client.sendmail("alice@example.org", ["bob@far.example"], text, ["REQUIRETLS", "RET=FULL"])
            assert wait_for(lambda: mail_in("/home/alice") if not offered else server.wait_empty(1), 30), server.log()
            lines = told(sink)
            if offered:
                assert "C: MAIL FROM:<alice@example.org> REQUIRETLS" in lines and "C: the body" in lines
                return
            assert not any(line.startswith("C: MAIL") for line in lines)
            (bounce,) = mail_in("/home/alice")
            assert "\nAction: failed\nStatus: 5.7.30\n" in bounce and "Subject: secret" in bounce
            assert "the body" not in bounce
    finally:
        sink.close()
