"""What is particular to the SQLite store: the folder, the schema, the group, and what a crash or a full disk leaves."""

import asyncio
import contextlib
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pillarbox.errors import PillarboxError, TempFail
from pillarbox.mail.envelope import encode_envelope
from pillarbox.queue import bodies, schema, spool, writer
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.queue.store import Gone, StoredMessage
from tests.queue.feeder import body_of
from tests.queue.rig import Clock, make_envelope, run
from tests.queue.test_store import message

ROOT = Path(__file__).resolve().parents[2]


def open_store(folder: Path, clock: Clock | None = None, fatal: list[BaseException] | None = None) -> SqliteStore:
    return SqliteStore(
        folder,
        monotonic=(clock or Clock()).monotonic,
        on_fatal=pytest.fail if fatal is None else fatal.append,
        lock_wait=0.0,
    )


def test_nobody_else_may_look_into_the_folder(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path / "queue")
        await store.commit(message(5, make_envelope(5), body=b"x" * 100_000))
        for path in [tmp_path / "queue", *(tmp_path / "queue").rglob("*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path
        await store.close()

    run(main)


def test_a_second_instance_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        with pytest.raises(PillarboxError, match=f"in use by process {os.getpid()}"):
            open_store(tmp_path)
        await store.close()
        await open_store(tmp_path).close()

    run(main)


def test_a_newer_schema_is_refused_untouched(tmp_path: Path) -> None:
    async def main() -> None:
        await open_store(tmp_path).close()
        db = sqlite3.connect(tmp_path / "queue.db")
        db.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
        db.close()
        before = (tmp_path / "queue.db").read_bytes()
        with pytest.raises(PillarboxError, match=f"schema {schema.VERSION + 1}"):
            open_store(tmp_path)
        assert (tmp_path / "queue.db").read_bytes() == before

    run(main)


def test_a_queue_of_the_first_schema_keeps_its_mail(tmp_path: Path) -> None:
    async def main() -> None:
        db = schema.connect(str(tmp_path / "queue.db"), writer=True)
        for statement in schema.STEPS[0].split(";"):
            db.execute(statement)
        db.execute("INSERT INTO message VALUES (5, 4, 1, 1, NULL, NULL, x'6f6c640a')")
        envelope = make_envelope(5)
        db.execute(
            "INSERT INTO envelope (evpid, destination, next_try, data) VALUES (?, 'mda:alice', 0, ?)",
            (envelope.evpid, encode_envelope(envelope)),
        )
        db.execute("PRAGMA user_version = 1")
        db.close()
        store = open_store(tmp_path)
        (row,) = await store.rows(0, 10, 0)
        assert (row.envelope, row.size) == (envelope, 4)
        assert (row.eight_bit, row.smtputf8, row.require_tls) == (True, True, False)
        assert await store.read(5, 0, 100) == b"old\n"
        await store.close()

    run(main)


def test_an_upgrade_that_fails_leaves_the_old_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        await open_store(tmp_path).close()
        steps = (*schema.STEPS, "CREATE TABLE another (a INTEGER); CREATE TABLE message (b INTEGER)")
        monkeypatch.setattr(schema, "STEPS", steps)
        monkeypatch.setattr(schema, "VERSION", len(steps))
        with pytest.raises(PillarboxError):
            open_store(tmp_path)
        db = sqlite3.connect(tmp_path / "queue.db")
        assert db.execute("PRAGMA user_version").fetchone() == (len(steps) - 1,)
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'another'").fetchone() == (0,)
        db.close()

    run(main)


def test_a_damaged_database_is_an_error_for_people(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "queue.db").write_bytes(b"this is no database" * 1000)
        with pytest.raises(PillarboxError, match=r"queue\.db"):
            open_store(tmp_path)

    run(main)


def test_durability_is_as_promised(tmp_path: Path) -> None:
    db = schema.connect(str(tmp_path / "x.db"), writer=True)
    schema.prepare(db, "x.db")
    values = {
        name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "auto_vacuum")
    }
    assert values == {"journal_mode": "wal", "synchronous": 2, "auto_vacuum": 2}
    db.close()


def test_requests_during_a_commit_share_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        db = schema.connect(str(tmp_path / "x.db"), writer=True)
        statements: list[str] = []
        db.set_trace_callback(statements.append)
        group = writer.Writer(
            db, on_fatal=pytest.fail, on_rollback=lambda: None, before_commit=lambda: None, after_commit=lambda db: None
        )
        held = threading.Event()
        first = group.submit(lambda db: held.wait(10))
        await asyncio.sleep(0)
        rest = []
        for number in range(5):
            rest.append(group.submit(lambda db, number=number: number))  # type: ignore[misc]
            await asyncio.sleep(0)
        held.set()
        await first
        assert statements.count("COMMIT") == 1
        assert await asyncio.gather(*rest) == [0, 1, 2, 3, 4]
        assert statements.count("COMMIT") == 2
        await group.close()
        with pytest.raises(TempFail):
            await group.submit(lambda db: None)

    run(main)


def test_a_mistake_in_a_request_ends_the_role_and_leaves_nobody_waiting(tmp_path: Path) -> None:
    async def main() -> None:
        fatal: list[BaseException] = []
        group = writer.Writer(
            schema.connect(str(tmp_path / "x.db"), writer=True),
            on_fatal=fatal.append,
            on_rollback=lambda: None,
            before_commit=lambda: None,
            after_commit=lambda db: None,
        )
        with pytest.raises(TempFail):
            await group.submit(lambda db: {}["mistake"])  # type: ignore[misc]
        assert isinstance(fatal[0], KeyError)
        await group.close()

    run(main)


def test_closing_commits_what_was_submitted(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        futures = [store.commit(message(n, make_envelope(n), body=b"x" * n * 10_000)) for n in range(1, 8)]
        await store.close()
        assert all(f.done() and f.exception() is None for f in futures)
        store = open_store(tmp_path)
        assert await store.counts() == (7, 7)
        await store.close()

    run(main)


def test_the_log_of_writes_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 1 << 20)

    async def main() -> None:
        store = open_store(tmp_path)
        for first in range(1, 1001, 50):
            await asyncio.gather(
                *(store.commit(message(n, make_envelope(n), body=b"x" * 10_000)) for n in range(first, first + 50))
            )
        assert (tmp_path / "queue.db-wal").stat().st_size < 6 << 20
        await store.close()

    run(main)


def test_files_of_messages_that_went_are_removed(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        envelope = make_envelope(5)
        await commit_streamed(store, message(5, envelope, body=b"x" * 100_000))
        assert len(files(tmp_path)) == 1
        await store.settle([Gone(evpid=envelope.evpid)])
        await store.close()
        assert files(tmp_path) == []

    run(main)


async def commit_streamed(store: SqliteStore, whole: StoredMessage) -> None:
    await store.append(whole.msgid, 0, whole.body)
    await store.commit(msgspec.structs.replace(whole, body=b"", streamed=True))


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / "bodies").rglob("*") if path.is_file()]


def test_orphan_bodies_are_swept_and_only_those(tmp_path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        store = open_store(tmp_path, clock)
        await commit_streamed(store, message(5, make_envelope(5), body=b"x" * 100_000))
        await store.append(6, 0, b"growing")
        (tmp_path / "bodies/00/00000007").write_bytes(b"orphan")
        assert await store.sweep() == 1
        assert len(files(tmp_path)) == 2
        clock.advance(bodies.ABANDONED + 1)
        await store.sweep()
        assert [path.name for path in files(tmp_path)] == ["00000005"]
        await store.close()

    run(main)


def test_a_body_whose_file_was_just_made_is_no_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there before the loop hears of it: the thread that made it may be kept waiting for long."""
    made, go = threading.Event(), threading.Event()
    create = bodies._create

    def slow(path: Path) -> int:
        descriptor = create(path)
        made.set()
        go.wait(10)
        return descriptor

    async def main() -> None:
        store = open_store(tmp_path)
        monkeypatch.setattr(bodies, "_create", slow)
        appending = asyncio.create_task(store.append(5, 0, b"x" * 100_000))
        await asyncio.to_thread(made.wait, 10)
        assert await store.sweep() == 0
        go.set()
        await appending
        whole = message(5, make_envelope(5), body=b"x" * 100_000)
        await store.commit(msgspec.structs.replace(whole, body=b"", streamed=True))
        assert await store.read(5, 0, 1 << 20) == b"x" * 100_000
        await store.close()

    run(main)


def test_an_orphans_id_that_is_used_again_while_it_is_swept_keeps_its_new_body(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        (tmp_path / "bodies/00/00000005").write_bytes(b"orphan")
        ask = store._known

        async def slow(msgids: list[int]) -> set[int]:
            known = await ask(msgids)
            await commit_streamed(store, message(5, make_envelope(5), body=b"x" * 100_000))
            return known

        store._known = slow  # type: ignore[method-assign]
        assert await store.sweep() == 0
        assert await store.read(5, 0, 1 << 20) == b"x" * 100_000
        await store.close()

    run(main)


def test_a_refused_message_leaves_no_file(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        await store.commit(message(5, make_envelope(5)))
        with pytest.raises(TempFail):
            await store.commit(message(5, make_envelope(5), body=b"x" * 100_000))
        await store.append(6, 0, b"short")
        with pytest.raises(TempFail):
            await store.commit(StoredMessage(msgid=6, size=9, streamed=True, envelopes=()))
        await store.append(7, 0, b"discarded")
        await store.discard(7)
        assert files(tmp_path) == []
        await store.close()

    run(main)


def test_a_cancelled_append_closes_its_file_after_the_write(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        await store.append(6, 0, b"a")
        task = asyncio.get_running_loop().create_task(store.append(6, 1, b"b" * 1_000_000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TempFail):
            await store.append(6, 1_000_001, b"c")
        await store.close()
        assert files(tmp_path) == []

    run(main)


def descriptors(folder: Path) -> int:
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry).startswith(f"{folder}/bodies/")
    return found


@pytest.mark.parametrize("steps", range(6))
def test_whenever_an_append_is_cancelled_no_descriptor_stays(tmp_path: Path, steps: int) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        for msgid in range(20):
            task = asyncio.get_running_loop().create_task(store.append(msgid, 0, b"a"))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await store.discard(msgid)
        await store.close()  # what its threads had begun or not is done now
        end = time.monotonic() + 10
        while (descriptors(tmp_path) or files(tmp_path)) and time.monotonic() < end:  # noqa: ASYNC110 - callbacks
            await asyncio.sleep(0.01)
        assert (descriptors(tmp_path), files(tmp_path)) == (0, [])

    run(main)


def test_a_large_message_is_never_in_memory(tmp_path: Path) -> None:
    async def main() -> None:
        store = open_store(tmp_path)
        chunk = b"x" * 131072
        tracemalloc.start()
        for offset in range(0, 35 << 20, len(chunk)):
            await store.append(5, offset, chunk)
        envelopes = message(5, make_envelope(5)).envelopes
        await store.commit(StoredMessage(msgid=5, size=35 << 20, streamed=True, envelopes=envelopes))
        for offset in range(0, 35 << 20, len(chunk)):
            assert len(await store.read(5, offset, len(chunk))) == len(chunk)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2 << 20
        await store.close()

    run(main)


def test_new_mail_is_refused_when_space_runs_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        clock = Clock()
        store = open_store(tmp_path, clock)
        store.check_space()
        monkeypatch.setattr(spool, "FREE", 1.1)
        store.check_space()  # looked a moment ago
        clock.advance(spool.CHECK_EVERY)
        with pytest.raises(TempFail, match="space"):
            store.check_space()
        monkeypatch.undo()
        clock.advance(spool.CHECK_EVERY)
        store.check_space()
        await store.close()

    run(main)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, seed: int) -> None:
    chance = random.Random(os.urandom(8))
    acknowledged: list[int] = []
    for life in range(2):
        first = (seed * 1000 + life * 500) << 12
        feeder = subprocess.Popen(
            [sys.executable, "-m", "tests.queue.feeder", str(tmp_path), str(first)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert feeder.stdout is not None
        for _ in range(chance.randint(1, 150)):
            acknowledged.append(int(feeder.stdout.readline()))
        feeder.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in feeder.stdout.read().split(b"\n")[:-1]]
        feeder.wait()
        feeder.stdout.close()

    async def check() -> None:
        store = open_store(tmp_path)
        for msgid in acknowledged:
            assert await store.read(msgid, 0, 1 << 20) == body_of(msgid)
            assert len(await store.rows(0, 9, msgid)) == 2
        await store.sweep()
        _, messages = await store.counts()
        assert messages >= len(acknowledged)
        for path in files(tmp_path):
            assert path.read_bytes() == body_of(int(path.name, 16))
        await store.close()

    run(check)


@pytest.fixture
def small_disk(machine: None, tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB of our own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [3000, 30_000, 100_000])
def test_a_full_disk_refuses_new_mail_and_loses_nothing(small_disk: Path, size: int) -> None:
    async def main() -> None:
        store = open_store(small_disk / "queue")
        ballast = small_disk / "ballast"
        ballast.write_bytes(b"x" * (5 << 20))
        kept, refused, msgid = [], 0, 0
        while refused < 20 and msgid < 4000:
            msgid += 1
            try:
                # The clock stands, so that the 5 % are not noticed and SQLite itself runs out of space.
                await store.commit(message(msgid, make_envelope(msgid), body=b"x" * size))
                kept.append(msgid)
            except TempFail:
                refused += 1
        assert refused == 20
        assert kept
        for number in kept:
            assert await store.read(number, 0, size) == b"x" * size
        ballast.unlink()
        await store.commit(message(5000, make_envelope(5000), body=b"x" * size))
        assert (await store.counts())[1] == len(kept) + 1
        await store.close()

    run(main)


def test_a_failing_disk_ends_the_role(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys; from pathlib import Path; from tests.queue import test_sqlite;"
        "asyncio.run(test_sqlite.write_to_a_failing_disk(Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()


async def write_to_a_failing_disk(folder: Path) -> None:
    """In a process of its own, for the limit cannot be raised again: EFBIG is an I/O error to SQLite."""
    fatal: list[BaseException] = []
    store = open_store(folder, fatal=fatal)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    kept = []
    with pytest.raises(TempFail):
        for msgid in range(1, 1000):
            await store.commit(message(msgid, make_envelope(msgid), body=b"x" * 3000))
            kept.append(msgid)
    assert len(fatal) == 1
    with pytest.raises(TempFail):
        await store.commit(message(2000, make_envelope(2000)))
    assert len(fatal) == 1
    await store.close()
    check = sqlite3.connect(folder / "queue.db")
    found = {row[0] for row in check.execute("SELECT msgid FROM message")}
    assert set(kept) <= found
    check.close()
