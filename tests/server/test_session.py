"""Transcripts against a server whose lookup and queue are in memory."""

import asyncio

from pillarbox.conf.model import Config, Listener, SmtpOptions
from pillarbox.errors import TempFail

from .memory import World, world


def run(scenario, **arguments):
    async def inside():
        async with world(**arguments) as w:
            await scenario(w)

    asyncio.run(inside())


def test_a_message_is_accepted_and_committed():
    async def scenario(w: World) -> None:
        c = await w.connect()
        assert await c.reply() == "220 mail.example.org ESMTP Pillarbox"
        hello = await c.send("EHLO client.example.net")
        assert hello.startswith("250-mail.example.org Hello client.example.net [127.0.0.1], pleased to meet you\n")
        assert "250-PIPELINING\n" in hello and hello.endswith("\n250 HELP")
        assert (await c.message()).startswith("250 2.0.0 ")
        assert await c.send("QUIT") == "221 2.0.0 Bye"
        assert await c.closed()
        lines = w.queue.text().splitlines()
        assert lines[0] == "Received: from client.example.net (localhost [127.0.0.1])"
        assert lines[1].startswith("\tby mail.example.org (Pillarbox) with ESMTP id ")
        assert lines[2] == "\tfor <alice@example.org>;"
        assert lines[4] == "Subject: x"
        assert lines[5].startswith("Date: ") and lines[6].startswith("Message-ID: <")
        assert lines[7:] == ["", "body"]
        assert w.log[0] == "smtp connected address=127.0.0.1 host=localhost"
        assert w.log[-1] == "smtp disconnected reason=quit"

    run(scenario)
