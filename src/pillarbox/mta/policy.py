"""The TLS policy of an outgoing session: decided in queue from the relay URL and the action, obeyed by a dispatcher."""

from dataclasses import dataclass

from pillarbox.conf.model import Relay
from pillarbox.mta.url import RelayUrl


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """`tls`: none, opportunistic, required (STARTTLS), immediate. `scheme`: what the log and `show relays` call it."""

    scheme: str
    tls: str
    verify: bool


_TLS = {
    "smtp": "opportunistic",
    "smtp+tls": "required",
    "smtps": "immediate",
    "smtp+notls": "none",
    "lmtp": "none",
}


def tls_policy(url: RelayUrl | None, action: Relay, *, require_tls: bool = False) -> TlsPolicy | None:
    """How to protect sessions of this action with this smarthost (None: the MXs of a domain).

    None where the action, or the message (`require_tls`), demands TLS and the URL forbids it. A certificate is
    verified wherever TLS is demanded, by URL or action, unless the action says `no-verify`; that does not hold for a
    message that demands it. Opportunistic TLS protects against listeners only.
    """
    scheme = url.scheme if url is not None else "smtp"
    if action.tls or require_tls:
        if _TLS[scheme] == "none":
            return None
        scheme = "smtp+tls" if scheme == "smtp" else scheme
    tls = _TLS[scheme]
    verify = require_tls or (tls in ("required", "immediate") and action.tls != "no-verify")
    return TlsPolicy(scheme=scheme, tls=tls, verify=verify)
