"""REQUIRETLS (RFC 8689): over verified TLS to a host that keeps it up, or back to the sender."""

import pytest

from pillarbox.conf.model import Relay
from pillarbox.roles.delivery import SessionEvent
from pillarbox.roles.lookup import MxHost
from tests.mta.support import Mail, Peer, Running, play
from tests.mta.test_relay import Ordering

OFFER = {"EHLO": ["250-peer", "250-STARTTLS", "250 REQUIRETLS"], "STARTTLS": "220 go"}
NO_OFFER = {"EHLO": ["250-peer", "250 STARTTLS"], "STARTTLS": "220 go"}
FAILED = "550 5.7.30 REQUIRETLS support required: "
LATER = "450 4.7.30 REQUIRETLS support required: "


def to(peer, scheme="smtp", **options):
    return Relay(name="out", host=f"{scheme}://127.0.0.1:{peer.port}", **{"ca": "ca", **options})


@pytest.mark.parametrize("scheme", ["smtp", "smtp+tls", "smtps"])
def test_it_is_passed_on_over_verified_tls(scheme):
    async def go():
        peer = Peer(OFFER, cert="sink", immediate=scheme == "smtps")
        async with peer, Running(Mail(to(peer, scheme))) as mail:
            mail.send("bob@far.example", require_tls=True)
            assert await mail.settled() == [("ok", "")]
            assert "MAIL FROM:<alice@example.org> REQUIRETLS" in peer.sessions[0]
            assert any('cert-check result="valid"' in line for line in mail.lines)

    play(go)


def test_other_mail_to_the_same_host_needs_none_of_it():
    async def go():
        async with Peer(OFFER, cert="selfsigned") as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example")
            assert await mail.settled() == [("ok", "")]
            assert "MAIL FROM:<alice@example.org>" in peer.sessions[0]

    play(go)


@pytest.mark.parametrize(
    ("script", "cert", "options", "reason"),
    [
        ({}, None, {}, "TLS required but not supported by remote host"),
        ({"EHLO": ["250-peer", "250 REQUIRETLS"]}, None, {}, "TLS required but not supported by remote host"),
        ({**OFFER, "STARTTLS": "502 never"}, None, {}, "STARTTLS rejected: 502 never"),
        (OFFER, "selfsigned", {}, "certificate verification failed: self-signed certificate"),
        (OFFER, "selfsigned", {"tls": "no-verify"}, "certificate verification failed: self-signed certificate"),
        (OFFER, "wrongname", {}, "name `127.0.0.1' not present in server certificate"),
        (NO_OFFER, "sink", {}, "REQUIRETLS not offered by remote host"),
    ],
)
def test_a_host_without_the_protection_gets_nothing(script, cert, options, reason):
    async def go():
        async with Peer(script, cert=cert) as peer, Running(Mail(to(peer, **options))) as mail:
            mail.send("bob@far.example", require_tls=True)
            ((result, text),) = await mail.settled()
            assert (result, text) == ("permfail", f"{FAILED}127.0.0.1 (localhost): {reason}")
            assert (mail.queue.outcomes[0].esc_class, mail.queue.outcomes[0].esc_code) == (5, 730)
            assert "MAIL" not in str(peer.sessions) and peer.messages == []

    play(go)


def test_a_host_that_cannot_protect_goes_on_getting_other_mail():
    async def go():
        async with Peer() as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", require_tls=True)
            await mail.settled()
            mail.send("bob@far.example")
            assert (await mail.settled(2))[1] == ("ok", "")
            assert all(" penalty=0 " in line for line in mail.relays.show_routes())
            mail.send("bob@far.example", require_tls=True)  # and is asked again the next time
            assert (await mail.settled(3))[2][0] == "permfail"
            assert len(peer.sessions) == 3

    play(go)


@pytest.mark.parametrize("scheme", ["smtp+notls", "lmtp"])
def test_a_relay_that_forbids_tls_is_no_way(scheme):
    async def go():
        async with Peer() as peer, Running(Mail(to(peer, scheme))) as mail:
            mail.send("bob@far.example", require_tls=True)
            assert await mail.settled() == [("permfail", f"{FAILED}no TLS for this destination is configured")]
            assert peer.sessions == []

    play(go)


@pytest.mark.parametrize("reply", ["close", "421 busy"])
def test_a_host_that_serves_nobody_now_costs_its_route_a_penalty(reply):
    async def go():
        async with Peer({**OFFER, "STARTTLS": reply}) as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", require_tls=True)
            assert await mail.settled() == [("tempfail", "Network error on destination MXs")]
            assert " penalty=1 " in mail.relays.show_routes()[0]

    play(go)


def test_a_host_that_cannot_do_tls_now_is_asked_later_and_goes_on_getting_other_mail():
    async def go():
        script = {**OFFER, "STARTTLS": "454 not now"}
        async with Peer(script, cert="sink") as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", require_tls=True)
            reason = f"{LATER}127.0.0.1 (localhost): STARTTLS rejected: 454 not now"
            assert await mail.settled() == [("tempfail", reason)]
            assert (mail.queue.outcomes[0].esc_class, mail.queue.outcomes[0].esc_code) == (4, 730)
            assert "MAIL" not in str(peer.sessions) and peer.messages == []
            assert " penalty=0 " in mail.relays.show_routes()[0]
            mail.send("bob@far.example")
            assert (await mail.settled(2))[1] == ("ok", "")
            peer.script["STARTTLS"] = "220 go"
            mail.send("bob@far.example", require_tls=True)
            assert (await mail.settled(3))[2] == ("ok", "")

    play(go)


@pytest.mark.parametrize("blames", [("tls", "tls-now"), ("tls-now", "tls"), ("tls-now", "tls-now")])
def test_messages_wait_as_long_as_one_exchanger_may_protect_them_later(blames):
    async def go():
        it = Ordering(Relay(name="out"))
        it.mail.lookup.mx = secure("a.far.example", "b.far.example")
        async with Running(it.mail):
            it.mail.send("bob@far.example", require_tls=True)
            for count, blame in enumerate(blames, 1):
                order = (await it.ordered(count))[-1]
                event = SessionEvent(session=order.session, state="failed", error=blame, blame=blame)
                await it.relays.session_event(event)
            ((result, text),) = await it.mail.settled()
            assert result == "tempfail" and text.startswith(LATER) and text.endswith(": tls-now")
            it.mail.send("bob@far.example", require_tls=True)  # and both are asked the next time
            event = SessionEvent(session=(await it.ordered(3))[-1].session, state="failed", error="no", blame="tls")
            await it.relays.session_event(event)
            event = SessionEvent(session=(await it.ordered(4))[-1].session, state="failed", error="no", blame="tls")
            await it.relays.session_event(event)
            assert (await it.mail.settled(2))[1][0] == "permfail"

    play(go)


@pytest.mark.parametrize(
    ("script", "cert", "line"),
    [(OFFER, "sink", "MAIL FROM:<> REQUIRETLS"), (NO_OFFER, "sink", "MAIL FROM:<>"), ({}, None, "MAIL FROM:<>")],
)
def test_a_bounce_is_rather_sent_without_than_lost(script, cert, line):
    async def go():
        async with Peer(script, cert=cert) as peer, Running(Mail(to(peer))) as mail:
            mail.send("bob@far.example", sender="", require_tls=True)
            assert await mail.settled() == [("ok", "")]
            assert line in peer.sessions[0]

    play(go)


def secure(*names):
    return [MxHost(preference=0, name=n, address=f"192.0.2.{i}", secure=True) for i, n in enumerate(names, 1)]


def test_exchangers_must_be_vouched_for_and_are_tried_one_by_one():
    async def go():
        it = Ordering(Relay(name="out"))
        it.mail.lookup.mx = [
            *secure("a.far.example", "b.far.example"),
            MxHost(preference=0, name="c", address="192.0.2.9"),
        ]
        async with Running(it.mail):
            it.mail.send("bob@far.example", require_tls=True)
            seen = set()
            for count in (1, 2):
                order = (await it.ordered(count))[-1]
                assert (order.tls, order.tls_verify, order.require_tls) == ("required", True, True)
                seen.add(order.host)
                event = SessionEvent(session=order.session, state="failed", error="no TLS", blame="tls")
                await it.relays.session_event(event)
            assert seen == {"a.far.example", "b.far.example"}
            ((result, text),) = await it.mail.settled()
            assert result == "permfail" and text.startswith(FAILED) and text.endswith(": no TLS")

    play(go)


def test_exchangers_that_nobody_vouches_for_are_no_way():
    async def go():
        it = Ordering(Relay(name="out"))
        async with Running(it.mail):
            it.mail.send("bob@far.example", require_tls=True)
            reason = "the exchangers of far.example are not signed (DNSSEC)"
            assert await it.mail.settled() == [("permfail", FAILED + reason)]
            assert it.orders == []

    play(go)
