"""Messages on their way through data-line filters."""

import asyncio
import socket
import struct

import pytest

from pillarbox.filters import stream
from pillarbox.filters.stream import FULL
from pillarbox.roles.filters import Lines, Output
from pillarbox.roles.queue import INLINE_BODY
from pillarbox.server.message import Incoming
from pillarbox.smtp.states import State
from tests.filters.memory import MemoryFilters, Played, decide, proceed

from .filtering import TRY_AGAIN, builtin, run, with_filters
from .memory import World


def edit(change):
    """A filter that reads a whole message and gives back another."""
    kept: dict[tuple[int, int], bytes] = {}

    def answer(asked):
        if not isinstance(asked, Lines):
            return proceed(asked)
        key = (asked.session, asked.token)
        kept[key] = kept.get(key, b"") + asked.data
        return [Output(*key, change(kept.pop(key)), True)] if asked.last else []

    return answer


def silent(asked):
    """Says nothing to lines."""
    return [] if isinstance(asked, Lines) else proceed(asked)


def filtered(*answers, **more) -> tuple[MemoryFilters, list[Played]]:
    """A chain of processors that see messages."""
    filters = MemoryFilters()
    return filters, [filters.add(name, a, phases="data-line", **more) for name, a in zip("fgh", answers, strict=False)]


async def transaction(w: World, c=None):
    c = c or await w.greeted()
    await c.send("MAIL FROM:<s@x.example>")
    await c.send("RCPT TO:<alice@example.org>")
    return c


def test_the_message_goes_through_with_its_trace_fields_and_is_completed_afterwards():
    filters, (played,) = filtered(edit(lambda m: m.replace(b"Subject: x", b"Cc: carol\r\nX-Added: yes\r\nSubject: y")))

    async def scenario(w: World) -> None:
        c = await w.greeted()
        text = "To: bob\r\nBcc: hidden@x.example\r\nSubject: x\r\n\r\n.dot\r\nend\r\n"
        assert (await c.message(text.replace("\r\n.", "\r\n..")))[:3] == "250"
        stored = w.queue.text()
        assert stored.startswith("Received: from client.example.net") and stored.count("Received:") == 1
        assert "\nTo: bob@mail.example.org\nCc: carol@mail.example.org\nX-Added: yes\nSubject: y\nDate: " in stored
        assert "Bcc" not in stored and stored.endswith("\n\n.dot\nend\n")

    run(scenario, with_filters("f"), filters)
    assert played.message.startswith(b"Received: ")
    assert played.message.endswith(b"To: bob\r\nBcc: hidden@x.example\r\nSubject: x\r\n\r\n.dot\r\nend\r\n")


def test_a_small_message_is_one_item():
    filters, (played,) = filtered(proceed)

    async def scenario(w: World) -> None:
        assert (await (await w.greeted()).message())[:3] == "250"

    run(scenario, with_filters("f"), filters)
    (lines,) = [item for item in played.told if isinstance(item, Lines)]
    assert lines.last and lines.data.startswith(b"Received: ")


def test_what_is_told_are_whole_lines_however_they_came():
    filters, (played,) = filtered(proceed)

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        for byte in b"Subject: bytes\r\n\r\none\r\n..two\r\n.\r\n":
            c.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await c.reply())[:3] == "250"
        assert w.queue.text().endswith("\none\n.two\n")

    run(scenario, with_filters("f"), filters)
    assert all(item.data.endswith(b"\r\n") or item.last for item in played.told if isinstance(item, Lines))


def test_each_filter_sees_what_the_one_before_made_of_it():
    filters, (first, second) = filtered(
        edit(lambda m: m.replace(b"Subject", b"X-One: 1\r\nSubject")),
        edit(lambda m: m.replace(b"X-One: 1", b"X-One: 1\r\nX-Two: 2")),
    )

    async def scenario(w: World) -> None:
        assert (await (await w.greeted()).message())[:3] == "250"
        assert "\nX-One: 1\nX-Two: 2\nSubject: x\n" in w.queue.text()

    run(scenario, with_filters("f", "g"), filters)
    assert b"X-One" not in first.message and b"X-One: 1\r\nSubject" in second.message


def test_an_early_end_ends_the_message_and_what_comes_behind_it_is_nobodys():
    filters, (played,) = filtered(lambda asked: [])

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        c.writer.write(b"Subject: early\r\n\r\none\r\n")
        await w.until(lambda: b"Subject" in played.message)
        first = next(item for item in played.told if isinstance(item, Lines))
        await filters.say(played, Output(first.session, first.token, b"Subject: early\r\n\r\none\r\n", True))
        played.answer = edit(lambda m: m)
        assert (await c.send(b"two\r\n.\r\n"))[:3] == "250"
        assert w.queue.text().endswith("\n\none\n")
        await filters.say(played, Output(first.session, first.token, b"stray\r\n", True))
        await transaction(w, c)
        await c.send("DATA")
        c.writer.write(b"Subject: second\r\n")
        await filters.say(played, Output(first.session, first.token, b"stray\r\n", True))
        assert (await c.send(b"\r\nx\r\n.\r\n"))[:3] == "250"
        assert "Subject: second" in w.queue.text() and "stray" not in w.queue.text()

    run(scenario, with_filters("f"), filters)


def test_the_limit_of_size_is_about_what_the_client_sent():
    filters, _ = filtered(edit(lambda m: m + b"y" * 500 + b"\r\n"))

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert (await c.message("Subject: grow\r\n\r\nx\r\n"))[:3] == "250"
        assert (await c.message("Subject: big\r\n\r\n" + "x" * 300 + "\r\n"))[:3] == "554"
        assert (await c.message("Subject: grow\r\n\r\nx\r\n"))[:3] == "250"  # the filter was told of the end

    run(scenario, with_filters("f", max_message_size=200), filters)


def test_a_filter_that_makes_no_end_of_a_message_is_stopped():
    filters, _ = filtered(edit(lambda m: m + b"y" * 3_000_000 + b"\r\n"))

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message() == TRY_AGAIN and not w.queue.committed
        assert any("makes more than" in line for line in w.log)

    run(scenario, with_filters("f", max_message_size=1000), filters)


@pytest.mark.parametrize("size", [INLINE_BODY * 3, 3 * FULL])
@pytest.mark.parametrize("answer", [proceed, edit(lambda m: m)], ids=["line by line", "at once"])
def test_large_messages_are_streamed_on(size, answer):
    filters, _ = filtered(answer)

    async def scenario(w: World) -> None:
        line = "x" * 98 + "\r\n"
        assert (await (await w.greeted()).message("Subject: large\r\n\r\n" + line * (size // 100)))[:3] == "250"
        assert w.queue.text().count(line.strip()) == size // 100
        assert w.queue.committed[0].streamed and w.queue.largest_chunk <= INLINE_BODY

    run(scenario, with_filters("f"), filters)


def test_what_came_out_goes_on_to_the_queue_while_the_client_pauses():
    filters, _ = filtered(proceed)

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        c.writer.write(b"Subject: slow\r\n\r\n" + (b"x" * 98 + b"\r\n") * 10_000)
        await w.until(lambda: sum(map(len, w.queue.bodies.values())) > 4 * INLINE_BODY)
        assert (await c.send(b"end\r\n.\r\n"))[:3] == "250"
        assert w.queue.text().endswith("x\nend\n")

    run(scenario, with_filters("f"), filters)


def test_chunks_go_through_too():
    filters, (played,) = filtered(edit(lambda m: m.replace(b"one", b"two")))

    async def scenario(w: World) -> None:
        c = await transaction(w)
        assert (await c.send(b"BDAT 15\r\nSubject: x\r\n\r\no"))[:3] == "250"
        assert (await c.send(b"BDAT 4 LAST\r\nne\r\n"))[:3] == "250"
        assert w.queue.text().endswith("\n\ntwo\n")

    run(scenario, with_filters("f"), filters)
    assert played.message.endswith(b"\r\none\r\n")


def test_a_chunk_that_a_filter_refuses_is_read_and_then_answered():
    filters = MemoryFilters()
    filters.add("f", decide("data", "reject", "550 no"), phases="data")

    async def scenario(w: World) -> None:
        c = await transaction(w)
        assert await c.send(b"BDAT 6\r\nQUIT\r\n") == "550 no"
        assert (await c.send("NOOP"))[:3] == "250"

    run(scenario, with_filters("f"), filters)


# --- without a message ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail_open", [False, True])
def test_a_filter_that_dies_with_lines_in_it_takes_the_message_with_it(fail_open):
    filters, (played,) = filtered(silent, fail_open=fail_open)

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        c.writer.write(b"Subject: x\r\n\r\none\r\n")
        await w.until(lambda: b"Subject" in played.message)
        await filters.set(played, life=0, why="it ended")
        assert await c.send(b"two\r\n.\r\n") == TRY_AGAIN
        assert not w.queue.committed
        assert f'smtp filter-failed filter=f phase=data-line reason="it ended" result="{TRY_AGAIN}"' in w.log
        assert (await c.send("NOOP"))[:3] == "250"
        played.answer = proceed
        await filters.set(played, life=2)
        assert (await c.message())[:3] == "250"

    run(scenario, with_filters("f"), filters)


def test_one_that_is_down_refuses_data_or_is_left_out():
    filters, (played,) = filtered(proceed)
    open_filters, (open_one,) = filtered(proceed, fail_open=True)

    async def refused(w: World) -> None:
        c = await transaction(w)
        await filters.set(played, life=0, why="it ended")
        assert await c.send("DATA") == TRY_AGAIN

    async def left_out(w: World) -> None:
        c = await w.greeted()
        await open_filters.set(open_one, life=0, why="it ended")
        assert (await c.message())[:3] == "250" and w.queue.committed

    run(refused, with_filters("f"), filters)
    run(left_out, with_filters("f"), open_filters)


def test_one_that_makes_nothing_of_a_message_is_waited_for_until_its_deadline():
    filters, (played,) = filtered(silent, timeout=0.1)

    async def scenario(w: World) -> None:
        c = await w.greeted()
        assert await c.message() == TRY_AGAIN and not w.queue.committed
        late = next(item for item in played.told if isinstance(item, Lines))
        played.answer = edit(lambda m: m)
        await transaction(w, c)
        await c.send("DATA")
        await filters.say(played, Output(late.session, late.token, b"Subject: late\r\n", True))
        assert (await c.send(b"Subject: second\r\n\r\n.\r\n"))[:3] == "250"
        assert "Subject: second" in w.queue.text() and "late" not in w.queue.text()

    run(scenario, with_filters("f"), filters)


def test_a_message_that_keeps_coming_back_is_waited_for_as_long_as_its_client_waits(monkeypatch):
    monkeypatch.setattr(stream, "WHOLE_MESSAGE", 1.5)
    filters, (played,) = filtered(silent, timeout=0.3)

    async def trickle(count: int, *, last: bool) -> None:
        message = [item for item in played.told if isinstance(item, Lines) and item.last][-1]
        for number in range(count):
            await asyncio.sleep(0.1)
            end = last and number == count - 1
            await filters.say(played, Output(message.session, message.token, b"X: y\r\n", end))

    async def scenario(w: World) -> None:
        c = await w.greeted()
        for count, ends, reply in ((8, True, "250"), (30, False, TRY_AGAIN)):
            played.told.clear()
            sending = asyncio.ensure_future(c.message())
            await w.until(lambda: any(isinstance(item, Lines) and item.last for item in played.told))
            await trickle(count, last=ends)
            assert (await sending).startswith(reply)
        assert any("no end within 1.5 s" in line for line in w.log)

    run(scenario, with_filters("f"), filters)


def test_a_client_that_leaves_within_a_message_discards_what_was_streamed():
    filters, (played,) = filtered(proceed)

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        c.writer.write(b"Subject: slow\r\n\r\n" + (b"x" * 98 + b"\r\n") * 10_000)
        await w.until(lambda: bool(w.queue.bodies))
        connection = c.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.writer.transport.abort()
        await w.until(lambda: bool(w.queue.discarded))
        await w.until(lambda: not w.server._sessions)
        assert not w.queue.committed

    run(scenario, with_filters("f"), filters)
    assert not any(item.last for item in played.told if isinstance(item, Lines))  # no end of a message that had none


def test_a_client_that_leaves_while_the_queue_takes_what_was_made_is_no_mistake_of_ours():
    filters, _ = filtered(proceed)

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        w.queue.gate = asyncio.Event()
        c.writer.write(b"Subject: slow\r\n\r\n" + (b"x" * 98 + b"\r\n") * 5_000)
        (session,) = w.server._sessions
        await w.until(lambda: session.tx.taking is not None)
        c.writer.write(b".\r\n")
        await w.until(lambda: session.state is State.IDENTIFIED)
        connection = c.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.writer.transport.abort()
        await w.until(lambda: not w.server._sessions)
        w.queue.gate.set()
        await w.until(lambda: bool(w.queue.discarded) and not w.server._tasks)
        assert not w.queue.committed and "smtp: background work" not in w.log

    run(scenario, with_filters("f"), filters)


def test_a_filter_that_does_not_read_stops_the_client_and_then_the_message():
    filters, (played,) = filtered(proceed, timeout=0.2)

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        played.reading.clear()
        c.writer.write(b"Subject: x\r\n\r\n" + (b"x" * 98 + b"\r\n") * 30_000 + b".\r\n")
        assert await c.reply() == TRY_AGAIN
        assert any("phase=data-line" in line and "read" in line for line in w.log)
        played.reading.set()

    run(scenario, with_filters("f"), filters)


def test_a_malformed_message_is_refused_by_what_the_filter_made_of_it():
    filters, _ = filtered(edit(lambda m: m.replace(b"no header", b"Subject: fixed\r\n\r\n")))
    broken, _ = filtered(edit(lambda m: b"no header\r\n" + m))

    async def mended(w: World) -> None:
        assert (await (await w.greeted()).message("no header\r\n"))[:3] == "250"

    async def spoilt(w: World) -> None:
        assert (await (await w.greeted()).message())[:3] == "550"

    run(mended, with_filters("f"), filters)
    run(spoilt, with_filters("f"), broken)


def test_what_cannot_be_decided_at_the_end_of_a_message_ends_the_transaction():
    filters = MemoryFilters()
    played = filters.add("f", phases="rset", events="tx-rollback")

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        c.writer.write(b"Subject: x\r\n\r\n" + (b"x" * 98 + b"\r\n") * 10_000)
        await w.until(lambda: bool(w.queue.bodies))
        w.lookup.fail = True
        assert (await c.send(b".\r\n"))[:3] == "451"
        (session,) = w.server._sessions
        assert session.tx is None and not w.queue.committed
        await w.until(lambda: bool(w.queue.discarded) and bool(played.events))
        w.lookup.fail = False
        assert (await c.message())[:3] == "250"

    run(scenario, with_filters("f", builtins=(builtin("commit", "auth", "reject", "550 no"),)), filters)


def test_a_message_of_which_something_could_not_be_kept_is_not_accepted(monkeypatch):
    filters, _ = filtered(proceed)
    add = Incoming.add

    def fails_once(message: Incoming, data: bytes, lines: int) -> None:
        if message.size > INLINE_BODY // 2:
            monkeypatch.setattr(Incoming, "add", add)
            raise MemoryError
        add(message, data, lines)

    async def scenario(w: World) -> None:
        c = await transaction(w)
        await c.send("DATA")
        monkeypatch.setattr(Incoming, "add", fails_once)
        c.writer.write(b"Subject: x\r\n\r\n" + (b"x" * 98 + b"\r\n") * 10_000)
        await w.until(lambda: Incoming.add is add)
        assert (await c.send(b".\r\n"))[:3] == "451" and not w.queue.committed

    run(scenario, with_filters("f"), filters)
