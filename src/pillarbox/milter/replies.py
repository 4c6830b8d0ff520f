"""What a milter wants the client to be told, as one line: the filter protocol has no replies of several. Pure."""

import re

from pillarbox.milter.wire import ProtocolError

MAX_TEXT = 510  # RFC 5321 §4.5.3.1.5: a line of a reply has at most 512 bytes, with its end

_LINE = re.compile(r"([45][0-9]{2})(?:[ -](.*))?")
_ENHANCED = re.compile(r"([45]\.[0-9]{1,3}\.[0-9]{1,3})(?: +(.*))?")


def parse_text(data: bytes) -> str:
    """`550 5.7.1 text` of a reply, its lines joined where it has several. Raises ProtocolError where it is none."""
    text = data.decode(errors="replace")
    code = ""
    words: list[str] = []
    enhanced = ""
    for line in re.split(r"\r\n|\r|\n", text.rstrip("\r\n")):
        match = _LINE.fullmatch(line)
        if not match or match[1] != (code or match[1]):
            raise ProtocolError(f"{text[:80]!r} is no reply")
        code, rest = match[1], match[2] or ""
        if (found := _ENHANCED.fullmatch(rest)) and found[1][0] == code[0]:
            enhanced, rest = enhanced or found[1], found[2] or ""
        words.append(rest.strip())
    # libmilter doubles "%" for a server that takes the text for a format; one that stands alone is a mistake.
    said = re.sub("%(%?)", r"\1", " ".join(filter(None, words)))
    said = "".join(character if " " <= character <= "~" else "?" for character in said)
    return " ".join(filter(None, (code, enhanced, said or "Refused")))[:MAX_TEXT]
