"""What a milter answers, at each command, and what becomes of the command, the message and the session."""

from pathlib import Path

import pytest

from tests.milter import scripted
from tests.milter.driver import MESSAGE, PROCEED, Bridge, Client, received
from tests.milter.scripted import ACCEPT, DISCARD, REJECT, TEMPFAIL, ScriptedMilter, options, packet

REFUSED = "reject|550 5.7.1 Command rejected"
LATER = "reject|451 4.7.1 Please try again later"
GREYLISTED = packet(b"y", b"451 4.7.1 Greylisted, come back in 5 minutes")


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (REJECT, "disconnect|554 5.7.1 Command rejected"),
        (TEMPFAIL, "disconnect|421 4.7.1 Please try again later"),
        (packet(b"y", b"550 5.7.1 We know you"), "disconnect|554 5.7.1 We know you"),
        (scripted.SHUTDOWN, "disconnect|421 4.7.0 Closing connection"),
        (scripted.CONNECTION_FAILURE, "disconnect|421 4.7.0 Closing connection"),
    ],
)
def test_a_refused_connection_is_ended_with_a_reply_that_a_greeting_may_be(
    milter: ScriptedMilter, client: Client, answer: bytes, decision: str
) -> None:
    milter.answers["C"] = answer
    assert client.connect() == decision
    client.quit()
    assert milter.hears("CQ") == "CQ"


def test_a_connection_that_is_accepted_is_not_asked_about_again(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["C"] = ACCEPT
    assert client.connect() == PROCEED
    assert client.deliver() == (list(MESSAGE), PROCEED)
    assert client.deliver() == (list(MESSAGE), PROCEED)
    assert milter.hears("CQ") == "CQ" and len(milter.connections) == 1


def test_discard_has_no_meaning_before_there_is_a_message(milter: ScriptedMilter, client: Client) -> None:
    milter.answers |= {"C": DISCARD, "H": DISCARD}
    assert client.connect() == PROCEED
    assert client.deliver() == (list(MESSAGE), PROCEED)


def test_what_is_refused_at_helo_is_refused_from_then_on(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["H"] = packet(b"y", b"550 5.7.1 Lies")
    assert client.connect(ehlo=False) == PROCEED
    for _ in range(2):
        assert client.ehlo() == "reject|550 5.7.1 Lies"
    assert client.mail() == "reject|550 5.7.1 Lies"
    assert milter.hears("CHQ") == "CHQ"


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (REJECT, REFUSED),
        (TEMPFAIL, LATER),
        (GREYLISTED, "reject|451 4.7.1 Greylisted, come back in 5 minutes"),
        (DISCARD, "reject|550 5.7.1 Message refused"),
        (scripted.SHUTDOWN, "disconnect|421 4.7.0 Closing connection"),
    ],
)
@pytest.mark.parametrize("letter", "MRT")
def test_a_command_is_refused_with_what_the_milter_says(
    milter: ScriptedMilter, client: Client, letter: str, answer: bytes, decision: str
) -> None:
    milter.answers[letter] = answer
    assert client.connect() == PROCEED
    steps = {"M": client.mail, "R": client.rcpt, "T": client.data}
    for each, step in steps.items():
        said = step()
        if each == letter:
            assert said == decision
            return
        assert said == PROCEED


def test_a_refused_sender_does_not_touch_the_next(milter: ScriptedMilter, client: Client) -> None:
    client.connect()
    milter.answers["M"] = REJECT
    assert client.mail() == REFUSED
    milter.answers["M"] = scripted.CONTINUE
    assert client.deliver() == (list(MESSAGE), PROCEED)
    assert milter.hears("CHMAMRTLLLLNBE") == "CHMAMRTLLLLNBE"  # it hears that the first one is over


def test_a_refused_recipient_does_not_touch_the_others(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["R"] = lambda payload: REJECT if b"eve" in payload else scripted.CONTINUE
    client.connect()
    client.mail()
    assert client.rcpt("bob@example.net") == PROCEED
    assert client.rcpt("eve@example.net") == REFUSED
    assert client.rcpt("carol@example.net") == PROCEED
    assert client.data() == PROCEED
    client.content()
    assert client.commit() == PROCEED


@pytest.mark.parametrize("letter", "MRTLNBE")
def test_a_message_that_is_accepted_is_not_asked_about_again_but_the_next_is(
    milter: ScriptedMilter, client: Client, letter: str
) -> None:
    milter.answers[letter] = ACCEPT
    client.connect()
    assert client.deliver() == (list(MESSAGE), PROCEED)
    assert client.deliver() == (list(MESSAGE), PROCEED)
    whole = "MRTLNBE"
    until = whole[: whole.index(letter) + 1].replace("LN", "LLLLN")
    end = "" if letter == "E" else "A"
    assert milter.hears(f"CH{until}{end}{until}{end}") == f"CH{until}{end}{until}{end}"


@pytest.mark.parametrize("letter", "LNBE")
@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (REJECT, REFUSED),
        (TEMPFAIL, LATER),
        (packet(b"y", b"554 5.7.1 Virus"), "reject|554 5.7.1 Virus"),
        (DISCARD, "reject|550 5.7.1 Message refused"),
        (scripted.SHUTDOWN, "disconnect|421 4.7.0 Closing connection"),
    ],
)
def test_a_message_that_is_refused_goes_through_unchanged_and_is_refused_at_its_end(
    milter: ScriptedMilter, client: Client, letter: str, answer: bytes, decision: str
) -> None:
    milter.answers[letter] = answer
    client.connect()
    assert client.deliver() == (list(MESSAGE), decision)


def test_the_verdict_about_a_message_does_not_touch_the_next(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = REJECT
    client.connect()
    assert client.deliver()[1] == REFUSED
    milter.answers["E"] = scripted.CONTINUE
    assert client.deliver() == (list(MESSAGE), PROCEED)


def test_a_message_that_is_to_vanish_is_junk_where_the_postmaster_says_so(milter: ScriptedMilter) -> None:
    with Bridge(milter.address, "--on-discard", "junk") as bridge:
        client = bridge.session()
        client.connect()
        for letter in "MRTLNBE":
            milter.answers = {letter: DISCARD}
            assert client.deliver() == (["X-Spam: Yes", *MESSAGE], PROCEED), letter
        milter.answers = {}
        assert client.deliver() == (list(MESSAGE), PROCEED)


def test_quarantine_makes_a_message_junk(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = packet(b"q", b"looks like a bill") + scripted.CONTINUE
    client.connect()
    assert client.deliver() == (["X-Spam: Yes", *MESSAGE], PROCEED)
    client.begin()
    spam = ["X-Spam: Yes", *received(client.msgid), *MESSAGE]
    assert client.bridge.message(client.bridge.lines(client.id, spam)) == spam  # once is enough


@pytest.mark.parametrize("claim", ["X-Spam: No", "X-Spam:\tYes", "X-Spam: Yesterday", "X-Spam:"])
def test_a_sender_s_own_mark_does_not_keep_a_message_from_being_junk(
    milter: ScriptedMilter, client: Client, claim: str
) -> None:
    milter.answers["E"] = packet(b"q", b"looks like a bill") + scripted.CONTINUE
    client.connect()
    assert client.deliver([claim, *MESSAGE]) == (["X-Spam: Yes", claim, *MESSAGE], PROCEED)


def test_a_reply_of_several_lines_becomes_one(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["R"] = packet(b"y", b"550-5.7.0 Not here,\r\n550-5.7.0 100%% sure:\r\n550 5.7.0 see our policy|page")
    client.connect()
    client.mail()
    assert client.rcpt() == "reject|550 5.7.0 Not here, 100% sure: see our policy|page"


def test_progress_is_waited_out(milter: ScriptedMilter, client: Client) -> None:
    milter.answers |= dict.fromkeys("CHMRTLNBE", 3 * scripted.PROGRESS + scripted.CONTINUE)
    client.connect()
    assert client.deliver() == (list(MESSAGE), PROCEED)


def test_the_body_is_sent_in_pieces_of_64_kilobytes_until_the_milter_has_enough(
    milter: ScriptedMilter, client: Client
) -> None:
    message = [*MESSAGE, *(f"{number:076}" for number in range(4000))]
    client.connect()
    assert client.deliver(message) == (message, PROCEED)
    pieces = [len(payload) for letter, payload in milter.last.heard if letter == "B"]
    assert max(pieces) == 65535 and sum(pieces) > 4 * 65535 and len(pieces) <= 7
    assert milter.last.body().decode().split("\r\n")[:-1] == message[5:]
    milter.answers["B"] = scripted.SKIP
    assert client.deliver(message) == (message, PROCEED)
    assert milter.last.commands.endswith("NBE")


def test_a_reset_ends_the_message_for_the_milter_too(milter: ScriptedMilter, client: Client) -> None:
    client.connect()
    client.mail()
    client.rcpt()
    client.reset()
    assert client.deliver() == (list(MESSAGE), PROCEED)
    client.mail()
    client.reset()
    client.quit()
    assert milter.hears("CHMRAMRTLLLLNBEMAQ") == "CHMRAMRTLLLLNBEMAQ"


def test_data_that_another_filter_refused_is_told_once_and_recipients_after_it_wait(
    milter: ScriptedMilter, client: Client
) -> None:
    client.connect()
    client.begin()
    assert client.data() == PROCEED
    assert client.content()[4:] == list(MESSAGE)
    assert client.commit() == PROCEED
    assert milter.hears("CHMRTLLLLNBE") == "CHMRTLLLLNBE"
    client.begin()
    assert client.rcpt("carol@example.net") == LATER
    client.reset()
    assert client.deliver() == (list(MESSAGE), PROCEED)


@pytest.mark.parametrize(
    ("steps", "heard"),
    [
        (1 << 0, "HMRTLLLLNBE"),
        (1 << 1, "CMRTLLLLNBE"),
        (1 << 2, "CHRTLLLLNBE"),
        (1 << 3, "CHMTLLLLNBE"),
        (1 << 4, "CHMRTLLLLNE"),
        (1 << 5, "CHMRTNBE"),
        (1 << 6, "CHMRTLLLLBE"),
        (1 << 9, "CHMRLLLLNBE"),
        (0x27F, "E"),
    ],
)
def test_what_a_milter_does_not_want_to_hear_it_is_not_told(tmp_path: Path, steps: int, heard: str) -> None:
    with ScriptedMilter(tmp_path, negotiated=options(steps=steps)) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        assert milter.hears(heard) == heard


def test_what_a_milter_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    silent = options(steps=0xFF080 & ~(1 << 8 | 1 << 9 | 1 << 10 | 1 << 11))
    answers = dict.fromkeys("CHMRTLNB", scripted.NOTHING)
    with (
        ScriptedMilter(tmp_path, negotiated=silent, answers=answers) as milter,
        Bridge(milter.address, "--command-timeout", "1") as bridge,
    ):
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        assert client.deliver() == (list(MESSAGE), PROCEED)
        assert milter.hears("CH" + 2 * "MRTLLLLNBE") == "CH" + 2 * "MRTLLLLNBE"
        assert bridge.log() == ""


def test_a_milter_of_an_old_version_does_not_hear_of_data(tmp_path: Path) -> None:
    with (
        ScriptedMilter(tmp_path, negotiated=options(2, 0x1F, 0)) as milter,
        Bridge(milter.address) as bridge,
    ):
        client = bridge.session()
        client.connect()
        assert client.deliver() == (list(MESSAGE), PROCEED)
        assert milter.hears("CHMRLLLLNBE") == "CHMRLLLLNBE"


def test_recipients_that_the_server_refused_are_told_to_who_asks(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        client.mail()
        assert client.rcpt("nobody@example.net", known=False) == PROCEED
        milter.negotiated = options(steps=1 << 11)
        second = bridge.session()
        second.connect()
        second.mail()
        assert second.rcpt("nobody@example.net", known=False) == PROCEED
        milter.answers["R"] = REJECT
        assert second.rcpt("eve@example.net") == REFUSED
        assert second.data() == PROCEED
        first, last = milter.connections
        assert first.commands == "CHMR"
        assert last.commands == "CHMRRRT"  # it refused the third itself
        assert last.heard[-6][1].split(b"\0")[-4:-1] == [b"5.0.0", b"{rcpt_mailer}", b"error"]
