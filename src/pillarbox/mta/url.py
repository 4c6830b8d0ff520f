"""Relay URLs: `[proto://[label@]]host[:port]`, as in `relay host` and in relayhost tables (smtpd.conf(5))."""

import re
from dataclasses import dataclass
from functools import lru_cache

# scheme → default port; LMTP has none, so it must be written (as the reference demands).
_PORTS = {"smtp": 25, "smtp+tls": 25, "smtp+notls": 25, "lmtp": 0, "smtps": 465}
_WITH_TLS = ("smtp+tls", "smtps")
_LABEL_MAX = 63  # characters, as the reference's buffer
_PORT_MAX = 65535
_HOST = re.compile(r"\[[0-9A-Za-z:.]+\]|[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class RelayUrl:
    """A parsed relay URL. `host` keeps the brackets of an address literal; `label` "" = no authentication."""

    scheme: str
    host: str
    port: int
    label: str = ""

    @property
    def lmtp(self) -> bool:
        """Is LMTP spoken there?"""
        return self.scheme == "lmtp"


@lru_cache(maxsize=1024)  # pure, and asked for every envelope
def parse_relay_url(text: str) -> RelayUrl | None:
    """The parts of a relay URL, None where it is not one. Without a scheme it is `smtp://`."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        scheme, rest = "smtp", text
    if scheme not in _PORTS:
        return None
    label, at, rest = rest.partition("@")
    if not at:
        label, rest = "", label
    found = _HOST.match(rest)
    # COMPAT: what follows the host is ignored unless it is a colon, so `smtp://host/` is accepted.
    if found is None or len(label) > _LABEL_MAX or not _valid_host(found.group()):
        return None
    port = _port(rest[found.end() :], _PORTS[scheme])
    if port is None or port == 0 or (label and scheme not in _WITH_TLS):
        return None
    return RelayUrl(scheme=scheme, host=found.group(), port=port, label=label)


def _port(text: str, default: int) -> int | None:
    if not text.startswith(":"):
        return default
    digits = text[1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5):
        return None
    return int(digits) if int(digits) <= _PORT_MAX else None


def _valid_host(host: str) -> bool:
    """A domain or an address literal: labels neither empty nor beginning or ending with a hyphen."""
    if host.startswith("["):
        return True
    labels = host.rstrip(".").split(".")
    return len(host) <= 255 and all(label and label[0] != "-" and label[-1] != "-" for label in labels)
