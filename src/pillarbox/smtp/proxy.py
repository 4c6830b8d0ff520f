"""The header by which a proxy says whose connection it passes on: the PROXY protocol, versions 1 and 2.

https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt. Without I/O: the reader says how many bytes it needs next
and is fed no more than these, so that what follows the header (a TLS handshake, perhaps) is left where it is. Who may
send one, and what becomes of the connection, is `server/proxied`'s.
"""

import ipaddress
import struct

import msgspec

V1_MAX = 107  # bytes with CRLF, §2.1
_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = 16
_V1_START = b"PROXY "
_LOCAL, _PROXY = 0, 1
_UNSPEC, _UNIX_STREAM = 0x00, 0x31
_ADDRESS_SIZES = {0x11: 4, 0x21: 16}  # TCP over IPv4 and IPv6
_PORTS = 4  # bytes of both ports, behind both addresses
_UNIX_PATHS = 216
_V1_FAMILIES = {"TCP4": 4, "TCP6": 6}


class Source(msgspec.Struct, frozen=True):
    """Whose connection it is. `address` "": the proxy's own (a health check), or one that it knows nothing about."""

    address: str
    port: int = 0


class BadHeader(Exception):
    """What came is no header that we take; the text is the reference's reason."""


class HeaderReader:
    """One header. `v1`: the text form is taken, too; otherwise it is an invalid signature, as for the reference."""

    __slots__ = ("_buffer", "_v1")

    def __init__(self, *, v1: bool) -> None:
        self._v1 = v1
        self._buffer = b""

    @property
    def wanted(self) -> int:
        """How many bytes may be fed next without reaching behind the header."""
        buffer = self._buffer
        if len(buffer) < len(_V2_SIGNATURE):
            return len(_V2_SIGNATURE) - len(buffer)
        if self._is_text():
            return 1
        return (_V2_FIXED if len(buffer) < _V2_FIXED else self._v2_size()) - len(buffer)

    def feed(self, data: bytes) -> Source | None:
        """Take at most `wanted` bytes. None: more are needed. Raises BadHeader as soon as no more can help."""
        self._buffer += data
        if self._is_text():
            return self._feed_v1()
        if not _V2_SIGNATURE.startswith(self._buffer[: len(_V2_SIGNATURE)]):
            raise BadHeader("protocol error (invalid signature)")
        if len(self._buffer) < _V2_FIXED:
            return None
        self._check_v2()
        return self._v2_source() if len(self._buffer) >= self._v2_size() else None

    def _is_text(self) -> bool:
        return self._v1 and self._buffer.startswith(_V1_START[: len(self._buffer)])

    # Version 2: twelve bytes of signature, version and command, family and transport, length of what follows.

    def _v2_size(self) -> int:
        length: int = struct.unpack_from("!H", self._buffer, _V2_FIXED - 2)[0]
        return _V2_FIXED + length

    def _check_v2(self) -> None:
        version, family = self._buffer[12] >> 4, self._buffer[13]
        if version != 2:
            raise BadHeader("protocol error (invalid version)")
        if family in _ADDRESS_SIZES:
            least = 2 * _ADDRESS_SIZES[family] + _PORTS
        elif family in (_UNSPEC, _UNIX_STREAM):
            least = _UNIX_PATHS if family else 0
        else:
            raise BadHeader("protocol error (unsupported address family)")
        size = self._v2_size()
        if size > 0xFFFF:
            raise BadHeader("protocol error (header too long)")
        if size < _V2_FIXED + least:
            raise BadHeader("protocol error (address info too short)")

    def _v2_source(self) -> Source:
        command, family = self._buffer[12] & 0x0F, self._buffer[13]
        if command == _LOCAL:
            return Source("")
        if command != _PROXY:
            raise BadHeader("protocol error (unknown command)")
        if family == _UNSPEC:
            raise BadHeader("address translation (UNSPEC family not supported for PROXYing)")
        if family == _UNIX_STREAM:
            # The reference makes it a local client, who may do much that nobody on the network may.
            raise BadHeader("address translation (UNIX family not supported for PROXYing)")
        size = _ADDRESS_SIZES[family]
        (port,) = struct.unpack_from("!H", self._buffer, _V2_FIXED + 2 * size)
        return Source(_canonical(self._buffer[_V2_FIXED : _V2_FIXED + size]), port)

    # Version 1: a line.

    def _feed_v1(self) -> Source | None:
        if not self._buffer.endswith(b"\r\n"):
            if len(self._buffer) >= V1_MAX or b"\n" in self._buffer:
                raise BadHeader("protocol error (invalid header)")
            return None
        words = self._buffer[:-2].decode("latin-1").split(" ")
        if words[1] == "UNKNOWN":
            return Source("")  # §2.1: the receiver ignores what follows, and takes the real endpoint
        return _v1_source(words[1:])


def _v1_source(words: list[str]) -> Source:
    """`TCP4 source destination port port`."""
    try:
        family, source, destination, source_port, destination_port = words
        addresses = [ipaddress.ip_address(address) for address in (source, destination)]
        if {address.version for address in addresses} != {_V1_FAMILIES[family]}:
            raise BadHeader("protocol error (addresses of another family)")
        port = _port(source_port)
        _port(destination_port)
    except (ValueError, KeyError):
        raise BadHeader("protocol error (invalid header)") from None
    return Source(_canonical(addresses[0].packed), port)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or int(text) > 0xFFFF:
        raise ValueError(text)
    return int(text)


def _canonical(packed: bytes) -> str:
    """As the rules compare it; an IPv4 address in an IPv6 one is that IPv4 address."""
    address = ipaddress.ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
