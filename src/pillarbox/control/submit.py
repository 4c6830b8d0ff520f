"""A local user's SMTP session over the control socket: bytes carried to a dispatcher and back.

The dispatcher runs the session like any other and knows the user; nothing here looks at what passes. What is under
way is bounded by one read of each side: neither is read before the other has taken what came.
"""

import asyncio

from pillarbox.errors import PermFail, TempFail
from pillarbox.roles.dispatcher import Incoming

_CHUNK = 64 * 1024


async def relay_session(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    dispatcher: Incoming,
    handle: int,
    deadline: float,
) -> None:
    """Carry bytes both ways until one side ends, or for `deadline` seconds neither gives nor takes any.

    An interrupted session is one that the client sees closed without the reply it waits for.
    """
    try:
        async with asyncio.TaskGroup() as group:
            up = group.create_task(_upload(reader, dispatcher, handle, deadline))
            down = group.create_task(_download(writer, dispatcher, handle, deadline))
            up.add_done_callback(lambda _: down.cancel())
            down.add_done_callback(lambda _: up.cancel())
    except* (TempFail, PermFail, OSError, TimeoutError):
        pass
    finally:
        await _close(dispatcher, handle, deadline)


async def _upload(reader: asyncio.StreamReader, dispatcher: Incoming, handle: int, deadline: float) -> None:
    """From the client to its session, until the client ends."""
    while True:
        async with asyncio.timeout(deadline):
            data = await reader.read(_CHUNK)
        if not data:
            return
        async with asyncio.timeout(deadline):
            await dispatcher.submit_write(handle, data)


async def _download(writer: asyncio.StreamWriter, dispatcher: Incoming, handle: int, deadline: float) -> None:
    """From the session to its client, until the session ends. How long a session may be silent is its own affair."""
    while data := await dispatcher.submit_read(handle):
        writer.write(data)
        async with asyncio.timeout(deadline):
            await writer.drain()


async def _close(dispatcher: Incoming, handle: int, deadline: float) -> None:
    """Tell the dispatcher that the client is gone; one that does not answer has other troubles."""
    try:
        async with asyncio.timeout(deadline):
            await dispatcher.submit_close(handle)
    except (TempFail, PermFail, TimeoutError):
        return
