"""The syntax of command lines: verbs, paths and parameters (RFC 5321 §4.1, 1870, 3030, 3461, 6152, 6531, 8689).

Text in, values out; whether a command is legal now is `states`, what it does is `server/commands`. COMPAT: what is
a valid path follows the reference where it is laxer (`<a>` and `<a@>` get the listener's name, source routes are
dropped unread) or stricter (no quoted local parts) than the RFC.
"""

import functools
import re
import unicodedata
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import msgspec

from pillarbox.mail import idn
from pillarbox.mail.envelope import Notify

LOCAL_PART_MAX = 255
_ENVID_MAX = 99
_ORCPT_MAX = 499
_SPACE = " \t\n\v\f\r"

_LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*/?^`{|}~+=_-]+(?:\.[A-Za-z0-9!#$%&'*/?^`{|}~+=_-]+)*")
_UNICODE = r"\x80-\U0010ffff"  # RFC 6531 §3.3 lets in all that is not ASCII; `_is_seen` leaves out what nobody sees
_ATOM_UTF8 = rf"[A-Za-z0-9!#$%&'*/?^`{{|}}~+=_{_UNICODE}-]+"
_LOCAL_PART_UTF8 = re.compile(rf"{_ATOM_UTF8}(?:\.{_ATOM_UTF8})*")
_VISIBLE = re.compile(rf"[!-~{_UNICODE}]*")
_UNSEEN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"))  # controls, no characters, private ones, spaces
_JOINERS = "\u200c\u200d"  # Cf, but letters' business in several scripts
# Letters, marks and a symbol by category, and drawn as nothing all the same: fillers and variation selectors.
_BLANK = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_PRINTABLE = re.compile(r"[!-~]*")
_CHUNK = re.compile(r"([0-9]{1,20})(?: +(LAST))? *", re.IGNORECASE)
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]+")  # RFC 3461 §4.2: an atom, of which RFC 3798 §2.2.1 registers these
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")  # RFC 3461 §4
_XTEXT_UTF8 = re.compile(rf"(?:[!-*,-<>-~{_UNICODE}]|\+[0-9A-F]{{2}})*")  # RFC 6533 §3, and its unitext form


class Verb(StrEnum):
    """What can be asked; the value is the word as it is written, in upper case."""

    HELO = "HELO"
    EHLO = "EHLO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    MAIL = "MAIL FROM"
    RCPT = "RCPT TO"
    DATA = "DATA"
    BDAT = "BDAT"
    RSET = "RSET"
    QUIT = "QUIT"
    NOOP = "NOOP"
    HELP = "HELP"
    WIZ = "WIZ"


_VERBS = {str(verb): verb for verb in Verb if " " not in verb}


class BadSyntax(ValueError):
    """An argument that does not parse."""


class UnknownOption(ValueError):
    """A parameter that is not supported; the text is the parameter as given."""


class OptionTooLong(ValueError):
    """A parameter beyond its limit; the text is its value."""


class BadNotify(ValueError):
    """NOTIFY=NEVER together with something else (RFC 3461 §4.1)."""


class BadOrcpt(ValueError):
    """An ORCPT whose address type is none, or not in xtext (RFC 3461 §4.2)."""


class BadSize(ValueError):
    """A SIZE that is not a number (RFC 1870 §3)."""


class Chunk(msgspec.Struct, frozen=True):
    """What BDAT announces: so many bytes follow, and the message ends with them if it is the last."""

    size: int
    last: bool = False


class MailParameters(msgspec.Struct, frozen=True):
    """What may follow the sender. `size` in bytes, 0 = not given. `smtputf8`: the addresses may be in UTF-8.

    `require_tls`: it goes on over verified TLS only (RFC 8689).
    """

    size: int = 0
    ret: str = ""  # "", "FULL", "HDRS"
    envid: str = ""
    smtputf8: bool = False
    require_tls: bool = False


class RcptParameters(msgspec.Struct, frozen=True):
    """What may follow a recipient."""

    notify: Notify = Notify.NONE
    orcpt: str = ""


NO_MAIL_PARAMETERS = MailParameters()
NO_RCPT_PARAMETERS = RcptParameters()


def parse_line(line: str) -> tuple[Verb | None, str | None]:
    """Split a command line into verb (None: unknown) and raw argument (None: there was no separator)."""
    head = line[:10].upper()
    if head == "MAIL FROM:":
        return Verb.MAIL, line[10:].lstrip(_SPACE)
    if head.startswith("RCPT TO:"):
        return Verb.RCPT, line[8:].lstrip(_SPACE)
    word, space, rest = line.partition(" ")
    return _VERBS.get(word.upper()), rest.lstrip(_SPACE) if space else None


def valid_domain(name: str, *, utf8: bool = False) -> bool:
    """Is it a host name or an address literal (RFC 5321 §4.1.2, §4.1.3)? Underscores pass, a final dot does not.

    `utf8`: labels may be in Unicode (RFC 6531 §3.3).
    """
    if name.startswith("["):
        return _valid_literal(name)
    if utf8 and not name.isascii():
        try:
            name = idn.to_ascii(name) if _VISIBLE.fullmatch(name) and _is_seen(name) else ""
        except ValueError:
            return False
    return len(name) <= 253 and _HOST_NAME.fullmatch(name) is not None


def _valid_literal(name: str) -> bool:
    if not name.endswith("]"):
        return False
    inner = name[6:-1] if name[:6].lower() == "[ipv6:" else name[1:-1]
    if "%" in inner:
        return False
    for kind in (IPv6Address, IPv4Address):
        try:
            kind(inner)
        except AddressValueError:
            continue
        return True
    return False


@functools.lru_cache(maxsize=256)  # looked at before filters and again after them, and often the same
def parse_path(args: str, *, default_domain: str, null: bool = False, utf8: bool = False) -> tuple[str, str]:
    """`<path> parameters` → (address, the rest). `null`: an empty path is allowed and gives "". Raises `BadSyntax`.

    `utf8`: SMTPUTF8 was asked for (RFC 6531 §3.3); the limits are in bytes then, too.
    """
    if not args.startswith("<"):
        raise BadSyntax(args)
    path, end, rest = args[1:].partition(">")
    if not end:
        raise BadSyntax(args)
    user, _, domain = path.rpartition("@") if "@" in path else (path, "", "")
    user = user[user.find(":") + 1 :]  # a source route is ignored: RFC 5321 §4.1.1.3
    if null and not user and not domain:
        return "", rest
    pattern = _LOCAL_PART_UTF8 if utf8 else _LOCAL_PART
    if pattern.fullmatch(user) is None or not _is_seen(user) or len(user.encode()) > LOCAL_PART_MAX:
        raise BadSyntax(args)
    domain = domain or default_domain
    if not valid_domain(domain, utf8=utf8):
        raise BadSyntax(args)
    return f"{user}@{domain}", rest


def _is_seen(text: str) -> bool:
    """Has every character an appearance? What has none makes two addresses of one, for a reader."""
    if text.isascii():
        return True
    unseen = any(unicodedata.category(c) in _UNSEEN and c not in _JOINERS for c in text)
    return not unseen and _BLANK.search(text) is None


def asks_for_utf8(args: str) -> bool:
    """Does the argument of MAIL need SMTPUTF8, and ask for it?"""
    return not args.isascii() and "SMTPUTF8" in args.rpartition(">")[2].upper().split(" ")


def parse_mail_parameters(text: str, *, dsn: bool, tls: bool = False) -> MailParameters:
    """The parameters of MAIL; `dsn`: is it offered? `tls`: is REQUIRETLS?

    Raises `UnknownOption`, `OptionTooLong`, `BadSize`, `BadSyntax`.
    """
    if not text:
        return NO_MAIL_PARAMETERS
    size, ret, envid = 0, "", ""
    flags: set[str] = set()
    for option in text.split(" "):
        key, equals, value = option.partition("=")
        match key.upper() if equals else "":
            case "":
                flags.add(_parse_flag(option, tls=tls))
            case "SIZE":
                size = _parse_size(value)
            case "BODY" if value.upper() in ("7BIT", "8BITMIME"):
                pass  # RFC 6152: what was declared binds nobody; the body itself is looked at
            case "AUTH":
                pass  # RFC 4954 §5: we trust no client's word for another identity
            case "RET" if dsn:
                ret = value.upper() if value.upper() in ("FULL", "HDRS") else ret
            case "ENVID" if dsn:
                envid = _parse_envid(value)
            case _:
                raise UnknownOption(option)
    return MailParameters(size, ret, envid, smtputf8="SMTPUTF8" in flags, require_tls="REQUIRETLS" in flags)


def _parse_flag(option: str, *, tls: bool) -> str:
    name = option.upper()
    if name in ("", "SMTPUTF8") or (tls and name == "REQUIRETLS"):
        return name
    raise UnknownOption(option)


def _parse_envid(value: str) -> str:
    if len(value) > _ENVID_MAX:
        raise OptionTooLong(value)
    if _PRINTABLE.fullmatch(value) is None:
        raise BadSyntax(value)
    return value


def _parse_size(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise BadSize(value)
    return int(value)


def parse_chunk(args: str) -> Chunk:
    """`size [LAST]` (RFC 3030 §2). Raises `BadSyntax`: where the next command begins is unknown then."""
    found = _CHUNK.fullmatch(args)
    if found is None:
        raise BadSyntax(args)
    return Chunk(int(found[1]), last=found[2] is not None)


def parse_rcpt_parameters(text: str, *, dsn: bool, utf8: bool = False) -> RcptParameters:
    """The parameters of RCPT; `utf8` as in `parse_path`. Raises `UnknownOption`, `BadNotify`, `BadOrcpt`."""
    if not text:
        return NO_RCPT_PARAMETERS
    notify, orcpt = Notify.NONE, ""
    for option in text.split(" "):
        key, equals, value = option.partition("=")
        match key.upper() if equals else "":
            case "NOTIFY" if dsn:
                notify |= _parse_notify(value)
            case "ORCPT" if dsn:
                orcpt = _parse_orcpt(value, utf8=utf8)
            case _:
                if option:
                    raise UnknownOption(option)
    return RcptParameters(notify, orcpt)


def _parse_notify(value: str) -> Notify:
    notify = Notify.NONE
    for word in value.upper().split(","):
        if word in ("SUCCESS", "FAILURE", "DELAY", "NEVER"):  # COMPAT: other words are ignored
            notify |= Notify[word]
    if Notify.NEVER in notify and notify != Notify.NEVER:
        raise BadNotify(value)
    return notify


def _parse_orcpt(value: str, *, utf8: bool) -> str:
    kind, semicolon, address = value.partition(";")
    pattern = _XTEXT_UTF8 if utf8 and kind.lower() == "utf-8" else _XTEXT
    good = semicolon and _ADDRESS_TYPE.fullmatch(kind) and pattern.fullmatch(address) and _is_seen(address)
    if not good or len(value) > _ORCPT_MAX:
        raise BadOrcpt(value)
    return value
