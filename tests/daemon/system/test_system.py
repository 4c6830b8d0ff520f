"""What the parent does for lookup: `.forward` with its permissions, deadlines of children."""

import asyncio
import errno
import io
import os
from pathlib import Path

import pytest

from pillarbox.conf.model import Config, Table, TableKind
from pillarbox.daemon import hanging
from pillarbox.daemon.reload.generations import Generations
from pillarbox.daemon.settings import Generation
from pillarbox.daemon.system import system
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.roles.parent import Reloaded
from pillarbox.routing.expand import MAX_FORWARD_SIZE
from pillarbox.tables.db import stamp

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: reads as another user")


async def unasked() -> Reloaded:
    raise AssertionError("nobody asks for a reload")


def make(as_root: bool = False, config: Config | None = None, state: str = "") -> system.ParentSystem:
    return system.ParentSystem(
        generations=Generations(Generation(config=config or Config(hostname="x"))),
        state=state,
        as_root=as_root,
        on_stop=lambda: None,
        on_reload=unasked,
        log=Log(io.StringIO()),
    )


def read(home: Path, uid: int, as_root: bool = False) -> bytes | None:
    return asyncio.run(make(as_root).read_forward("nobody", uid, 65534, str(home)))


def test_forward_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / ".forward").write_text("bob\n" * 5000)
    assert read(tmp_path, os.geteuid()) == b"bob\n" * 5000


def test_a_database_is_read_in_parts_and_no_other_file_is(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    path.write_bytes(b"x" * 100)
    table = Table(name="t", kind=TableKind.DB, config=str(path))
    parent = make(config=Config(hostname="x", tables={"t": table}))
    part = asyncio.run(parent.read_database(str(path), 40))
    assert (part.data, part.stamp) == (b"x" * 60, stamp(path.stat()))
    assert asyncio.run(parent.read_database(str(path), 100)).data == b""
    with pytest.raises(TempFail, match="not a db table"):
        asyncio.run(parent.read_database("/etc/shadow", 0))
    path.unlink()
    with pytest.raises(TempFail, match="No such file"):
        asyncio.run(parent.read_database(str(path), 0))


def test_absent_forward_is_none(tmp_path: Path) -> None:
    assert read(tmp_path, os.geteuid()) is None
    assert read(tmp_path / "gone", os.geteuid()) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_forward_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / ".forward").write_text("evil")
    (tmp_path / ".forward").chmod(mode)
    with pytest.raises(PermFail, match="writable by others"):
        read(tmp_path, os.geteuid())


def test_links_and_directories_and_fifos_are_refused(tmp_path: Path) -> None:
    forward = tmp_path / ".forward"
    forward.symlink_to("/etc/passwd")
    with pytest.raises(PermFail, match="symbolic link"):
        read(tmp_path, os.geteuid())
    forward.unlink()
    forward.mkdir()
    with pytest.raises(PermFail, match="regular"):
        read(tmp_path, os.geteuid())
    forward.rmdir()
    os.mkfifo(forward)
    with pytest.raises(PermFail, match="regular"):
        read(tmp_path, os.geteuid())


def test_of_a_huge_forward_so_much_is_read_that_it_is_too_long(tmp_path: Path) -> None:
    (tmp_path / ".forward").write_bytes(b"x" * 1_000_000)
    content = read(tmp_path, os.geteuid())
    assert content is not None
    assert MAX_FORWARD_SIZE < len(content) < 200_000


@pytest.mark.parametrize("present", [True, False])
def test_a_sticky_home_is_a_temporary_failure(tmp_path: Path, present: bool) -> None:
    if present:
        (tmp_path / ".forward").write_text("bob")
    tmp_path.chmod(0o1755)
    with pytest.raises(TempFail, match="sticky"):
        read(tmp_path, os.geteuid())


@needs_root
def test_a_sticky_home_is_a_temporary_failure_also_for_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o1755)
    with pytest.raises(TempFail, match="sticky"):
        read(tmp_path, os.geteuid(), as_root=True)


@needs_root
def test_forward_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".forward").write_text("root's")
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(PermFail, match="somebody else"):
        read(tmp_path, 65534)


def test_a_home_that_is_no_directory_is_refused() -> None:
    with pytest.raises(PermFail, match="no directory"):
        read(Path("/dev/null"), 0)


def test_forward_in_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".forward").write_text("evil")
    tmp_path.chmod(0o777)
    with pytest.raises(PermFail, match="writable by others"):
        read(tmp_path, os.geteuid())


@needs_root
def test_forward_is_opened_as_its_owner(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if directory != Path("/") and not directory.stat().st_mode & 1:
            directory.chmod(directory.stat().st_mode | 0o711)
    forward = tmp_path / ".forward"
    forward.write_text("root's own")
    forward.chmod(0o600)
    with pytest.raises(TempFail, match="Permission denied"):
        read(tmp_path, 65534, as_root=True)
    os.chown(forward, 65534, 65534)
    os.chown(tmp_path, 65534, 65534)
    assert read(tmp_path, 65534, as_root=True) == b"root's own"


def test_the_secret_of_logins_is_made_once_and_kept(tmp_path: Path) -> None:
    first = asyncio.run(make(state=str(tmp_path)).login_secret())
    assert len(first) == 32
    assert asyncio.run(make(state=str(tmp_path)).login_secret()) == first
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_damaged_secret_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "login.secret").write_bytes(b"short")
    made = asyncio.run(make(state=str(tmp_path)).login_secret())
    assert (tmp_path / "login.secret").read_bytes() == made


def test_a_secret_that_cannot_be_kept_is_a_temporary_failure(tmp_path: Path) -> None:
    with pytest.raises(TempFail, match="No such file"):
        asyncio.run(make(state=str(tmp_path / "gone")).login_secret())


def test_a_secret_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TempFail, match="No space left"):
        asyncio.run(make(state=str(tmp_path)).login_secret())
    assert list(tmp_path.iterdir()) == []


def test_only_pam_services_of_the_configuration_are_asked() -> None:
    with pytest.raises(TempFail, match="not in this configuration"):
        asyncio.run(make().check_password("alice", "x", "sudo", "192.0.2.1"))


def test_files_that_cannot_be_read_in_time_use_up_no_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "DEADLINE", 0.2)
    fifo = folder / "fifo"
    os.mkfifo(fifo)  # as a file server that is gone: opening it does not return
    other = folder / "other"
    other.write_text("alice\n")
    tables = {n: Table(name=n, kind=TableKind.FILE, config=str(path)) for n, path in (("t", fifo), ("o", other))}

    async def body() -> None:
        parent = make(config=Config(hostname="x", tables=tables))
        asked = [parent.read_table("t") for _ in range(40)]
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(answer) for answer in answers} == {TempFail}
            assert (await parent.read_table("o")).entries == (("alice", ""),)
            assert await asyncio.to_thread(lambda: True)

    try:
        asyncio.run(body())
    finally:
        os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
