"""Messages on the terms that a configuration sets: bare line ends that are mended, lines that are too long."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pillarbox.smtp.data import ChunkReader, DataReader, Piece, Problem, Terms

MEND = Terms(10**9, normalize=True)


def read(data: bytes, terms: Terms, piece: int = 1 << 20) -> tuple[bytes, int, bytes | None, Problem | None]:
    """The body, how many lines are said to be in it, what followed the end (None: no end), and the problem."""
    reader, body, lines = DataReader(terms), b"", 0
    for at in range(0, len(data), piece):
        got = reader.feed(data[at : at + piece])
        body, lines = body + got.data, lines + got.lines
        if got.end is not None:
            return body, lines, data[at + got.end :], reader.problem
    return body, lines, None, reader.problem


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b"a\nb\r\n.\r\n", b"a\r\nb\r\n"),
        (b"a\rb\r\n.\r\n", b"a\r\nb\r\n"),
        (b"a\r\r\nb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\n\rb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
        (b"\n\r\n.\r\n", b"\r\n\r\n"),
        (b"a\n.\nMAIL FROM:<x@y>\n\r\n.\r\n", b"a\r\n.\r\nMAIL FROM:<x@y>\r\n\r\n"),
        (b"a\n.\r\nMAIL FROM:<x@y>\r\n.\r\n", b"a\r\n.\r\nMAIL FROM:<x@y>\r\n"),
        (b"a\r\n.\nMAIL FROM:<x@y>\r\n.\r\n", b"a\r\n\r\nMAIL FROM:<x@y>\r\n"),
    ],
)
def test_bare_line_ends_become_line_ends_and_no_end_of_the_message(sent, stored):
    for piece in (1, 1 << 20):
        assert read(sent + b"QUIT\r\n", MEND, piece)[:2] == (stored, stored.count(b"\r\n"))
        assert read(sent, Terms(10**9), piece)[3] is Problem.BARE_NEWLINE


awkward = st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\0", b"\r\n", b"\r\n.\r\n"]), max_size=30).map(b"".join)


@given(awkward)
@example(b"\r\n.\r")
def test_what_is_mended_is_one_message_for_every_server_behind_us(sent):
    strict, mended = read(sent + b"\r\n.\r\n", Terms(10**9)), read(sent + b"\r\n.\r\n", MEND)
    assert mended[2] == strict[2]  # the end is where it was
    assert mended[3] is None
    body = mended[0]
    assert body.count(b"\n") == body.count(b"\r") == body.count(b"\r\n") == mended[1]
    if strict[3] is None:
        assert body == strict[0]
    # As it is sent on, with its dots stuffed.
    relayed = b"".join(b"." * line.startswith(b".") + line for line in body.splitlines(keepends=True)) + b".\r\n"
    assert read(relayed, Terms(10**9))[:1] + read(relayed, Terms(10**9))[2:] == (body, b"", None)


@given(awkward, st.integers(1, 7), st.sampled_from([MEND, Terms(10**9, 3, True), Terms(10**9, 3), Terms(4)]))
@example(b"aaaaaa\nb", 1, Terms(4))
@example(b"a\r\naaaa\r\naaaa\n", 1, Terms(9, 3))
@example(b"aaaa\r\naaaaaa", 5, Terms(9, 3))
def test_it_does_not_matter_how_the_input_was_cut(sent, piece, terms):
    whole, cut = read(sent + b"\r\n.\r\n", terms), read(sent + b"\r\n.\r\n", terms, piece)
    assert cut[2:] == whole[2:]
    if whole[3] is None:
        assert cut == whole


@given(awkward, st.integers(0, 30))
def test_chunks_are_mended_like_data(sent, cut):
    reader = ChunkReader(MEND)
    pieces: list[Piece] = [reader.feed(sent[:cut], end=False), reader.feed(sent[cut:], end=True)]
    body = b"".join(piece.data for piece in pieces)
    assert body.count(b"\n") == body.count(b"\r") == body.count(b"\r\n") == sum(piece.lines for piece in pieces)
    assert body.replace(b"\r\n", b"") == sent.replace(b"\r", b"").replace(b"\n", b"")


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize(("length", "problem"), [(998, None), (999, Problem.LINE_TOO_LONG)])
def test_a_line_may_be_as_long_as_is_configured(length, problem, piece):
    line = b"x" * length
    for sent in (line, b"short\r\n" + line, line + b"\r\nshort", b"." + b"." + line[1:]):
        assert read(sent + b"\r\n.\r\n", Terms(10**9, 998), piece)[2:] == (b"", problem)


def test_mended_lines_are_measured_as_they_are_passed_on():
    assert read(b"x" * 900 + b"\r" + b"x" * 900 + b"\r\n.\r\n", Terms(10**9, 998, True))[3] is None
