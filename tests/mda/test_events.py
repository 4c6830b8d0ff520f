"""Events of local deliveries: what they say of an attempt."""

import pytest

from pillarbox.conf.model import Config, Local, Relay
from pillarbox.filters.reports import Reports
from pillarbox.mail.envelope import Envelope, Kind, Outcome, Result
from pillarbox.mda.events import DeliveryEvents
from pillarbox.roles.filters import MDA, MDA_EVENTS, Report

CTIME = 1_700_000_000
EVPID = 0x0ABBCCDD_00000001
ACTIONS = {
    "md": Local(name="md", method="maildir"),
    "mb": Local(name="mb", method="mbox"),
    "lm": Local(name="lm", method="lmtp", target="/run/lmtp"),
    "cmd": Local(name="cmd", method="mda", target="/bin/cat"),
    "wrapped": Local(name="wrapped", method="maildir", wrapper="w"),
    "out": Relay(name="out"),
}
CONFIG = Config(hostname="mx.example.org", actions=ACTIONS, mda_wrappers={"w": "/bin/w %{mda}"})


def envelope(action="md", **fields):
    return Envelope(
        evpid=EVPID, kind=Kind.MDA, dispatcher=action, sender="s@example.net", rcpt="alice@example.org",
        dest="Alice@example.org", ctime=CTIME, **{"mda_user": "alice", **fields},
    )  # fmt: skip


def outcome(result=Result.OK, **fields):
    return Outcome(evpid=EVPID, attempt=1, result=result, session=0xABC, **fields)


def told(envelope, outcome=None, *, now=CTIME + 75.5, listens=True):
    heard: list[Report] = []

    def reports_for(generation, session):
        return Reports(subsystem=MDA, session=session, listeners={"delivery": (heard.append,)}, now=lambda: now)

    events = DeliveryEvents(config=CONFIG, reports_for=reports_for if listens else lambda *_: None, now=lambda: now)
    events.expired(envelope) if outcome is None else events.ended(envelope, outcome)
    return heard


def test_a_delivery_with_all_its_fields():
    assert told(envelope(), outcome()) == [
        Report(MDA, "delivery", 0xABC, CTIME + 75.5, "0abbccdd|0abbccdd00000001|ok|maildir|alice|75|Delivered")
    ]
    assert MDA_EVENTS == ("delivery",)


@pytest.mark.parametrize(
    ("result", "line", "expected"),
    [
        (Result.OK, "", "ok|Delivered"),
        (Result.TEMPFAIL, "disk full", "tempfail|disk full"),
        (Result.PERMFAIL, "no such | user", "permfail|no such | user"),
        (Result.LOOP, "", "permfail|Loop detected"),
    ],
)
def test_results_and_reasons(result, line, expected):
    (report,) = told(envelope(), outcome(result, errorline=line))
    fields = report.text.split("|", 6)
    assert f"{fields[2]}|{fields[6]}" == expected


@pytest.mark.parametrize(
    ("action", "command", "method"),
    [
        ("md", "", "maildir"),
        ("mb", "", "mbox"),
        ("lm", "", "lmtp"),
        ("cmd", "", "command"),
        ("wrapped", "", "command"),
        ("md", "/usr/bin/vacation", "command"),
        ("md", "/x/mail.mboxfile -f %{mbox.from} /var/log/mail-archive", "file"),
        ("gone", "", ""),
    ],
)
def test_how_it_is_delivered(action, command, method):
    (report,) = told(envelope(action, mda_exec=command), outcome())
    assert report.text.split("|")[3] == method


def test_no_field_but_the_last_has_a_bar():
    (report,) = told(envelope(mda_user="", **{}), outcome())
    assert report.text.split("|")[4] == "Alice"
    (report,) = told(envelope(mda_user="a|b"), outcome())
    assert report.text.split("|") == ["0abbccdd", "0abbccdd00000001", "ok", "maildir", "a:b", "75", "Delivered"]


def test_the_end_of_an_envelopes_time_is_a_failure_without_a_session():
    (report,) = told(envelope(), now=CTIME + 4 * 86400)
    assert (report.session, report.text) == (
        0, "0abbccdd|0abbccdd00000001|permfail|maildir|alice|345600|Envelope expired",
    )  # fmt: skip


def test_relays_are_not_told_of_and_nobody_hears_nothing():
    relayed = Envelope(
        evpid=EVPID, kind=Kind.MTA, dispatcher="out", sender="", rcpt="a@x.example", dest="a@x.example", ctime=CTIME
    )
    assert told(relayed, outcome()) == told(relayed) == told(envelope(), outcome(), listens=False) == []
