import io

import pytest

from pillarbox.conf.model import Relay, Srs
from pillarbox.errors import TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Kind
from pillarbox.mta.lines import duration
from pillarbox.mta.plan import plan_relay, sender_for


def envelope(sender="alice@example.org", rcpt="bob@far.example", dest="bob@far.example"):
    return Envelope(
        evpid=1 << 32 | 1, kind=Kind.MTA, dispatcher="out", sender=sender, rcpt=rcpt, dest=dest, ctime=0,
        smtpname="mx.us",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("option", "sender", "expected"),
    [
        ("", "alice@example.org", "alice@example.org"),
        ("@new.example", "alice@example.org", "alice@new.example"),
        ("news@new.example", "alice@example.org", "news@new.example"),
        ("news", "alice@example.org", "news@example.org"),
        ("news@new.example", "", ""),
    ],
)
def test_mail_from(option, sender, expected):
    assert sender_for(Relay(name="out", mail_from=option), Srs(), envelope(sender), 0) == expected


def test_srs_is_for_forwarded_mail_with_a_sender():
    action, key = Relay(name="out", srs=True), Srs(key="secret")
    forwarded = {"rcpt": "fwd@fwd.example"}
    assert sender_for(action, key, envelope(), 0) == "alice@example.org"
    assert sender_for(action, key, envelope(sender="", **forwarded), 0) == ""
    assert sender_for(action, Srs(), envelope(**forwarded), 0) == "alice@example.org"
    rewritten = sender_for(action, key, envelope(**forwarded), 0)
    assert rewritten.startswith("SRS0=") and rewritten.endswith("=example.org=alice@fwd.example")


@pytest.mark.parametrize(
    ("action", "smarthost", "text", "line"),
    [
        ({}, "gopher://x", "Cannot parse smarthost", "warn: Failed to parse smarthost gopher://x"),
        ({}, "smtps://l@x", "No auth table for relaying", 'warn: No auth table on action "out" for relay smtps://l@x'),
        ({"tls": "require"}, "smtp+notls://x", "TLS required for relaying", 'warn: TLS required for action "out"'),
    ],
)
def test_refusals(action, smarthost, text, line):
    log = io.StringIO()
    with pytest.raises(TempFail, match=text):
        plan_relay(Relay(name="out", **action), 1, envelope(), smarthost, Log(log))
    assert log.getvalue() == line + "\n"


@pytest.mark.parametrize(
    ("action", "smarthost", "text"),
    [
        ({}, "", "[relay:far.example,smtp]"),
        ({}, "smtp://127.0.0.1:2525", "[relay:127.0.0.1,port=2525,smtp,mx]"),
        ({"auth": "cr"}, "smtp+tls://l1@h", "[relay:h,port=25,smtp+tls,auth=cr:l1,mx]"),
        ({"backup": True}, "", "[relay:far.example,smtp,backup=mx.us]"),
        (
            {"src": "s", "helo_src": "hs", "helo": "h", "pki": "p"},
            "",
            "[relay:far.example,smtp,pki_name=p,sourcetable=s,helotable=hs,heloname=h]",
        ),
    ],
)
def test_relays_are_named_as_in_the_reference(action, smarthost, text):
    assert str(plan_relay(Relay(name="out", **action), 1, envelope(), smarthost, Log(io.StringIO()))) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (0.9, "0s"), (59, "59s"), (3600, "1h"), (90061, "1d1h1m1s"), (-61, "-1m1s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
