"""The contract of `Store`, for every implementation."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pillarbox.errors import TempFail
from pillarbox.mail.envelope import Envelope, encode_envelope
from pillarbox.queue.flights import START
from pillarbox.queue.policy import destination_of
from pillarbox.queue.sqlite import ROW_BODY, SqliteStore
from pillarbox.queue.store import Gone, Later, Store, StoredEnvelope, StoredMessage
from pillarbox.roles.bounce import BounceKind, PendingBounce
from pillarbox.roles.queue import INLINE_BODY
from tests.queue.rig import T0, Clock, make_envelope, run

Test = Callable[[Store], Awaitable[None]]
MANY = 1 << 30


def sqlite(folder: Path) -> SqliteStore:
    return SqliteStore(folder / "queue", monotonic=Clock().monotonic, on_fatal=pytest.fail)


STORES: list[Callable[[Path], Store]] = [sqlite]


@pytest.fixture(params=STORES, ids=lambda make: make.__name__)
def on_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Test], None]:
    """Runs a test with a store; may be called again, which opens the same one again."""

    def on(test: Test) -> None:
        async def main() -> None:
            store = request.param(tmp_path)
            try:
                await test(store)
            finally:
                await store.close()

        run(main)

    return on


def message(
    msgid: int, *envelopes: Envelope, body: bytes = b"body\r\n", due: int = T0, **fields: object
) -> StoredMessage:
    stored = tuple(StoredEnvelope(e.evpid, destination_of(e), due, encode_envelope(e)) for e in envelopes)
    return StoredMessage(msgid=msgid, size=len(body), body=body, envelopes=stored, **fields)  # type: ignore[arg-type]


def bounce(envelope: Envelope) -> PendingBounce:
    return PendingBounce(evpid=envelope.evpid, envelope=envelope, kind=BounceKind.FAILED)


@pytest.mark.parametrize("size", [0, 1, ROW_BODY, ROW_BODY + 1, INLINE_BODY, INLINE_BODY + 1, 1_000_000])
def test_a_body_is_read_back_in_pieces(on_store: Callable[[Test], None], size: int) -> None:
    body = bytes(i % 251 for i in range(size))

    async def test(store: Store) -> None:
        await store.commit(message(5, make_envelope(5), body=body))
        assert await store.read(5, 0, size + 1) == body
        assert await store.read(5, size // 2, 10) == body[size // 2 : size // 2 + 10]
        assert await store.read(5, size, 10) == b""

    on_store(test)


def test_a_body_may_come_in_pieces(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        await store.append(5, 0, b"a" * 1000)
        with pytest.raises(TempFail):
            await store.append(5, 999, b"b")
        await store.append(5, 1000, b"b" * 1000)
        await store.commit(
            StoredMessage(msgid=5, size=2000, streamed=True, envelopes=message(5, make_envelope(5)).envelopes)
        )
        assert await store.read(5, 0, 9999) == b"a" * 1000 + b"b" * 1000
        page = await store.due("mta:far.example", START, 10, MANY)
        assert page.rows[0].body == b"a" * 1000 + b"b" * 1000
        with pytest.raises(TempFail):
            await store.append(6, 5, b"not the beginning")

    on_store(test)


def test_a_body_of_another_length_is_not_stored(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        envelopes = message(5, make_envelope(5)).envelopes
        await store.append(5, 0, b"short")
        with pytest.raises(TempFail):
            await store.commit(StoredMessage(msgid=5, size=2000, streamed=True, envelopes=envelopes))
        with pytest.raises(TempFail):
            await store.commit(StoredMessage(msgid=6, size=2000, streamed=True, envelopes=envelopes))
        await store.append(7, 0, b"discarded")
        await store.discard(7)
        await store.discard(8)
        with pytest.raises(TempFail):
            await store.commit(StoredMessage(msgid=7, size=9, streamed=True, envelopes=envelopes))
        assert await store.counts() == (0, 0)

    on_store(test)


def test_a_message_id_is_used_once_and_a_failure_takes_no_other_along(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        results = await asyncio.gather(
            store.commit(message(5, make_envelope(5))),
            store.commit(message(5, make_envelope(5))),
            store.commit(message(6, make_envelope(6))),
            return_exceptions=True,
        )
        assert [isinstance(r, TempFail) for r in results] == [False, True, False]
        assert await store.counts() == (2, 2)
        assert not await store.unused(0, 5)
        assert await store.unused(7, 100)

    on_store(test)


def test_what_was_committed_is_there_after_opening_again(on_store: Callable[[Test], None]) -> None:
    envelope = make_envelope(5, sender="ä@example.org")

    async def write(store: Store) -> None:
        await store.commit(message(5, envelope, eight_bit=True, require_tls=True))
        await store.settle([Later(evpid=envelope.evpid, attempt=3, data=encode_envelope(envelope),
                                  destination="mta:far.example", next_try=T0 + 400, tried=T0)])  # fmt: skip

    async def look(store: Store) -> None:
        (row,) = await store.rows(0, 10, 0)
        assert (row.envelope, row.next_try, row.attempt, row.tried) == (envelope, T0 + 400, 3, T0)
        assert (row.size, row.eight_bit, row.smtputf8, row.suspended) == (6, True, False, False)
        assert row.require_tls

    on_store(write)
    on_store(look)


def test_a_message_goes_with_its_last_envelope(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        first, second = make_envelope(5), make_envelope(5)
        await store.commit(message(5, first, second))
        assert await store.settle([Gone(evpid=first.evpid)]) == [True]
        assert await store.read(5, 0, 4) == b"body"
        assert await store.settle([Gone(evpid=first.evpid), Gone(evpid=second.evpid)]) == [False, True]
        with pytest.raises(TempFail):
            await store.read(5, 0, 4)
        assert await store.counts() == (0, 0)

    on_store(test)


def test_a_message_waits_for_its_bounces(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        envelope = make_envelope(5)
        await store.commit(message(5, envelope))
        await store.settle([Gone(evpid=envelope.evpid, bounce=bounce(envelope))])
        assert await store.bouncing(10) == [5]
        ((number, pending),) = await store.bounces(5, 10)
        assert pending == bounce(envelope)
        assert await store.counts() == (0, 1)
        answer = make_envelope(6)
        await store.commit(message(6, answer, answers=(number,), answers_msgid=5))
        assert await store.bouncing(10) == []
        assert [row.envelope for row in await store.rows(0, 10, 0)] == [answer]
        assert await store.counts() == (1, 1)
        with pytest.raises(TempFail):  # never twice
            await store.commit(message(7, make_envelope(7), answers=(number,), answers_msgid=5))
        assert await store.counts() == (1, 1)

    on_store(test)


def test_a_bounce_that_nobody_gets_is_dropped(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        envelope = make_envelope(5)
        await store.commit(message(5, envelope))
        await store.settle([Gone(evpid=envelope.evpid, bounce=bounce(envelope))])
        ((number, _),) = await store.bounces(5, 10)
        await store.drop_bounces(5, (number,))
        assert await store.counts() == (0, 0)
        assert await store.bouncing(10) == []

    on_store(test)


def test_an_outcome_of_a_removed_envelope_leaves_no_bounce(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        envelope = make_envelope(5)
        await store.commit(message(5, envelope))
        assert await store.remove([envelope.evpid, 99]) == [envelope]
        assert await store.settle([Gone(evpid=envelope.evpid, bounce=bounce(envelope))]) == [False]
        later = Later(evpid=envelope.evpid, attempt=1, data=b"", destination="x", next_try=1, tried=1)
        assert await store.settle([later]) == [False]
        assert await store.bouncing(10) == []
        assert await store.counts() == (0, 0)

    on_store(test)


def test_due_envelopes_come_in_pages_in_order(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        for msgid, due in ((5, T0 + 2), (6, T0), (7, T0), (8, T0 + 100)):
            await store.commit(message(msgid, make_envelope(msgid), due=due))
        await store.commit(message(9, make_envelope(9, "a@other.example")))
        page = await store.due("mta:far.example", START, 2, MANY)
        assert [row.envelope.msgid for row in page.rows] == [6, 7]
        assert page.rest == T0 + 2
        after = (page.rows[-1].next_try, page.rows[-1].envelope.evpid)
        page = await store.due("mta:far.example", after, 2, MANY)
        assert [row.envelope.msgid for row in page.rows] == [5, 8]
        assert page.rest is None

    on_store(test)


def test_bodies_beyond_the_budget_are_left_out(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        for msgid in (5, 6, 7):
            await store.commit(message(msgid, make_envelope(msgid), body=b"x" * 100))
        page = await store.due("mta:far.example", START, 9, 250)
        assert [len(row.body) for row in page.rows] == [100, 100, 0]

    on_store(test)


def test_destinations_are_found_when_due(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        await store.commit(message(5, make_envelope(5, "a@b.example"), due=T0 + 50))
        await store.commit(message(6, make_envelope(6, "a@a.example"), due=T0))
        assert await store.destinations("mta", T0, 10) == ["mta:a.example"]
        assert await store.next_destination("mta", T0) == T0 + 50
        assert await store.destinations("mta", T0 + 50, 10) == ["mta:a.example", "mta:b.example"]
        assert await store.destinations("mda", T0 + 50, 10) == []
        assert await store.next_destination("mta", T0 + 50) is None

    on_store(test)


def test_a_destination_rests_until_its_next_envelope(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        key, envelope = "mta:far.example", make_envelope(5)
        await store.commit(message(5, envelope, due=T0))
        data = encode_envelope(envelope)
        await store.settle([Later(evpid=envelope.evpid, attempt=1, data=data, destination=key,
                                  next_try=T0 + 400, tried=T0)])  # fmt: skip
        assert await store.destinations("mta", T0, 10) == [key]
        assert await store.rest(key, 0) == T0 + 400
        assert await store.destinations("mta", T0, 10) == []
        assert await store.rest(key, T0 + 500) == T0 + 500
        await store.commit(message(6, make_envelope(6), due=T0 + 7))  # new mail wakes it
        assert await store.next_destination("mta", T0) == T0 + 7
        await store.remove([row.envelope.evpid for row in await store.rows(0, 9, 0)])
        assert await store.rest(key, 0) is None
        assert await store.destinations("mta", T0 + 9999, 10) == []

    on_store(test)


def test_suspended_envelopes_are_not_due_until_released(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        key, envelope = "mta:far.example", make_envelope(5)
        await store.commit(message(5, envelope))
        assert await store.suspend([envelope.evpid, 99], True) == {envelope.evpid: key}
        assert await store.suspend([envelope.evpid], True) == {}
        assert (await store.due(key, START, 9, MANY)).rows == []
        assert await store.rest(key, 0) is None
        assert (await store.rows(0, 9, 0))[0].suspended
        assert await store.suspend([envelope.evpid], False) == {envelope.evpid: key}
        assert await store.destinations("mta", T0, 9) == [key]
        assert len((await store.due(key, START, 9, MANY)).rows) == 1

    on_store(test)


def test_scheduling_makes_due(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        envelope = make_envelope(5)
        await store.commit(message(5, envelope, due=T0 + 1000))
        assert await store.schedule([envelope.evpid, 99], T0) == {envelope.evpid: "mta:far.example"}
        assert await store.destinations("mta", T0, 9) == ["mta:far.example"]
        assert (await store.due("mta:far.example", START, 9, MANY)).rows[0].next_try == T0

    on_store(test)


def test_what_a_wrong_clock_put_off_comes_back(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        await store.commit(message(5, make_envelope(5), due=2 * T0))
        assert await store.stranded(T0, T0 + 1000) == ["mta:far.example"]
        assert await store.destinations("mta", T0, 9) == ["mta:far.example"]
        assert (await store.due("mta:far.example", START, 9, MANY)).rows[0].next_try == T0
        assert await store.stranded(T0, T0 + 1000) == []

    on_store(test)


def test_rows_are_those_meant_in_order(on_store: Callable[[Test], None]) -> None:
    async def test(store: Store) -> None:
        envelopes = [make_envelope(msgid) for msgid in (5, 5, 6, 2**31 - 1)]
        for msgid in (5, 6, 2**31 - 1):
            await store.commit(message(msgid, *[e for e in envelopes if e.msgid == msgid]))
        evpids = [e.evpid for e in envelopes]

        async def shown(after: int, count: int, which: int) -> list[int]:
            return [row.envelope.evpid for row in await store.rows(after, count, which)]

        assert await shown(0, 9, 0) == evpids
        assert await shown(0, 2, 0) == evpids[:2]
        assert await shown(evpids[1], 9, 0) == evpids[2:]
        assert await shown(0, 9, 5) == evpids[:2]
        assert await shown(evpids[0], 9, 5) == evpids[1:2]
        assert await shown(0, 9, evpids[2]) == [evpids[2]]
        assert await shown(0, 9, 2**31) == await shown(0, 9, 2**63) == await shown(2**64, 9, 0) == []

    on_store(test)
