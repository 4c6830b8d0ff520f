"""Format specifiers: `%{token[begin:end]}` and `%{token:modifier|modifier}` in commands and paths (smtpd.conf(5)).

A pure function of the template and the facts of one delivery. `expand_parts` keeps what was written apart from what
came from an envelope, so that `mda/shell` never shows the latter to a shell; `expand` joins them for a path.
"""

import re
from dataclasses import dataclass

# Characters of an address that a shell or a path might obey: each becomes ":" unless `raw` is asked for.
_UNSAFE = str.maketrans(dict.fromkeys("!#$%&'*?`{|}~", ":"))
_NUMBER = re.compile(r"\s*[-+]?[0-9]+\Z")
_TOKEN_MAX = 127  # a longer one is not a token: the text stays as it is
_OFFSET_MAX = 1024


class BadFormat(ValueError):
    """A specifier that has no value: unknown, malformed, or a substring outside its string."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What specifiers refer to. Addresses without brackets, "" for the null sender; `mda`: only in a wrapper."""

    sender: str
    rcpt: str
    dest: str
    username: str
    directory: str
    delimiter: str = "+"
    mda: str | None = None


@dataclass(frozen=True, slots=True)
class Value:
    """What a specifier stands for. `trusted`: not from an envelope; `is_command`: the `%{mda}` of a wrapper."""

    text: str
    trusted: bool = False
    is_command: bool = False


def expand(template: str, facts: Facts) -> str:
    """The template with all specifiers replaced; raises BadFormat."""
    return "".join(p if isinstance(p, str) else p.text for p in expand_parts(template, facts))


def expand_parts(template: str, facts: Facts) -> list[str | Value]:
    """The template as literal text and values, in order; raises BadFormat.

    `%%` is a percent sign; a leading `~/` is the user's directory. COMPAT: an unterminated or over-long specifier
    leaves the whole template as it is.
    """
    parts: list[str | Value] = []
    rest = template
    if rest.startswith("~/"):
        parts.append(Value(facts.directory, trusted=True))
        rest = rest[1:]
    literal = ""
    at = 0
    while at < len(rest):
        if rest.startswith("%%", at):
            literal += "%"
            at += 2
        elif rest.startswith("%{", at):
            end = rest.find("}", at)
            if end < 0 or end - at - 2 > _TOKEN_MAX:
                return [template]
            parts += [literal, _expand_token(rest[at + 2 : end], facts)]
            literal = ""
            at = end + 1
        else:
            literal += rest[at]
            at += 1
    parts.append(literal)
    return [p for p in parts if p != ""]


def _expand_token(spec: str, facts: Facts) -> Value:
    name, bounds, modifiers = _parse(spec)
    token = name.lower()
    text = _value(token, facts)
    raw = False
    for modifier in modifiers:
        match modifier.lower():
            case "lowercase":
                text = text.lower()
            case "uppercase":
                text = text.upper()
            case "strip":
                text = _strip(text, facts.delimiter)
            case "raw":
                raw = True
            case _:
                raise BadFormat(f"unknown modifier: {modifier}")
    trusted = token in ("user.directory", "mda")
    if not raw and not trusted:
        text = text.translate(_UNSAFE)
    if bounds is not None and text:
        text = _substring(text, bounds)
    return Value(text, trusted=trusted, is_command=token == "mda")  # noqa: S105 a name of the grammar


def _parse(spec: str) -> tuple[str, tuple[int, int] | None, list[str]]:
    """(name, (begin, end inclusive) or None, modifiers)."""
    left, right = spec.find("["), spec.find("]")
    if left < 0 or right < 0:
        name, colon, modifiers = spec.partition(":")
        return name, None, modifiers.split("|") if colon else []
    if right < left + 2:
        raise BadFormat(f"malformed substring: {spec}")
    # COMPAT: a substring and modifiers together are refused.
    if ":" in spec[right:]:
        raise BadFormat(f"substring with modifiers: {spec}")
    begin, colon, end = spec[left + 1 : right].partition(":")
    first = _offset(begin) if begin else 0
    if not colon:
        return spec[:left], (first, first), []
    return spec[:left], (first, _offset(end) if end else _OFFSET_MAX), []


def _offset(text: str) -> int:
    if not _NUMBER.match(text) or abs(int(text)) > _OFFSET_MAX:
        raise BadFormat(f"bad offset: {text}")
    return int(text)


def _substring(text: str, bounds: tuple[int, int]) -> str:
    """Characters begin to end, both included; negative offsets count from the end, as the reference counts them."""
    begin, end = bounds
    length = len(text)
    if begin >= length:
        raise BadFormat("substring begins behind the end")
    end = min(end, length - 1)
    if begin < 0:
        begin += length
    if end < 0:
        end += length - 1
    if begin < 0 or end < begin:
        raise BadFormat("empty substring")
    return text[begin : end + 1]


def _value(token: str, facts: Facts) -> str:
    addresses = {"sender": facts.sender, "rcpt": facts.rcpt, "dest": facts.dest}
    head, _, part = token.partition(".")
    if token in addresses:
        return addresses[token]
    if head in addresses and part in ("user", "domain"):
        user, _, domain = addresses[head].rpartition("@")
        return user if part == "user" else domain
    match token:
        case "user.username":
            return facts.username
        case "user.directory":
            return facts.directory
        case "mbox.from":
            return facts.sender or "MAILER-DAEMON"
        case "mda" if facts.mda is not None:
            return facts.mda
    raise BadFormat(f"unknown specifier: {token}")


def _strip(text: str, delimiter: str) -> str:
    """Without the sub-address: `a+b@c` → `a@c`."""
    user, mark, rest = text.partition(delimiter[:1])
    if not mark:
        return text
    _, at, domain = rest.partition("@")
    return user + at + domain
