"""A connected socket given to the event loop, which closes it from then on."""

import asyncio
import socket
from collections.abc import Callable
from typing import TypeVar

_Protocol = TypeVar("_Protocol", bound=asyncio.BaseProtocol)


async def attach(make: Callable[[], _Protocol], connection: socket.socket) -> tuple[asyncio.Transport, _Protocol]:
    """The transport and protocol of a connection, whichever side it was opened from.

    Not by `create_connection(sock=…)`: if a first write fails before it returns, uvloop (0.23) has closed the
    descriptor and left the socket object open, which closes the same number again, whosever it is by then.
    """
    return await asyncio.get_running_loop().connect_accepted_socket(make, connection)
