"""What milters do to a message at its end: its header, its body, its envelope."""

from pathlib import Path

import pytest

from tests.milter.driver import MESSAGE, PROCEED, Bridge, Client, received
from tests.milter.scripted import CONTINUE, REJECT, ScriptedMilter, body, numbered, options, packet

UNABLE = "reject|451 4.3.5 System incorrectly configured, please try again later"


def add(name: str, value: str) -> bytes:
    """Below all."""
    return packet(b"h", name.encode(), value.encode())


def insert(index: int, name: str, value: str) -> bytes:
    """At a place among all."""
    return numbered(b"i", index, name.encode(), value.encode())


def change(index: int, name: str, value: str) -> bytes:
    """One of a name."""
    return numbered(b"m", index, name.encode(), value.encode())


@pytest.fixture
def client(client: Client) -> Client:
    """One that is connected."""
    assert client.connect() == PROCEED
    return client


def whole(client: Client, *lines: str) -> list[str]:
    """What becomes of a message, with the field of the server."""
    client.begin()
    made = client.content(lines or MESSAGE)
    assert client.commit() == PROCEED
    return made


def test_added_fields_stand_below_the_others_and_inserted_ones_where_the_milter_says(
    milter: ScriptedMilter, client: Client
) -> None:
    milter.answers["E"] = (
        add("X-Last", "9")
        + insert(1, "X-Second", "2")
        + insert(0, "X-First", "1")
        + insert(99, "X-End", "10")
        + CONTINUE
    )
    lines = whole(client)
    assert lines[0] == "X-First: 1"
    assert lines[1:5] == received(client.msgid)
    assert lines[5] == "X-Second: 2"
    assert lines[6:10] == list(MESSAGE[:4])
    assert lines[10:] == ["X-Last: 9", "X-End: 10", *MESSAGE[4:]]


def test_a_change_counts_the_fields_of_a_name_as_the_milter_saw_them(milter: ScriptedMilter, client: Client) -> None:
    message = ["X: one", "Received: theirs", "x: two", "\tfolded", "Y:none", "X: three", "", "body"]
    milter.answers["E"] = (
        change(1, "X", "") + change(2, "x", "changed\n\tand folded") + change(1, "Received", "hidden")
        + change(3, "X", "last") + change(4, "X", "added") + change(9, "Z", "") + change(0, "y", "first") + CONTINUE
    )  # fmt: skip
    lines = whole(client, *message)
    assert lines[:4] == received(client.msgid)  # is not the milter's to see or to change
    assert lines[4:] == [
        "Received: hidden", "x: changed", "\tand folded", "y: first", "X: last", "X: added", "", "body",
    ]  # fmt: skip
    assert [fields[0] for fields in milter.last.said("L")] == [b"X", b"Received", b"x", b"Y", b"X"]
    assert milter.last.said("L")[2][1] == b"two\n\tfolded"


def test_the_space_behind_the_colon_is_the_milters_where_it_asks_for_it(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path, negotiated=options(steps=1 << 20)) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        milter.answers["E"] = add("X-None", "1") + add("X-Some", "  2") + change(1, "B", "\t3") + CONTINUE
        client.begin()
        lines = client.content(["A:  two", "B:none", "", "body"])
        assert lines[4:] == ["A:  two", "B:\t3", "X-None:1", "X-Some:  2", "", "body"]
        assert milter.last.said("L") == [[b"A", b"  two"], [b"B", b"none"]]


def test_no_field_or_end_of_the_header_is_smuggled_in_with_a_value(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = add("X-A", "1\nBcc: eve@example.net") + add("X-B", "2\r\n\r\nbody\r3") + CONTINUE
    lines = whole(client)
    assert lines[8:] == ["X-A: 1", "\tBcc: eve@example.net", "X-B: 2", "\tbody", "\t3", *MESSAGE[4:]]


@pytest.mark.parametrize("lines", [["new", "", ".", "..", "end"], [""], ["caf\u00e9 \udce9"], ["x" * 70000, "y"]])
def test_a_new_body_takes_the_place_of_the_old_one(milter: ScriptedMilter, client: Client, lines: list[str]) -> None:
    data = "".join(f"{line}\r\n" for line in lines).encode(errors="surrogateescape")
    pieces = [data[at : at + 40000] for at in range(0, len(data), 40000)]
    milter.answers["E"] = body(pieces[0]) + add("X-New", "yes") + b"".join(map(body, pieces[1:])) + CONTINUE
    assert whole(client)[4:] == [*MESSAGE[:4], "X-New: yes", "", *lines]
    assert whole(client, "From: no body")[4:] == ["From: no body", "X-New: yes", "", *lines]


def test_a_new_body_may_have_other_ends_of_lines_and_none_at_its_end(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = body(b"one\ntwo\r") + body(b"\nthree") + CONTINUE
    assert whole(client)[4:] == [*MESSAGE[:5], "one", "two", "three"]


def test_a_message_that_is_refused_after_all_is_not_changed(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = add("X-New", "yes") + body(b"new") + packet(b"q", b"spam") + REJECT
    assert client.deliver() == (list(MESSAGE), "reject|550 5.7.1 Command rejected")


@pytest.mark.parametrize(
    "message",
    [
        [],
        [""],
        ["no header, only text"],
        ["Subject: x", "not a field", "Other: y", "", "body"],
        ["Subject: x", "", "", ""],
        ["Subject:", " folded", "\t", "Old-Style : blank before the colon", "", "body"],
        ["Subject: caf\u00e9 and \udcff", "", "b\rare", ".", "..", "\udce9"],
    ],
)
def test_what_nobody_changes_stays_as_it_came(milter: ScriptedMilter, client: Client, message: list[str]) -> None:
    assert client.deliver(message) == (message, PROCEED)
    milter.answers["E"] = insert(0, "X-New", "yes") + CONTINUE
    assert client.deliver(message) == (["X-New: yes", *message], PROCEED)


ADD, ADD_PARAMETERS = packet(b"+", b"<carol@example.net>"), packet(b"2", b"<carol@example.net>", b"NOTIFY=NEVER")
DELETE, SENDER = packet(b"-", b"<bob@example.net>"), packet(b"e", b"<bounces@example.org>", b"")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (ADD, "add recipient <carol@example.net>"),
        (ADD_PARAMETERS, "add recipient <carol@example.net>"),
        (DELETE, "delete recipient <bob@example.net>"),
        (SENDER, "change sender to <bounces@example.org>"),
        (packet(b"e", b"<>"), "change sender to <>"),
    ],
)
def test_another_envelope_is_refused_for_now_or_ignored_and_the_log_says_so(
    milter: ScriptedMilter, client: Client, changes: bytes, what: str
) -> None:
    milter.answers["E"] = changes + add("X-New", "yes") + CONTINUE
    recipients = ("bob@example.net", "dave@example.net")
    assert client.deliver(recipients=recipients)[1] == UNABLE
    assert what in client.bridge.log()
    with Bridge(milter.address, "--on-envelope", "ignore") as bridge:
        other = bridge.session()
        other.connect()
        assert other.deliver(recipients=recipients) == ([*MESSAGE[:4], "X-New: yes", *MESSAGE[4:]], PROCEED)
        assert what in bridge.log()


def test_changes_that_change_nothing_are_fine(milter: ScriptedMilter, client: Client) -> None:
    before = client.bridge.log()
    milter.answers["E"] = (
        packet(b"+", b"<Bob@Example.net>") + packet(b"-", b"<carol@example.net>") + packet(b"e", b"alice@example.org")
        + ADD + packet(b"-", b"carol@example.net") + CONTINUE
    )  # fmt: skip
    assert client.deliver() == (list(MESSAGE), PROCEED)
    assert client.bridge.log() == before


def test_a_message_without_a_recipient_left_is_one_that_is_to_vanish(milter: ScriptedMilter, client: Client) -> None:
    milter.answers["E"] = DELETE + CONTINUE
    assert client.deliver() == (list(MESSAGE), "reject|550 5.7.1 Message refused")
    with Bridge(milter.address, "--on-discard", "junk") as bridge:
        other = bridge.session()
        other.connect()
        assert other.deliver() == (["X-Spam: Yes", *MESSAGE], PROCEED)
