"""The small values of smtpd.conf: times, sizes, names of hosts."""

import re

INT_MAX = (1 << 31) - 1
LONG_MAX = (1 << 63) - 1
UNLIMITED = LONG_MAX  # what a negative limit means: the reference takes it for a huge one
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SCALES = {scale: 1024**power for power, scale in enumerate("bkmgtpe")}
_DELAY = re.compile(r"[ \t\n\v\f\r]*\+?([0-9]{1,20})([smhd])")
_SIZE = re.compile(r"[ \t\n\v\f\r]*([+-]?)([0-9]{0,20})(?:\.([0-9]*))?(.?)", re.DOTALL)
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?\Z")


def parse_delay(text: str) -> int:
    """`<n>s|m|h|d` in seconds. Raises ValueError below one unit and above what 31 bits of seconds hold."""
    found = _DELAY.fullmatch(text)
    if found is None:
        raise ValueError(text)
    seconds = int(found[1]) * _UNITS[found[2]]
    if not 0 < seconds <= INT_MAX:
        raise ValueError(text)
    return seconds


def parse_size(text: str) -> int:
    """A number of bytes with a fraction and a scale B K M G T P E, as scan_scaled(3). Raises ValueError."""
    found = _SIZE.match(text)
    if found is None or (found[4] and found[4].lower() not in _SCALES):
        raise ValueError(text)
    if text[found.end() : found.end() + 1].isalnum():
        raise ValueError(text)
    factor = _SCALES[found[4].lower()] if found[4] else 1
    size = int(found[2] or "0") * factor
    if found[4] and found[3]:
        digits = found[3][:18]
        size += int(digits) * factor // 10 ** len(digits)
    if (found[1] == "-" and size > 0) or size > LONG_MAX:
        raise ValueError(text)
    return size


def is_host_name(name: str) -> bool:
    """Whether every label is letters, digits, hyphens and underscores between letters or digits (res_hnok(3))."""
    return all(not label or _LABEL.match(label) for label in name.split("."))


def is_printable(text: str) -> bool:
    """ASCII without control characters, as isprint(3) in the C locale."""
    return text.isascii() and text.isprintable()


def limit(text: str) -> int:
    """A number that counts things."""
    number = int(text)
    return number if number >= 0 else UNLIMITED
