"""Sockets given to the event loop are closed once, however early their peer goes."""

import asyncio
import os
import re
import socket
from pathlib import Path
from typing import cast

import pytest
import uvloop

from pillarbox.sockets import attach

SOURCE = Path(__file__).resolve().parent.parent / "src/pillarbox"


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_peer_that_has_gone_already_leaves_nobody_who_closes_the_number_again(factory) -> None:
    async def main() -> None:
        for _ in range(20):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.close()
            over = asyncio.get_running_loop().create_future()

            class Peer(asyncio.Protocol):
                def connection_made(self, transport: asyncio.BaseTransport) -> None:
                    cast(asyncio.Transport, transport).write(b"hello")  # which fails

                def connection_lost(self, error: Exception | None, over=over) -> None:
                    over.set_result(error)

            transport, _ = await attach(Peer, ours)
            transport.abort()
            await over
            await asyncio.sleep(0)
            number = os.open(os.devnull, os.O_RDONLY)  # the lowest that is free: what was the socket's
            assert ours.fileno() != number
            del ours, transport
            os.fstat(number)
            os.close(number)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


def test_everybody_gives_sockets_to_the_loop_by_attach() -> None:
    found = [path for path in SOURCE.rglob("*.py") if re.search(r"\bcreate_connection\([^)]*\bsock=", path.read_text())]
    assert [path.relative_to(SOURCE) for path in found] == [Path("sockets.py")]  # whose docstring says why
