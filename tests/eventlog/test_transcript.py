"""A session as people read it, and how it is found."""

from itertools import chain, cycle

import pytest

from pillarbox.eventlog.lines import parse_report, printable
from pillarbox.eventlog.transcript import LISTED, all_sessions, candidates, find_session, follow_session, line_of, title
from pillarbox.roles.filters import Report
from tests.eventlog.recorded import case_log


def reports(lines: list[str]) -> list[Report]:
    return [parse_report(line) for line in lines]


def told(lines: list[str]) -> list[str]:
    events = reports(lines)
    return [line_of(report, events[0].time) for report in events]


def test_a_session_reads_like_a_conversation() -> None:
    events = case_log("report-tls-and-auth")
    lines = told(events)
    assert title(parse_report(events[0])) == "0000000000000002 smtp-in 2023-11-14 22:13:20.000000 UTC"
    assert lines[:5] == [
        "    0.000000  -- connected from 127.0.0.1:4321 (localhost, fcrdns pass), own 127.0.0.1:251",
        "    0.001000     filter, connect: proceed",
        "    0.002000  S: 220 mail.example.org ESMTP OpenSMTPD",
        "    0.003000  -- link-greeting mail.example.org",
        "    0.004000  C: EHLO client.example.net",
    ]
    assert any(line.endswith("   filter, starttls: proceed") for line in lines)
    assert lines[-1].endswith("-- disconnected")
    assert any(line.endswith("-- link-auth pass alice") for line in lines)
    assert any(line.endswith("-- tx-rcpt 00000001 ok alice@example.org") for line in lines)


def test_an_outgoing_session_names_the_server_it_went_to() -> None:
    first = told(case_log("smtp-out-report-events"))[0]
    assert first.endswith("-- connected to 127.0.0.1:251 (localhost, fcrdns pass), own 127.0.0.1:4321")


def test_what_clients_say_is_escaped() -> None:
    (line,) = told(["report|0.7|1.5|smtp-in|protocol-client|1|NOOP \x1b[2J"])
    assert line.endswith("C: NOOP \\x1b[2J")


def one(session: int, time: float, event: str = "protocol-client", text: str = "NOOP") -> Report:
    return Report("smtp-in", event, session, time, text)


A, B = 0xABCD000000000001, 0xABCE000000000002
LOG = [
    one(A, 1, "link-connect", "a|pass|192.0.2.1:25|192.0.2.9:25"),
    one(B, 2, "link-connect", "b|pass|192.0.2.2:25|192.0.2.9:25"),
    one(A, 3, "tx-begin", "0badcafe"),
    one(B, 4, "tx-begin", "0badf00d"),
    one(A, 5, "tx-envelope", "0badcafe|0badcafe11111111"),
    one(B, 6, "link-disconnect", ""),
    one(A, 7, "link-disconnect", ""),
]


@pytest.mark.parametrize("prefix", ["abcd", "abcd000000000001", "0badcafe", "0badcafe11", "0badcafe11111111"])
def test_the_beginning_of_an_id_is_enough_and_that_of_a_message_does(prefix: str) -> None:
    found = find_session(LOG, prefix)
    assert [report.time for report in found.events] == [1, 3, 5, 7]
    assert found.only is not None
    assert found.only.time == 1


@pytest.mark.parametrize("prefix", ["abc", "ab"])
def test_ambiguous_ones_are_listed(prefix: str) -> None:
    found = find_session(LOG, prefix)
    assert (found.only, found.events) == (None, [])
    assert list(candidates(found)) == [
        "abcd000000000001 smtp-in 1970-01-01 00:00:01.000000 UTC 192.0.2.1:25",
        "abce000000000002 smtp-in 1970-01-01 00:00:02.000000 UTC 192.0.2.2:25",
    ]


@pytest.mark.parametrize("prefix", ["1", "0badcaf", "0badcafe2", "cd"])
def test_others_are_not_found(prefix: str) -> None:
    assert not find_session(LOG, prefix).sessions


def test_three_sessions_are_no_one_session() -> None:
    found = find_session([one(number, number) for number in (0x11, 0x12, 0x13)] * 2, "00000000000000")
    assert (len(found.sessions), found.events) == (3, [])


def test_a_list_of_sessions_has_an_end() -> None:
    found = find_session((one(number, number) for number in range(1, 100_000)), "0")
    assert len(found.sessions) == LISTED
    assert list(candidates(found))[-1] == "… and more"


def test_a_session_that_begins_before_the_log_does_is_found_where_it_ends() -> None:
    found = find_session([one(A, 1, "link-disconnect", "")], "abcd")
    assert len(found.events) == 1


def test_all_sessions_come_one_after_the_other_in_the_order_of_their_beginning() -> None:
    done = [[report.time for report in events] for events in all_sessions(LOG, "ab")]
    assert done == [[1, 3, 5, 7], [2, 4, 6]]
    assert [events[0].session for events in all_sessions(LOG, "0badf00d")] == [B]


def test_all_sessions_are_more_than_a_list_holds_and_what_ended_is_not_kept() -> None:
    pairs = ([one(n, n), one(n, n, "link-disconnect", "")] for n in range(1, 101))
    log = iter([report for pair in pairs for report in pair])
    found = all_sessions(log, "0")
    assert len(next(found)) == 2
    assert len(list(log)) == 198
    deliveries = [Report("mda", "delivery", n, n, f"0badcafe|0badcafe{n:08x}|ok|maildir|u|1|") for n in range(30)]
    assert len(list(all_sessions(deliveries, "0badcafe"))) == 30


def test_a_message_s_session_is_followed_from_its_beginning_to_its_end() -> None:
    assert [report.time for report in follow_session(chain(LOG, cycle(LOG[1:2])), "0badcafe")] == [1, 3, 5, 7]
    assert [report.time for report in follow_session(chain(LOG, cycle(LOG[1:2])), "abce")] == [2, 4, 6]


@pytest.mark.parametrize("text", ["\u202etxt.exe", "a\u2028b", "zero\u200bwidth", "\x9b31m", "\U000e0041"])
def test_what_is_not_seen_is_escaped(text: str) -> None:
    assert printable(f"ä {text} 字").isprintable()
    assert printable("ä 字") == "ä 字"
