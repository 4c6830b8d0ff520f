"""A milter that is not there, hangs, hangs up, or talks nonsense: a defined answer in time, and the bridge goes on."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.milter.driver import MESSAGE, PROCEED, Bridge, Client
from tests.milter.scripted import (
    CONTINUE,
    HANG_UP,
    NOTHING,
    PROGRESS,
    Answer,
    ScriptedMilter,
    body,
    numbered,
    options,
    packet,
)
from tests.system.server import wait_for

LATER = "reject|451 4.7.1 Service unavailable, please try again later"
NEVER = "reject|550 5.7.1 Service unavailable"
IMPATIENT = ("--connect-timeout", "0.5", "--command-timeout", "0.5", "--message-timeout", "0.5")

FAULTS: dict[str, Answer] = {
    "hangs": NOTHING,
    "hangs up": HANG_UP,
    "half an answer": b"\0\0\0\5y451",
    "no length": b"\0\0\0\0",
    "a length that cannot be": b"\x7f\xff\xff\xffc",
    "an answer that there is not": packet(b"Z"),
    "http": b"HTTP/1.0 400 Bad Request\r\n\r\n",
    "more behind it": b"\0\0\0\2cc",
    "no reply": packet(b"y", b"nonsense"),
    "a reply that refuses nothing": packet(b"y", b"250 Ok"),
    "two codes": packet(b"y", b"550-one\r\n451 two"),
    "never an end": PROGRESS * 3,
}
CHANGES: dict[str, Answer] = {
    "no name": packet(b"h", b"", b"x") + CONTINUE,
    "a name that is none": packet(b"h", b"X: y\nZ", b"x") + CONTINUE,
    "no value": packet(b"h", b"X") + CONTINUE,
    "not ended": b"\0\0\0\4hX\0y" + CONTINUE,
    "no number": b"\0\0\0\3mX\0" + CONTINUE,
    "a number that cannot be": numbered(b"i", 1 << 31, b"X", b"y") + CONTINUE,
    "no address": b"\0\0\0\1+" + CONTINUE,
}


@pytest.fixture
def milter(tmp_path: Path) -> Iterator[ScriptedMilter]:
    """Says "continue" to all, until the test changes its `answers`."""
    with ScriptedMilter(tmp_path) as made:
        yield made


@pytest.fixture
def client(milter: ScriptedMilter) -> Iterator[Client]:
    """A client of a bridge that does not wait for long; not connected yet."""
    with Bridge(milter.address, *IMPATIENT) as bridge:
        yield bridge.session()


@pytest.mark.parametrize("letter", "OCH")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_before_the_first_message_a_fault_refuses_that_and_later_ones_go_through(
    milter: ScriptedMilter, client: Client, letter: str, fault: Answer
) -> None:
    milter.answers[letter] = fault
    assert client.connect() == PROCEED
    assert client.mail() == LATER
    assert client.rcpt() == LATER
    assert client.data() == LATER
    assert "the milter fails: " in client.bridge.log()
    del milter.answers[letter]
    assert client.deliver() == (list(MESSAGE), PROCEED)
    assert "the milter answers again" in client.bridge.log()


@pytest.mark.parametrize("letter", "MRTLNBE")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_a_message_refuses_it_and_the_next_goes_through(
    milter: ScriptedMilter, client: Client, letter: str, fault: Answer
) -> None:
    milter.answers[letter] = fault
    client.connect()
    decisions = [client.mail(), client.rcpt(), client.data()]
    first_bad = min("MRTL".index(letter) if letter in "MRT" else 3, 3)
    assert decisions == [PROCEED] * first_bad + [LATER] * (3 - first_bad)
    if first_bad == 3:
        assert client.content()[4:] == list(MESSAGE)
        assert client.commit() == LATER
    del milter.answers[letter]
    assert client.deliver() == (list(MESSAGE), PROCEED)


@pytest.mark.parametrize("fault", CHANGES.values(), ids=CHANGES)
def test_a_change_that_is_none_refuses_the_message(milter: ScriptedMilter, client: Client, fault: Answer) -> None:
    milter.answers["E"] = fault
    client.connect()
    assert client.deliver() == (list(MESSAGE), LATER)


@pytest.mark.parametrize("letter", "CHMRTLNB")
def test_changes_before_the_end_of_a_message_are_a_fault(milter: ScriptedMilter, client: Client, letter: str) -> None:
    milter.answers[letter] = packet(b"h", b"X", b"y") + CONTINUE
    client.connect()
    assert LATER in (client.mail(), client.rcpt(), client.data(), client.content() and client.commit())


@pytest.mark.parametrize(
    "negotiated",
    [
        options(version=7),
        options(version=1),
        options(actions=0x3FF),
        packet(b"c"),
        b"\0\0\0\4O\0\0\0",
        options(macros={0: "j"})[:-1],
        options()[:3] + b"\x11" + options()[4:] + b"\0\0\0\1",
    ],
)
def test_what_cannot_be_agreed_on_is_a_fault(tmp_path: Path, negotiated: bytes) -> None:
    with ScriptedMilter(tmp_path, negotiated=negotiated) as milter, Bridge(milter.address, *IMPATIENT) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        assert client.mail() == LATER


def test_steps_and_stages_that_are_not_known_yet_are_no_fault(tmp_path: Path) -> None:
    negotiated = options(steps=1 << 30, macros={0: "j", 99: "x"})
    with ScriptedMilter(tmp_path, negotiated=negotiated) as milter, Bridge(milter.address, *IMPATIENT) as bridge:
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)


@pytest.mark.parametrize("address", ["unix:{folder}/none.sock", "inet:1@127.0.0.1", "inet6:1@::1", "inet:1"])
def test_without_a_milter_mail_waits(tmp_path: Path, address: str) -> None:
    with Bridge(address.format(folder=tmp_path), *IMPATIENT) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        assert client.mail() == LATER
        assert "the milter fails: no connection: " in bridge.log()


@pytest.mark.parametrize(("choice", "decision"), [("reject", NEVER), ("accept", PROCEED)])
def test_the_postmaster_chooses_what_holds_without_a_milter(tmp_path: Path, choice: str, decision: str) -> None:
    with Bridge(f"unix:{tmp_path}/none.sock", "--on-error", choice) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        assert client.mail() == decision
        assert client.rcpt() == decision
        assert client.data() == decision
        if choice == "accept":
            assert client.content()[4:] == list(MESSAGE)
            assert client.commit() == PROCEED


@pytest.mark.parametrize("letter", "MRTLNBE")
def test_a_message_that_is_accepted_without_its_milter_is_unchanged(milter: ScriptedMilter, letter: str) -> None:
    with Bridge(milter.address, *IMPATIENT, "--on-error", "accept") as bridge:
        client = bridge.session()
        client.connect()
        milter.answers[letter] = packet(b"h", b"X", b"y") if letter == "E" else HANG_UP
        assert client.deliver() == (list(MESSAGE), PROCEED)
        milter.answers = {"E": packet(b"h", b"X", b"y") + CONTINUE}
        assert "X: y" in client.deliver()[0]


def test_a_milter_that_was_started_again_between_two_messages_is_not_noticed(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        milter.stop()
        milter.start()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        assert milter.hears("CHMRTLLLLNBE") == "CHMRTLLLLNBE"  # it is told who the client is
        assert milter.last.said("C") == milter.connections[0].said("C")
        assert bridge.log() == ""


def test_a_milter_that_ends_in_the_middle_of_a_message_costs_only_that(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client, other = bridge.session(), bridge.session()
        client.connect()
        other.connect()
        client.begin()
        milter.stop()
        assert client.content()[4:] == list(MESSAGE)
        assert client.commit() == LATER
        assert other.mail() == LATER
        milter.start()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        assert other.deliver() == (list(MESSAGE), PROCEED)
        assert bridge.log().count("the milter fails") == 1


def test_progress_cannot_hold_an_answer_back_for_ever(milter: ScriptedMilter) -> None:
    def slowly(payload: bytes) -> bytes:
        time.sleep(0.2)
        return PROGRESS

    with Bridge(milter.address, "--answer-within", "1") as bridge:
        client = bridge.session()
        client.connect()
        client.begin()
        milter.answers["E"] = slowly(b"") * 10
        began = time.monotonic()
        assert client.content()[4:] == list(MESSAGE)
        assert time.monotonic() - began < 5
        assert client.commit() == LATER
        assert "no answer within 1 s" in bridge.log()


def test_a_milter_that_hangs_does_not_hold_up_other_sessions(milter: ScriptedMilter) -> None:
    milter.answers["M"] = lambda payload: NOTHING if b"slow" in payload else CONTINUE
    with Bridge(milter.address, "--command-timeout", "20") as bridge:
        slow, quick = bridge.session(), bridge.session()
        slow.connect()
        quick.connect()
        bridge.ask("mail-from", slow.id, "slow@example.org")
        began = time.monotonic()
        assert quick.deliver() == (list(MESSAGE), PROCEED)
        assert time.monotonic() - began < 5


def test_a_message_that_is_too_big_goes_through_whole_and_is_refused(milter: ScriptedMilter) -> None:
    with Bridge(milter.address, "--max-size", "100K") as bridge:
        client = bridge.session()
        client.connect()
        big = [*MESSAGE, *("x" * 70 for _ in range(2000))]
        assert client.deliver(big) == (big, "reject|552 5.3.4 Message too big")
        assert client.deliver() == (list(MESSAGE), PROCEED)
        milter.answers["E"] = 3 * body(b"y" * 50000) + CONTINUE
        assert client.deliver() == (list(MESSAGE), "reject|552 5.3.4 Message too big")


def test_a_header_that_is_too_big_is_refused(milter: ScriptedMilter, client: Client) -> None:
    client.connect()
    big = ["Subject: x", *("\t" + "x" * 900 for _ in range(5000)), "", "body"]
    assert client.deliver(big) == (big, "reject|552 5.3.4 Message too big")


def test_more_connections_than_are_allowed_are_not_made(milter: ScriptedMilter) -> None:
    with Bridge(milter.address, "--connections", "2") as bridge:
        clients = [bridge.session() for _ in range(3)]
        for client in clients:
            assert client.connect() == PROCEED
        assert clients[0].deliver() == (list(MESSAGE), PROCEED)
        assert clients[2].mail() == LATER
        assert len(milter.connections) == 2
        clients[0].quit()
        assert clients[2].deliver() == (list(MESSAGE), PROCEED)
        assert len(milter.connections) == 3


def descriptors(bridge: Bridge) -> int:
    """How many the program has open."""
    return len(list(Path(f"/proc/{bridge.pid}/fd").iterdir()))


def test_nothing_is_left_of_sessions_however_they_end(milter: ScriptedMilter) -> None:
    big = [*MESSAGE, *("x" * 70 for _ in range(30000))]  # in a file

    def delivered(client: Client) -> None:
        assert client.deliver(big)[1] == PROCEED

    def left_in_data(client: Client) -> None:
        client.begin()
        bridge.report("protocol-client", client.id, "never an end")
        bridge.lines(client.id, big)

    def broken(client: Client) -> None:
        client.begin()
        milter.answers["E"] = HANG_UP
        client.content(big)
        milter.answers.clear()

    ways: list[Callable[[Client], None]] = [delivered, left_in_data, broken, lambda client: None]
    with Bridge(milter.address) as bridge:
        before = descriptors(bridge)
        for way in ways:
            client = bridge.session()
            client.connect()
            way(client)
            client.quit()
            assert wait_for(lambda: descriptors(bridge) == before, 10), way
