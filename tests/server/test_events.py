"""What is reported of sessions (smtp-in), in the order that OpenSMTPD 7.8 has."""

import asyncio

import pytest
from msgspec.structs import replace

from pillarbox.conf.model import Config, Listener, TlsMode
from pillarbox.server.tls import build_contexts
from tests.filters.memory import MemoryFilters, Played, decide

from .filtering import EVERY_EVENT, builtin, run, with_filters
from .memory import World
from .test_tls import material, trusting

TLS = {"srv": material("mail.example.org")}
HEADS = ("protocol-server 250-", "protocol-server 250 HELP")


def heard(scenario, *, config=None, answer=None, phases: str = "", events: str = EVERY_EVENT, **arguments) -> Played:
    """What a processor hears of this, without the lines of EHLO."""
    filters = MemoryFilters()
    played = filters.add("f", answer or decide("", "proceed"), phases=phases, events=events)
    run(scenario, config or with_filters("f"), filters, **arguments)
    return played


def contexts(listener: Listener):
    return build_contexts(Config(hostname="x", listeners=(listener,)), TLS, {})


def told(played: Played, *, without: tuple[str, ...] = ("link-", "filter-response", *HEADS)) -> list[str]:
    return [event for event in played.events if not event.startswith(without)]


async def gone(w: World, c) -> None:
    c.writer.close()
    await w.until(lambda: not w.server._sessions)


def test_a_whole_session_is_told_in_order():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("NOOP")
        await c.message()
        await c.send("RSET")
        await c.send("QUIT")
        await gone(w, c)

    played = heard(scenario)
    msgid = next(e for e in played.events if e.startswith("tx-begin")).split()[1]
    port = played.events[0].split("|")[2]
    server = played.events[0].split("|")[3]
    size = next(e for e in played.events if e.startswith("tx-commit")).split("|")[1]
    assert told(played, without=HEADS) == [
        f"link-connect localhost|pass|{port}|{server}",
        "filter-response connected|proceed",
        "protocol-server 220 mail.example.org ESMTP Pillarbox",
        "link-greeting mail.example.org",
        "protocol-client EHLO client.example.net",
        "filter-response ehlo|proceed",
        "link-identify EHLO|client.example.net",
        "protocol-client NOOP",
        "filter-response noop|proceed",
        "protocol-server 250 2.0.0 Ok",
        "protocol-client MAIL FROM:<s@client.example.net>",
        "filter-response mail-from|proceed",
        "protocol-server 250 2.0.0 Ok",
        f"tx-begin {msgid}",
        f"tx-mail {msgid}|ok|s@client.example.net",
        "protocol-client RCPT TO:<alice@example.org>",
        "filter-response rcpt-to|proceed",
        f"tx-envelope {msgid}|{msgid}00000001",
        "protocol-server 250 2.1.5 Destination address valid: Recipient ok",
        f"tx-rcpt {msgid}|ok|alice@example.org",
        "protocol-client DATA",
        "filter-response data|proceed",
        'protocol-server 354 Enter mail, end with "." on a line by itself',
        f"tx-data {msgid}|ok",
        "protocol-client .",
        "filter-response commit|proceed",
        f"protocol-server 250 2.0.0 {msgid} Message accepted for delivery",
        f"tx-commit {msgid}|{size}",
        f"tx-reset {msgid}",
        "protocol-client RSET",
        "filter-response rset|proceed",
        "protocol-server 250 2.0.0 Reset state",
        "protocol-client QUIT",
        "filter-response quit|proceed",
        "protocol-server 221 2.0.0 Bye",
        "link-disconnect",
    ]


def test_each_line_of_a_reply_is_an_event():
    async def scenario(w: World) -> None:
        await w.greeted()

    lines = [e for e in heard(scenario, events="protocol-server").events if e.startswith("protocol-server 250")]
    assert lines[0].startswith("protocol-server 250-mail.example.org Hello") and lines[-1] == "protocol-server 250 HELP"
    assert all(line.startswith("protocol-server 250-") for line in lines[:-1])


def test_a_transaction_that_is_left_is_rolled_back_behind_the_reply():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        for end in ("RSET", "EHLO again.example"):
            await c.send("MAIL FROM:<s@x.example>")
            await c.send(end)
        await c.send("MAIL FROM:<s@x.example>")
        await c.send("QUIT")
        await gone(w, c)

    events = [e.split()[0] for e in told(heard(scenario), without=())]
    rolled = [events[i - 1 : i + 2] for i, e in enumerate(events) if e == "tx-rollback"]
    assert rolled == [
        ["protocol-server", "tx-rollback", "tx-reset"],
        ["protocol-server", "tx-rollback", "tx-reset"],
        ["protocol-server", "tx-rollback", "tx-reset"],
    ]
    assert events[-1] == "link-disconnect" and events.count("tx-begin") == 3


def test_a_client_that_goes_away_within_a_message_rolls_it_back():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        await c.send("RCPT TO:<alice@example.org>")
        await c.send("DATA")
        c.writer.write(b"Subject: x\r\n\r\nhalf")
        await c.writer.drain()
        await gone(w, c)

    events = [e.split()[0] for e in heard(scenario).events]
    assert events[-3:] == ["tx-rollback", "tx-reset", "link-disconnect"]


def test_refused_recipients_senders_and_messages():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:bad")  # none, so nothing is told of it
        await c.send("MAIL FROM:<s@x.example> FOO=1")
        await c.send("MAIL FROM:<s@x.example>")
        await c.send("MAIL FROM:<two@x.example>")
        await c.send("RCPT TO:<ghost@example.org>")
        w.lookup.fail = True
        await c.send("RCPT TO:<alice@example.org>")
        w.lookup.fail = False
        await c.send("RCPT TO:<alice@example.org>")
        await c.send("DATA")
        assert (await c.send(b"no header\r\n.\r\n"))[:3] == "550"

    played = heard(scenario)
    msgid = next(e for e in played.events if e.startswith("tx-begin")).split()[1]
    assert [e for e in played.events if e.startswith("tx-")] == [
        "tx-mail 00000000|permfail|s@x.example",
        f"tx-begin {msgid}",
        f"tx-mail {msgid}|ok|s@x.example",
        f"tx-mail {msgid}|permfail|two@x.example",
        f"tx-rcpt {msgid}|permfail|ghost@example.org",
        f"tx-rcpt {msgid}|tempfail|alice@example.org",
        f"tx-envelope {msgid}|{msgid}00000001",
        f"tx-rcpt {msgid}|ok|alice@example.org",
        f"tx-data {msgid}|ok",
        f"tx-data {msgid}|permfail",
        f"tx-rollback {msgid}",
        f"tx-reset {msgid}",
    ]


def test_chunks_are_told_without_a_dot():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        await c.send("RCPT TO:<alice@example.org>")
        await c.send(b"BDAT 6\r\nA: b\r\n")
        await c.send(b"BDAT 3 LAST\r\n\r\nx")
        assert w.queue.committed

    played = heard(scenario)
    assert "filter-response data|proceed" in played.events and "protocol-client ." not in played.events
    assert [e.split()[0] for e in played.events if e.startswith("tx-")][-3:] == ["tx-data", "tx-commit", "tx-reset"]


def test_secrets_are_never_told():
    listener = Listener(
        id=1,
        hostname="mail.example.org",
        pki=("srv",),
        tls=TlsMode.STARTTLS,
        auth="creds",
        auth_optional=True,
        filter="chain",
    )

    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("STARTTLS")
        await c.start_tls(trusting())
        await c.send("EHLO client.example.net")
        await c.send("AUTH PLAIN AGFsaWNlAHdyb25nLXB3")
        await c.send("AUTH LOGIN")
        await c.send("YWxpY2U=")
        await c.send("YWxpY2UtcHc=")
        await c.send("QUIT")

    played = heard(scenario, config=with_filters("f", listener=listener), contexts=contexts(listener))
    lines = [e.removeprefix("protocol-client ") for e in played.events if e.startswith("protocol-client")]
    assert lines[2:] == [
        "EHLO client.example.net", "AUTH PLAIN ********", "AUTH LOGIN", "********", "********", "QUIT"
    ]  # fmt: skip
    assert [e for e in played.events if e.startswith("link-auth")] == ["link-auth fail|alice", "link-auth pass|alice"]
    tls = next(e for e in played.events if e.startswith("link-tls"))
    assert tls.startswith("link-tls TLSv1.3:TLS_") and tls.count(":") == 2
    assert not any("YWxpY2U" in e or "AGFsaWNl" in e for e in played.events)


def test_tls_from_the_start_is_told_behind_the_connection():
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), tls=TlsMode.SMTPS, filter="chain")

    async def scenario(w: World) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port, ssl=trusting(), server_hostname="x")
        assert (await reader.readline())[:3] == b"220"
        writer.close()

    played = heard(scenario, config=with_filters("f", listener=listener), contexts=contexts(listener), phases="connect")
    assert [e.split()[0] for e in played.events][:5] == [
        "link-connect", "filter-response", "link-tls", "protocol-server", "link-greeting"
    ]  # fmt: skip


def test_a_refused_connection_does_not_get_a_handshake():
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), tls=TlsMode.SMTPS, filter="chain")

    async def scenario(w: World) -> None:
        c = await w.connect()
        assert await c.closed()
        await w.until(lambda: w.log[-1] == "smtp disconnected reason=quit")
        assert 'smtp failed-command command="" result="550 no"' in w.log

    played = heard(
        scenario,
        config=with_filters("f", listener=listener),
        contexts=contexts(listener),
        answer=decide("connect", "reject", "550 no"),
        phases="connect",
    )
    assert [e.split()[0] for e in played.events] == ["link-connect", "filter-response", "link-disconnect"]


@pytest.mark.parametrize("tls", [TlsMode.NONE, TlsMode.SMTPS])
def test_whatever_goes_wrong_when_a_client_is_introduced_leaves_nothing(tls):
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), tls=tls, filter="chain")

    async def scenario(w: World) -> None:
        async def broken(case):
            raise ZeroDivisionError

        w.lookup.filter = broken
        c = await w.connect()
        assert tls is TlsMode.SMTPS or await c.reply() == "421 4.3.0 Internal server error"
        assert await c.closed()
        await gone(w, c)
        assert any("ZeroDivisionError" in line for line in w.log)

    config = with_filters("f", builtins=(builtin("connect", "src", "junk", table="t"),), listener=listener)
    played = heard(scenario, config=config, contexts=contexts(listener))
    assert [e.split()[0] for e in played.events][-1] == "link-disconnect"


def test_a_session_that_ends_while_filters_think_of_its_connection_is_over_for_them(monkeypatch):
    monkeypatch.setattr("pillarbox.server.session.IDLE", 0.05)
    listener = Listener(id=1, hostname="mail.example.org", pki=("srv",), tls=TlsMode.SMTPS, filter="chain")

    async def scenario(w: World) -> None:
        c = await w.connect()
        await w.until(lambda: bool(w.server._sessions))
        session = next(iter(w.server._sessions))
        await w.until(lambda: session.chain is not None)
        await asyncio.sleep(0.1)
        assert w.server._sessions, "the time that filters take is not the client's"
        session.fail("timeout")
        assert await c.closed()
        await w.until(lambda: not w.server._sessions)

    played = heard(
        scenario,
        config=with_filters("f", listener=listener),
        contexts=contexts(listener),
        answer=lambda _: [],
        phases="connect",
    )
    assert [e.split()[0] for e in played.events] == ["link-connect", "timeout", "link-disconnect"]


def test_time_is_up(monkeypatch):
    monkeypatch.setattr("pillarbox.server.session.IDLE", 0.05)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.send("MAIL FROM:<s@x.example>")
        await w.until(lambda: not w.server._sessions)

    events = [e.split()[0] for e in heard(scenario).events]
    assert events[-4:] == ["timeout", "tx-rollback", "tx-reset", "link-disconnect"]


def test_bytes_that_are_no_text_neither_end_the_server_nor_a_line():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.send(b"NOOP \xff\xfe|x\r\n"))[:3] == "250"
        assert (await c.send(b"FOO\0\rBAR\r\n"))[:3] == "500"

    lines = [e for e in heard(scenario).events if e.startswith("protocol-client")]
    assert lines[-2:] == ["protocol-client NOOP \ufffd\ufffd|x", "protocol-client FOO  BAR"]


def test_an_unconfirmed_name_is_told_as_such():
    async def scenario(w: World) -> None:
        await w.greeted()

    filters = MemoryFilters()
    played = filters.add("f", phases="connect", events="link-connect")

    async def unnamed(w: World) -> None:
        w.lookup.names = {}
        await scenario(w)

    run(unnamed, with_filters("f"), filters)
    assert played.events[0].startswith("link-connect <unknown>|fail|127.0.0.1:")
    assert played.questions == [("connect", "<unknown>|127.0.0.1")]


def test_who_is_named_by_report_hears_of_all_sessions_and_holds_up_none():
    filters = MemoryFilters()
    played = filters.add("log", events=EVERY_EVENT)
    filters.late = asyncio.Event()

    async def scenario(w: World) -> None:
        c = await w.greeted()  # before anybody knows of the processor
        filters.late.set()
        await w.until(lambda: bool(played.events))
        await c.message()
        await c.send("QUIT")
        await gone(w, c)

    run(scenario, with_filters(reports=("log",)), filters)
    names = [e.split()[0] for e in played.events]
    assert names[:3] == ["link-connect", "link-greeting", "link-identify"]
    assert "tx-commit" in names and names[-1] == "link-disconnect"
    assert "filter-response" not in names  # there is no filter


def test_events_are_only_for_the_processors_of_a_sessions_filters():
    filters = MemoryFilters()
    mine = filters.add("f", events=EVERY_EVENT)
    other = filters.add("g", events=EVERY_EVENT)

    async def scenario(w: World) -> None:
        await w.greeted()

    listener = Listener(id=1, hostname="mail.example.org", filter="f")
    run(scenario, replace(with_filters("f", "g"), listeners=(listener,)), filters)
    assert mine.events and not other.told


def test_only_what_is_registered_is_told_and_the_end_of_the_session():
    async def scenario(w: World) -> None:
        c = await w.greeted()
        await c.message()
        await c.send("QUIT")
        await gone(w, c)

    names = [e.split()[0] for e in heard(scenario, events="tx-mail tx-commit").events]
    assert names == ["tx-mail", "tx-commit", "link-disconnect"]
