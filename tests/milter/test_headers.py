"""Headers: found whole, numbered as sendmail numbers, never more than the fields that were asked for."""

from hypothesis import given
from hypothesis import strategies as st

from pillarbox.milter.headers import Header, parse_header
from pillarbox.milter.message import Message
from pillarbox.milter.wire import AddHeader, ChangeHeader, InsertHeader

NAMES = st.sampled_from([b"A", b"a", b"B", b"Received"])
VALUES = st.binary(max_size=12).map(lambda value: value.replace(b"\0", b""))
LINES = st.lists(
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from([b"", b"A: b", b" folded", b"\t", b"Received: x\tid 0abc", b"B:", b".", b"C :d"]),
    ).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b""))
)
CHANGES = st.lists(
    st.one_of(
        st.builds(AddHeader, NAMES, VALUES),
        st.builds(InsertHeader, st.integers(0, 9), NAMES, VALUES),
        st.builds(ChangeHeader, st.integers(0, 4), NAMES, VALUES),
    )
)


def message_of(lines: list[bytes]) -> Message:
    """A message of these lines, taken apart."""
    message = Message(limit=1 << 23)
    for line in lines:
        message.append(line)
    message.parse("0abc")
    return message


@given(LINES)
def test_an_unchanged_message_is_given_back_line_by_line(lines: list[bytes]) -> None:
    message = message_of(lines)
    assert list(message.lines()) == lines == list(message.as_received())
    rest = b"".join(message.body()).split(b"\r\n")[:-1]
    assert lines[len(lines) - len(rest) :] == rest
    message.close()


@given(LINES, CHANGES)
def test_changes_make_fields_and_nothing_else(lines: list[bytes], changes: list[object]) -> None:
    message = message_of(lines)
    body = b"".join(message.body())
    count = len([1 for each in message.header.fields if not each.gone])
    for change in changes:
        match change:
            case AddHeader():
                message.header.add(change)
            case InsertHeader():
                message.header.insert(change)
            case ChangeHeader():
                message.header.change(change)
    made = list(message.lines())
    header = message.header.lines()
    assert not any(b"\n" in line or b"\r" in line for line in header)
    found, used = parse_header(header, "0abc")
    assert used == len(header)
    assert len(found.fields) == len([1 for each in message.header.fields if not each.gone]) <= count + len(changes)
    if header:
        again = message_of(made)
        assert again.header.lines() == header and b"".join(again.body()) == body


def test_the_received_field_of_this_server_is_found_wherever_it_is() -> None:
    mine = [b"Received: from x", b"\tby y with ESMTP id 0abc", b"\tfor z"]
    for lines in ([*mine, b"Received: a id 0abc"], [b"X-Spam: Yes", b"Received: b id 0abcd", *mine]):
        header, _ = parse_header(lines, "0abc")
        assert [field.raw for field in header.fields if field.ours] == [b"\n".join(mine)]
    for msgid in ("", "ffff"):
        header, _ = parse_header(mine, msgid)
        assert header.shown() == [(b"Received", b"from x\n\tby y with ESMTP id 0abc\n\tfor z")]


def test_a_header_of_many_lines_takes_no_longer_than_its_length() -> None:
    lines = [b"Subject: x", *(b"\tfolded" for _ in range(200_000))]
    header, used = parse_header(lines, "")
    assert used == len(lines) and header.lines() == lines


def test_a_message_that_does_not_fit_in_memory_is_in_a_file() -> None:
    lines = [b"Subject: x", b"", *(b"%076d" % number for number in range(50_000))]
    message = message_of(lines)
    assert list(message.lines()) == lines
    message.replace_body((b"y" * 300_000 + b"\n") * 10)
    assert list(message.lines()) == [*lines[:2], *[b"y" * 300_000] * 10]
    message.close()


def test_an_empty_header_can_be_added_to() -> None:
    header = Header([])
    header.add(AddHeader(b"A", b"1"))
    header.insert(InsertHeader(5, b"B", b""))
    header.change(ChangeHeader(1, b"C", b"3"))
    assert header.lines() == [b"A: 1", b"B: ", b"C: 3"]
