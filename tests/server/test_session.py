"""Transcripts against a server whose lookup and queue are in memory."""

import asyncio
import errno
import socket
import struct
from contextlib import suppress

import pytest

from pillarbox.conf.model import Config, Listener, SmtpOptions
from pillarbox.errors import PermFail, TempFail
from pillarbox.mail.envelope import Notify
from pillarbox.roles.lookup import ReverseName
from pillarbox.roles.queue import INLINE_BODY
from pillarbox.server import session
from pillarbox.server.commands import rcpt

from .memory import World, world

NOT_NOW = "503 5.5.1 Invalid command: Command not allowed at this point."


def run(scenario, **arguments):
    async def inside():
        async with world(**arguments) as w:
            await scenario(w)

    asyncio.run(inside())


def with_options(**options) -> Config:
    return Config(
        hostname="host.example.org",
        listeners=(Listener(id=1, hostname="mail.example.org"),),
        smtp=SmtpOptions(**options),
    )


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
        assert f"size={len(w.queue.text())} nrcpt=1 proto=ESMTP" in w.log[1]
        assert w.log[2].endswith("from=<s@client.example.net> to=<alice@example.org>")
        assert w.log[-1] == "smtp disconnected reason=quit"

    run(scenario)


def test_a_whole_session_in_one_write_is_answered_in_order():
    async def scenario(w: World) -> None:
        c = await w.connect()
        text = (
            b"EHLO x\r\nMAIL FROM:<s@x.example>\r\nRCPT TO:<ghost@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
            b"Subject: p\r\n\r\nb\r\n.\r\nNOOP\r\nQUIT\r\n"
        )
        c.writer.write(text)
        codes = [(await c.reply())[:3] for _ in range(9)]
        assert codes == ["220", "250", "250", "550", "250", "354", "250", "250", "221"]
        assert await c.closed()

    run(scenario)


def test_help_names_what_is_there():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.send("HELP")).endswith("\n214 2.0.0 End of HELP info")
        commands = "HELO EHLO STARTTLS AUTH MAIL RCPT DATA BDAT RSET QUIT NOOP HELP"
        assert await c.send("help commands") == f"214 2.0.0 {commands}"
        offered = [line[4:].split(" ")[0] for line in (await c.send("EHLO x")).split("\n")[1:]]
        assert await c.send("HELP EXTENSIONS") == f"214 2.0.0 {' '.join(offered)}"
        assert {"LIMITS", "CHUNKING", "SMTPUTF8"} < set(offered)
        assert (await c.send("HELP me"))[:9] == "500 5.5.4"

    run(scenario)


def test_a_data_command_without_recipients_makes_no_message_of_what_follows():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        text = b"MAIL FROM:<s@x.example>\r\nRCPT TO:<ghost@example.org>\r\nDATA\r\nQUIT\r\n"
        assert [x[:3] for x in (await c.send(text, 4)).split("\n")] == ["250", "550", "503", "221"]

    run(scenario)


@pytest.mark.parametrize("verb", ["HELO", "EHLO", "RSET"])
def test_a_transaction_is_forgotten(verb):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        await c.send("RCPT TO:<alice@example.org>")
        assert (await c.send(verb if verb == "RSET" else f"{verb} again.example"))[:3] == "250"
        assert await c.send("DATA") == NOT_NOW
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "250"

    run(scenario)


@pytest.mark.parametrize(
    "line", ["RSET", "MAIL FROM:<s@x.example>", "RCPT TO:<a@example.org>", "DATA", "AUTH PLAIN", "STARTTLS"]
)
def test_commands_before_helo(line):
    async def scenario(w: World) -> None:
        c = await w.connect()
        await c.reply()
        assert await c.send(line) == NOT_NOW
        assert f'smtp failed-command command="{line}" result="{NOT_NOW}"' in w.log

    run(scenario)


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("RSET now", "500 5.5.4 Invalid command arguments: command does not accept arguments."),
        ("QUIT ", "500 5.5.4 Invalid command arguments: command does not accept arguments."),
        ("NOOP anything", "250 2.0.0 Ok"),
        ("VRFY alice", "500 5.5.1 Invalid command: Command unrecognized"),
        ("", "500 5.5.1 Invalid command: Command unrecognized"),
        ("NOOP\0", "500 5.5.2 Syntax error: Invalid character in command"),
        ("MAIL FROM:<\xe9@x.example>", "553 5.1.0 Sender address syntax error"),
        ("MAIL FROM:<a@x.example> FOO=\xe9", "503 5.5.4 Invalid command arguments: Unsupported option FOO=?"),
        ("MAIL FROM:<a@x.example> SIZE=36700161", "552 5.3.4 Message too big for system"),
        ("HELO -dash", "501 5.5.4 Invalid command arguments: Invalid domain name"),
        ("STARTTLS", "503 5.5.1 Invalid command: Command not supported"),
        ("AUTH PLAIN x", "503 5.5.1 Invalid command: Command not supported"),
    ],
)
def test_replies(line, reply):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send(line) == reply

    run(scenario)


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"NOOP " + b"n" * 2043 + b"\r\n", "500 5.0.0 Command line too long"),
        (b"z" * 65536, "500 5.0.0 Line too long"),
        (b"NOOP\n", "500 5.5.2 Syntax error: bare LF in command, lines end with CRLF"),
    ],
)
def test_bad_input_ends_the_session(data, reply):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.send(data) == reply
        assert await c.closed()
        assert f'smtp bad-input result="{reply}"' in w.log

    run(scenario)


SMUGGLING = [b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\r\r\n.\r\r\n", b"\r\n\0.\n"]


@pytest.mark.parametrize("fake", SMUGGLING)
def test_no_second_message_is_smuggled_in(fake):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        inner = b"MAIL FROM:<evil@x.example>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nSubject: evil\r\n\r\nx\r\n"
        reply = await c.message((b"Subject: a\r\n\r\nx" + fake + inner).decode("latin-1"))
        assert reply == "550 5.6.0 Message refused: bare CR or LF in message data (RFC 5321 2.3.8)"
        assert await c.send("NOOP") == "250 2.0.0 Ok"
        assert w.queue.committed == [] and len(w.lookup.asked) == 1

    run(scenario)


@pytest.mark.parametrize(
    ("body", "reply"),
    [
        (
            "this is not a header\r\n",
            "550 5.7.1 Delivery not authorized, message refused: Message is not RFC 2822 compliant",
        ),
        ("Received: x\r\n" * 100, "500 5.4.6 Routing loop detected: Loop detected"),
        (
            "X: " + "y" * 60000 + "\r\n" + ("Z: " + "y" * 60000 + "\r\n") * 5,
            "552 5.3.4 Message too big for system: Header too big",
        ),
    ],
)
def test_refused_messages_leave_the_session_usable(body, reply):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message(body) == reply
        assert f'smtp failed-command command="DATA" result="{reply}"' in w.log
        assert (await c.message())[:3] == "250"

    run(scenario)


def test_the_size_limit_holds_while_receiving():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        reply = await c.message("Subject: big\r\n\r\n" + ("x" * 50 + "\r\n") * 20)
        assert reply == "554 5.3.4 Message too big for system: Transaction failed, message too big"
        assert (await c.message())[:3] == "250"

    run(scenario, config=with_options(max_message_size=1000))


def test_limits_of_recipients_and_mails():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "250"
        assert await c.send("RCPT TO:<bob@example.org>") == "451 4.5.3 Too many recipients: Too many recipients"
        await c.send("RSET")
        assert (await c.message())[:3] == "250"
        assert await c.send("MAIL FROM:<s@x.example>") == "452 4.5.3 Too many recipients: Too many messages sent"

    run(scenario, config=with_options(max_rcpt=1, max_mails=1))


def test_recipients_that_are_large_lists_do_not_cost_memory_without_bound(monkeypatch):
    monkeypatch.setattr(rcpt, "ENVELOPES_MAX", 3)

    async def scenario(w: World) -> None:
        client = await w.greeted()
        await client.send("MAIL FROM:<s@client.example.net>")
        replies = [await client.send("RCPT TO:<alice@example.org>") for _ in range(5)]
        assert [reply[:3] for reply in replies] == ["250", "250", "250", "451", "451"]
        await client.send("DATA")
        assert (await client.send(b"Subject: x\r\n\r\n.\r\n"))[:3] == "250"
        assert len(w.queue.committed[0].envelopes) == 3

    run(scenario)


def test_dsn_parameters_reach_the_lookup_and_notify_belongs_to_one_recipient():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example> RET=FULL ENVID=id+3D1")
        await c.send("RCPT TO:<alice@example.org> NOTIFY=FAILURE,DELAY ORCPT=rfc822;orig@example.net")
        await c.send("RCPT TO:<bob@example.org>")
        first, second = w.lookup.asked
        assert (first.dsn_ret, first.dsn_envid, first.dsn_orcpt) == ("FULL", "id+3D1", "rfc822;orig@example.net")
        assert first.dsn_notify == Notify.FAILURE | Notify.DELAY
        assert second.dsn_notify == Notify.NONE

    run(scenario)


@pytest.mark.parametrize(
    ("error", "code"), [(TempFail("disk full"), "451"), (PermFail("no"), "554"), (OSError("x"), "421")]
)
def test_a_queue_that_fails_is_no_250(error, code):
    async def scenario(w: World) -> None:
        c = await w.greeted()
        w.queue.fail = error
        reply = await c.message()
        assert reply[:3] == code and str(error) not in reply
        assert any(str(error) in line for line in w.log)
        if code == "421":
            assert await c.closed()

    run(scenario)


def test_a_lookup_that_fails_is_a_451_and_the_session_goes_on():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        w.lookup.fail = True
        assert await c.send("RCPT TO:<alice@example.org>") == "451 4.3.0 Temporary failure"
        w.lookup.fail = False
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "250"

    run(scenario)


def test_a_large_message_is_streamed_in_bounded_chunks():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        body = ("x" * 998 + "\r\n") * 3000
        assert (await c.message("Subject: large\r\n\r\n" + body))[:3] == "250"
        message = w.queue.committed[0]
        assert message.streamed and message.body == b"" and message.size > len(body)
        assert w.queue.bodies[message.msgid].endswith(body.encode())
        assert w.queue.largest_chunk <= INLINE_BODY

    run(scenario)


def test_memory_is_bounded_while_the_queue_does_not_take_more():
    async def scenario(w: World) -> None:
        w.queue.gate = asyncio.Event()
        c = await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await c.send(line)
        c.writer.write(b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 20000 + b".\r\n")
        (session,) = w.server._sessions
        await w.until(lambda: session._read_paused)
        await asyncio.sleep(0.05)
        assert session.core.buffered < 600 * 1024
        w.queue.gate.set()
        assert (await c.reply())[:3] == "250"

    run(scenario)


def test_an_aborted_large_message_is_discarded():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await c.send(line)
        c.writer.write(b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 1000)
        await w.until(lambda: bool(w.queue.bodies))
        c.writer.close()
        await w.until(lambda: bool(w.queue.discarded))
        assert w.queue.committed == [] and w.queue.bodies == {}

    run(scenario)


def test_a_commit_under_way_is_finished_when_the_client_goes():
    async def scenario(w: World) -> None:
        w.queue.gate = asyncio.Event()
        c = await w.greeted()
        for line in ("MAIL FROM:<s@x.example>", "RCPT TO:<alice@example.org>", "DATA"):
            await c.send(line)
        c.writer.write(b"Subject: x\r\n\r\nb\r\n.\r\n")
        (session,) = w.server._sessions
        await w.until(lambda: session.committing)
        c.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.writer.close()
        await w.until(lambda: session._lost)
        w.queue.gate.set()
        await w.until(lambda: bool(w.queue.committed))
        await w.until(lambda: not w.server._sessions)

    run(scenario)


def test_a_client_that_only_shuts_down_its_side_gets_its_answers():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"MAIL FROM:<s@x.example>\r\nRCPT TO:<alice@example.org>\r\n")
        c.writer.write_eof()
        assert (await c.reply())[:3] == "250"
        assert (await c.reply())[:3] == "250"
        assert await c.closed()
        assert w.log[-1] == "smtp disconnected reason=disconnect"

    run(scenario)


def test_a_client_that_is_still_sending_hears_why_it_was_refused():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"x" * 200_000)  # more than is read before the line is too long
        assert await c.reply() == "500 5.0.0 Line too long"
        c.writer.write(b"y" * 50_000)
        await c.writer.drain()
        assert await c.closed()  # the end of the stream, not a reset
        c.writer.close()
        await w.until(lambda: not w.server._sessions)

    run(scenario)


def test_a_refused_client_that_sends_on_and_on_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "HEAR_OUT", 3600.0)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"x" * 200_000)
        assert await c.reply() == "500 5.0.0 Line too long"
        with suppress(ConnectionError):
            while w.server._sessions:
                c.writer.write(b"y" * 50_000)
                await c.writer.drain()
                await asyncio.sleep(0)
        await w.until(lambda: not w.server._sessions)

    run(scenario)


def test_a_refused_client_that_stays_is_closed_after_a_moment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "HEAR_OUT", 0.0)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        c.writer.write(b"x" * 200_000)
        assert await c.reply() == "500 5.0.0 Line too long"
        await w.until(lambda: not w.server._sessions)

    run(scenario)


def test_a_refused_client_is_heard_out_whatever_else_happens_to_the_session(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "HEAR_OUT", 3600.0)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        (it,) = w.server._sessions
        assert (await c.send("BDAT\t5"))[:3] == "501"
        it.resume_writing()  # as when the reply has left a full socket
        c.writer.write(b"y" * 50_000)
        await w.until(lambda: it._ignored == 50_000)
        assert not it._transport.is_closing()
        it.drain()  # a server that stops waits for nobody's refused octets
        await w.until(lambda: not w.server._sessions)

    run(scenario)


def test_a_client_that_is_gone_when_it_is_refused_leaves_nothing():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        (it,) = w.server._sessions

        def gone() -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        async def broken(recipient: object) -> None:
            it.pause_reading()  # as when more came meanwhile than is read ahead
            raise ValueError("cannot be decoded")

        it._transport.write_eof = gone  # type: ignore[union-attr,method-assign]
        w.lookup.expand = broken  # type: ignore[method-assign,assignment]
        await c.send("MAIL FROM:<s@x.example>")
        assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "421"
        c.writer.close()
        await w.until(lambda: not w.server._sessions)
        assert w.log[-1] == "smtp disconnected reason=quit"

    run(scenario)


def test_the_banner_does_not_wait_for_the_reverse_name():
    async def scenario(w: World) -> None:
        gate = asyncio.Event()

        async def slow(address: str) -> ReverseName:
            await gate.wait()
            return ReverseName(name="slow.example", fcrdns="pass")

        w.lookup.client_name = slow  # type: ignore[method-assign]
        c = await w.greeted()
        assert (await c.send("MAIL FROM:<s@x.example>"))[:3] == "250"
        assert w.log == []
        c.writer.write(b"RCPT TO:<alice@example.org>\r\n")
        gate.set()
        assert (await c.reply())[:3] == "250"
        assert w.lookup.asked[0].client.hostname == "slow.example"
        assert w.log[0] == "smtp connected address=127.0.0.1 host=slow.example"

    run(scenario)


def test_names_by_address_and_masked_sources():
    async def scenario(w: World) -> None:
        w.lookup.host_names["127.0.0.1"] = "one.example.org"
        c = await w.connect()
        assert await c.reply() == "220 one.example.org ESMTP Pillarbox"
        assert "DSN" not in await c.send("EHLO x")
        assert (await c.message())[:3] == "250"
        assert w.queue.text().startswith("Received: \n\tby one.example.org (Pillarbox) with ESMTP id ")

    run(scenario, listener=Listener(id=1, hostname="mail.example.org", hostnames="n", mask_src=True, no_dsn=True))


def test_a_table_of_names_that_does_not_answer_leaves_the_listeners_name() -> None:
    async def scenario(w: World) -> None:
        w.lookup.host_names["127.0.0.1"] = TempFail("table n does not answer")
        dialogue = await w.connect()
        assert await dialogue.reply() == "220 mail.example.org ESMTP Pillarbox"
        assert (await dialogue.send("HELO client.example.net"))[:3] == "250"

    run(scenario, listener=Listener(id=1, hostname="mail.example.org", hostnames="n"))


def test_sessions_keep_the_configuration_that_they_began_with():
    async def scenario(w: World) -> None:
        before = await w.greeted()
        listener = Listener(id=1, hostname="new.example.org")
        w.configure(Config(hostname="h", generation=7, listeners=(listener,)))
        after = await w.connect()
        assert await after.reply() == "220 new.example.org ESMTP Pillarbox"
        await after.send("EHLO x")
        for c in (before, after):
            assert (await c.message())[:3] == "250"
        assert [request.generation for request in w.lookup.asked] == [0, 7]
        assert "by mail.example.org " in w.queue.text(0) and "by new.example.org " in w.queue.text(1)

    run(scenario)


def test_headers_are_completed_for_local_clients_only_where_they_lack():
    async def scenario(w: World) -> None:
        c = await w.greeted("HELO client.example.net")
        await c.message("Date: x\r\nMessage-ID: <y@z>\r\nBcc: secret@x.example\r\nTo: bob\r\n\r\nb\r\n")
        assert w.queue.text().split("\n", 4)[4] == "Date: x\nMessage-ID: <y@z>\nTo: bob@mail.example.org\n\nb\n"
        assert " with SMTP id " in w.queue.text()
        assert any("proto=SMTP" in line for line in w.log)

    run(scenario)


@pytest.mark.parametrize("failure", [TempFail("queue is being restarted"), ValueError("cannot be encoded")])
@pytest.mark.parametrize("size", [1, 300])
def test_a_commit_that_cannot_even_be_asked_for_leaves_no_transaction(failure, size):
    async def scenario(w: World) -> None:
        def refuse(message: object) -> None:
            raise failure

        commit, w.queue.commit = w.queue.commit, refuse  # type: ignore[method-assign,assignment]
        c = await w.greeted()
        (session,) = w.server._sessions
        answer = await c.message("Subject: x\r\n\r\n" + ("x" * 998 + "\r\n") * size)
        assert not session.committing and session.tx is None
        assert bool(w.queue.discarded) == (size > 1)
        w.queue.commit = commit  # type: ignore[method-assign]
        if isinstance(failure, TempFail):
            assert answer == "451 4.3.0 Temporary failure"
            assert (await c.message())[:3] == "250"
        else:
            assert answer == "421 4.3.0 Internal server error"
            assert await c.closed()
            c.writer.close()
            await w.until(lambda: not w.server._sessions)

    run(scenario)


@pytest.mark.parametrize("failure", [TempFail("lookup is being restarted"), ValueError("cannot be encoded")])
def test_a_recipient_that_cannot_even_be_asked_about_is_refused_for_now(failure):
    async def scenario(w: World) -> None:
        def refuse(recipient: object) -> None:
            raise failure

        expand, w.lookup.expand = w.lookup.expand, refuse  # type: ignore[method-assign,assignment]
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        answer = await c.send("RCPT TO:<alice@example.org>")
        w.lookup.expand = expand  # type: ignore[method-assign]
        if isinstance(failure, TempFail):
            assert answer == "451 4.3.0 Temporary failure"
            assert (await c.send("DATA"))[:3] == "503"
            assert (await c.send("RCPT TO:<alice@example.org>"))[:3] == "250"
        else:
            assert answer == "421 4.3.0 Internal server error"
            assert await c.closed()

    run(scenario)
