"""The core of the protocol: lines and messages out of bytes, whole and byte by byte."""

from hypothesis import given
from hypothesis import strategies as st

from pillarbox.smtp.server_protocol import Body, EndOfBody, Fault, Line, ServerProtocol


def play(chunks, max_size=1000):
    """Everything that happens; DATA opens a message. Bodies are joined."""
    core, seen = ServerProtocol(), []
    for chunk in chunks:
        core.receive(chunk)
        while (event := core.next_event()) is not None:
            match event:
                case Line(text):
                    seen.append(text)
                    if text == b"DATA":
                        core.begin_body(max_size)
                        seen.append([b""])
                case Body(data, _):
                    seen[-1][0] += data
                case EndOfBody(data, _, problem, size):
                    body = seen.pop()[0] + data
                    seen.append((b"" if problem else body, problem, size))
                case Fault():
                    seen.append(event)
    return [event for event in seen if not isinstance(event, list)]  # without a message that did not end


def test_pipelined_commands_come_one_by_one():
    assert play([b"EHLO x\r\nMAIL FROM:<>\r\nNO"]) == [b"EHLO x", b"MAIL FROM:<>"]


def test_the_command_behind_a_message_is_a_command():
    seen = play([b"DATA\r\nSubject: x\r\n\r\n..\r\n.\r\nQUIT\r\n"])
    assert seen[1][0] == b"Subject: x\r\n\r\n.\r\n"
    assert seen[2] == b"QUIT"


def test_a_bare_lf_is_never_the_end_of_a_line():
    assert play([b"NOOP\nQUIT\r\n"]) == [Fault.BARE_NEWLINE]
    assert play([b"\n"]) == [Fault.BARE_NEWLINE]


def test_a_bare_cr_stays_in_the_line():
    assert play([b"NO\rOP\r\r\n"]) == [b"NO\rOP\r"]


def test_line_limits():
    assert play([b"n" * 2047 + b"\r\n"]) == [b"n" * 2047]
    assert play([b"n" * 2048 + b"\r\n"]) == [Fault.COMMAND_TOO_LONG]
    assert play([b"n" * 65534]) == []
    assert play([b"n" * 65535]) == [Fault.LINE_TOO_LONG]


def test_nothing_comes_behind_a_fault():
    assert play([b"\nNOOP\r\n", b"NOOP\r\n"]) == [Fault.BARE_NEWLINE]


def test_what_came_before_tls_is_forgotten():
    core = ServerProtocol()
    core.receive(b"STARTTLS\r\nMAIL FROM:<evil@x.example>\r\n")
    assert core.next_event() == Line(b"STARTTLS")
    assert core.buffered > 0
    core.discard()
    assert core.next_event() is None


@given(
    st.lists(
        st.sampled_from(
            [
                b"DATA\r\n",
                b"NOOP\r\n",
                b".\r\n",
                b"\r\n.\r\n",
                b"x",
                b".",
                b"\r",
                b"\n",
                b"\r\n",
                b"y" * 300,
                b"\x80",
                b"\0",
            ]
        ),
        max_size=40,
    )
)
def test_whole_and_byte_by_byte_are_the_same(pieces):
    text = b"".join(pieces)
    whole = play([text])
    assert play([text[i : i + 1] for i in range(len(text))]) == whole
    assert play(pieces) == whole
