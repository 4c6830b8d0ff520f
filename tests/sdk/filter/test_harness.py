"""The harness plays a server: what is possible when, and what no server could take."""

import sys
from pathlib import Path
from typing import Any

import pytest

from pillarbox.sdk.filter import (
    Decision,
    Event,
    Filter,
    FilterError,
    Session,
    TxData,
    TxRcpt,
    disconnect,
    proceed,
    reject,
)
from pillarbox.sdk.filter.decisions import Verb
from pillarbox.sdk.filter.testing import Harness, load

MESSAGE = "Subject: x\n\nHello.\n"


def listening() -> tuple[Filter[object], list[str]]:
    """A filter that notes every event and is asked for nothing."""
    filter = Filter()
    heard: list[str] = []
    filter.on.every(lambda session, event: heard.append(getattr(event, "line", event.name)))
    return filter, heard


def test_events_come_in_the_order_of_the_reference() -> None:
    filter, heard = listening()
    with Harness(filter) as harness:
        harness.session().ehlo("x").mail("a@example.org").rcpt("b@example.org").message(MESSAGE).quit()
    assert [what.partition(" ")[0] for what in heard] == [
        "link-connect", "filter-response", "220", "link-greeting",
        "EHLO", "filter-response", "link-identify", "250",
        "MAIL", "filter-response", "250", "tx-begin", "tx-mail",
        "RCPT", "filter-response", "tx-envelope", "250", "tx-rcpt",
        "DATA", "filter-response", "354", "tx-data", ".", "filter-response", "250", "tx-commit", "tx-reset",
        "QUIT", "filter-response", "221", "link-disconnect",
    ]  # fmt: skip


def test_a_step_that_is_not_possible_is_answered_503_and_put_to_nobody() -> None:
    filter = Filter()
    filter.on.rcpt_to(lambda session, address: proceed())
    filter.on.mail_from(lambda session, address: reject("550 No") if address == "bad" else None)
    with Harness(filter) as harness:
        session = harness.session()
        assert session.mail("a").reply.startswith("503 ")
        assert session.ehlo().mail("bad").reply == "550 No"
        assert session.rcpt("b").reply.startswith("503 ") and session.message(MESSAGE).reply.startswith("503 ")
        assert session.decisions == [("mail-from", reject("550 No"))] and session.delivered is None
        assert session.mail("a").rcpt("b").mail("c").reply.startswith("503 ")
        assert session.rset().accepted and session.rcpts == [] and session.mail("c").accepted


def test_who_was_hung_up_on_says_nothing_more() -> None:
    filter, heard = listening()
    filter.on.ehlo(lambda session, identity: disconnect("421 4.3.2 Bye"))
    with Harness(filter) as harness:
        session = harness.session().ehlo()
        assert session.closed and heard[-1] == "link-disconnect" and harness.sessions == []
        assert session.mail("a").rcpt("b").message(MESSAGE).quit().close().reply == "421 4.3.2 Bye"
        assert heard[-1] == "link-disconnect" and heard.count("link-disconnect") == 1


def test_a_client_that_goes_in_the_middle_has_its_transaction_reset() -> None:
    filter, heard = listening()
    with Harness(filter) as harness:
        harness.session().ehlo().mail("a").close()
    assert heard[-3:] == ["tx-rollback", "tx-reset", "link-disconnect"]


@pytest.mark.parametrize(
    ("phase", "decision", "told"),
    [
        ("rcpt_to", reject("550 No"), ["550 No", "tx-rcpt permfail"]),
        ("rcpt_to", reject("421 Bye"), ["421 Bye", "tx-rcpt tempfail", "tx-rollback", "tx-reset", "link-disconnect"]),
        ("data", reject("550 No"), ["550 No", "tx-data permfail"]),
        ("commit", reject("450 No"), ["450 No", "tx-data tempfail", "tx-rollback", "tx-reset"]),
        ("commit", disconnect("521 Bye"),
         ["521 Bye", "tx-data permfail", "tx-rollback", "tx-reset", "link-disconnect"]),
        ("quit", reject("550 No"), ["550 No"]),
    ],
)  # fmt: skip
def test_what_is_refused_is_told_as_the_reference_does(phase: str, decision: Decision, told: list[str]) -> None:
    filter: Filter[Any] = Filter()
    heard: list[str] = []

    @filter.on.every
    def every(session: Session[Any], event: Event) -> None:
        result = [event.result] if isinstance(event, TxRcpt | TxData) else []
        heard.append(" ".join([getattr(event, "line", event.name), *result]))

    getattr(filter.on, phase)(lambda *_: decision)
    with Harness(filter) as harness:
        client = harness.session().ehlo().mail("a").rcpt("b")
        if phase != "rcpt_to":
            client.message(MESSAGE)
        if phase == "quit":
            assert client.quit().noop().accepted
    at = heard.index(decision.text)
    assert heard[at : at + len(told)] == told
    if phase == "data":  # DATA may come again
        assert heard[at + len(told) :] == [] and client.sender == "a" and client.rcpts == ["b"]


def test_who_introduces_itself_again_begins_again() -> None:
    filter, heard = listening()
    with Harness(filter) as harness:
        client = harness.session().ehlo().mail("a").ehlo()
        assert heard[-2:] == ["tx-rollback", "tx-reset"] and client.mail("b").accepted


@pytest.mark.parametrize("verb", [Verb.REJECT, Verb.DISCONNECT])
def test_a_reply_that_the_server_could_not_send_is_an_assertion(verb: Verb) -> None:
    filter = Filter()
    filter.on.ehlo(lambda session, identity: Decision(verb, "no"))
    with Harness(filter) as harness, pytest.raises(AssertionError, match="a reply begins with"):
        harness.session().ehlo()


@pytest.mark.parametrize(
    "end", ["x.run()", "if __name__ == '__main__':\n    x.run()", "def main():\n    x.run()\nmain()"]
)
def test_a_program_s_filter_can_be_loaded(tmp_path: Path, end: str) -> None:
    program = tmp_path / "filter-x"
    program.write_text(f"""
import sys
from pillarbox.sdk.filter import Filter, reject
x, verdict = Filter(), sys.argv[1]
@x.on.ehlo
def ehlo(session, identity):
    return reject(f"550 {{verdict}}")
try:
    {end.replace(chr(10), chr(10) + "    ")}
except Exception:
    pass
""")
    argv = list(sys.argv)
    with Harness(load(program, "No")) as harness:
        assert harness.session().ehlo().reply == "550 No"
    assert sys.argv == argv and Filter.run.__name__ == "run"
    program.write_text("from pillarbox.sdk.filter import Filter\nfilter = Filter()\n")
    with pytest.raises(FilterError, match="filter-x runs no filter"):
        load(program)
    program.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load(program)


def test_a_login_can_fail() -> None:
    filter = Filter()
    filter.on.auth(lambda session, argument: None)
    with Harness(filter) as harness:
        session = harness.session().ehlo().auth("alice", result="fail")
        assert not session.accepted and harness.sessions[0].username == ""
        assert session.auth("alice").accepted and harness.sessions[0].username == "alice"
