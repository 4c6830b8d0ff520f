"""A whole session on arbitrary input: the same answers however it is cut, and nothing left behind."""

import asyncio
import re
from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.server.tls import build_contexts

from .memory import Dialogue, World, world
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


SMUGGLED = (
    b"VRFY smuggled\r\nRSET\r\nEHLO smuggled\r\nMAIL FROM:<smuggled@x.example>\r\nRCPT TO:<smuggled@example.org>\r\n"
)
BEFORE = [
    b"",
    b"EHLO x\r\n",
    b"EHLO x\r\nMAIL FROM:<a@x.example>\r\n",
    b"EHLO x\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<alice@example.org>\r\n",
    b"EHLO x\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<ghost@example.org>\r\n",
    b"EHLO x\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<alice@example.org>\r\nBDAT 4\r\na: b",
    b"EHLO x\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<alice@example.org>\r\nBDAT 4\r\na\n: ",
    b"EHLO x\r\nAUTH LOGIN\r\n",
    b"EHLO x\r\nAUTH LOGIN\r\nYWxpY2U=\r\n",
    b"EHLO x\r\nAUTH PLAIN\r\n",
    b"EHLO x\r\nAUTH SCRAM-SHA-256\r\n",
    b"EHLO x\r\nAUTH PLAIN x\r\n",
]
# What may go wrong with the line: a character too many, anywhere. Digits would make it an honest other size.
NOISE = st.sampled_from(
    [b"\0", b"\r", b"\n", b"\t", b" ", b"\v", b"\f", b"\x1b", b":", b".", b"-", b"=", b"+", b"\xc3\xa9", b"\xff"]
)


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """A line that means BDAT, and the octets that it announces: commands, if anybody took them for such."""
    word = draw(st.sampled_from([b"BDAT", b"bdat", b"Bdat"]))
    line = word + b" %d" % len(SMUGGLED) + draw(st.sampled_from([b"", b" LAST", b" last", b" FIRST", b" LAST LAST"]))
    for noise in draw(st.lists(NOISE, max_size=3)):
        at = draw(st.integers(0, len(line)))
        line = line[:at] + noise + line[at:]
    return line + b"\r\n" + SMUGGLED


async def overheard(w: World, text: bytes, size: int) -> None:
    """Send this in pieces of a size, and hear the server out."""
    c = Dialogue(*await asyncio.open_connection("127.0.0.1", w.port, ssl=trusting()))
    for at in range(0, len(text), size):
        c.writer.write(text[at : at + size])
        await asyncio.sleep(0)
    c.writer.write(b"\r\nQUIT\r\nQUIT\r\nQUIT\r\n")  # an exchange takes two lines at most
    with suppress(ConnectionError):
        await asyncio.wait_for(c.reader.read(), 10)
    c.writer.close()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(BEFORE), st.lists(chunks(), min_size=1, max_size=2), st.sampled_from([1 << 20, 7]))
def test_no_octet_of_a_chunk_is_ever_a_command(before, sent, size):
    listener = Listener(id=1, pki=("srv",), tls=TlsMode.SMTPS, auth="scram", auth_optional=True)
    config = Config(hostname="host.example.org", listeners=(listener,))
    contexts = build_contexts(config, {"srv": material("mail.example.org")}, {})

    async def inside() -> None:
        async with world(listener, config, contexts) as w:
            await overheard(w, before + b"".join(sent), size)
            await w.until(lambda: not w.server._sessions)
            assert not any("Traceback" in line for line in w.log)
            assert "smuggled" not in "\n".join(w.log) and w.lookup.asked[1:] == []

    asyncio.run(inside())
