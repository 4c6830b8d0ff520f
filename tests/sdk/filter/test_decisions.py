"""What handlers decide, and what the server hears of it."""

import asyncio
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pillarbox.sdk.filter import (
    Decision,
    Delivery,
    Filter,
    FilterError,
    LinkConnect,
    LinkDisconnect,
    Session,
    TxRcpt,
    disconnect,
    junk,
    proceed,
    reject,
    report,
    rewrite,
)
from pillarbox.sdk.filter.testing import Client, Harness

MESSAGE = b"Subject: x\n\nHello.\n"


@dataclass
class Counts:
    """State of a session."""

    rcpts: int = 0
    seen: list[str] = field(default_factory=list)


def whole(client: Client) -> Client:
    """A session from greeting to end."""
    return client.ehlo("x.example").mail("a@example.org").rcpt("b@example.org").message(MESSAGE).quit()


def test_a_message_goes_its_way_where_no_handler_has_a_say() -> None:
    filter = Filter()
    asked: list[str] = []

    @filter.on.rcpt_to
    def rcpt(session: Session, address: str) -> None:
        asked.append(f"{session.helo} {session.sender} {address}")

    with Harness(filter) as harness:
        client = whole(harness.session())
        assert client.accepted and client.delivered == MESSAGE.replace(b"\n", b"\r\n")
        assert client.decisions == [("rcpt-to", proceed())]
        assert asked == ["x.example a@example.org b@example.org"]
        assert harness.sessions == []


def test_only_what_has_a_handler_is_registered_and_what_a_session_needs() -> None:
    filter = Filter(remember=False)
    filter.on.mail_from(lambda session, address: None)
    with Harness(filter) as harness:
        assert harness.registered == ["report|smtp-in|link-disconnect", "filter|smtp-in|mail-from"]
    filter = Filter(remember=False)
    filter.on.data_line(lambda session, line: line)
    filter.on.smtp_out.tx_commit(lambda session, event: None)
    filter.on.every(lambda session, event: None)
    filter.on.tx_data(lambda session, event: None)
    with Harness(filter) as harness:
        assert harness.registered == [
            "report|smtp-in|*",
            "report|smtp-out|link-disconnect",
            "report|smtp-out|tx-commit",
            "filter|smtp-in|data-line",
            "filter|smtp-in|commit",
        ]


@pytest.mark.parametrize(
    "decision", [reject("550 5.7.1 No"), disconnect("421 4.3.2 Bye"), reject("421 4.3.2 Bye"), junk(), report("x")]
)
@pytest.mark.parametrize("phase", ["connect", "ehlo", "mail_from", "rcpt_to", "data", "commit", "quit"])
def test_each_decision_is_heard_at_each_phase(phase: str, decision: Decision) -> None:
    if (phase, decision) == ("commit", junk()):
        return
    filter = Filter()
    getattr(filter.on, phase)(lambda *_: decision)
    with Harness(filter) as harness:
        client = whole(harness.session())
    if decision == report("x") and phase in ("ehlo", "mail_from", "rcpt_to"):
        # The reference would take the text for the address.
        assert client.decision == proceed() and client.reports == ["x"]
    else:
        assert client.decision == decision
    assert client.junk == (decision == junk())
    assert (client.delivered is None) == (decision.verb in ("reject", "disconnect") and phase != "quit")


def test_the_first_handler_that_decides_is_the_last_that_is_asked() -> None:
    filter = Filter()
    asked = []

    def handler(name: str, decision: Decision | None) -> None:
        def mail(session: Session[object], address: str) -> Decision | None:
            asked.append(name)
            return decision

        filter.on.mail_from(mail)

    handler("first", None)
    handler("second", proceed())
    handler("third", reject("550 No"))
    with Harness(filter) as harness:
        assert harness.session().ehlo().mail("").decision == proceed()
    assert asked == ["first", "second"]


def test_an_address_is_rewritten_with_its_brackets() -> None:
    filter = Filter()
    filter.on.mail_from(lambda session, address: rewrite("new@example.org"))
    filter.on.rcpt_to(lambda session, address: rewrite("<other@example.org> NOTIFY=NEVER"))
    with Harness(filter) as harness:
        client = harness.session().ehlo().mail("old@example.org").rcpt("b@example.org")
        assert (client.sender, client.rcpts) == ("new@example.org", ["other@example.org"])
        (session,) = harness.sessions
        assert (session.sender, session.rcpts) == ("new@example.org", ["other@example.org"])


def test_the_session_says_what_is_known_of_the_client() -> None:
    filter = Filter()
    filter.on.data(lambda session: None)
    with Harness(filter) as harness:
        client = (
            harness.session(address="2001:db8::7", rdns="h.example", fcrdns="fail")
            .helo("x.example")
            .starttls("TLSv1.3:A:256")
        )
        client.ehlo("y.example").auth("alice").mail("a@example.org").rcpt("b@example.org").rcpt("c@example.org")
        (session,) = harness.sessions
        assert (session.address, session.src) == ("2001:db8::7", "[2001:db8::7]:33174")
        assert (session.rdns, session.fcrdns, session.method, session.helo) == (
            "h.example",
            "fail",
            "EHLO",
            "y.example",
        )
        assert (session.tls, session.username) == ("TLSv1.3:A:256", "alice")
        assert (session.sender, session.rcpts) == ("a@example.org", ["b@example.org", "c@example.org"])
        assert session.msgid
        client.message(MESSAGE)
        assert (session.sender, session.rcpts, session.msgid, session.username) == ("", [], "", "alice")
        assert [s.address for s in harness.sessions] == ["2001:db8::7"]
        assert harness.session(address="local").ehlo() and harness.sessions[-1].address == "local"


def test_state_is_a_session_s_own_and_goes_with_it() -> None:
    filter = Filter(state=Counts)
    gone: list[int] = []

    @filter.on.tx_rcpt
    def rcpt(session: Session[Counts], event: TxRcpt) -> None:
        session.state.rcpts += 1

    @filter.on.link_disconnect
    def left(session: Session[Counts], event: LinkDisconnect) -> None:
        gone.append(session.state.rcpts)

    with Harness(filter) as harness:
        one, two = harness.session().ehlo().mail("a@example.org"), harness.session().ehlo().mail("b@example.org")
        one.rcpt("x@example.org").rcpt("y@example.org")
        two.rcpt("x@example.org").quit()
        one.close()
        assert gone == [1, 2]
        assert harness.sessions == []


def test_a_session_whose_end_never_came_is_forgotten_when_there_are_too_many(caplog: pytest.LogCaptureFixture) -> None:
    filter = Filter(max_sessions=3)
    filter.on.link_connect(lambda session, event: None)
    with Harness(filter) as harness:
        clients = [harness.session() for _ in range(3)]
        clients[0].ehlo()
        harness.session()
        assert [session.id for session in harness.sessions] == [f"{n:016x}" for n in (3, 1, 4)]
    assert "more than 3 sessions: 0000000000000002 is forgotten, and so will others be" in caplog.text


@pytest.mark.parametrize("wrong", [ValueError("boom"), "yes", reject])
def test_a_handler_that_fails_is_answered_for_and_the_filter_goes_on(
    wrong: object, caplog: pytest.LogCaptureFixture
) -> None:
    filter = Filter()
    failing = True

    @filter.on.mail_from
    def mail(session: Session[object], address: str) -> Decision | None:
        if failing and isinstance(wrong, Exception):
            raise wrong
        return wrong if failing else None

    with Harness(filter, strict=False) as harness:
        client = harness.session().ehlo().mail("a@example.org")
        assert client.decision.verb == "reject" and client.reply.startswith("451 4.3.0 ")
        failing = False
        assert client.mail("a@example.org").accepted
        assert len(harness.failures) == 1
    failing = True
    with Harness(filter) as harness, pytest.raises((ValueError, TypeError)):
        harness.session().ehlo().mail("a@example.org")


def test_what_is_answered_then_can_be_chosen() -> None:
    def connect(session: Session[object], address: str) -> None:
        raise KeyError

    for on_error, answered in (
        (reject("450 4.0.0 Later"), disconnect("450 4.0.0 Later")),  # the reference goes on after a reject at connect
        (disconnect("421 4.0.0 Bye"), disconnect("421 4.0.0 Bye")),
        (proceed(), proceed()),
    ):
        filter = Filter(on_error=on_error)
        filter.on.connect(connect)
        with Harness(filter, strict=False) as harness:
            assert harness.session().decision == answered
    with pytest.raises(ValueError, match="on_error"):
        Filter(on_error=junk())


def test_a_failing_listener_disturbs_nobody() -> None:
    filter = Filter()
    heard = []

    @filter.on.link_connect
    def first(session: Session[object], event: LinkConnect) -> None:
        raise OSError

    filter.on.link_connect(lambda session, event: heard.append(event.rdns))
    with Harness(filter, strict=False) as harness:
        assert whole(harness.session(rdns="h.example")).accepted
        assert heard == ["h.example"] and len(harness.failures) == 1


def test_a_slow_handler_is_answered_for_after_its_deadline() -> None:
    filter = Filter(deadline=0.01)

    @filter.on.mail_from
    async def mail(session: Session[object], address: str) -> None:
        await asyncio.Event().wait()

    with Harness(filter, strict=False) as harness:
        assert harness.session().ehlo().mail("a@example.org").reply.startswith("451 4.3.0 ")
        assert isinstance(harness.failures[0], TimeoutError)


def test_the_deadline_is_the_answer_s_whoever_took_the_time() -> None:
    filter = Filter(deadline=0.05)
    done: list[str] = []

    async def slow(session: Session[object], address: str) -> None:
        threading.Event().wait(0.06)  # blocks, and so is not stopped itself
        done.append(address)

    async def quick(session: Session[object], address: str) -> None:
        await asyncio.sleep(0)
        done.append("never")

    filter.on.mail_from(slow)
    filter.on.mail_from(quick)
    filter.on.rcpt_to(quick)
    with Harness(filter, strict=False) as harness:
        # One that waits behind another is asked already.
        said = harness.exchange(*(f"filter|0.7|1.5|smtp-in|{phase}|5|7|a" for phase in ("mail-from", "rcpt-to")))
        assert [line.split("|")[3] for line in said] == ["reject", "reject"]
    assert done == ["a"]


def test_a_handler_that_is_cancelled_by_what_it_waits_for_is_answered_for() -> None:
    filter = Filter()

    @filter.on.mail_from
    async def mail(session: Session[object], address: str) -> None:
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        await lost

    @filter.on.rcpt_to
    def rcpt(session: Session[object], address: str) -> None:
        raise asyncio.CancelledError

    filter.on.data_line(mail)
    with Harness(filter, strict=False) as harness:
        ask = "filter|0.7|1.5|smtp-in|{}|5|7|a".format
        said = harness.exchange(ask("mail-from"), ask("rcpt-to"), ask("mail-from"), ask("data-line"), ask("commit"))
        assert [line.split("|")[3][:6] for line in said] == ["reject", "reject", "reject", "a", "reject"]
        assert [type(error) for error in harness.failures] == [RuntimeError] * 4


def test_a_function_around_an_asynchronous_one_is_one_or_is_told_so() -> None:
    async def no(session: Session[object], value: object) -> Decision:
        await asyncio.sleep(0)
        return reject("550 No")

    @functools.wraps(no)
    def decorated(*args: object) -> object:
        return no(*args)

    @functools.wraps(no)
    def awaited(*args: object) -> Decision:
        return reject("550 Never")

    filter = Filter()
    filter.on.ehlo(decorated)
    filter.on.helo(awaited)
    filter.on.mail_from(lambda session, address: no(session, address.lower()))
    filter.on.tx_reset(lambda session, event: no(session, event.msgid))
    filter.on.data_line(lambda session, line: no(session, line[1:]))
    with Harness(filter, strict=False) as harness:
        assert harness.session().ehlo().reply == "550 No"
        assert harness.session().helo().reply == "550 Never"
        harness.exchange("filter|0.7|1.5|smtp-in|mail-from|5|7|a", "report|0.7|1.5|smtp-in|tx-reset|5|")
        harness.exchange("filter|0.7|1.5|smtp-in|data-line|5|7|a")
        assert [str(error).endswith("make it `async def`") for error in harness.failures] == [True] * 3


def test_a_function_that_could_never_be_called_is_refused_where_it_is_written() -> None:
    filter: Filter[Any] = Filter()
    for add, function in (
        (filter.on.mail_from, lambda address: None),
        (filter.on.data, lambda session, value: None),
        (filter.on.link_connect, lambda session: None),
        (filter.on.message, lambda session: None),
        (filter.on.message(limit=5), lambda session: None),
        (filter.on.data_end, lambda session, line: None),
        (filter.on.mail_from, "no function"),
    ):
        with pytest.raises(TypeError, match=r"is to take|is a function"):
            add(function)

    def yields(session: Session[object], value: object) -> Iterator[Decision]:
        yield reject("550 No")

    for add in (filter.on.mail_from, filter.on.tx_reset, filter.on.headers, filter.on.message):
        with pytest.raises(TypeError, match="yields"):
            add(yields)
    filter.on.data_line(yields)
    filter.on.mail_from(max)  # written in C: nothing is known of it


def test_plain_functions_can_be_called_in_threads() -> None:
    filter = Filter(threads=2)
    names = []

    @filter.on.mail_from
    def mail(session: Session[object], address: str) -> Decision:
        names.append(threading.current_thread().name)
        session.report("from a thread")
        return reject("550 No")

    with Harness(filter) as harness:
        client = harness.session().ehlo().mail("a@example.org")
        assert client.decision == reject("550 No") and client.reports == ["from a thread"]
    assert names == ["handler_0"]


def test_a_function_in_a_thread_may_raise_anything() -> None:
    filter = Filter(threads=1, deadline=5)
    filter.on.mail_from(lambda session, address: next(iter(())))
    with Harness(filter, strict=False) as harness:
        assert harness.session().ehlo().mail("a").reply.startswith("451 ")
        assert [type(error) for error in harness.failures] == [RuntimeError]


@pytest.mark.parametrize("version", ["0.4", "0.5", "0.6", "0.7"])
def test_a_filter_runs_unchanged_under_older_servers(version: str) -> None:
    filter = Filter()
    filter.on.rcpt_to(lambda session, address: reject(f"550 {session.username} {session.sender} {address}"))
    filter.on.connect(lambda session, address: report("hello"))
    with Harness(filter, version=version) as harness:
        client = harness.session().ehlo().auth("al|ice").mail("a|b@example.org").rcpt("c@example.org")
        assert client.reply == "550 al|ice a|b@example.org c@example.org"
        # OpenSMTPD 6.8 does not know this decision and ends.
        assert client.decisions[0][1] == (report("hello") if version == "0.7" else proceed())


def test_a_session_can_be_reported_on() -> None:
    filter = Filter()
    filter.on.tx_mail(lambda session, event: session.report(f"from\n{event.address}\0!"))
    with Harness(filter) as harness:
        assert harness.session().ehlo().mail("a@example.org").reports == ["from a@example.org !"]


def test_start_knows_the_server_and_can_still_add_handlers() -> None:
    filter = Filter()

    @filter.start
    async def start() -> None:
        await asyncio.sleep(0)
        filter.on.mail_from(lambda session, address: reject(f"550 {filter.config['smtpd-version']}"))

    with Harness(filter, config={"smtpd-version": "7.9"}) as harness:
        assert harness.session().ehlo().mail("").reply == "550 7.9"


def test_a_filter_can_be_tested_more_than_once() -> None:
    filter = Filter()
    filter.on.data(lambda session: None)
    Harness(filter, config={"subsystem": "smtp-in mda", "admd": "a.example"}).close()
    with Harness(filter):
        assert filter.config["smtpd-version"] == "7.8.0" and filter.config["subsystem"] == "smtp-in"
        assert "admd" not in filter.config


def test_a_function_that_comes_too_late_is_not_called() -> None:
    filter = Filter()

    @filter.on.data
    def data(session: Session[object]) -> None:
        filter.on.data(lambda session: reject("550 Late"))

        @filter.on.mail_from
        async def mail(session: Session[object], address: str) -> None:
            await asyncio.sleep(0)

    filter.on.mail_from(lambda session, address: None)
    with Harness(filter) as harness:
        client = harness.session().ehlo().mail("a").rcpt("b").message(MESSAGE).mail("c")
        assert client.accepted and client.decision == proceed()


def test_a_filter_without_a_handler_says_so() -> None:
    with pytest.raises(FilterError, match="no handler"):
        Harness(Filter())


def test_deliveries_are_heard_of_where_the_server_tells_of_them(caplog: pytest.LogCaptureFixture) -> None:
    filter = Filter()
    heard = []
    filter.on.mda.delivery(lambda session, event: heard.append(event))
    filter.on.rset(lambda session: None)
    with Harness(filter) as harness:  # as OpenSMTPD, which ends when a filter registers what it has not
        assert not any("|mda|" in line for line in harness.registered)
        assert "this server tells nothing of mda" in caplog.text
    with Harness(filter, config={"subsystem": "smtp-in mda"}) as harness:
        assert "report|mda|delivery" in harness.registered
        fields = "0badcafe|0badcafe00000001|tempfail|maildir|alice|12|Error (a|b)"
        harness.exchange(f"report|0.7|1.5|mda|delivery|5|{fields}")
        assert heard == [
            Delivery(1.5, "mda", "5", "0badcafe", "0badcafe00000001", "tempfail", "maildir", "alice", 12, "Error (a|b)")
        ]
        assert harness.sessions == []


def test_whatever_can_be_called_can_be_a_handler() -> None:
    class Object:
        async def __call__(self, session: Session[object], address: str) -> None:
            seen.append("object")

        async def method(self, session: Session[object], address: str) -> None:
            seen.append("method")

    async def told(what: str, session: Session[object], address: str) -> None:
        seen.append(what)

    filter, seen = Filter(), list[str]()
    for handler in (Object(), Object().method, functools.partial(told, "partial"), lambda *_: seen.append("lambda")):
        filter.on.mail_from(handler)
    with Harness(filter) as harness:
        assert harness.session().ehlo().mail("a").accepted
    assert seen == ["object", "method", "partial", "lambda"]
