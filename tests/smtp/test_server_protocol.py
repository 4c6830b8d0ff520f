"""The core of the protocol: lines and messages out of bytes, whole and byte by byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.smtp.data import Problem, Terms
from pillarbox.smtp.server_protocol import Body, EndOfBody, EndOfChunk, Fault, Line, ServerProtocol


def play(chunks, max_size=1000):
    """Everything that happens, messages whole. DATA opens one, BDAT adds to one, SKIP refuses a chunk."""
    core, seen, body = ServerProtocol(), [], b""
    for chunk in chunks:
        core.receive(chunk)
        while (event := core.next_event()) is not None:
            match event:
                case Line(text):
                    seen.append(text)
                    open_body(core, text.split(b" "), max_size)
                case Body(data, _):
                    body += data
                case EndOfChunk(data, _, problem):
                    body += data
                    seen.append(("chunk", problem))
                case EndOfBody(data, _, problem, size):
                    seen.append((b"" if problem else body + data, problem, size))
                    body = b""
                case Fault():
                    seen.append(event)
    return seen


def open_body(core, words, max_size):
    match words:
        case [b"DATA"]:
            core.begin_body(Terms(max_size))
        case [b"BDAT", size, *last]:
            core.begin_chunk(int(size), last=bool(last), terms=Terms(max_size))
        case [b"SKIP", size]:
            core.skip_chunk(int(size))


def test_pipelined_commands_come_one_by_one():
    assert play([b"EHLO x\r\nMAIL FROM:<>\r\nNO"]) == [b"EHLO x", b"MAIL FROM:<>"]


def test_the_command_behind_a_message_is_a_command():
    seen = play([b"DATA\r\nSubject: x\r\n\r\n..\r\n.\r\nQUIT\r\n"])
    assert seen[1][0] == b"Subject: x\r\n\r\n.\r\n"
    assert seen[2] == b"QUIT"


def test_chunks_are_counted_and_what_follows_is_a_command():
    seen = play([b"BDAT 6\r\nNOOP\r\nBDAT 3\r\n.\r\nBDAT 0 LAST\r\nQUIT\r\n"])
    assert seen == [
        b"BDAT 6", ("chunk", None), b"BDAT 3", ("chunk", None), b"BDAT 0 LAST", (b"NOOP\r\n.\r\n", None, 7), b"QUIT",
    ]  # fmt: skip


def test_a_refused_chunk_is_skipped_whatever_is_in_it():
    assert play([b"SKIP 12\r\nQUIT\r\n\n\0\r\n.\r", b"NOOP\r\n"]) == [b"SKIP 12", ("chunk", None), b"NOOP"]


def test_a_new_message_begins_with_clean_chunks():
    core = ServerProtocol()
    core.begin_chunk(1, last=False, terms=Terms(10))
    core.receive(b"\n")
    assert core.next_event() == EndOfChunk(b"", 0, Problem.BARE_NEWLINE)
    core.end_chunks()
    core.begin_chunk(3, last=True, terms=Terms(10))
    core.receive(b"a\r\n")
    assert core.next_event() == EndOfBody(b"a\r\n", 1, None, 2)


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


class Counted(bytes):
    """Bytes that count what is copied out of them."""

    copied = 0

    def __getitem__(self, key):
        part = super().__getitem__(key)
        if isinstance(part, int):
            return part
        Counted.copied += len(part)
        return Counted(part)


@pytest.mark.parametrize("unit", [b"NOOP\r\n", b"BDAT 1\r\nx", b"SKIP 1\r\nx", b"DATA\r\na\r\n.\r\n", b"DATA\r\n.\r\n"])
def test_however_much_is_pipelined_each_byte_is_copied_once_or_twice(unit):
    data = unit * 2000
    Counted.copied = 0
    assert len(play([Counted(data)], max_size=10**9)) >= 2000
    assert Counted.copied <= 2 * len(data)


def test_the_beginning_of_a_command_does_not_keep_what_came_before_it():
    core = ServerProtocol()
    core.receive(b"NOOP\r\n" * 10_000 + b"NO")
    while core.next_event() is not None:
        pass
    assert core.buffered == 2
    assert len(core._buffer) == 2


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
                b"BDAT 2\r\n",
                b"BDAT 400\r\n",
                b"BDAT 3 LAST\r\n",
                b"BDAT 0 LAST\r\n",
                b"SKIP 3\r\n",
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
