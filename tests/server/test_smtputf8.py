"""SMTPUTF8 (RFC 6531): addresses in UTF-8 where they were asked for, and nowhere else."""

import asyncio

import msgspec
import pytest

from .memory import World, world


def run(scenario, **arguments):
    async def inside():
        async with world(**arguments) as w:
            await scenario(w)

    asyncio.run(inside())


async def transaction(w: World, *lines: str, body: str = "Subject: x\r\n\r\nbody\r\n") -> list[str]:
    """The answers to these lines, and to the message."""
    c = await w.greeted()
    answers = [await c.send(f"{line}\r\n".encode()) for line in (*lines, "DATA")]
    if answers[-1].startswith("354"):
        answers[-1] = await c.send(body.encode() + b".\r\n")
    return answers


def test_it_is_offered():
    async def scenario(w: World) -> None:
        c = await w.connect()
        await c.reply()
        assert "250-SMTPUTF8\n" in await c.send("EHLO x")

    run(scenario)


def test_a_message_between_addresses_in_utf8():
    async def scenario(w: World) -> None:
        answers = await transaction(
            w,
            "MAIL FROM:<jürgen@bücher.example> SMTPUTF8",
            "RCPT TO:<用户@example.org> ORCPT=utf-8;用户@example.org",
            body="Subject: grüße\r\nFrom: jürgen\r\n\r\nbody\r\n",
        )
        assert [a[:3] for a in answers] == ["250", "250", "250"]
        (asked,) = w.lookup.asked
        assert (asked.sender, asked.rcpt) == ("jürgen@bücher.example", "用户@example.org")
        assert asked.dsn_orcpt == "utf-8;用户@example.org"
        (message,) = w.queue.committed
        assert message.smtputf8 and message.eight_bit
        text = w.queue.bodies[message.msgid].decode()
        assert " with UTF8SMTP id " in text and "for <" not in text and "From: jürgen@mail.example.org" in text
        assert w.log[-1].endswith("from=<jürgen@bücher.example> to=<用户@example.org>")

    run(scenario)


def test_what_is_ascii_all_the_same_needs_nothing():
    async def scenario(w: World) -> None:
        answers = await transaction(w, "MAIL FROM:<a@x.example> BODY=8BITMIME SMTPUTF8", "RCPT TO:<bob@example.org>")
        assert [a[:3] for a in answers] == ["250", "250", "250"]
        assert not w.queue.committed[0].smtputf8
        assert "with UTF8SMTP id" in w.queue.text() and "\tfor <bob@example.org>;" in w.queue.text()

    run(scenario)


def test_a_header_that_nobody_declared_is_taken_as_it_is():
    async def scenario(w: World) -> None:
        lines = ("MAIL FROM:<a@x.example>", "RCPT TO:<bob@example.org>")
        answers = await transaction(w, *lines, body="Subject: grüße\r\n\r\nb\r\n")
        assert answers[-1][:3] == "250"
        (message,) = w.queue.committed
        assert message.eight_bit and not message.smtputf8
        assert "with ESMTP id" in w.queue.text()

    run(scenario)


@pytest.mark.parametrize("address", ["jürgen@example.org", "a@bücher.example"])
def test_addresses_in_utf8_that_were_not_declared_are_refused(address):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send(f"MAIL FROM:<{address}>\r\n".encode()) == "553 5.1.0 Sender address syntax error"
        assert (await c.send("MAIL FROM:<a@x.example>"))[:3] == "250"
        assert await c.send(f"RCPT TO:<{address}>\r\n".encode()) == "501 5.1.3 Recipient address syntax error"
        assert f'command="RCPT TO:<{address}>"' in w.log[-1]

    run(scenario)


def test_bytes_that_are_no_utf8_are_refused_and_shown_as_bytes():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        answer = await c.send(b"MAIL FROM:<j\xfcrgen@x.example> SMTPUTF8\r\n")
        assert answer == "553 5.1.0 Sender address syntax error"
        assert 'command="MAIL FROM:<j\\xfcrgen@x.example> SMTPUTF8"' in w.log[-1]
        assert (await c.send(b"EHLO \xff\r\n"))[:3] == "501"

    run(scenario)


def test_a_refusal_is_in_utf8_only_for_who_asked_for_it():
    async def scenario(w: World) -> None:
        answers = await transaction(w, "MAIL FROM:<> SMTPUTF8", "RCPT TO:<jürgen@far.example>")
        assert answers[1].encode("latin-1").decode() == "550 Invalid recipient: <jürgen@far.example>"
        answers = await transaction(w, "MAIL FROM:<> SMTPUTF8", "RCPT TO:<a@far.example> FOO=ü")
        assert answers[1] == "503 Unsupported option FOO=?"

    run(scenario)


def test_a_domain_in_unicode_is_written_in_ascii_into_received():
    async def scenario(w: World) -> None:
        w.lookup.expand = lambda recipient, real=w.lookup.expand: real(  # type: ignore[method-assign,misc]
            msgspec.structs.replace(recipient, rcpt="alice@example.org")
        )
        answers = await transaction(w, "MAIL FROM:<> SMTPUTF8", "RCPT TO:<a@bücher.example>")
        assert answers[-1][:3] == "250"
        assert "\tfor <a@xn--bcher-kva.example>;" in w.queue.text()
        assert not w.queue.committed[0].smtputf8

    run(scenario)
