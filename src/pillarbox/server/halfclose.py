"""The end of one direction of a connection: we have said our last word, the client may still be sending.

Over TLS that is a close_notify (RFC 8446 §6.1). Neither loop's transport can end so: its `close` sends one too, but
asyncio's then takes what still comes for an error and resets the connection.
"""

import asyncio
import ssl
from contextlib import suppress

_READ = 64 * 1024


def can_end_writing(transport: asyncio.Transport) -> bool:
    """Can the client be told that nothing more comes, while it is heard?"""
    return transport.can_write_eof() or transport.get_extra_info("ssl_object") is not None


def end_writing(transport: asyncio.Transport) -> None:
    """Tell it, behind what was written, and read on. Raises OSError where it is gone."""
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        transport.write_eof()
        return
    # The transport passes on what its SSLObject has to say as soon as it reads again.
    transport.pause_reading()
    _notify(tls)
    transport.resume_reading()


def _notify(tls: ssl.SSLObject) -> None:
    with suppress(ssl.SSLWantReadError):
        while tls.read(_READ):  # what came before the notification, and is not read, is an error to OpenSSL
            pass
    with suppress(ssl.SSLWantReadError):  # the client's own has not come
        tls.unwrap()
