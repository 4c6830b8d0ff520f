"""Sessions of local users over the control socket."""

import asyncio

import pytest

from pillarbox.errors import PermFail, TempFail

from .memory import World, world


def run(scenario):
    async def inside():
        async with world() as w:
            await scenario(w)

    asyncio.run(inside())


async def said(w: World, handle: int) -> str:
    return (await w.server.submit_read(handle)).decode()


def test_a_local_user_submits_as_an_authenticated_local_client():
    async def scenario(w: World) -> None:
        handle = await w.server.submit("alice", 1000)
        assert await said(w, handle) == "220 host.example.org ESMTP Pillarbox\r\n"
        text = b"EHLO localhost\r\nMAIL FROM:<alice@host.example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
        await w.server.submit_write(handle, text)
        got = ""
        while "354 " not in got:
            got += await said(w, handle)
        await w.server.submit_write(handle, b"Subject: x\r\n\r\nb\r\n.\r\nQUIT\r\n")
        while "221 " not in got:
            got += await said(w, handle)
        assert await w.server.submit_read(handle) == b""
        client = w.lookup.asked[0].client
        assert (client.address, client.local, client.hostname) == ("local", True, "host.example.org")
        assert client.username == "alice"
        lines = w.queue.text().splitlines()
        assert lines[0] == "Received: from localhost (host.example.org [local])"
        assert lines[1].startswith("\tby host.example.org (Pillarbox) with ESMTPA id ")
        assert lines[-3].endswith("@host.example.org>")
        assert w.log[0] == "smtp connected address=local host=host.example.org"
        assert (await w.server.stats())["smtp.session.local"] == 1

    run(scenario)


def test_a_user_who_goes_away_ends_the_session():
    async def scenario(w: World) -> None:
        handle = await w.server.submit("alice", 1000)
        await w.server.submit_close(handle)
        await w.until(lambda: not w.server._sessions)
        with pytest.raises(PermFail):
            await w.server.submit_write(handle, b"NOOP\r\n")

    run(scenario)


def test_output_that_nobody_fetches_stops_the_session():
    async def scenario(w: World) -> None:
        handle = await w.server.submit("alice", 1000)
        (session,) = w.server._sessions
        writing = asyncio.ensure_future(w.server.submit_write(handle, b"HELP\r\n" * 100_000))
        await w.until(lambda: session._write_blocked)
        assert not writing.done()
        size = 0
        while size < 1_000_000:
            size += len(await w.server.submit_read(handle))
        await w.server.submit_close(handle)
        await writing

    run(scenario)


def test_while_paused_nobody_can_submit():
    async def scenario(w: World) -> None:
        await w.server.pause(True)
        with pytest.raises(TempFail):
            await w.server.submit("alice", 1000)

    run(scenario)
