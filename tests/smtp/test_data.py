"""Where a message ends, and what of it comes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.smtp.data import LINE_MAX, ChunkReader, DataReader, LineTooLong, Problem, Terms


def read(data: bytes, cuts=(), max_size=10**9):
    """(body, what followed the end or None, reader)."""
    reader, body, position = DataReader(Terms(max_size)), b"", 0
    lines = 0
    for cut in [*sorted(cuts), len(data)]:
        chunk, position = data[position:cut], cut
        if not chunk:
            continue
        piece = reader.feed(chunk)
        body += piece.data
        lines += piece.lines
        if piece.end is not None:
            return body, chunk[piece.end :] + data[position:], reader, lines
    return body, None, reader, lines


def test_dots_are_unstuffed():
    body, rest, _, _ = read(b"..\r\n...\r\n..x\r\n .\r\n. \r\n.x\r\n.\r\nQUIT\r\n")
    assert body == b".\r\n..\r\n.x\r\n .\r\n \r\nx\r\n"
    assert rest == b"QUIT\r\n"


def test_a_single_dot_is_an_empty_message():
    assert read(b".\r\n")[:2] == (b"", b"")


def test_the_size_counts_one_byte_for_a_line_end_and_all_dots():
    _, _, reader, lines = read(b"ab\r\n..\r\n.\r\n")
    assert reader.size == 3 + 3
    assert lines == 2


@pytest.mark.parametrize(
    "fake",
    [
        b"\n.\n",
        b"\r.\r",
        b"\n.\r\n",
        b"\r\n.\n",
        b"\r.\r\n",
        b"\r\n.\r",
        b"\r\r\n.\r\r\n",
        b"\n\n.\r\n",
        b"\0\n.\n\0",
        b"\r\n.\r\r\n",
    ],
)
def test_nothing_but_crlf_dot_crlf_ends_a_message(fake: bytes):
    data = b"a" + fake + b"MAIL FROM:<evil@x.example>\r\n.\r\nNOOP\r\n"
    for cuts in ((), range(len(data))):
        _, rest, reader, _ = read(data, cuts)
        assert rest == b"NOOP\r\n"
        assert reader.problem is Problem.BARE_NEWLINE


def test_a_message_beyond_its_limit_is_refused_and_not_passed_on():
    body, rest, reader, _ = read(b"x" * 98 + b"\r\n" + b"y" * 10 + b"\r\n.\r\n", max_size=100)
    assert reader.problem is Problem.TOO_BIG
    assert (body, rest) == (b"", b"")


@pytest.mark.parametrize("cuts", [(), (1, 30000, 65533, 65534, 65535)])
def test_the_longest_line(cuts):
    data = b"x" * (LINE_MAX - 2) + b"\r\n.\r\n"
    assert len(read(data, cuts)[0]) == LINE_MAX
    with pytest.raises(LineTooLong):
        read(b"x" + data, cuts)


def test_an_endless_line_is_noticed_before_it_ends():
    reader = DataReader(Terms(10**9))
    with pytest.raises(LineTooLong):
        for _ in range(100):
            reader.feed(b"x" * 1000)


PIECES = st.lists(
    st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"\0", b"\xff"]), max_size=30
)


@given(PIECES, st.data())
def test_it_does_not_matter_how_the_input_was_cut(pieces, data):
    text = b"".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=10))
    whole, cut, single = read(text), read(text, cuts), read(text, range(len(text)))
    for other in (cut, single):
        assert other[1] == whole[1]
        assert other[2].problem == whole[2].problem or whole[1] is None
        if whole[1] is not None and whole[2].problem is None:
            assert (other[0], other[3], other[2].size) == (whole[0], whole[3], whole[2].size)


@given(PIECES)
def test_what_was_stuffed_comes_out_as_it_was(pieces):
    lines = [line.replace(b"\r", b"").replace(b"\n", b"") for line in pieces]
    body = b"".join(line + b"\r\n" for line in lines)
    stuffed = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    got, rest, reader, count = read(stuffed + b".\r\nrest")
    assert (got, rest, count) == (body, b"rest", len(lines))
    assert reader.problem is None


def read_chunks(chunks, max_size=10**9):
    """What comes out of a message in these chunks."""
    reader = ChunkReader(Terms(max_size))
    pieces = [reader.feed(chunk, end=False) for chunk in chunks[:-1]]
    pieces.append(reader.feed(chunks[-1], end=True))
    return b"".join(p.data for p in pieces), sum(p.lines for p in pieces), reader


def test_dots_in_chunks_stay():
    body, lines, reader = read_chunks([b".\r\n..x\r\n", b".\r\n"])
    assert (body, lines, reader.size) == (b".\r\n..x\r\n.\r\n", 3, 2 + 4 + 2)


def test_a_line_end_may_be_cut_by_the_end_of_a_chunk():
    body, lines, reader = read_chunks([b"a\r", b"", b"\nb\r\n"])
    assert (body, lines, reader.problem) == (b"a\r\nb\r\n", 2, None)


@pytest.mark.parametrize("chunks", [[b"a\n"], [b"a\r"], [b"a\r", b"b\r\n"], [b"a", b"\nb\r\n"], [b"\r", b"\r\n"]])
def test_a_bare_cr_or_lf_in_chunks_is_noticed(chunks):
    _, _, reader = read_chunks(chunks)
    assert reader.problem is Problem.BARE_NEWLINE


@pytest.mark.parametrize(("chunks", "body"), [([b"a"], b"a\r\n"), ([b"a\r\nb", b""], b"a\r\nb\r\n"), ([b""], b"")])
def test_the_last_line_gets_its_end(chunks, body):
    assert read_chunks(chunks)[0] == body


def test_chunks_beyond_the_limit_are_not_passed_on():
    body, _, reader = read_chunks([b"x" * 60 + b"\r\n", b"y" * 60 + b"\r\n"], max_size=100)
    assert reader.problem is Problem.TOO_BIG
    assert len(body) == 62


def test_a_line_that_goes_through_chunks_has_its_limit():
    reader = ChunkReader(Terms(10**9))
    with pytest.raises(LineTooLong):
        for _ in range(100):
            reader.feed(b"x" * 1000, end=False)


@given(PIECES, st.data())
def test_it_does_not_matter_how_chunks_were_cut(pieces, data):
    text = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read_chunks([text])
    for other in (read_chunks(parts), read_chunks([text[i : i + 1] for i in range(len(text))] or [b""])):
        assert other[2].problem == whole[2].problem
        if whole[2].problem is None:
            assert (other[0], other[1], other[2].size) == (whole[0], whole[1], whole[2].size)
