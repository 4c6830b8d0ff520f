"""Patterns of host names and networks, as they stand in tables."""

import re
import socket


def domain_regex(pattern: str) -> str:
    """A host name pattern as a regular expression without anchors.

    COMPAT: a `*` stands for the characters *before the first* occurrence of what follows it, and is never tried
    again: `*.example.net` is one label, `*x.example` is foox.example but not fooxx.example. One that ends the
    pattern stands for at least one character.
    """
    parts: list[str] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        if character != "*":
            parts.append(re.escape(character))
            position += 1
            continue
        while position < len(pattern) and pattern[position] == "*":
            position += 1
        if position == len(pattern):
            parts.append(".+")
        else:
            following = re.escape(pattern[position])
            parts.append(f"[^{following}]*{following}")
            position += 1
    return "".join(parts)


def parse_network(text: str) -> tuple[int, int, int] | None:
    """(family, network as an integer shifted right to its prefix, prefix length), or None where it is no network.

    IPv4 as inet_net_pton(3) has it: `192.0.2.0/24`, `192.0.2.1`, and shortened `10`, `10/8`, `172.16/12`.
    """
    if text[:5].lower() == "ipv6:":
        text = text[5:]
    return _parse_network4(text) or _parse_network6(text)


def _parse_network4(text: str) -> tuple[int, int, int] | None:
    host, slash, length = text.partition("/")
    octets = host.split(".")
    if len(octets) > 4 or not all(o.isascii() and o.isdigit() and len(o) <= 3 and int(o) <= 255 for o in octets):
        return None
    values = [int(o) for o in octets]
    if slash:
        if not (length.isascii() and length.isdigit() and int(length) <= 32):
            return None
        bits = int(length)
    else:
        bits = max(_class_bits(values[0]), 8 * len(values))
    network = 0
    for value in values + [0] * (4 - len(values)):
        network = network << 8 | value
    return socket.AF_INET, network >> (32 - bits), bits


def _class_bits(first: int) -> int:
    """The width that the classes of RFC 791 §3.2 give a network written without one."""
    for limit, bits in ((128, 8), (192, 16), (224, 24), (240, 8)):
        if first < limit:
            return bits
    return 32


def _parse_network6(text: str) -> tuple[int, int, int] | None:
    if text[:1] == "[":
        if text[-1:] != "]":
            return None
        text = text[1:-1]
        if text[:5].lower() == "ipv6:":
            text = text[5:]
    host, slash, length = text.partition("/")
    if slash and not (length.isascii() and length.isdigit() and int(length) <= 128):
        return None
    bits = int(length) if slash else 128
    try:
        network = int.from_bytes(socket.inet_pton(socket.AF_INET6, host), "big")
    except (OSError, ValueError):
        return None
    return socket.AF_INET6, network >> (128 - bits), bits
