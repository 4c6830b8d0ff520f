"""A milter that is not there, hangs, hangs up, or talks nonsense: a defined answer in time, and the bridge goes on."""

import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.milter.driver import MESSAGE, PROCEED, Bridge, Client
from tests.milter.scripted import (
    ACCEPT,
    CONTINUE,
    HANG_UP,
    NOTHING,
    PROGRESS,
    REJECT,
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
IMPATIENT = ("--connect-timeout", "1", "--command-timeout", "1", "--message-timeout", "1")

FAULTS: dict[str, Answer] = {
    "hangs up": HANG_UP,
    "no length": b"\0\0\0\0",
    "a length that cannot be": b"\x7f\xff\xff\xffc",
    "an answer that there is not": packet(b"Z"),
    "http": b"HTTP/1.0 400 Bad Request\r\n\r\n",
    "more behind it": b"\0\0\0\2cc",
    "no reply": packet(b"y", b"nonsense"),
    "a reply that refuses nothing": packet(b"y", b"250 Ok"),
    "two codes": packet(b"y", b"550-one\r\n451 two"),
}
SILENCES: dict[str, Answer] = {"nothing": NOTHING, "half an answer": b"\0\0\0\5y451", "only progress": PROGRESS * 3}
CHANGES: dict[str, Answer] = {
    "no name": packet(b"h", b"", b"x") + CONTINUE,
    "a name that is none": packet(b"h", b"X: y\nZ", b"x") + CONTINUE,
    "no value": packet(b"h", b"X") + CONTINUE,
    "not ended": b"\0\0\0\4hX\0y" + CONTINUE,
    "no number": b"\0\0\0\3mX\0" + CONTINUE,
    "a number that cannot be": numbered(b"i", 1 << 31, b"X", b"y") + CONTINUE,
    "no address": b"\0\0\0\1+" + CONTINUE,
}


@pytest.fixture(scope="module")
def impatient(shared: tuple[ScriptedMilter, Bridge]) -> Iterator[Bridge]:
    """A bridge that does not wait for long."""
    milter, _ = shared
    with Bridge(milter.address, *IMPATIENT) as bridge:
        yield bridge


def fails_before_a_message(milter: ScriptedMilter, client: Client, letter: str) -> None:
    """The first message is refused, the next goes through."""
    assert client.connect() == PROCEED
    assert client.mail() == LATER
    assert client.rcpt() == LATER
    assert client.data() == LATER
    assert "the milter fails: " in client.bridge.log()
    del milter.answers[letter]
    assert client.deliver() == (list(MESSAGE), PROCEED)
    assert "the milter answers again" in client.bridge.log()


def fails_in_a_message(milter: ScriptedMilter, client: Client, letter: str) -> None:
    """This message is refused, the next goes through."""
    client.connect()
    decisions = [client.mail(), client.rcpt(), client.data()]
    good = "MRT".find(letter) if letter in "MRT" else 3
    assert decisions == [PROCEED] * good + [LATER] * (3 - good)
    if good == 3:
        assert client.content()[4:] == list(MESSAGE)
        assert client.commit() == LATER
    del milter.answers[letter]
    assert client.deliver() == (list(MESSAGE), PROCEED)


@pytest.mark.parametrize("letter", "OCH")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_before_the_first_message_a_fault_refuses_that_and_later_ones_go_through(
    milter: ScriptedMilter, client: Client, letter: str, fault: Answer
) -> None:
    milter.answers[letter] = fault
    fails_before_a_message(milter, client, letter)


@pytest.mark.parametrize("letter", "MRTLNBE")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_a_message_refuses_it_and_the_next_goes_through(
    milter: ScriptedMilter, client: Client, letter: str, fault: Answer
) -> None:
    milter.answers[letter] = fault
    fails_in_a_message(milter, client, letter)


@pytest.mark.parametrize("letter", "OCRE")
@pytest.mark.parametrize("silence", SILENCES.values(), ids=SILENCES)
def test_a_milter_that_hangs_is_waited_for_until_the_deadline(
    milter: ScriptedMilter, impatient: Bridge, letter: str, silence: Answer
) -> None:
    milter.answers[letter] = silence
    fails = fails_before_a_message if letter in "OC" else fails_in_a_message
    fails(milter, impatient.session(), letter)
    assert "no answer in time" in impatient.log()


@pytest.mark.parametrize("fault", CHANGES.values(), ids=CHANGES)
def test_a_change_that_is_none_refuses_the_message(milter: ScriptedMilter, client: Client, fault: Answer) -> None:
    milter.answers["E"] = fault
    client.connect()
    assert client.deliver() == (list(MESSAGE), LATER)


@pytest.mark.parametrize("letter", "CHMRTLNB")
def test_answers_that_nobody_asked_for_are_not_taken_for_others(
    milter: ScriptedMilter, client: Client, letter: str
) -> None:
    milter.answers |= {letter: CONTINUE + ACCEPT, "E": REJECT}
    client.connect()
    decisions = [client.mail(), client.rcpt(), client.data(), client.content() and client.commit()]
    assert decisions[-1] in (LATER, "reject|550 5.7.1 Command rejected")


def test_an_answer_that_comes_late_is_not_taken_for_that_to_the_next_question(
    milter: ScriptedMilter, client: Client
) -> None:
    milter.answers["E"] = REJECT
    client.connect()
    assert client.mail() == PROCEED
    milter.say(CONTINUE)
    assert client.rcpt() == LATER
    milter.answers["E"] = CONTINUE
    assert client.deliver() == (list(MESSAGE), PROCEED)
    milter.say(CONTINUE)
    assert client.deliver() == (list(MESSAGE), PROCEED)  # on another connection
    assert len(milter.connections) == 3


def test_answers_where_none_were_agreed_on_do_not_stand_for_that_at_the_end(tmp_path: Path) -> None:
    milter = ScriptedMilter(tmp_path, negotiated=options(steps=1 << 7), answers={"E": REJECT})
    with milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        assert client.deliver()[1] in (LATER, "reject|550 5.7.1 Command rejected")


def test_changes_without_an_end_are_not_kept(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = packet(b"h", b"X", b"y" * 60000) * 100 + CONTINUE
    client.connect()
    assert client.deliver() == (list(MESSAGE), LATER)
    assert "changes of more than 4194304 bytes" in client.bridge.log()


def test_small_changes_without_an_end_are_not_kept_either(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = packet(b"+", b"x") * 100_000 + CONTINUE
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
        b"\0\0\0\x12" + options(macros={0: "j"})[4:-1],
        options()[:3] + b"\x11" + options()[4:] + b"\0\0\0\1",
    ],
)
def test_what_cannot_be_agreed_on_is_a_fault(tmp_path: Path, negotiated: bytes) -> None:
    with ScriptedMilter(tmp_path, negotiated=negotiated) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        assert client.mail() == LATER


def test_steps_and_stages_that_are_not_known_yet_are_no_fault(tmp_path: Path) -> None:
    negotiated = options(steps=1 << 30, macros={0: "j", 99: "x"})
    with ScriptedMilter(tmp_path, negotiated=negotiated) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)


@pytest.mark.parametrize("address", ["unix:{folder}/none.sock", "inet:1@127.0.0.1", "inet6:1@::1", "inet:1"])
def test_without_a_milter_mail_waits(tmp_path: Path, address: str) -> None:
    with Bridge(address.format(folder=tmp_path)) as bridge:
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


def test_a_message_whose_beginning_the_bridge_did_not_see_is_refused(milter: ScriptedMilter, client: Client) -> None:
    client.msgid = "00000abc"
    assert client.content(list(MESSAGE))[4:] == list(MESSAGE)
    assert client.commit() == LATER


def test_a_message_without_a_line_is_asked_about_too(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = REJECT
    client.connect()
    client.begin()
    assert client.bridge.message(client.bridge.lines(client.id, [])) == []
    assert client.commit() == "reject|550 5.7.1 Command rejected"
    assert milter.hears("CHMRTNEA").startswith("CHMRTNE")


def test_a_message_that_the_bridge_did_not_see_is_refused(milter: ScriptedMilter, client: Client) -> None:
    client.connect()
    client.begin()
    assert client.commit() == LATER
    assert client.deliver() == (list(MESSAGE), PROCEED)


def test_a_filter_that_is_in_a_chain_twice_asks_once_about_a_message(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = packet(b"h", b"X", b"y") + CONTINUE
    client.connect()
    client.begin()
    made = client.content()
    assert "X: y" in made
    assert client.bridge.message(client.bridge.lines(client.id, made)) == made
    assert client.commit() == PROCEED


def test_a_client_of_whom_the_bridge_did_not_hear_is_not_taken_for_this_machine(milter: ScriptedMilter) -> None:
    with Bridge(milter.address) as bridge:
        client = bridge.session()
        client.ehlo()  # the bridge was started again in the middle of the session
        assert client.mail() == LATER
        assert client.rcpt() == LATER
        assert milter.connections == []
        assert "it is not known who the client is" in bridge.log()
        client.quit()
        other = bridge.session()
        other.connect()
        assert other.deliver() == (list(MESSAGE), PROCEED)


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


def test_a_message_that_no_disk_has_room_for_goes_through_whole_and_is_refused(milter: ScriptedMilter) -> None:
    big = [*MESSAGE, *(f"{number:070}" for number in range(24_000))]
    with Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        resource.prlimit(bridge.pid, resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
        assert client.deliver(big) == (big, "reject|451 4.3.1 Please try again later")
        assert "message refused: it cannot be kept: File too large" in bridge.log()
        assert client.deliver() == (list(MESSAGE), PROCEED)


def test_a_new_body_that_is_much_larger_is_refused_before_the_server_ends_the_filter_for_it(
    milter: ScriptedMilter, client: Client
) -> None:
    client.connect()
    milter.answers["E"] = 20 * body((b"x" * 999 + b"\n") * 1000) + CONTINUE
    assert client.deliver() == (list(MESSAGE), "reject|552 5.3.4 Message too big")


def test_a_header_that_is_too_big_is_refused(milter: ScriptedMilter, client: Client) -> None:
    client.connect()
    big = ["Subject: x", *("\t" + "x" * 900 for _ in range(5000)), "", "body"]
    assert client.deliver(big) == (big, "reject|552 5.3.4 Message too big")


@pytest.mark.parametrize("start", ["a:", " "])
def test_a_header_of_too_many_lines_is_refused(milter: ScriptedMilter, client: Client, start: str) -> None:
    client.connect()
    big = ["Subject: x", *(start for _ in range(25_000)), "", "body"]
    assert client.deliver(big) == (big, "reject|552 5.3.4 Message too big")


def test_a_new_line_that_is_too_long_for_the_server_is_refused(milter: ScriptedMilter, client: Client) -> None:
    client.connect()
    milter.answers["E"] = body(b"x" * 65535) * 17 + CONTINUE
    assert client.deliver() == (list(MESSAGE), "reject|552 5.3.4 Message too big")
    milter.answers["E"] = packet(b"h", b"X", b"y" * (1 << 20)) + CONTINUE
    assert client.deliver() == (list(MESSAGE), LATER)
    milter.answers["E"] = body(b"x" * 500_000) + body(b"\r\n" + b"y" * 500_000) + CONTINUE
    assert client.deliver() == ([*MESSAGE[:5], "x" * 500_000, "y" * 500_000], PROCEED)


def test_clients_that_do_nothing_keep_nobody_from_the_milter(milter: ScriptedMilter) -> None:
    with Bridge(milter.address, "--connections", "2") as bridge:
        clients = [bridge.session() for _ in range(5)]
        for client in clients:
            assert client.connect() == PROCEED
        for client in clients * 2:
            assert client.deliver() == (list(MESSAGE), PROCEED)
        assert wait_for(lambda: sum(each.commands.endswith("Q") for each in milter.connections[:-2]) >= 3, 10)
        assert all(each.commands.startswith("CH") for each in milter.connections)
        assert bridge.log() == ""


def test_more_messages_at_a_time_than_there_may_be_connections_wait(milter: ScriptedMilter) -> None:
    with Bridge(milter.address, "--connections", "2") as bridge:
        clients = [bridge.session() for _ in range(3)]
        for client in clients[:2]:
            client.connect()
            client.begin()
        assert clients[2].connect() == PROCEED
        assert clients[2].mail() == LATER
        assert "2 messages are on their way already" in bridge.log()
        assert clients[0].content()[4:] == list(MESSAGE)
        assert clients[0].commit() == PROCEED
        assert clients[2].deliver() == (list(MESSAGE), PROCEED)
        assert clients[1].content()[4:] == list(MESSAGE)
        assert clients[1].commit() == PROCEED
        clients[0].ehlo("another name")
        assert clients[0].deliver() == (list(MESSAGE), PROCEED)
        assert milter.last.said("H")[-1] == [b"another name"]


def descriptors(bridge: Bridge) -> int:
    """How many the program has open."""
    return len(list(Path(f"/proc/{bridge.pid}/fd").iterdir()))


def test_nothing_is_left_of_sessions_however_they_end(milter: ScriptedMilter) -> None:
    big = [*MESSAGE, *("x" * 70 for _ in range(16000))]  # in a file

    def delivered(client: Client) -> None:
        assert client.deliver(big)[1] == PROCEED

    def left_in_data(client: Client) -> None:
        client.begin()
        bridge.lines(client.id, big, ended=False)

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
