"""What is done before anything is served: directories that may be trusted, addresses that are ours alone."""

import os
import socket
import stat
from pathlib import Path

import pytest

from pillarbox.daemon import interfaces, launch
from pillarbox.daemon.processes.privileges import Account
from pillarbox.errors import PillarboxError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files to another user")
QUEUE = Account("_smtpq", 65103, 65103)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_state_directory_is_made_with_what_belongs_to_it(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    launch.make_state(str(state))
    launch.prepare_state(str(state), None)
    assert mode(state) == 0o711
    assert mode(state / "queue") == 0o700
    assert mode(state / "offline") == 0o1733


def test_state_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(PillarboxError, match="writable by others"):
        launch.make_state(str(tmp_path))


@needs_root
def test_state_directory_that_a_group_may_write_is_refused_for_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    with pytest.raises(PillarboxError, match="mode 0775"):
        launch.make_state(str(tmp_path))


@needs_root
def test_state_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(PillarboxError, match="belongs to uid 65534"):
        launch.make_state(str(tmp_path))


def test_state_directory_that_cannot_be_made_is_said_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PillarboxError, match=f"state directory {tmp_path}/file/state: Not a directory"):
        launch.make_state(str(tmp_path / "file" / "state"))


@needs_root
def test_spool_changes_hands_with_the_wiring_and_with_all_it_holds(tmp_path: Path) -> None:
    """Several processes, one as root, several again: what root made meanwhile must be readable for the queue."""
    launch.prepare_state(str(tmp_path), QUEUE)
    spool = tmp_path / "queue"
    assert spool.stat().st_uid == QUEUE.uid
    launch.prepare_state(str(tmp_path), None)
    (spool / "bodies").mkdir()
    (spool / "bodies" / "made-by-root").touch(0o600)
    launch.prepare_state(str(tmp_path), QUEUE)
    assert {p.stat().st_uid for p in (spool, *spool.rglob("*"))} == {QUEUE.uid}


@needs_root
def test_spool_that_its_role_cannot_reach_is_refused_by_name(tmp_path: Path) -> None:
    state = tmp_path / "closed" / "state"
    launch.make_state(str(state))
    (tmp_path / "closed").chmod(0o700)
    launch.prepare_state(str(state), QUEUE)
    with pytest.raises(PillarboxError, match=r"_smtpq cannot (use .*/closed/state/queue|read)"):
        launch.check_readable(QUEUE, str(state))


def test_address_of_another_server_is_refused_even_if_it_would_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "_PATIENCE", 0.1)
    with interfaces.bind((socket.AF_INET, "127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PillarboxError, match=f"port {port}: Address already in use"):
            launch.bind_all([f"127.0.0.1 {port}"], 2)
    ((_, sockets),) = launch.bind_all([f"127.0.0.1 {port}"], 2).items()
    assert [s.getsockname()[1] for s in sockets] == [port, port]
    for bound in sockets:
        bound.close()
