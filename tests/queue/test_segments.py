"""Segments: bodies behind one another, synced once a group, removed when nothing refers to them."""

import asyncio
import os
from pathlib import Path

import pytest

from pillarbox.errors import NoSpace, TempFail
from pillarbox.queue import segments
from pillarbox.queue.sqlite import ROW_BODY, SqliteStore
from pillarbox.queue.store import Gone
from tests.queue.rig import Clock, make_envelope, run
from tests.queue.test_store import message

SIZE = ROW_BODY * 2


def open_store(folder: Path) -> SqliteStore:
    return SqliteStore(folder, monotonic=Clock().monotonic, on_fatal=pytest.fail, lock_wait=0.0)


def body_of(msgid: int) -> bytes:
    return bytes([msgid % 251]) * SIZE


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "segments").iterdir())


async def fill(store: SqliteStore, msgids: range) -> None:
    await asyncio.gather(*(store.commit(message(m, make_envelope(m), body=body_of(m))) for m in msgids))


async def empty(store: SqliteStore, msgids: range) -> None:
    rows = await store.rows(0, 1000, 0)
    await store.settle([Gone(evpid=r.envelope.evpid) for r in rows if r.envelope.msgid in msgids])


def test_bodies_of_one_group_lie_behind_one_another_and_come_back_whole(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        await fill(store, range(1, 50))
        assert names(tmp_path) == ["00000001"]
        for msgid in range(1, 50):
            assert await store.read(msgid, 0, SIZE + 9) == body_of(msgid)
            assert await store.read(msgid, SIZE - 3, 100) == body_of(msgid)[:3]
        await store.close()
        store = open_store(tmp_path)
        assert await store.read(7, 0, SIZE) == body_of(7)
        await store.close()

    run(main)


def test_a_full_segment_is_removed_with_its_last_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SIZE * 10)

    async def main() -> None:
        store = open_store(tmp_path)
        await fill(store, range(1, 31))
        assert names(tmp_path) == ["00000001", "00000002", "00000003"]
        await empty(store, range(1, 10))
        assert len(names(tmp_path)) == 3
        await empty(store, range(10, 11))
        assert names(tmp_path) == ["00000002", "00000003"]
        await empty(store, range(11, 31))
        assert names(tmp_path) == ["00000003"], "the one that is being written stays"
        await store.close()

    run(main)


def test_every_life_begins_a_segment_of_its_own_and_sweeps_what_is_empty(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        await fill(store, range(1, 4))
        await store.close()
        # What a crash before the COMMIT leaves: bytes that no row knows.
        first = tmp_path / "segments/00000001"
        first.write_bytes(first.read_bytes() + b"never committed")
        (tmp_path / "segments/00000002").write_bytes(b"nobody's")
        store = open_store(tmp_path)
        await fill(store, range(4, 6))
        assert names(tmp_path) == ["00000001", "00000002", "00000003"]
        await store.sweep()
        assert names(tmp_path) == ["00000001", "00000003"]
        for msgid in range(1, 6):
            assert await store.read(msgid, 0, SIZE) == body_of(msgid)
        await store.close()

    run(main)


def test_a_segment_stays_until_what_emptied_it_is_committed(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        await fill(store, range(1, 3))
        await store.close()
        store = open_store(tmp_path)
        rows = await store.rows(0, 10, 0)
        seen: list[str] = []
        real = store._segments.sync

        def not_now() -> None:
            seen.extend(names(tmp_path))
            raise NoSpace("disk full")

        store._writer._before_commit = not_now
        settled = store.settle([Gone(evpid=r.envelope.evpid) for r in rows])
        tidied = store._writer.submit(store._segments.tidy_soon)  # as `sweep` does, in the same group
        with pytest.raises(NoSpace):
            await settled
        with pytest.raises(NoSpace):
            await tidied
        assert seen == ["00000001"]
        store._writer._before_commit = real
        assert await store.read(1, 0, SIZE) == body_of(1)
        await empty(store, range(1, 3))
        assert names(tmp_path) == []
        await store.close()

    run(main)


def test_a_writer_that_dies_ends_the_role_rather_than_hang_it(tmp_path: Path) -> None:
    async def main() -> None:
        fatal: list[BaseException] = []
        store = SqliteStore(tmp_path, monotonic=Clock().monotonic, on_fatal=fatal.append, lock_wait=0.0)

        def bug(db: object) -> None:
            raise RuntimeError("a mistake of ours")

        store._writer._after_commit = bug
        waiting = asyncio.ensure_future(fill(store, range(1, 3)))
        async with asyncio.timeout(5):
            while not fatal:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        waiting.cancel()

    run(main)


def test_what_is_dead_in_an_old_segment_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        await fill(store, range(1, 61))
        await store.close()
        store = open_store(tmp_path)
        before = os.stat(tmp_path / "segments/00000001").st_blocks
        await empty(store, range(1, 60))
        await store.sweep()
        assert os.stat(tmp_path / "segments/00000001").st_blocks < before / 10
        assert await store.read(60, 0, SIZE) == body_of(60)
        await store.close()

    run(main)


def test_a_body_that_cannot_be_written_refuses_its_message_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        await fill(store, range(1, 3))
        real = os.pwrite

        def full(fd: int, data: bytes, at: int) -> int:
            if bytes(data[:1]) == body_of(4)[:1]:
                real(fd, data[:100], at)
                raise OSError(28, "No space left on device")
            return real(fd, data, at)

        monkeypatch.setattr(os, "pwrite", full)
        done = await asyncio.gather(
            *(store.commit(message(m, make_envelope(m), body=body_of(m))) for m in range(3, 6)), return_exceptions=True
        )
        assert [type(d) for d in done] == [type(None), NoSpace, type(None)]
        for msgid in (1, 2, 3, 5):
            assert await store.read(msgid, 0, SIZE) == body_of(msgid)
        await store.close()

    run(main)


def test_a_sync_that_fails_ends_the_role_and_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        fatal: list[BaseException] = []
        store = SqliteStore(tmp_path, monotonic=Clock().monotonic, on_fatal=fatal.append, lock_wait=0.0)
        await fill(store, range(1, 3))

        def broken(fd: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(TempFail):
            await store.commit(message(3, make_envelope(3), body=body_of(3)))
        assert len(fatal) == 1
        await store.close()
        monkeypatch.undo()
        store = open_store(tmp_path)
        with pytest.raises(TempFail):
            await store.read(3, 0, 1)
        assert await store.read(2, 0, SIZE) == body_of(2)
        await store.close()

    run(main)
