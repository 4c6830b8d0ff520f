"""The filters in examples/ do what they say."""

import json
import runpy
import socket
import sys
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from pillarbox.sdk.filter import Filter, junk, proceed
from pillarbox.sdk.filter.testing import Client, Harness

FOLDER = Path(__file__).resolve().parents[3] / "examples"
TESTED = {"own-sender", "greylist", "dnsbl", "hide-client", "no-programs", "log-json"}


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(sys, "argv", ["filter"])
    return monkeypatch


def example(name: str) -> tuple[Filter[Any], dict[str, Any]]:
    """The filter and its program's names."""
    names = runpy.run_path(str(FOLDER / f"filter-{name}"), run_name="example")
    return names["filter"], names


def test_each_example_is_tested_here_and_short() -> None:
    assert {path.name.removeprefix("filter-") for path in FOLDER.iterdir()} == TESTED
    assert all(path.stat().st_mode & 0o111 for path in FOLDER.iterdir())
    assert all(len(path.read_text().splitlines()) <= 45 for path in FOLDER.iterdir())


def test_users_send_from_their_own_addresses(tmp_path: Path, arguments: pytest.MonkeyPatch) -> None:
    (tmp_path / "senders").write_text("alice alice@example.org Sales@example.org\n")
    sys.argv.append(str(tmp_path / "senders"))
    with Harness(example("own-sender")[0]) as harness:
        assert harness.session().ehlo().mail("bob@example.org").accepted  # not logged in: other rules are for that
        alice = harness.session().ehlo().auth("Alice")
        assert alice.mail("bob@example.org").reply == "553 5.7.1 <bob@example.org> is not an address of yours"
        assert alice.mail("sales@EXAMPLE.org").accepted
        assert not harness.session().ehlo().auth("bob").mail("bob@example.org").accepted


def test_strangers_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    filter, names = example("greylist")
    monkeypatch.setattr(names["time"], "time", lambda: 1000.0)

    def attempt(harness: Harness[Any], address: str, user: str = "") -> bool:
        client = harness.session(address=address).ehlo()
        return (client.auth(user) if user else client).mail("a@example.org").rcpt("b@example.org").accepted

    with Harness(filter) as harness:
        assert not attempt(harness, "192.0.2.1") and not attempt(harness, "192.0.2.9")
        assert attempt(harness, "192.0.2.1", "alice")
        monkeypatch.setattr(names["time"], "time", lambda: 1300.0)
        assert attempt(harness, "192.0.2.2")
        assert not attempt(harness, "2001:db8::1") and not attempt(harness, "2001:db8:0:1::1")
        assert attempt(harness, "local")
        monkeypatch.setattr(names["time"], "time", lambda: 1600.0)
        assert attempt(harness, "2001:db8::f:2")


@pytest.mark.parametrize(
    ("address", "decision"),
    [("192.0.2.99", junk()), ("192.0.2.1", proceed()), ("192.0.2.98", proceed()), ("2001:db8::1", junk()),
     ("local", proceed())],
)  # fmt: skip
def test_listed_addresses_are_junk(arguments: pytest.MonkeyPatch, address: str, decision: object) -> None:
    sys.argv += ["a.example", "b.example"]
    listed = {
        "99.2.0.192.b.example": "127.0.0.2", "98.2.0.192.a.example": "127.255.255.254",
        f"1{'.0' * 23}.8.b.d.0.1.0.0.2.a.example": "127.0.0.4",
    }  # fmt: skip

    def resolve(name: str, *_: object, **__: object) -> list[object]:
        if name not in listed:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (listed[name], 0))]

    arguments.setattr(socket, "getaddrinfo", resolve)
    with Harness(example("dnsbl")[0]) as harness:
        assert harness.session(address=address).decision == decision


def test_a_user_s_computer_is_not_named() -> None:
    text = "Received: from laptop\n\tby us\nUser-Agent: x\nSubject: y\n\nbody\n"

    def sent(client: Client) -> bytes | None:
        return client.mail("a@example.org").rcpt("b@example.org").message(text).delivered

    with Harness(example("hide-client")[0]) as harness:
        assert sent(harness.session().ehlo().auth("alice")) == b"Subject: y\r\n\r\nbody\r\n"
        assert sent(harness.session().ehlo()) == text.replace("\n", "\r\n").encode()


@pytest.mark.parametrize("name", ["game.EXE", "bill.pdf.js", "grüße.exe. "])
def test_programs_are_refused(name: str) -> None:
    message = EmailMessage()
    message["Subject"] = "hello"
    message.set_content("look")
    with Harness(example("no-programs")[0]) as harness:
        client = harness.session().ehlo().mail("a@example.org").rcpt("b@example.org").message(message)
        assert client.delivered == message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
        message.add_attachment(b"MZ", "application", "octet-stream", filename=name)
        client.mail("a@example.org").rcpt("b@example.org").message(message)
        assert client.reply.startswith("550 5.7.1 No programs") and client.reply.isascii()
        raw = message.as_bytes().replace(b"filename", b"filename*=utf-8''a%0Ab.exe; x-filename")
        client.mail("a@example.org").rcpt("b@example.org").message(raw)
        assert client.reply.startswith("550 5.7.1 No programs")


def test_accepted_messages_are_logged(tmp_path: Path, arguments: pytest.MonkeyPatch) -> None:
    sys.argv.append(str(tmp_path / "log"))
    with Harness(example("log-json")[0]) as harness:
        client = harness.session(address="192.0.2.7").ehlo("x.example").mail("a@example.org").rcpt("b@example.org")
        client.message(b"Hello\n").quit()
    (line,) = (tmp_path / "log").read_text().splitlines()
    logged = json.loads(line)
    assert (logged["client"], logged["helo"], logged["size"]) == ("192.0.2.7", "x.example", 7)
    assert (logged["from"], logged["to"]) == ("a@example.org", ["b@example.org"])
