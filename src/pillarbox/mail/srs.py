"""SRS: the Sender Rewriting Scheme, so that forwarded mail passes the next hop's SPF check.

A forwarded sender `user@domain` becomes `SRS0=HHHH=TT=domain=user@ours`; a bounce to that is decoded again. HHHH is
the start of a keyed hash, TT the day in base 32. A second forwarder makes `SRS1=HHHH=first==HHHH=TT=…@ours`.
The reference's form, so keys can be kept: SHA-1 over key and text, base 64, four characters.
"""

import base64
import hashlib
import hmac

DAY = 86400
DAYS = 1024  # the stamp wraps
MAX_ADDRESS = 512  # characters; what would become longer is left as it is
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_DELIMITERS = "=+-"


def is_srs(address: str) -> bool:
    """Does the local part say that it is a rewritten sender?"""
    return address[:5].upper() in ("SRS0=", "SRS1=")


def encode(sender: str, domain: str, *, key: str, now: float) -> str:
    """The sender to use when forwarding on behalf of `domain`. `now` in seconds since the epoch.

    The null sender, and one that cannot be rewritten, is returned unchanged.
    """
    user, at, origin = sender.rpartition("@")
    if not at or not user:
        return sender
    tag = user[:5].upper()
    if tag == "SRS0=":
        version, text = "SRS1", f"{origin}=={user[5:]}@{domain}"
    elif tag == "SRS1=":
        text = f"{user[5:]}@{domain}"
        if len(text) < 5 or text[4] not in _DELIMITERS:
            return sender
        version, text = "SRS1", text[5:]
    else:
        version, text = "SRS0", f"{_stamp(now)}={origin}={user}@{domain}"
    encoded = f"{version}={_hash(key, text)}={text}"
    return encoded if len(encoded) < MAX_ADDRESS else sender


def decode(rcpt: str, *, keys: tuple[str, ...], ttl: int, now: float) -> str | None:
    """The address that a rewritten one stands for; None where it is forged, broken, or older than `ttl` seconds.

    `keys`: the current key and, perhaps, the one before it.
    """
    tag, rest = rcpt[:5].upper(), rcpt[5:]
    if tag not in ("SRS0=", "SRS1=") or len(rest) < 5:
        return None
    digest, text = rest[:4].encode("utf-8", "replace"), rest[5:]
    if not any(key and hmac.compare_digest(_hash(key, text).encode(), digest) for key in keys):
        return None
    return _decode_first(text, ttl, now) if tag == "SRS0=" else _decode_second(text, ttl, now)


def _decode_first(text: str, ttl: int, now: float) -> str | None:
    if len(text) < 3 or not _is_fresh(text[:2], ttl, now):
        return None
    origin, equals, user = text[3:].rpartition("@")[0].partition("=")
    return f"{user}@{origin}" if equals and user and origin else None


def _decode_second(text: str, ttl: int, now: float) -> str | None:
    first_hop, equals, user = text.rpartition("@")[0].partition("=")
    if not equals or not first_hop:
        return None
    # `user` is now =HHHH=TT=domain=user; that hash is the first hop's to check, the day is ours as well.
    inner = user[6:]
    if len(inner) < 3 or inner[2] not in _DELIMITERS or not _is_fresh(inner[:2], ttl, now):
        return None
    return f"SRS0{user}@{first_hop}"


def _stamp(now: float) -> str:
    day = int(now // DAY) % DAYS
    return _BASE32[day >> 5] + _BASE32[day & 31]


def _is_fresh(stamp: str, ttl: int, now: float) -> bool:
    """Not older than ttl, and at most one day ahead, for clocks that differ."""
    high, low = _BASE32.find(stamp[0]), _BASE32.find(stamp[1])
    if high < 0 or low < 0:
        return False
    age = (int(now // DAY) - (high << 5 | low)) % DAYS
    return age <= ttl // DAY or age == DAYS - 1


def _hash(key: str, text: str) -> str:
    data = (key + text).encode("utf-8", "surrogateescape")
    # SHA-1 because every key and every address in flight was made with it; four characters are what protects here.
    return base64.b64encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode()[:4]
