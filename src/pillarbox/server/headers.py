"""The header of an incoming message: refuse what is none, take out Bcc, complete bare addresses, count the hops.

Works on the whole header block at once (bounded by `server/message`), bytes in, bytes out, without any I/O. What
the server adds (Date, Message-ID, Received) is decided here and written by `server/trace`.
"""

import re

import msgspec

MAX_HOPS = 100
_ADDRESS_VALUE_MAX = 65535  # bytes of To, Cc or From, as the reference
_HIDING = re.compile(rb'["(\\]')
# A backslash quotes no line end (RFC 5322 §3.2.1): what is put behind it must not come to stand in a CRLF.
_OUTSIDE = re.compile(rb'"(?:[^"\\]|\\.)*"|\\[^\r\n]|["(\\]', re.DOTALL)
_IN_COMMENT = re.compile(rb"\\.|[()]", re.DOTALL)
_LAST_WORD = re.compile(rb"(\S+)\s*\Z")
_INTERESTING = frozenset((b"bcc", b"to", b"cc", b"from", b"received", b"date", b"message-id"))


class Malformed(Exception):
    """The block is not made of header fields, or one is beyond its limit."""


class Loop(Exception):
    """Too many Received fields."""


class Header(msgspec.Struct, frozen=True):
    """The block as it is sent on, and what it lacks."""

    block: bytes
    has_date: bool
    has_message_id: bool


def process(block: bytes, *, domain: bytes, masquerade: bytes = b"") -> Header:
    """Check and rewrite a header block (CRLF lines, no empty line).

    `domain` completes bare addresses in To, Cc and From; `masquerade` (an address) replaces those of From.
    Raises `Malformed`, `Loop`.
    """
    lines = block.split(b"\r\n")
    lines.pop()
    out: list[bytes] = []
    received, has_date, has_message_id, at = 0, False, False, 0
    while at < len(lines):
        name, colon, _ = lines[at].partition(b":")
        if not colon or name[:1] in (b" ", b"\t"):
            raise Malformed
        begin = at
        at += 1
        while at < len(lines) and lines[at][:1] in (b" ", b"\t"):
            at += 1
        key = name.lower()
        if key in _INTERESTING:
            if key == b"bcc":
                continue
            if key == b"received":
                received += 1
                if received >= MAX_HOPS:
                    raise Loop
            elif key == b"date":
                has_date = True
            elif key == b"message-id":
                has_message_id = True
            else:
                value = b"\r\n".join(lines[begin:at])[len(name) + 1 :]
                out.append(name + b":" + _addresses(value, domain, masquerade if key == b"from" else b""))
                continue
        out += lines[begin:at]
    return Header(b"\r\n".join([*out, b""]) if out else b"", has_date, has_message_id)


def _addresses(value: bytes, domain: bytes, masquerade: bytes) -> bytes:
    if len(value) > _ADDRESS_VALUE_MAX:
        raise Malformed
    if not masquerade and not _HIDING.search(value) and all(b"@" in part for part in value.split(b",")):
        return value
    return b",".join([_replace(_complete(part, domain), masquerade) for part in _split_list(value)])


def _mask(text: bytes) -> bytes | None:
    """The same with comments blanked and quoted characters made harmless; None where something is not closed."""
    masked, depth, begin, at = bytearray(text), 0, 0, 0
    while found := (_IN_COMMENT if depth else _OUTSIDE).search(text, at):
        at = found.end()
        match found[0]:
            case b"(":
                begin = begin if depth else found.start()
                depth += 1
            case b")":
                depth -= 1
                if not depth:
                    masked[begin:at] = b" " * (at - begin)
            case b'"' | b"\\":
                return None
            case token if not depth:
                masked[found.start() : at] = b"x" * len(token)
    return None if depth else bytes(masked)


def _split_list(value: bytes) -> list[bytes]:
    """Cut at the commas that are neither quoted nor in a comment."""
    parts, begin = [], 0
    masked = _mask(value) or b""
    while (comma := masked.find(b",", begin)) >= 0:
        parts.append(value[begin:comma])
        begin = comma + 1
    return [*parts, value[begin:]]


def _bracket(masked: bytes) -> tuple[int, int] | None:
    """Where what stands between < and > begins and ends; None without brackets. Raises ValueError if unbalanced."""
    begin, end = masked.find(b"<"), masked.rfind(b">")
    if begin < 0 and end < 0:
        return None
    if not 0 <= begin < end:
        raise ValueError
    return begin + 1, end


def _complete(part: bytes, domain: bytes) -> bytes:
    """Give a bare address its domain; what is no single address is left alone."""
    masked = _mask(part)
    if masked is None or b"@" in masked or b":" in masked:
        return part
    try:
        begin, end = _bracket(masked) or (0, len(masked))
    except ValueError:
        return part
    end = begin + len(masked[begin:end].rstrip())
    return part[:end] + b"@" + domain + part[end:] if masked[begin:end].strip() else part


def _replace(part: bytes, address: bytes) -> bytes:
    """Put another address in the place of this one, keeping the display name."""
    masked = _mask(part) if address else None
    if masked is None or b":" in masked:
        return part
    try:
        bracket = _bracket(masked)
    except ValueError:
        return part
    if bracket is None:
        word = _LAST_WORD.search(masked)
        bracket = word.span(1) if word else (len(part), len(part))
    return part[: bracket[0]] + address + part[bracket[1] :]
