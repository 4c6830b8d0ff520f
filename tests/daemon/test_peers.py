"""Links to peers that come and go, in whatever order that is noticed."""

import asyncio
import io
import socket
from collections.abc import Awaitable, Callable
from typing import cast

from pillarbox.daemon import ipc
from pillarbox.daemon.peers import Peers
from pillarbox.daemon.wiring import FILTER, LOOKUP, QUEUE, PerCaller
from pillarbox.log import Log
from pillarbox.roles.filters import Filters, Processor, Told


class Watched:
    """The peers of a lookup, and what it was told of its queue."""

    def __init__(self) -> None:
        self.peers = Peers(LOOKUP, 1, Log(io.StringIO()))
        self.told: list[str] = []
        self.peers.on_lost = lambda peer: self.told.append(f"lost {peer}")
        self.peers.on_attached = lambda peer: self.told.append(f"attached {peer}")
        self.peers.on_faulty = lambda peer: self.told.append(f"faulty {peer}")

    async def join(self) -> socket.socket:
        """A connection to the queue; the queue's end of it."""
        ours, theirs = socket.socketpair()
        await self.peers.attach(QUEUE, ours, {"lookup": _Anything()})
        return theirs

    async def until(self, *told: str) -> None:
        async with asyncio.timeout(5):
            while self.told != list(told):  # noqa: ASYNC110 - the order is what is tested
                await asyncio.sleep(0.01)


class _Anything:
    def __getattr__(self, name: str) -> object:
        return None


def run(body: Callable[[Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        await body(Watched())

    asyncio.run(main())


def test_a_peer_that_is_back_before_its_end_was_seen_is_lost_first() -> None:
    async def body(it: Watched) -> None:
        first = await it.join()
        second = await it.join()
        await it.until("attached queue", "lost queue", "attached queue")
        first.close()
        await asyncio.sleep(0.05)
        assert it.peers.ports[QUEUE].link is not None, "the end of the old link took the new one along"
        second.close()
        await it.until("attached queue", "lost queue", "attached queue", "lost queue")
        assert it.peers.ports[QUEUE].link is None

    run(body)


def test_of_two_links_begun_at_once_the_later_counts() -> None:
    async def body(it: Watched) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        await asyncio.gather(*(it.peers.attach(QUEUE, ours, {"lookup": _Anything()}) for ours, _ in pairs))
        await it.until("attached queue")
        pairs[0][1].close()
        await asyncio.sleep(0.05)
        link = it.peers.ports[QUEUE].link
        assert isinstance(link, ipc.Link)
        assert not link.closed
        for _, theirs in pairs:
            theirs.close()

    run(body)


def test_a_peer_that_talks_nonsense_is_told_to_be_faulty() -> None:
    async def body(it: Watched) -> None:
        theirs = await it.join()
        theirs.send(b"\0\0\0\1nonsense")
        await it.until("attached queue", "faulty queue", "lost queue")
        theirs.close()

    run(body)


class _Named:
    """What the filter role serves to a peer of this name: it answers with that."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def join(self, generation: int) -> list[Processor]:
        return [Processor(number=generation, name=self._name)]

    async def tell(self, number: int, life: int, items: list[Told]) -> None:
        """Nothing."""


def test_who_calls_is_known_by_the_link() -> None:
    async def main() -> None:
        services: dict[str, object] = {"filters": PerCaller(_Named)}
        role = Peers(FILTER, 2, Log(io.StringIO()))
        for name in ("dispatcher.0", "dispatcher.1", "queue"):
            ours, theirs = socket.socketpair()
            caller = Peers(name, 2, Log(io.StringIO()))
            await role.attach(name, ours, services)
            await caller.attach(FILTER, theirs, {"filtered": _Anything()})
            local = Peers(name, 2, Log(io.StringIO()))
            local.attach_local(FILTER, services)
            for peers in (caller, local):
                filters = cast(Filters, peers.proxy("filters", FILTER))
                assert await filters.join(7) == [Processor(number=7, name=name)]

    asyncio.run(main())
