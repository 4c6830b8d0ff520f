"""A whole session on arbitrary input: the same answers however it is cut, and nothing left behind."""

import asyncio
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.server.tls import build_contexts

from .memory import world
from .test_tls import material, trusting

PIECES = [
    b"EHLO x\r\n",
    b"HELO \xff\r\n",
    b"MAIL FROM:<a@x.example>\r\n",
    b"MAIL FROM:<> SIZE=99999999999\r\n",
    b"RCPT TO:<alice@example.org>\r\n",
    b"RCPT TO:<ghost@example.org> NOTIFY=NEVER\r\n",
    b"DATA\r\n",
    b"BDAT 4\r\n",
    b"BDAT 14\r\n",
    b"BDAT 13 LAST\r\n",
    b"BDAT 0 LAST\r\n",
    b"BDAT x\r\n",
    b"Subject: x\r\n",
    b"\r\n",
    b".\r\n",
    b"..\r\n",
    b"Bcc: y\r\n z\r\n",
    b"\n.\n",
    b"\r",
    b"\0",
    b"RSET\r\n",
    b"AUTH PLAIN x\r\n",
    b"STARTTLS\r\n",
    b"QUIT\r\n",
]


async def answers(chunks: list[bytes]) -> tuple[str, list[str]]:
    """All that the server says, and what it stored."""
    async with world() as w:
        handle = await w.server.submit("alice", 1000)
        (session,) = w.server._sessions
        said = b""

        async def read() -> None:
            nonlocal said
            while data := await w.server.submit_read(handle):
                said += data

        reading = asyncio.ensure_future(read())
        for chunk in chunks:
            if session._lost or session._ending:
                break
            await w.server.submit_write(handle, chunk)
            await asyncio.sleep(0)
        for _ in range(50):
            await asyncio.sleep(0)
        await w.server.submit_close(handle)
        await reading
        await w.until(lambda: not w.server._sessions)
        assert not any("Traceback" in line for line in w.log)
        bodies = [w.queue.text(i) for i in range(len(w.queue.committed))]
    return re.sub(r"\b[0-9a-f]{8}\b", "<id>", said.decode()), [re.sub(r"[0-9a-f]{8,}", "<id>", b) for b in bodies]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25))
def test_the_answers_do_not_depend_on_how_the_input_was_cut(pieces):
    text = b"".join([b"EHLO x\r\n", *pieces])
    whole = asyncio.run(answers([text]))
    assert asyncio.run(answers([text[i : i + 1] for i in range(len(text))])) == whole
    assert asyncio.run(answers([text[i : i + 7] for i in range(0, len(text), 7)])) == whole


def test_pipelined_commands_are_answered_in_one_write():
    async def inside() -> None:
        async with world() as w:
            handle = await w.server.submit("alice", 1000)
            await w.server.submit_read(handle)
            (session,) = w.server._sessions
            writes: list[bytes] = []
            session._transport.write = writes.append  # type: ignore[union-attr,method-assign]
            await w.server.submit_write(handle, b"NOOP\r\nEHLO x\r\nVRFY x\r\nMAIL FROM:<a@x.example>\r\n")
            await w.until(lambda: session.tx is not None)
            assert b"".join(writes).count(b"250 ") == 3 and len(writes) <= 2

    asyncio.run(inside())


AUTH_PIECES = [
    b"EHLO x\r\n",
    b"HELO x\r\n",
    b"AUTH PLAIN\r\n",
    b"AUTH PLAIN =\r\n",
    b"AUTH PLAIN AGFsaWNlAGFsaWNlLXB3\r\n",
    b"AUTH LOGIN\r\n",
    b"AUTH LOGIN YWxpY2U=\r\n",
    b"YWxpY2U=\r\n",
    b"YWxpY2UtcHc=\r\n",
    b"AUTH SCRAM-SHA-256 biwsbj1hbGljZSxyPWNsaWVudA==\r\n",
    b"AUTH SCRAM-SHA-256\r\n",
    b"biwsbj1hbGljZSxyPWNsaWVudA==\r\n",
    b"Yz1iaXdzLHI9Y2xpZW50LHA9QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQT0=\r\n",
    b"AUTH SCRAM-SHA-256-PLUS biws\r\n",
    b"AUTH XOAUTH2 dXNlcj1hbGljZQFhdXRoPUJlYXJlciB3cm9uZwEB\r\n",
    b"AUTH OAUTHBEARER bixhPWFsaWNlLAFhdXRoPUJlYXJlciBhbGljZS10b2tlbgEB\r\n",
    b"AQ==\r\n",
    b"*\r\n",
    b"=\r\n",
    b"\r\n",
    b"\xff\xfe\r\n",
    b"AUTH \xc3\xa9 x\r\n",
    b"MAIL FROM:<a@x.example> AUTH=<>\r\n",
    b"RSET\r\n",
]


async def answers_over_tls(chunks: list[bytes]) -> str:
    listener = Listener(id=1, pki=("srv",), tls=TlsMode.SMTPS, auth="scram", tokens="tokens")
    config = Config(hostname="host.example.org", listeners=(listener,))
    async with world(listener, config, build_contexts(config, {"srv": material("mail.example.org")}, {})) as w:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port, ssl=trusting())
        for chunk in chunks:
            writer.write(chunk)
            await asyncio.sleep(0)
        writer.write(b"\r\nQUIT\r\nQUIT\r\nQUIT\r\n")  # an exchange takes two lines at most
        said = (await asyncio.wait_for(reader.read(), 10)).decode("ascii")
        writer.close()
        await w.until(lambda: not w.server._sessions)
        assert not any("Traceback" in line for line in w.log)
    assert all(re.match(r"\d{3}[ -]", line) for line in said.splitlines())
    return re.sub(r"334 \S{30,}", "334 <challenge>", said)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(AUTH_PIECES), max_size=12))
def test_nothing_but_replies_comes_out_of_any_exchange_however_it_was_cut(pieces):
    text = b"".join([b"EHLO x\r\n", *pieces])
    whole = asyncio.run(answers_over_tls([text]))
    assert asyncio.run(answers_over_tls([text[i : i + 1] for i in range(len(text))])) == whole
