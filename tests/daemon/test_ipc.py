"""Calls between roles: over a socketpair and within one process, with everything that can go wrong on the way."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.daemon import ipc, wiring
from pillarbox.errors import NoSpace, PermFail, TempFail
from pillarbox.log import Log


class Echo(Protocol):
    async def double(self, number: int, text: str = "x") -> tuple[int, str]: ...
    async def fail(self, kind: str) -> None: ...
    async def hang(self) -> bytes: ...
    async def blob(self, data: bytes) -> bytes: ...


INTERFACE = ipc.Interface({"echo": Echo}, {"echo.hang": 0.05})


class EchoService:
    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.running = 0

    async def double(self, number: int, text: str = "x") -> tuple[int, str]:
        return number * 2, text * 2

    async def fail(self, kind: str) -> None:
        raise {
            "temp": TempFail("later"),
            "full": NoSpace("disk"),
            "perm": PermFail("never"),
            "bug": ZeroDivisionError("oops"),
        }[kind]

    async def hang(self) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return b""

    async def blob(self, data: bytes) -> bytes:
        return data


class Sink:
    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def handlers(service: EchoService) -> dict[tuple[str, str], Callable[..., Awaitable[Any]]]:
    return {("echo", name): getattr(service, name) for name in INTERFACE.by_service["echo"]}


async def linked(serve: dict[tuple[str, str], Any], log: Log) -> tuple[Echo, ipc.Port, ipc.Link]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    port = ipc.Port("echo")
    _, served = await loop.create_connection(
        lambda: ipc.Link(peer="caller", interface=INTERFACE, serve=serve, log=log), sock=theirs
    )
    _, link = await loop.create_connection(
        lambda: ipc.Link(peer="echo", interface=INTERFACE, serve={}, log=log), sock=ours
    )
    port.link = link
    return cast(Echo, ipc.proxy(INTERFACE, "echo", port)), port, served


def both_wirings(test: Callable[[Echo, EchoService, Sink], Awaitable[None]]) -> None:
    async def over_socket() -> None:
        sink, service = Sink(), EchoService()
        echo, _, _ = await linked(handlers(service), Log(cast(Any, sink)))
        await test(echo, service, sink)

    async def within() -> None:
        sink, service = Sink(), EchoService()
        port = ipc.Port("echo")
        port.link = ipc.LocalLink(peer="echo", serve=handlers(service), log=Log(cast(Any, sink)))
        await test(cast(Echo, ipc.proxy(INTERFACE, "echo", port)), service, sink)

    asyncio.run(over_socket())
    asyncio.run(within())


def test_calls_answer_by_position_keyword_and_default() -> None:
    async def check(echo: Echo, service: EchoService, sink: Sink) -> None:
        assert await echo.double(4, "ab") == (8, "abab")
        assert await echo.double(number=3) == (6, "xx")

    both_wirings(check)


def test_failures_keep_their_kind_and_bugs_are_logged_but_not_told() -> None:
    async def check(echo: Echo, service: EchoService, sink: Sink) -> None:
        with pytest.raises(TempFail, match="later"):
            await echo.fail("temp")
        with pytest.raises(NoSpace, match="disk"):
            await echo.fail("full")
        with pytest.raises(PermFail, match="never"):
            await echo.fail("perm")
        with pytest.raises(TempFail, match="internal error") as caught:
            await echo.fail("bug")
        assert "oops" not in str(caught.value)
        assert "ZeroDivisionError: oops" in sink.text

    both_wirings(check)


def test_a_call_past_its_deadline_is_a_temporary_failure_and_is_cancelled_there() -> None:
    async def check(echo: Echo, service: EchoService, sink: Sink) -> None:
        with pytest.raises(TempFail, match="did not answer"):
            await echo.hang()
        await asyncio.wait_for(service.cancelled.wait(), 3)

    both_wirings(check)


def test_a_cancelled_call_is_cancelled_at_the_peer() -> None:
    async def check(echo: Echo, service: EchoService, sink: Sink) -> None:
        task = asyncio.ensure_future(echo.hang())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait_for(service.cancelled.wait(), 3)

    both_wirings(check)


def test_large_values_cross_whole_and_many_calls_run_at_once() -> None:
    async def check(echo: Echo, service: EchoService, sink: Sink) -> None:
        blob = bytes(range(256)) * 20000
        assert await echo.blob(blob) == blob
        answers = await asyncio.gather(*(echo.double(i) for i in range(3000)))
        assert [a for a, _ in answers] == [2 * i for i in range(3000)]

    both_wirings(check)


def test_a_dead_peer_fails_what_is_running_and_what_comes_after() -> None:
    async def check() -> None:
        service = EchoService()
        echo, _, served = await linked(handlers(service), Log(cast(Any, Sink())))
        waiting = asyncio.ensure_future(echo.hang())
        await asyncio.sleep(0.01)
        served.close()
        with pytest.raises(TempFail, match="restarted"):
            await waiting
        with pytest.raises(TempFail, match="restarted"):
            await echo.double(1)

    asyncio.run(check())


def test_a_call_that_is_not_allowed_ends_the_peer() -> None:
    async def check() -> None:
        sink = Sink()
        echo, _, served = await linked({}, Log(cast(Any, sink)))
        with pytest.raises(TempFail):
            await echo.double(1)
        assert served.closed
        assert "double is not for caller" in sink.text

    asyncio.run(check())


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">I", 3) + b"abc",
        struct.pack(">I", ipc.MAX_FRAME + 1),
        struct.pack(">IBIH", 8, 0, 1, 0) + b"\xff",
        struct.pack(">IBIH", 7, 0, 1, 9999),
        (struct.pack(">IBIH", 8, 0, 1, 2) + b"\x90") * 2,  # one call id for two calls at a time
    ],
)
def test_a_bad_frame_ends_the_peer(garbage: bytes) -> None:
    async def check() -> None:
        sink, gone, serve = Sink(), asyncio.Event(), handlers(EchoService())
        log = Log(cast(Any, sink))
        ours, theirs = socket.socketpair()
        _, served = await asyncio.get_running_loop().create_connection(
            lambda: ipc.Link(peer="x", interface=INTERFACE, serve=serve, log=log, lost=lambda _: gone.set()),
            sock=theirs,
        )
        for byte in garbage:
            ours.send(bytes([byte]))
            await asyncio.sleep(0)
        await asyncio.wait_for(gone.wait(), 3)
        assert served.closed
        assert "bad frame" in sink.text
        ours.close()

    asyncio.run(check())


class Dumb(asyncio.Transport):
    """Takes everything and sends nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


def frame(kind: int, call: int, number: int, payload: bytes) -> bytes:
    return struct.pack(">IBIH", 7 + len(payload), kind, call, number) + payload


NESTED = st.integers(1, 2000).map(lambda depth: b"\x91" * depth)
PAYLOADS = (
    st.binary(max_size=12) | NESTED | st.sampled_from([msgspec.msgpack.encode(v) for v in ([2], [2, "y"], [b"x"])])
)
FRAMES = st.builds(frame, st.integers(0, 4), st.integers(0, 2), st.integers(0, 5), PAYLOADS)


@settings(max_examples=200, deadline=None)
@given(st.lists(FRAMES | st.binary(max_size=20), max_size=8), st.integers(1, 9))
def test_any_bytes_are_calls_or_end_the_peer_however_they_are_cut(pieces: list[bytes], size: int) -> None:
    async def served(chunks: list[bytes]) -> tuple[list[object], bool]:
        seen: list[object] = []

        async def note(*arguments: object) -> None:
            seen.append(arguments)

        serve = {("echo", name): note for name in INTERFACE.by_service["echo"]}
        link = ipc.Link(peer="caller", interface=INTERFACE, serve=serve, log=Log(cast(Any, Sink())))
        link.connection_made(Dumb())
        for chunk in chunks:
            if not link.closed:
                link.data_received(chunk)
        closed = link.closed
        await asyncio.sleep(0)
        link.close()
        return seen, closed

    data = b"".join(pieces)
    whole = asyncio.run(served([data]))
    assert asyncio.run(served([data[i : i + size] for i in range(0, len(data), size)])) == whole


def test_an_answer_that_cannot_be_read_fails_its_call_and_ends_the_peer() -> None:
    class Liar(EchoService):
        async def double(self, number: int, text: str = "x") -> Any:
            return "neither"

    async def check() -> None:
        sink = Sink()
        echo, port, _ = await linked(handlers(Liar()), Log(cast(Any, sink)))
        link = port.link
        with pytest.raises(TempFail):
            await asyncio.wait_for(echo.double(1), 5)
        assert isinstance(link, ipc.Link)
        assert link.closed
        assert link.faulty

    asyncio.run(check())


def test_an_answer_that_cannot_be_sent_is_a_temporary_failure() -> None:
    class Odd(EchoService):
        async def double(self, number: int, text: str = "x") -> tuple[int, str]:
            return 1, "\udc80"

    async def check() -> None:
        sink = Sink()
        echo, _, _ = await linked(handlers(Odd()), Log(cast(Any, sink)))
        with pytest.raises(TempFail, match="internal error"):
            await asyncio.wait_for(echo.double(1), 5)
        assert "UnicodeEncodeError" in sink.text
        assert await echo.blob(b"on") == b"on"

    asyncio.run(check())


def test_a_peer_that_stops_reading_costs_bounded_memory_and_every_call_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc, "UNREAD", 1 << 20)
    interface = ipc.Interface({"echo": Echo}, {"echo.blob": 0.3})

    async def check() -> None:
        ours, theirs = socket.socketpair()
        transport, link = await asyncio.get_running_loop().create_connection(
            lambda: ipc.Link(peer="echo", interface=interface, serve={}, log=Log(cast(Any, Sink()))), sock=ours
        )
        port = ipc.Port("echo")
        port.link = link
        echo = cast(Echo, ipc.proxy(interface, "echo", port))
        calls = [asyncio.ensure_future(echo.blob(bytes(65536))) for _ in range(20)]
        await asyncio.sleep(0)
        more: list[asyncio.Future[bytes]] = []
        for _ in range(100):
            more.append(asyncio.ensure_future(echo.blob(bytes(65536))))
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() < 4 << 20
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*calls, *more, return_exceptions=True)
        assert {type(a) for a in answers} == {TempFail}
        theirs.close()

    asyncio.run(check())


def test_calls_beyond_the_limit_wait_their_turn_or_end_at_their_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ipc, "MAX_CALLS", 2)

    async def check() -> None:
        echo, _, _ = await linked(handlers(EchoService()), Log(cast(Any, Sink())))
        waiting = [asyncio.ensure_future(echo.hang()) for _ in range(4)]
        numbers = [asyncio.ensure_future(echo.double(i)) for i in range(4)]
        await asyncio.sleep(0.01)
        numbers[0].cancel()
        async with asyncio.timeout(20):
            assert {type(a) for a in await asyncio.gather(*waiting, return_exceptions=True)} == {TempFail}
            assert [n for n, _ in await asyncio.gather(*numbers[1:])] == [2, 4, 6]

    asyncio.run(check())


def test_the_call_graph_has_no_cycle_but_the_orders() -> None:
    """Calls back from those whom queue gives orders do not count: an order does not wait for them.

    Nor does what filter tells back: who hears it does not wait for what it tells filter itself.
    """
    orders = {("dispatcher", "queue"), ("parent", "queue")} & set(wiring.CALLS)
    apart = {("queue", "dispatcher"), ("queue", "parent"), ("filter", "dispatcher"), ("filter", "queue")}
    edges = set(wiring.CALLS) - apart
    assert orders <= edges

    def reaches(start: str, goal: str) -> bool:
        return any(b == goal or reaches(b, goal) for a, b in edges if a == start and b != start)

    # parent → queue is the agent's reporting; parent's System answers lookup without asking queue.
    edges.discard(("parent", "queue"))
    assert not [role for role in {a for a, _ in edges} if reaches(role, role)]


def test_every_allowed_method_exists() -> None:
    for services in wiring.CALLS.values():
        for service, names in services.items():
            assert set(names) <= set(wiring.INTERFACE.by_service[service]), service
