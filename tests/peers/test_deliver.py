"""Mail from real clients ends in Maildirs, mboxes, commands and over LMTP: what a user sees of a whole server."""

import os
import smtplib
import subprocess
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.peers.programs import dovecot, program
from tests.system.server import Server, Wiring, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")


def server_with(folder: Path, wiring: Wiring, port: int, rules: str) -> Server:
    """A server on this port with these actions and matches."""
    return Server(folder / "server", f"listen on 127.0.0.1 port {port} hostname mail.example.org\n{rules}", wiring)


def mail_in(home: str) -> list[str]:
    """The messages in a Maildir."""
    new = Path(home, "Maildir/new")
    return [file.read_text() for file in sorted(new.iterdir())] if new.exists() else []


def message(subject: str = "A test") -> EmailMessage:
    """A message with what a header needs."""
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "Sender <s@client.example.net>", "alice@example.org", subject
    made.set_content("First line\n.\nThe last line\n")
    return made


def test_swaks_delivers_into_a_maildir(folder: Path, wiring: Wiring) -> None:
    swaks, port = program("swaks"), free_port()
    rules = 'action "a" maildir\nmatch from any for domain "example.org" action "a"\n'
    with server_with(folder, wiring, port, rules) as server:
        argv = ["--server", f"127.0.0.1:{port}", "--from", "s@client.example.net", "--to", "alice@example.org"]
        done = subprocess.run([swaks, *argv], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert wait_for(lambda: mail_in("/home/alice"), 10), server.log()
        (text,) = mail_in("/home/alice")
        assert "This is a test mailing" in text
        assert text.startswith("Return-Path: <s@client.example.net>\nDelivered-To: alice@example.org\nReceived: ")


def test_smtplib_delivers_into_an_mbox(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    rules = 'action "a" mbox\nmatch from any for domain "example.org" action "a"\n'
    with server_with(folder, wiring, port, rules) as server:
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.send_message(message("one"))
            client.send_message(message("two"))
        mbox = Path("/var/mail/alice")
        assert wait_for(lambda: mbox.exists() and mbox.read_text().count("\nSubject: ") == 2, 10), server.log()
        assert mbox.read_text().count("From s@client.example.net ") == 2
        assert os.stat(mbox).st_uid == 6001


def test_smtp_source_delivers_to_a_command(folder: Path, wiring: Wiring) -> None:
    source, port = program("smtp-source"), free_port()
    out = folder / "out"
    out.mkdir()
    out.chmod(0o777)
    rules = f'action "a" mda "cat > {out}/$(mktemp -u XXXXXXXXXX)"\nmatch from any for any action "a"\n'
    with server_with(folder, wiring, port, rules) as server:
        argv = ["-s", "5", "-m", "50", "-l", "2000", "-f", "s@client.example.net", "-t", "alice@example.org"]
        subprocess.run([source, *argv, f"127.0.0.1:{port}"], timeout=60, check=True)
        assert wait_for(lambda: len(list(out.iterdir())) == 50 and server.wait_empty(1), 30), server.log()[-2000:]
        assert {os.stat(file).st_uid for file in out.iterdir()} == {6001}
        assert all(file.stat().st_size > 2000 for file in out.iterdir())


def test_dovecot_takes_mail_over_lmtp(folder: Path, wiring: Wiring) -> None:
    port, lmtp = free_port(), free_port()
    rules = f'action "a" lmtp "127.0.0.1:{lmtp}" rcpt-to\nmatch from any for domain "example.org" action "a"\n'
    with dovecot(folder / "dovecot", lmtp), server_with(folder, wiring, port, rules) as server:
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.send_message(message(), to_addrs=["alice@example.org", "bob@example.org"])
        assert wait_for(lambda: mail_in("/home/alice") and mail_in("/home/bob"), 15), server.log()
        assert "\n.\nThe last line\n" in mail_in("/home/bob")[0]
        assert server.wait_empty(5)


def test_aliases_and_forward_files_and_several_domains(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    forward = Path("/home/carol/.forward")
    forward.write_text("bob\n")
    os.chown(forward, 6003, 6003)
    rules = """\
table aliases { staff = "alice, bob", list = "staff, carol" }
action "a" maildir alias <aliases>
action "v" maildir virtual { "info@shop.example" = "dave" }
match from any for domain "example.org" action "a"
match from any for domain "shop.example" action "v"
"""
    with server_with(folder, wiring, port, rules) as server:
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            refused = client.send_message(
                message(), to_addrs=["list@example.org", "info@shop.example", "nobody@shop.example", "x@far.example"]
            )
        assert set(refused) == {"nobody@shop.example", "x@far.example"}
        assert server.wait_empty(20), server.log()
        got = {name: len(mail_in(f"/home/{name}")) for name in ("alice", "bob", "carol", "dave")}
        assert got["alice"] == got["dave"] == 1
        assert got["bob"] >= 1  # as member and through carol's .forward: one envelope each, or one for both
        assert got["carol"] == 0


def test_sendmail_and_mailq_work_for_a_user(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    rules = 'action "a" maildir\nmatch for domain "example.org" action "a"\n'
    with server_with(folder, wiring, port, rules) as server:
        text = "To: bob@example.org\nSubject: from the command line\n\nhello\n"
        result = server.ctl("-t", program="sendmail", stdin=text, user="alice")
        assert result.exit == 0, result
        assert wait_for(lambda: mail_in("/home/bob"), 10), server.log()
        assert "From: Alice Example <alice@mx.example.org>" in mail_in("/home/bob")[0]


def test_sendmail_while_the_server_is_down_is_delivered_when_it_starts(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    rules = 'action "a" maildir\nmatch for domain "example.org" action "a"\n'
    with server_with(folder, wiring, port, rules) as server:
        server.stop()
        result = server.ctl("bob@example.org", program="sendmail", stdin="Subject: later\n\nx\n", user="alice")
        assert result.exit == 75, result
        server.start()
        assert wait_for(lambda: mail_in("/home/bob"), 20), server.log()
