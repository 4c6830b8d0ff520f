"""Relay URLs of before 6.4 (`relay via …`) in today's schemes, smtpd.conf(5) of either time."""

import re
from dataclasses import dataclass

# scheme → (today's, TLS was demanded, a label was needed)
_SCHEMES = {
    "smtp": ("smtp", False, False),
    "smtp+tls": ("smtp", False, False),
    "lmtp": ("lmtp", False, False),
    "smtps": ("smtps", True, False),
    "smtps+auth": ("smtps", True, True),
    "tls": ("smtp+tls", True, False),
    "tls+auth": ("smtp+tls", True, True),
    "secure": ("smtp+tls", True, False),
    "secure+auth": ("smtp+tls", True, True),
    "ssl": ("smtp+tls", True, False),
    "ssl+auth": ("smtp+tls", True, True),
    "backup": ("", False, False),
    "tls+backup": ("", True, False),
}
_EITHER = {"secure", "secure+auth", "ssl", "ssl+auth"}  # SMTPS first, then STARTTLS
_HOST = re.compile(r"(?:([^@]*)@)?(\[[^\]]*\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?\Z")
_SMTPS_PORT = "465"


@dataclass(frozen=True, slots=True)
class RelayHost:
    """A relay as today's grammar names it. `told`: what the scheme meant, where today's means something else."""

    url: str
    scheme: str = ""
    tls: bool = False
    backup: bool = False
    told: str = ""
    attention: bool = False


def parse_legacy_url(text: str) -> RelayHost | None:
    """The relay that a URL named; None where it was not one."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        # Without a scheme TLS was used where it was offered, as it is today.
        return RelayHost(text) if _HOST.match(text) and "@" not in text else None
    old = scheme.lower()
    found = _HOST.match(rest)
    if old not in _SCHEMES or found is None:
        return None
    today, tls, labelled = _SCHEMES[old]
    label, host, port = found[1], found[2], found[3]
    if bool(label) != labelled or (port and not 0 < int(port) < 1 << 16) or (old == "lmtp" and not port):
        return None
    if not today:
        return RelayHost(host, old, tls, backup=True)
    if old in _EITHER and port == _SMTPS_PORT:
        return RelayHost(f"smtps://{rest}", old, tls)
    if old in _EITHER:
        told = (
            "tried SMTPS, then STARTTLS; smtp+tls:// does STARTTLS only: a host that offers only SMTPS needs smtps://"
        )
        return RelayHost(f"{today}://{rest}", old, tls, told=told, attention=True)
    if old == "smtp":
        return RelayHost(
            text, old, told="was without TLS; today it is used where it is offered (smtp+notls:// is without)"
        )
    return RelayHost(f"{today}://{rest}", old, tls)
