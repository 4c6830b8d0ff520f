"""PROXY headers: what they say, what is none, and that nothing behind them is touched."""

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.smtp.proxy import V1_MAX, BadHeader, HeaderReader, Source

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
TCP4 = SIGNATURE + bytes.fromhex("2111000ccb007105c633640712340019")


def v2(family: int, body: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body)) + body


def v6(address: str) -> bytes:
    return ipaddress.IPv6Address(address).packed


def read(stream: bytes, *, v1: bool = True, piece: int = 1 << 20) -> tuple[Source, bytes]:
    """The source, and what is left of the stream; no more than what is wanted is ever taken of it."""
    reader = HeaderReader(v1=v1)
    while stream:
        assert 0 < reader.wanted <= 1 << 16
        size = min(reader.wanted, piece)
        source = reader.feed(stream[:size])
        stream = stream[size:]
        if source is not None:
            return source, stream
    raise EOFError


ACCEPTED = {
    "tcp4": (TCP4, Source("203.0.113.5", 0x1234)),
    "tcp6": (v2(0x21, v6("2001:db8::5") + v6("::1") + b"\x12\x34\0\x19"), Source("2001:db8::5", 0x1234)),
    "mapped": (v2(0x21, v6("::ffff:192.0.2.1") + v6("::1") + bytes(4)), Source("192.0.2.1")),
    "with parameters": (v2(0x11, bytes((192, 0, 2, 1, 0, 0, 0, 0)) + bytes(4) + b"\x04\0\x01x"), Source("192.0.2.1")),
    "local": (v2(0, b"", 0x20), Source("")),
    "local with addresses": (v2(0x11, bytes(12), 0x20), Source("")),
    "v1 tcp4": (b"PROXY TCP4 203.0.113.5 198.51.100.7 1234 25\r\n", Source("203.0.113.5", 1234)),
    "v1 tcp6": (b"PROXY TCP6 2001:DB8::5 ::1 1 65535\r\n", Source("2001:db8::5", 1)),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", Source("")),
    "v1 unknown with more": (b"PROXY UNKNOWN ffff::1 what ever\r\n", Source("")),
}

REFUSED = {
    "smtp": (b"EHLO client.example.net\r\n", "protocol error (invalid signature)"),
    "version": (v2(0x11, bytes(12), 0x31), "protocol error (invalid version)"),
    "command": (v2(0x11, bytes(12), 0x22), "protocol error (unknown command)"),
    "udp": (v2(0x12, bytes(12)), "protocol error (unsupported address family)"),
    "unspec": (v2(0, b""), "address translation (UNSPEC family not supported for PROXYing)"),
    "unix": (v2(0x31, bytes(216)), "address translation (UNIX family not supported for PROXYing)"),
    "short": (v2(0x11, bytes(11)), "protocol error (address info too short)"),
    "short local": (v2(0x11, bytes(11), 0x20), "protocol error (address info too short)"),
    "too long": (v2(0x11, bytes(0xFFFF)), "protocol error (header too long)"),
    "v1 without words": (b"PROXY \r\n", "protocol error (invalid header)"),
    "v1 udp": (b"PROXY UDP4 203.0.113.5 198.51.100.7 1234 25\r\n", "protocol error (invalid header)"),
    "v1 mixed": (b"PROXY TCP6 203.0.113.5 ::1 1 25\r\n", "protocol error (addresses of another family)"),
    "v1 port": (b"PROXY TCP4 203.0.113.5 198.51.100.7 65536 25\r\n", "protocol error (invalid header)"),
    "v1 sign": (b"PROXY TCP4 203.0.113.5 198.51.100.7 +1 25\r\n", "protocol error (invalid header)"),
    "v1 lf": (b"PROXY TCP4 203.0.113.5 198.51.100.7 1 25\nQUIT\r\n", "protocol error (invalid header)"),
    "v1 endless": (b"PROXY " + b"x" * 200, "protocol error (invalid header)"),
    "v1 lower case": (b"proxy TCP4 203.0.113.5 198.51.100.7 1 25\r\n", "protocol error (invalid signature)"),
}


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("name", ACCEPTED)
def test_a_header_names_its_source_and_ends_where_it_ends(name, piece):
    stream, source = ACCEPTED[name]
    assert read(stream + b"\x16\x03\x01 TLS", piece=piece) == (source, b"\x16\x03\x01 TLS")


@pytest.mark.parametrize("piece", [1, 1 << 20])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_header_is_refused_for_a_reason(name, piece):
    stream, reason = REFUSED[name]
    with pytest.raises(BadHeader) as caught:
        read(stream, piece=piece)
    assert str(caught.value) == reason


def test_text_is_no_signature_where_only_the_binary_form_is_taken():
    with pytest.raises(BadHeader, match="invalid signature"):
        read(b"PROXY TCP4 203.0.113.5 198.51.100.7 1234 25\r\n", v1=False)


def outcome(stream: bytes, piece: int) -> object:
    try:
        return read(stream, piece=piece)
    except (BadHeader, EOFError) as error:
        return type(error), str(error)


mostly = st.sampled_from([stream for stream, _ in (*ACCEPTED.values(), *REFUSED.values())])
damaged = st.tuples(mostly, st.integers(0, 40), st.binary(max_size=8)).map(
    lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]
)


@given(st.one_of(st.binary(max_size=300), damaged, st.binary(max_size=200).map(lambda rest: b"PROXY " + rest)))
def test_any_bytes_whole_or_one_by_one_mean_the_same_and_never_crash(stream):
    assert outcome(stream, 1 << 20) == outcome(stream, 1)


@given(st.binary(min_size=V1_MAX, max_size=V1_MAX + 50))
def test_a_text_header_is_bounded(rest):
    reader, fed = HeaderReader(v1=True), 0
    try:
        for byte in b"PROXY " + rest:
            if reader.feed(bytes((byte,))) is not None:
                return
            fed += 1
    except BadHeader:
        pass
    assert fed <= V1_MAX


addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda a: a.ipv4_mapped is None))


@given(addresses, st.integers(0, 65535))
def test_both_forms_say_the_same(address, port):
    other = "192.0.2.1" if address.version == 4 else "::1"
    text = f"PROXY TCP{address.version} {address} {other} {port} 25\r\n".encode()
    binary = v2(
        0x11 if address.version == 4 else 0x21,
        address.packed + ipaddress.ip_address(other).packed + struct.pack("!HH", port, 25),
    )
    assert read(text) == read(binary) == (Source(str(address), port), b"")
