"""Internationalized addresses (RFC 6530 to 6533, IDNA 2008): their ASCII forms, and when two are the same.

A domain in Unicode (U-labels) and its form in ASCII (A-labels, `xn--…`) are one domain; a local part has no other
form. What is stored and shown stays as it was given; what is compared or looked up is folded first.
"""

import re
import unicodedata

import idna

_DOMAIN_MAX = 255
_ACE = "xn--"  # how a label begins that stands for one in Unicode
_ESCAPED = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")


def to_ascii(domain: str) -> str:
    """The domain in A-labels. Raises ValueError where a label is none of IDNA 2008, mapped as UTS 46 says."""
    if domain.isascii():
        return domain
    if len(domain) > _DOMAIN_MAX:
        raise ValueError("domain too long")
    labels = idna.uts46_remap(domain, std3_rules=False).split(".")
    return ".".join(label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels)


def fold_domain(domain: str) -> str:
    """The form in which domains, and patterns of domains, are compared."""
    if domain.isascii():
        return domain.lower()
    try:
        return to_ascii(domain).lower()
    except ValueError:
        return domain.lower()


def fold_local(user: str) -> str:
    """The form in which local parts and user names are compared."""
    return user.lower() if user.isascii() else unicodedata.normalize("NFC", user).lower()


def fold_address(address: str) -> str:
    """The same for `user@domain`, `@domain` and `user`."""
    if address.isascii():
        return address.lower()
    user, at, domain = address.rpartition("@")
    return f"{fold_local(user)}@{fold_domain(domain)}" if at else fold_local(domain)


def address_forms(address: str) -> list[str]:
    """How an address or a domain may be written where keys cannot be folded: as it is, in ASCII, in Unicode."""
    lowered = address.lower()
    if lowered.isascii() and _ACE not in lowered:
        return [lowered]
    user, at, domain = address.rpartition("@")
    forms = (lowered, f"{fold_local(user)}{at}{fold_domain(domain)}", f"{fold_local(user)}{at}{_to_unicode(domain)}")
    return list(dict.fromkeys(forms))


def _to_unicode(domain: str) -> str:
    try:
        labels = fold_domain(domain).split(".")
        return ".".join(idna.ulabel(label) if label.startswith(_ACE) else label for label in labels)
    except ValueError:
        return domain.lower()


def ascii_address(address: str) -> str | None:
    """The same mailbox for a server without SMTPUTF8; None where its local part is not ASCII."""
    if address.isascii():
        return address
    user, _, domain = address.rpartition("@")
    if not user.isascii():
        return None
    try:
        return f"{user}@{to_ascii(domain)}"
    except ValueError:
        return None


def encode_unitext(text: str) -> str:
    """RFC 6533 §3: a `utf-8` address in ASCII (utf-8-addr-xtext)."""
    return text if text.isascii() else "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in text)


def decode_unitext(text: str) -> str:
    """The inverse; what would become a control character or none at all stays as it is."""
    return _ESCAPED.sub(_decode_point, text)


def _decode_point(found: re.Match[str]) -> str:
    point = int(found[1], 16)
    character = chr(point) if point <= 0x10FFFF else ""
    return character if character.isprintable() and character else found[0]
