"""Outgoing sessions against a scripted peer: what is sent, logged, and reported to the queue."""

import asyncio

import pytest

from pillarbox.conf.model import Relay
from pillarbox.mta import link
from tests.mta.support import Mail, Peer, Running, play

BODY = b"Subject: x\r\n\r\n.dot\r\n"


def to(peer, scheme="smtp", **options):
    return Relay(name="out", host=f"{scheme}://127.0.0.1:{peer.port}", **options)


def test_a_message_with_its_log_lines():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", notify=1)
            assert await mail.settled() == [("ok", "")]
            assert (mail.queue.outcomes[0].reply, mail.queue.outcomes[0].relayed_without_dsn) == ("250 taken", False)
            await mail.logged("disconnected")
            session = mail.lines[0].split()[0]
            assert mail.lines == [
                f"{session} mta connecting address=smtp://127.0.0.1:{peer.port} host=localhost",
                f"{session} mta connected",
                f"{session} mta delivery evpid=0000000100000001 from=<alice@example.org> to=<bob@far.example> rcpt=<-> "
                'source="127.0.0.1" relay="127.0.0.1 (localhost)" delay=0s result="Ok" stat="250 taken"',
                f"{session} mta disconnected reason=quit messages=1",
            ]
            assert peer.messages == [BODY.replace(b".dot", b"..dot")]
            assert peer.sessions == [
                ["EHLO our.example", "MAIL FROM:<alice@example.org>", "RCPT TO:<bob@far.example> NOTIFY=SUCCESS",
                 "DATA", "QUIT"]
            ]  # fmt: skip

    play(go)


def test_recipients_of_a_message_share_a_transaction_and_have_their_own_results():
    async def go():
        script = {"RCPT": lambda line: {"a": "550 no", "b": "250 ok", "c": "450 later"}[line[9]], "EHLO": "250 peer"}
        async with Peer(script) as peer, Running(Mail(to(peer))) as mail:
            mail.send("a@x", "b@x", "c@x")
            assert sorted(await mail.settled(3)) == [("ok", ""), ("permfail", "550 no"), ("tempfail", "450 later")]
            assert [(o.esc_class, o.relayed_without_dsn) for o in mail.queue.outcomes] == [
                (5, False), (4, False), (0, True)
            ]  # fmt: skip
            assert len(peer.messages) == 1

    play(go)


def test_large_body_is_read_in_pieces_and_arrives_whole():
    body = b"Subject: big\r\n\r\n" + b".line with a dot\r\n" * 40_000

    async def go():
        async with Peer() as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", body=body, inline=False)
            assert await mail.settled() == [("ok", "")]
            assert peer.messages == [body.replace(b"\r\n.", b"\r\n..")]

    play(go)


def test_body_that_cannot_be_read_whole_is_never_ended():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", body=b"x" * 300_000, inline=False)
            mail.queue.bodies[1] = b"x" * 1000
            assert await mail.settled() == [("tempfail", "Error reading content file")]
            assert peer.messages == []

    play(go)


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (Peer(greeting="554 go away"), "BANNER rejected: 554 go away"),
        (Peer(greeting="nonsense"), "Bad response: reply code out of range"),
        (Peer({"EHLO": "502 what", "HELO": "550 no"}), "HELO rejected: 550 no"),
        (Peer({"EHLO": "close"}), "Connection closed unexpectedly"),
    ],
    ids=["banner", "garbage", "helo", "close"],
)
def test_peer_that_does_not_get_ready_is_a_network_error(peer, reason):
    async def go():
        async with peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Network error on destination MXs")]
            assert any(line.endswith(f"mta error reason={reason}") for line in mail.lines)
            assert "smtp-out: Disabling route [] <-> 127.0.0.1 (localhost) for 15s" in mail.lines
            text = f"[connector:[]->[relay:127.0.0.1,port={peer.port},smtp,mx],0x0]"
            assert f"smtp-out: No valid route for {text}" in mail.lines
            assert mail.relays.show_routes()[0].startswith(
                "1. [] <-> 127.0.0.1 (localhost) ND-- nconn=0 nerror=0 penalty=1 timeout="
            )

    play(go)


def test_refused_connection():
    async def go():
        async with Peer() as peer:
            port = peer.port
        async with Running(Mail(Relay(name="out", host=f"smtp://127.0.0.1:{port}"))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Network error on destination MXs")]
            assert any(line.endswith("mta error reason=IO Error: Connection refused") for line in mail.lines)
            assert not any("mta connected" in line for line in mail.lines)

    play(go)


def test_connection_lost_in_a_transaction_is_logged_before_its_deliveries():
    async def go():
        async with Peer({"RCPT": "close", "EHLO": "250 peer"}) as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Connection closed unexpectedly")]
            assert "mta error reason=Connection closed unexpectedly" in mail.lines[2]
            assert "mta delivery" in mail.lines[3]
            assert " ---- nconn=0 nerror=0 penalty=0 " in mail.relays.show_routes()[0]

    play(go)


@pytest.mark.parametrize("command", ["MAIL", "DATA"])
def test_silent_peer_is_given_up_after_its_deadline(command, monkeypatch):
    monkeypatch.setattr(link, "TIMEOUT", 0.2)

    async def go():
        async with Peer({command: "silence", "EHLO": "250 peer"}) as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Connection timeout")]

    play(go)


@pytest.mark.parametrize(("verdict", "outcome"), [(5.0, ("ok", "")), (0.2, ("tempfail", "Connection timeout"))])
@pytest.mark.parametrize("inline", [True, False])
def test_the_answer_to_a_message_is_waited_for_longer(verdict, outcome, inline, monkeypatch):
    monkeypatch.setattr(link, "TIMEOUT", 0.1)
    monkeypatch.setattr(link, "VERDICT_TIMEOUT", verdict)

    async def go():
        async with Peer(eom="silence") as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", inline=inline)
            async with asyncio.timeout(5):
                while not peer.messages:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.15)  # longer than for anything else
            if verdict > 1:
                peer.say(peer.writers[0], "250 taken after all")
            assert await mail.settled() == [outcome]

    play(go)


def test_session_is_kept_for_more_and_ends_after_its_keepalive():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer), session_keepalive=1)) as mail:
            mail.send("a@far.example")
            await mail.settled(1)
            mail.send("b@far.example")
            await mail.settled(2)
            assert len(peer.sessions) == 1
            assert (await mail.logged("disconnected")).endswith("messages=2")

    play(go)


def test_session_mail_max():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer), session_mail_max=2, session_keepalive=1)) as mail:
            for _ in range(3):
                mail.send("bob@far.example")
            await mail.settled(3)
            assert all(session.count("DATA") <= 2 for session in peer.sessions)

    play(go)


def test_idle_connection_that_the_peer_closes_costs_no_mail():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer), session_keepalive=10)) as mail:
            mail.send("a@far.example")
            await mail.settled(1)
            peer.say(peer.writers[0], "421 idle too long")
            peer.writers[0].close()
            await mail.logged("after 1 message sent: Connection closed unexpectedly")
            mail.send("b@far.example")
            assert await mail.settled(2) == [("ok", ""), ("ok", "")]

    play(go)


def test_outcomes_are_repeated_until_the_queue_took_them():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer))) as mail:
            mail.queue.refuse = 2
            mail.send("bob@far.example")
            await mail.logged("result=")
            held = await mail.sessions.in_flight()
            assert held.running == () and [o.evpid for o in held.outcomes] == [1 << 32 | 1]
            assert await mail.settled() == [("ok", "")]
            assert (await mail.sessions.in_flight()).outcomes == ()

    play(go)


def test_attempts_under_way_are_told():
    async def go():
        async with Peer({"MAIL": "silence", "EHLO": "250 peer"}) as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example")
            async with asyncio.timeout(5):
                while not (held := await mail.sessions.in_flight()).running:  # noqa: ASYNC110 - told to nobody
                    await asyncio.sleep(0.01)
            assert held.running == ((1 << 32 | 1, 1),)

    play(go)


def test_drain_ends_sessions_with_quit():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer), session_keepalive=10)) as mail:
            mail.send("bob@far.example")
            await mail.settled()
            async with asyncio.timeout(5):
                await mail.sessions.drain()
            assert peer.sessions[0][-1] == "QUIT"

    play(go)


# TLS.

STARTTLS = {"EHLO": ["250-peer", "250-AUTH PLAIN", "250 STARTTLS"], "STARTTLS": "220 go"}


@pytest.mark.parametrize(
    ("scheme", "cert", "options", "check"),
    [
        ("smtp", "sink", {}, "unverified"),
        ("smtp", "sink", {"tls": "require", "ca": "ca"}, "valid"),
        ("smtp+tls", "selfsigned", {"tls": "no-verify"}, "unverified"),
        ("smtps", "sink", {"ca": "ca"}, "valid"),
    ],
)
def test_tls(scheme, cert, options, check):
    async def go():
        immediate = scheme == "smtps"
        peer = Peer({} if immediate else STARTTLS, cert=cert, immediate=immediate)
        async with peer, Running(Mail(to(peer, scheme, **options))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("ok", "")]
            assert "mta tls ciphers=TLSv1.3:" in mail.lines[2]
            assert f'cert-check result="{check}" fingerprint="SHA256:' in mail.lines[3]
            assert (await mail.logged("disconnected")).endswith("reason=quit messages=1")
            assert not any("error" in line.lower() for line in mail.lines)

    play(go)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("cert", "options", "reason"),
    [
        ("selfsigned", {"tls": "require"}, "certificate verification failed: self-signed certificate"),
        ("wrongname", {"ca": "ca"}, "name `127.0.0.1' not present in server certificate"),
        ("sink", {"protocols": "tlsv1.1"}, "handshake failed: "),
    ],
)
def test_tls_that_must_be_and_fails(cert, options, reason):
    async def go():
        async with Peer(STARTTLS, cert=cert) as peer, Running(Mail(to(peer, "smtp+tls", **options))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Network error on destination MXs")]
            assert any(f"mta error reason=IO Error: {reason}" in line for line in mail.lines), mail.lines
            assert "MAIL" not in str(peer.sessions)

    play(go)


def test_opportunistic_tls_that_breaks_goes_on_in_clear():
    async def go():
        script = {**STARTTLS, "STARTTLS": "close"}
        async with Peer(script) as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("ok", "")]
            assert any("opportunistic TLS failed, downgrading to plain" in line for line in mail.lines)
            assert any(f"connecting address=smtp+notls://127.0.0.1:{peer.port}" in line for line in mail.lines)
            assert not any("mta error" in line for line in mail.lines)

    play(go)


def test_certificate_that_is_not_there_is_no_fault_of_the_peer():
    async def go():
        async with Peer(STARTTLS, cert="sink") as peer, Running(Mail(to(peer, "smtp+tls", ca="nothing"))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "TLS configuration cannot be used")]
            assert " penalty=0 " in mail.relays.show_routes()[0]

    play(go)


# Authentication.


@pytest.mark.parametrize(
    ("label", "reply", "result"),
    [
        ("known", "235 ok", ("ok", "")),
        ("known", "535 bad", ("tempfail", "Network error on destination MXs")),
        ("unknown", "", ("tempfail", "Could not retrieve credentials")),
    ],
)
def test_auth(label, reply, result):
    async def go():
        async with Peer({**STARTTLS, "AUTH": reply}, cert="sink") as peer:
            url = f"smtp+tls://{label}@127.0.0.1:{peer.port}"
            async with Running(Mail(Relay(name="out", host=url, auth="cr", tls="no-verify"))) as mail:
                mail.lookup.tables["cr"] = {"known": ("user1", "secret1")}
                mail.send("bob@far.example")
                assert await mail.settled() == [result]
                sent = [line for session in peer.sessions for line in session if line.startswith("AUTH")]
                assert sent == (["AUTH PLAIN AHVzZXIxAHNlY3JldDE="] if reply else [])

    play(go)


def test_lmtp():
    async def go():
        async with Peer(eom="250 one") as peer, Running(Mail(to(peer, "lmtp"))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("ok", "")]
            assert peer.sessions[0][0] == "LHLO our.example"

    play(go)


def test_fault_of_our_own_ends_in_an_outcome(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(link.Link, "begin", broken)

    async def go():
        async with Peer() as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("tempfail", "Delivery interrupted")]
            assert "unexpected error" in await mail.logged("unexpected error")
            assert (await mail.sessions.in_flight()).running == ()

    play(go)
