"""What logs add up to, in bounded memory."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.eventlog.figures import Figures, Times, Top, figures_json
from pillarbox.eventlog.lines import parse_report
from pillarbox.roles.filters import Report
from tests.eventlog.recorded import case_log


def figures(lines: list[str]) -> dict:
    counted = Figures()
    counted.take(map(parse_report, lines))
    return figures_json(counted, 10)


def test_a_session_is_counted() -> None:
    part = figures(case_log("report-tls-and-auth"))["subsystems"]["smtp-in"]
    assert part["events"]["protocol-client"] == 9
    assert (part["messages"], part["bytes"]) == (1, 595)
    assert part["results"] == {"link-auth pass": 1, "tx-mail ok": 1, "tx-rcpt ok": 1, "tx-data ok": 1}
    assert part["filter_answers"]["starttls proceed"] == part["filter_answers"]["connect proceed"] == 1
    assert part["peers"] == {"most": [{"value": "127.0.0.1", "count": 1}], "too_small_by": 0}
    assert part["sender_domains"]["most"] == [{"value": "client.example.net", "count": 1}]
    assert part["refusals"]["most"] == []
    assert part["reply_times"]["message"]["count"] == part["reply_times"]["AUTH"]["count"] == 1
    assert part["reply_times"]["EHLO"]["count"] == 2
    assert part["reply_times"]["MAIL"]["max"] == pytest.approx(0.002, rel=0.01)
    assert part["filter_times"]["mail-from"]["p50"] == pytest.approx(0.001, rel=0.1)


def test_an_outgoing_session_counts_the_server_it_went_to() -> None:
    lines = [line.replace("127.0.0.1:251", "192.0.2.7:25") for line in case_log("smtp-out-report-events")]
    assert figures(lines)["subsystems"]["smtp-out"]["peers"]["most"] == [{"value": "192.0.2.7", "count": 1}]


def event(name: str, text: str, time: float = 1.0, session: int = 1) -> str:
    return f"report|0.7|{time}|smtp-in|{name}|{session:016x}|{text}"


def test_refusals_are_the_same_whoever_is_refused() -> None:
    lines = [
        event("protocol-client", "RCPT TO:<a@x.example>"),
        event("protocol-server", "550-5.1.1 <a@x.example>"),
        event("protocol-server", "550 5.1.1 <a@x.example> unknown [192.0.2.1] 0badcafe"),
        event("protocol-client", "RCPT TO:<b@x.example>"),
        event("protocol-server", "550 5.1.1 <b@x.example> unknown [192.0.2.2] 0badf00d"),
        event("protocol-server", "421 4.3.0 too slow", session=2),
        event("protocol-client", "QUIT"),
        event("protocol-server", "221 bye"),
    ]
    assert figures(lines)["subsystems"]["smtp-in"]["refusals"]["most"] == [
        {"value": "RCPT: 550 5.1.1 <…> unknown <…> <…>", "count": 2},
        {"value": "connect: 421 4.3.0 too slow", "count": 1},
    ]


def test_peers_are_counted_by_what_they_were_refused() -> None:
    lines = []
    for session, refusals in enumerate((3, 0, 5)):
        lines.append(event("link-connect", f"|fail|192.0.2.{session}:1|192.0.2.9:25", session=session))
        lines += [event("protocol-server", "550 no", session=session)] * refusals
    assert figures(lines)["subsystems"]["smtp-in"]["peers_refused"]["most"] == [
        {"value": "192.0.2.2", "count": 5},
        {"value": "192.0.2.0", "count": 3},
    ]


def test_local_deliveries_are_counted_by_what_became_of_them() -> None:
    lines = [
        f"report|0.7|1.5|mda|delivery|{1:016x}|0badcafe|0badcafe{n:08x}|{result}|maildir|alice|3|{text}"
        for n, (result, text) in enumerate(
            [("ok", "Delivered"), ("tempfail", "disk | full"), ("tempfail", "disk | full")]
        )
    ]
    part = figures(lines)["subsystems"]["mda"]
    assert part["results"] == {"delivery ok": 1, "delivery tempfail": 2}
    assert part["refusals"]["most"] == [{"value": "maildir: disk | full", "count": 2}]


def test_pieces_of_auth_are_counted_as_auth_and_never_shown() -> None:
    lines = [
        event("protocol-client", "AUTH LOGIN", 1),
        event("protocol-server", "334 ", 2),
        event("protocol-client", "c2VjcmV0", 3),
        event("protocol-server", "235 ok", 5),
        event("protocol-client", "c2VjcmV0", 6, session=2),
        event("protocol-server", "500 what", 7, session=2),
    ]
    found = figures(lines)
    assert {verb: times["count"] for verb, times in found["subsystems"]["smtp-in"]["reply_times"].items()} == {
        "AUTH": 2,
        "other": 1,
    }
    assert "c2VjcmV0" not in str(found)


def test_the_null_sender_has_a_name() -> None:
    part = figures([event("tx-mail", "0badcafe|ok|"), event("tx-mail", "0badcafe|ok|A@B.Example")])
    assert {one["value"] for one in part["subsystems"]["smtp-in"]["sender_domains"]["most"]} == {"<>", "b.example"}


def test_the_most_frequent_are_found_among_many_more_than_are_kept() -> None:
    values = [f"rare {n}" for n in range(20_000)] + ["often"] * 3000 + ["second"] * 2000
    random.Random(1).shuffle(values)
    top = Top(kept=100)
    for value in values:
        top.add(value)
    (first, count), (second, other) = top.most(2)
    assert (first, second) == ("often", "second")
    assert 3000 - top.error <= count <= 3000
    assert 2000 - top.error <= other <= 2000
    assert 0 < top.error < 500
    assert len(top) <= 200


@given(st.lists(st.floats(1e-6, 1e5), min_size=1, max_size=200), st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_share_of_times_is_told_within_a_tenth(values: list[float], share: float) -> None:
    times = Times()
    for value in values:
        times.add(value)
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    assert exact * 0.999 <= times.within(share) <= exact * 1.1
    assert times.most == max(values)


def test_sessions_that_never_end_are_forgotten() -> None:
    counted = Figures(sessions=10)
    counted.take(Report("smtp-in", "protocol-client", number, 1.0, "NOOP") for number in range(1000))
    counted.take(
        [
            Report("smtp-in", "protocol-server", 999, 2.0, "250 ok"),
            Report("smtp-in", "protocol-server", 0, 2.0, "250 ok"),
        ]
    )
    assert figures_json(counted, 1)["subsystems"]["smtp-in"]["reply_times"]["NOOP"]["count"] == 1


def test_a_clock_that_went_back_gives_no_time() -> None:
    part = figures([event("protocol-client", "NOOP", 5), event("protocol-server", "250 ok", 4)])
    assert part["subsystems"]["smtp-in"]["reply_times"]["NOOP"]["count"] == 0


def test_nothing_adds_up_to_nothing() -> None:
    assert figures([]) == {"events": 0, "first": 0.0, "last": 0.0, "subsystems": {}}


def test_logs_of_recorders_that_ran_side_by_side_begin_with_the_earlier() -> None:
    told = figures([event("timeout", "", time) for time in (5.0, 7.0, 3.0, 6.0)])
    assert (told["first"], told["last"]) == (3.0, 7.0)


def test_memory_does_not_grow_with_a_log_whose_words_are_all_different() -> None:
    lines = [event(f"event-{n}", "") for n in range(2000)]
    lines += [event("tx-rcpt", f"0badcafe|user{n}@example.org|ok", session=n) for n in range(2000)]
    lines += [event("filter-response", f"phase{n}|decision{n}", session=n) for n in range(2000)]
    lines += [f"report|0.7|1.0|subsystem-{n}|timeout|0000000000000001" for n in range(2000)]
    told = figures(lines)
    part = told["subsystems"]["smtp-in"]
    assert len(told["subsystems"]) <= 101
    assert part["results"] == {"tx-rcpt other": 2000}
    assert len(part["events"]) <= 101
    assert len(part["filter_answers"]) <= 101
    assert part["events"]["other"] + sum(n for name, n in part["events"].items() if name != "other") == 6000
