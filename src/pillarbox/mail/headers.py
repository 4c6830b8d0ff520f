"""Header bytes and header values: iterate the fields of a message, format dates and ids.

Pure: times come in as seconds since the epoch. Lines end in CRLF (stored form) or LF (local form); both are read.
"""

from collections.abc import Iterator
from datetime import datetime

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def format_date(epoch: float) -> str:
    """RFC 5322 §3.3 date in the local zone, its name as a comment: `Thu, 1 Jan 1970 00:00:00 +0000 (UTC)`.

    The names are English whatever the locale says.
    """
    t = datetime.fromtimestamp(int(epoch)).astimezone()
    offset = t.utcoffset()
    minutes = int(offset.total_seconds()) // 60 if offset is not None else 0
    sign = "-" if minutes < 0 else "+"
    hours, minutes = divmod(abs(minutes), 60)
    day, month = _DAYS[t.weekday()], _MONTHS[t.month - 1]
    return f"{day}, {t.day} {month} {t.year} {t:%H:%M:%S} {sign}{hours:02d}{minutes:02d} ({t.tzname()})"


def format_duration(seconds: int) -> str:
    """How long, as log lines say it: `0s`, `4m2s`, `1d3h`; parts that are zero are left out."""
    if seconds == 0:
        return "0s"
    sign, rest = ("-", -seconds) if seconds < 0 else ("", seconds)
    text = ""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            text += f"{count}{unit}"
    return sign + text


def format_message_id(unique: int, host: str) -> str:
    """A Message-ID value (RFC 5322 §3.6.4) from 64 random bits."""
    return f"<{unique:016x}@{host}>"


def header_end(message: bytes) -> int:
    """Where the header ends: the offset just behind the empty line, or -1 where no empty line was seen yet."""
    if message.startswith(b"\r\n"):
        return 2
    if message.startswith(b"\n"):
        return 1
    found = [(at, size) for at, size in ((message.find(b"\n\r\n"), 3), (message.find(b"\n\n"), 2)) if at >= 0]
    if not found:
        return -1
    at, size = min(found)
    return at + size


def iterate_fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name in lower case, field as written with its folded lines and line ends) of a header block.

    Stops at the empty line and at the first line that is no field (RFC 5322 §2.2): what follows is the body.
    """
    field = b""
    for text in header.split(b"\n"):  # splitlines() would also cut at a lone CR
        line = text + b"\n"
        if line[:1] in (b" ", b"\t") and line.strip() and field:
            field += line
            continue
        if field:
            yield _name_of(field), field
            field = b""
        if not line.strip(b"\r\n") or b":" not in line:
            return
        field = line
    if field:
        yield _name_of(field), field


def unfold(field: bytes) -> bytes:
    """The value of a field: behind the colon, without line ends, surrounding blanks removed (RFC 5322 §2.2.3)."""
    value = field.partition(b":")[2]
    return value.replace(b"\r\n", b"").replace(b"\n", b"").strip(b" \t\r")


def _name_of(field: bytes) -> bytes:
    return field.partition(b":")[0].rstrip(b" \t").lower()
