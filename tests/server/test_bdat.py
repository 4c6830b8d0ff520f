"""BDAT: messages in chunks, whatever becomes of them (RFC 3030)."""

import asyncio

import pytest

from pillarbox.conf.model import Config, Listener, SmtpOptions
from pillarbox.errors import NoSpace, PermFail, TempFail

from .memory import Dialogue, World, world

NOT_NOW = "503 5.5.1 Invalid command: Command not allowed at this point."
BARE = "550 5.6.0 Message refused: bare CR or LF in message data (RFC 5321 2.3.8)"
HEADER = b"Subject: x\r\n\r\n"


def run(scenario, **arguments):
    async def inside():
        async with world(**arguments) as w:
            await scenario(w)

    asyncio.run(inside())


async def begun(w: World) -> Dialogue:
    """A client whose transaction has a recipient."""
    c = await w.greeted()
    await c.send("MAIL FROM:<s@client.example.net>")
    await c.send("RCPT TO:<alice@example.org>")
    return c


def chunk(data: bytes, last: str = "") -> bytes:
    return f"BDAT {len(data)}{last}\r\n".encode() + data


def test_it_is_offered_and_binarymime_is_not():
    async def scenario(w: World) -> None:
        c = await w.connect()
        await c.reply()
        hello = await c.send("EHLO x")
        assert "250-CHUNKING\n" in hello and "BINARYMIME" not in hello
        assert (await c.send("MAIL FROM:<s@x.example> BODY=BINARYMIME"))[:3] == "503"

    run(scenario)


def test_a_message_in_chunks_arrives_as_it_was_sent():
    async def scenario(w: World) -> None:
        c = await begun(w)
        assert await c.send(chunk(HEADER + b".\r")) == "250 2.0.0 16 octets received"
        assert await c.send(chunk(b"\n..two\r\n.\r\n")) == "250 2.0.0 11 octets received"
        assert (await c.send(chunk(b"end", " LAST"))).startswith("250 2.0.0 ")
        assert w.queue.text().endswith("\n\n.\n..two\n.\nend\n")
        assert "Subject: x\n" in w.queue.text() and "Date: " in w.queue.text()
        assert (await c.message())[:3] == "250"  # DATA again, in the next transaction

    run(scenario)


def test_one_chunk_may_be_the_whole_message():
    async def scenario(w: World) -> None:
        c = await begun(w)
        assert (await c.send(chunk(HEADER + b"b\r\n", " last")))[:3] == "250"
        assert w.log[-1].endswith("to=<alice@example.org>")

    run(scenario)


def test_an_empty_last_chunk_ends_the_message():
    async def scenario(w: World) -> None:
        c = await begun(w)
        text = chunk(HEADER + b"b\r\n") + chunk(b"", " LAST")
        assert [line[:3] for line in (await c.send(text, 2)).split("\n")] == ["250", "250"]
        assert w.queue.text().endswith("\n\nb\n")

    run(scenario)


def test_a_pipelined_transaction_with_chunks_is_answered_in_order():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        text = (
            b"MAIL FROM:<s@x.example>\r\nRCPT TO:<bob@example.org>\r\n"
            + chunk(HEADER)
            + chunk(b"QUIT\r\n")
            + chunk(b".\r\n", " LAST")
            + b"NOOP\r\nQUIT\r\n"
        )
        assert [line[:3] for line in (await c.send(text, 7)).split("\n")] == ["250"] * 6 + ["221"]
        assert w.queue.text().endswith("\n\nQUIT\n.\n")

    run(scenario)


def test_chunks_without_a_transaction_are_read_and_refused():
    async def scenario(w: World) -> None:
        c = await w.connect()
        await c.reply()
        assert await c.send(chunk(b"QUIT\r\n")) == NOT_NOW
        await c.send("EHLO x")
        text = b"MAIL FROM:broken\r\nRCPT TO:<alice@example.org>\r\n" + chunk(b"RSET\r\n") + chunk(b"QUIT\r\n", " LAST")
        assert [line[:3] for line in (await c.send(text + b"NOOP\r\n", 5)).split("\n")] == [
            "553",
            "503",
            "503",
            "503",
            "250",
        ]
        assert w.queue.committed == []

    run(scenario)


def test_without_recipients_the_transaction_ends():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        text = b"MAIL FROM:<s@x.example>\r\nRCPT TO:<ghost@example.org>\r\n" + chunk(HEADER) + chunk(b"b\r\n", " LAST")
        lines = (await c.send(text, 4)).split("\n")
        assert [line[:3] for line in lines] == ["250", "550", "503", "503"]
        assert await c.send("RCPT TO:<alice@example.org>") == NOT_NOW
        assert (await c.message())[:3] == "250"

    run(scenario)


@pytest.mark.parametrize(
    ("first", "reply"),
    [
        (b"Subject: x\n\r\n", BARE),
        (b"a\rb: x\r\n", BARE),
        (b"no header\r\n\r\n", "550 5.7.1 Delivery not authorized, message refused: Message is not RFC 2822 compliant"),
    ],
)
def test_after_a_refused_chunk_all_others_are_refused(first, reply):
    async def scenario(w: World) -> None:
        c = await begun(w)
        text = chunk(first) + chunk(b"more\r\n") + chunk(b"DATA\r\n", " LAST")
        assert (await c.send(text, 3)).split("\n") == [reply, NOT_NOW, NOT_NOW]
        assert w.queue.committed == []
        assert f'smtp failed-command command="BDAT {len(first)}" result="{reply}"' in w.log
        assert (await c.message())[:3] == "250"

    run(scenario)


def test_a_bare_cr_at_the_end_of_the_message_is_refused():
    async def scenario(w: World) -> None:
        c = await begun(w)
        assert await c.send(chunk(HEADER + b"a\r", " LAST")) == BARE
        assert w.queue.committed == []

    run(scenario)


@pytest.mark.parametrize("arguments", ["", " ", " x", " -1", " 5 FIRST", " 5 LAST x", " 123456789012345678901"])
def test_where_it_is_not_known_what_follows_the_connection_ends(arguments):
    async def scenario(w: World) -> None:
        c = await begun(w)
        assert await c.send(f"BDAT{arguments}") == "501 5.5.4 Invalid command arguments: BDAT size [LAST]"
        assert await c.closed()

    run(scenario)


REFUSED = "501 5.5.4 Invalid command arguments: BDAT size [LAST]"
SMUGGLED = b"RSET\r\nMAIL FROM:<smuggled@x.example>\r\nRCPT TO:<smuggled@example.org>\r\nDATA\r\n\r\nx\r\n.\r\n"


@pytest.mark.parametrize(
    "line",
    [
        "BDAT\t{} LAST",
        "bdat {} LAST\0",
        "BDAT {}\r",
        "BDAT{} LAST",
        " BDAT {} LAST",
        "\0BDAT {}",
        "BD\0AT {}",
        "BDAT:{}",
    ],
)
def test_a_line_that_was_meant_for_bdat_and_is_refused_ends_the_connection(line):
    async def scenario(w: World) -> None:
        c = await begun(w)
        assert await c.send(f"{line.format(len(SMUGGLED))}\r\n".encode() + SMUGGLED) == REFUSED
        assert await c.closed()
        assert "smuggled" not in str(w.lookup.asked) and w.queue.committed == []

    run(scenario)


def test_rset_in_the_middle_forgets_what_came():
    async def scenario(w: World) -> None:
        c = await begun(w)
        big = b"x" * 998 + b"\r\n"
        assert (await c.send(chunk(HEADER + big * 300)))[:3] == "250"
        assert await c.send("RSET") == "250 2.0.0 Reset state"
        await w.until(lambda: bool(w.queue.discarded))
        assert await c.send(chunk(b"b\r\n", " LAST")) == NOT_NOW
        assert (await c.message())[:3] == "250"
        assert big.decode() not in w.queue.text()

    run(scenario)


def test_data_and_bdat_do_not_mix():
    async def scenario(w: World) -> None:
        c = await begun(w)
        assert (await c.send(chunk(HEADER)))[:3] == "250"
        for line in ("DATA", "RCPT TO:<bob@example.org>", "MAIL FROM:<x@x.example>"):
            assert await c.send(line) == NOT_NOW
        assert (await c.send("NOOP"))[:3] == "250"
        assert (await c.send(chunk(b"b\r\n", " LAST")))[:3] == "250"
        assert w.queue.text().endswith("\n\nb\n")

    run(scenario)


def small(size: int) -> Config:
    listener = Listener(id=1, hostname="mail.example.org")
    return Config(hostname="host.example.org", listeners=(listener,), smtp=SmtpOptions(max_message_size=size))


def test_the_limit_holds_over_all_chunks():
    async def scenario(w: World) -> None:
        c = await begun(w)
        half = b"x" * 598 + b"\r\n"
        assert (await c.send(chunk(HEADER + half)))[:3] == "250"
        assert (await c.send(chunk(half)))[:9] == "554 5.3.4"
        assert await c.send(chunk(half, " LAST")) == NOT_NOW
        await c.send("MAIL FROM:<s@x.example>")
        await c.send("RCPT TO:<alice@example.org>")
        assert (await c.send(chunk(b"x" * 5000, " LAST")))[:9] == "554 5.3.4"
        assert (await c.send("NOOP"))[:3] == "250"
        assert w.queue.committed == []

    run(scenario, config=small(1000))


def test_a_large_message_in_chunks_is_streamed():
    async def scenario(w: World) -> None:
        c = await begun(w)
        line = b"x" * 998 + b"\r\n"
        await c.send(chunk(HEADER))
        for _ in range(35):
            assert (await c.send(chunk(line * 1000)))[:3] == "250"
        assert (await c.send(chunk(b"", " LAST")))[:3] == "250"
        (message,) = w.queue.committed
        assert message.streamed and message.size > 35_000_000
        assert w.queue.largest_chunk <= 128 * 1024

    run(scenario)


@pytest.mark.parametrize("failure", [TempFail("down"), NoSpace("full"), PermFail("never")])
def test_a_queue_that_takes_nothing_is_said_at_the_end_of_a_chunk(failure):
    async def scenario(w: World) -> None:
        async def refuse(msgid: int, offset: int, data: bytes) -> None:
            raise failure

        w.queue.append = refuse  # type: ignore[method-assign]
        c = await begun(w)
        answer = await c.send(chunk(HEADER + b"x" * 998 + b"\r\n" + (b"y" * 998 + b"\r\n") * 200))
        assert answer[:3] == {TempFail: "451", NoSpace: "452", PermFail: "554"}[type(failure)]
        assert await c.send(chunk(b"", " LAST")) == NOT_NOW

    run(scenario)


def test_a_client_that_goes_away_between_chunks_leaves_nothing():
    async def scenario(w: World) -> None:
        c = await begun(w)
        await c.send(chunk(HEADER + b"x" * 998 + b"\r\n" + (b"y" * 998 + b"\r\n") * 200))
        c.writer.close()
        await w.until(lambda: bool(w.queue.discarded))
        assert w.queue.committed == []

    run(scenario)
