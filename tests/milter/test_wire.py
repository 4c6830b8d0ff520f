"""Packets of any bytes, however they come; commands as they are written; addresses; replies as one line."""

import contextlib
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.milter import wire
from pillarbox.milter.client import Address, parse_address
from pillarbox.milter.replies import parse_text
from pillarbox.milter.wire import Command, Packets, ProtocolError, Stage, parse_options, parse_reply

LIMIT = 1000


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The bytes in pieces."""
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    return [*pieces, data]


LETTERS = st.binary(min_size=1, max_size=1).filter(lambda letter: letter != b"b")


@given(st.lists(st.tuples(LETTERS, st.binary(max_size=50))), st.lists(st.integers(0, 40)))
def test_packets_are_found_however_they_are_cut(packets: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    data = b"".join(struct.pack(">I", 1 + len(payload)) + letter + payload for letter, payload in packets)
    reader = Packets(limit=LIMIT)
    assert [packet for piece in cut(data, sizes) for packet in reader.feed(piece)] == packets
    assert not reader.partial


@given(st.lists(st.binary(max_size=50), min_size=1), st.lists(st.integers(0, 40)))
def test_a_new_body_is_found_as_it_comes(bodies: list[bytes], sizes: list[int]) -> None:
    data = b"".join(struct.pack(">I", 1 + len(payload)) + b"b" + payload for payload in bodies)
    reader = Packets(limit=LIMIT)
    found = []
    for piece in cut(data[:-1], sizes):
        found += reader.feed(piece)
        assert not reader.partial or sum(map(len, bodies)) >= sum(len(payload) for _, payload in found)
    assert reader.partial
    found += reader.feed(data[-1:])
    assert not reader.partial
    assert {letter for letter, _ in found} == {b"b"}
    assert b"".join(payload for _, payload in found) == b"".join(bodies)


def test_only_a_new_body_may_be_long() -> None:
    for letter in (b"h", b"y"):
        with pytest.raises(ProtocolError):
            list(Packets(limit=1 << 26).feed(struct.pack(">I", 1 << 20) + letter))
    reader = Packets(limit=1 << 26)
    assert list(reader.feed(struct.pack(">I", 1 << 26) + b"bx")) == [(b"b", b"x")]


@given(st.lists(st.binary(max_size=80)))
def test_of_any_bytes_no_more_than_a_packet_is_kept(pieces: list[bytes]) -> None:
    reader = Packets(limit=LIMIT)
    try:
        for piece in pieces:
            for letter, payload in reader.feed(piece):
                assert len(letter) == 1 and len(payload) < LIMIT
    except ProtocolError:
        pass


def understand(letter: bytes, payload: bytes) -> None:
    """Whatever it is, there is one error at most."""
    for parse in (parse_reply, parse_options):
        with contextlib.suppress(ProtocolError):
            parse(letter, payload)


@given(st.binary(min_size=1, max_size=1), st.binary())
def test_any_packet_is_understood_or_refused(letter: bytes, payload: bytes) -> None:
    understand(letter, payload)


@given(st.sampled_from(sorted(b"acdfrst4pyhimb+2-eqO")), st.lists(st.binary(max_size=9)), st.booleans())
def test_any_fields_are_understood_or_refused(letter: int, fields: list[bytes], ended: bool) -> None:
    payload = b"\0".join(fields) + b"\0" * ended
    for start in (b"", b"\0\0\0\1", b"\xff\xff\xff\xff", struct.pack(">III", 6, 1, 1)):
        understand(bytes([letter]), start + payload)


@given(st.binary(max_size=600))
def test_any_reply_becomes_one_line_or_is_refused(data: bytes) -> None:
    for start in (b"", b"550 ", b"451-", b"550-a\r\n550 "):
        try:
            text = parse_text(start + data)
        except ProtocolError:
            continue
        assert text[0] in "45" and text[:3].isdigit() and text[3] == " " and len(text) <= 510
        assert text.isprintable() and text.isascii()


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"550 5.7.1 Go away", "550 5.7.1 Go away"),
        (b"550 Go away", "550 Go away"),
        (b"550", "550 Refused"),
        (b"550 5.7.1", "550 5.7.1 Refused"),
        (b"451-4.7.1 one\r\n451-4.7.1 two\r\n451 4.7.1 three", "451 4.7.1 one two three"),
        (b"451-one\n451 4.7.1 two\n", "451 4.7.1 one two"),
        (b"550 4.7.1 the classes differ", "550 4.7.1 the classes differ"),
        (b"550 5.7.1 50%% of 100 % are%", "550 5.7.1 50% of 100  are"),
        (b"550 5.7.1 caf\xc3\xa9\t", "550 5.7.1 caf?"),
    ],
)
def test_replies_as_they_are_said(reply: bytes, text: str) -> None:
    assert parse_text(reply) == text


@pytest.mark.parametrize(
    "reply", [b"", b"250 Ok", b"55 x", b"550x", b"550-one\r\n551 two", b"550 one\r\ntwo", b"5500 x"]
)
def test_what_is_no_reply(reply: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_text(reply)


def test_commands_as_they_are_written() -> None:
    assert wire.negotiate() == b"\0\0\0\x0dO\0\0\0\x06\0\0\x01\xff\0\x1f\xff\xff"
    assert wire.packet(Command.QUIT) == b"\0\0\0\1Q"
    assert wire.macros(Command.MAIL, {"i": "12", "{mail_addr}": "a\0b"}) == b"\0\0\0\x16DMi\x0012\0{mail_addr}\0ab\0"
    assert wire.connect(b"localhost", b"6", 25, b"::1") == b"\0\0\0\x12Clocalhost\x006\0\x19::1\0"
    assert wire.connect(b"nobody", b"U", 0, b"") == b"\0\0\0\x09Cnobody\0U"


def test_what_a_milter_chooses() -> None:
    data = struct.pack(">III", 6, 0x11, 0x403) + b"\0\0\0\2i {mail_addr}\0\0\0\0\5\0"
    chosen = parse_options(b"O", data)
    assert (chosen.version, chosen.actions, chosen.steps) == (6, 0x11, 0x403)
    assert chosen.macros == {Stage.MAIL: ("i", "{mail_addr}"), Stage.END_OF_MESSAGE: ()}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/m.sock", Address(path="/run/m.sock")),
        ("local:/run/m.sock", Address(path="/run/m.sock")),
        ("inet:8891@127.0.0.1", Address(host="127.0.0.1", port=8891, family=socket.AF_INET)),
        ("inet:8891", Address(host="127.0.0.1", port=8891, family=socket.AF_INET)),
        ("inet:localhost:8891", Address(host="localhost", port=8891, family=socket.AF_INET)),
        ("inet6:8891@[::1]", Address(host="::1", port=8891, family=socket.AF_INET6)),
        ("inet6:8891@::1", Address(host="::1", port=8891, family=socket.AF_INET6)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:relative", "inet:", "inet:0@x", "inet:70000@x", "tcp:1@x", "/run/x"]
)
def test_what_is_no_address_is_said_with_what_would_be(text: str) -> None:
    with pytest.raises(ValueError, match=r"unix:|/|PORT|port"):
        parse_address(text)
