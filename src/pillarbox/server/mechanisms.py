"""Which AUTH mechanisms a session is offered: what the listener names, or what every user of its table can do."""

import ssl

from pillarbox.conf.model import BEARER, Config, Listener
from pillarbox.errors import TempFail
from pillarbox.roles.lookup import Lookup
from pillarbox.server.tls import TLS_UNIQUE, channel_bindings
from pillarbox.smtp.sasl.mechanisms import SCRAM, SCRAM_PLUS

PASSWORDS = ("PLAIN", "LOGIN")


async def offered(lookup: Lookup, config: Config, listener: Listener, connection: ssl.SSLObject) -> tuple[str, ...]:
    """The names, in the order of EHLO's line. A table that cannot be asked takes no more than SCRAM away.

    SCRAM-SHA-256-PLUS is offered by itself only where `tls-unique` binds the channel. Over TLS 1.3 clients expect
    `tls-exporter` (RFC 9266 §3), which Python's `ssl` does not tell, and would fail; there it has to be asked for by
    name, for clients that know `tls-server-end-point`.
    """
    if listener.mechanisms:
        able = bool(channel_bindings(connection)) if SCRAM_PLUS in listener.mechanisms else False
        return tuple(name for name in listener.mechanisms if name != SCRAM_PLUS or able)
    names: tuple[str, ...] = PASSWORDS
    try:
        if await lookup.offers_scram(config.generation, listener.auth):
            names += (SCRAM, SCRAM_PLUS) if TLS_UNIQUE in channel_bindings(connection) else (SCRAM,)
    except TempFail:
        pass
    return names + BEARER if listener.tokens else names
