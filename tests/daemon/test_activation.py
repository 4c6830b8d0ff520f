"""Sockets that were bound for us: which we take, for whom, and what the service manager hears."""

import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pillarbox.daemon import activation, launch
from pillarbox.errors import PillarboxError
from pillarbox.log import Log


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """Three sockets in a row of descriptors, as if they were the first ones: TCP, UDP, TCP that does not listen."""
    kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM]
    made = [socket.socket(socket.AF_INET, kind) for kind in kinds]
    for one in made:
        one.bind(("127.0.0.1", 0))
    made[0].listen()
    base = 700
    for n, one in enumerate(made):
        os.dup2(one.fileno(), base + n)
    monkeypatch.setattr(activation, "_FIRST", base)
    yield made
    for n, one in enumerate(made):
        one.close()
        try:
            os.close(base + n)
        except OSError:
            continue


def environment(**changes: str) -> dict[str, str]:
    return {"LISTEN_PID": "77", "LISTEN_FDS": "4", "LISTEN_FDNAMES": "a", "HOME": "/", **changes}


def test_listening_sockets_are_taken_by_their_addresses_and_nothing_else_is(given: list[socket.socket]) -> None:
    text, env = io.StringIO(), environment()
    found = activation.inherited(env, 77, Log(text))
    assert list(found) == [f"127.0.0.1 {given[0].getsockname()[1]}"]
    (taken,) = found.values()
    assert not taken.get_inheritable()
    assert not taken.getblocking()
    taken.close()
    assert env == {"HOME": "/"}
    said = text.getvalue().splitlines()
    assert [line.partition(" of ")[0] for line in said] == [f"warn: descriptor {n}" for n in (701, 702, 703)]
    assert "is no socket" in said[2]


@pytest.mark.parametrize("changes", [{"LISTEN_PID": "78"}, {"LISTEN_PID": ""}, {"LISTEN_FDS": "x"}])
def test_what_is_meant_for_somebody_else_is_left_alone(given: list[socket.socket], changes: dict[str, str]) -> None:
    assert activation.inherited(environment(**changes), 77, Log(io.StringIO())) == {}


def test_dispatchers_share_a_socket_that_was_bound_for_us(given: list[socket.socket]) -> None:
    address = f"127.0.0.1 {given[0].getsockname()[1]}"
    with pytest.raises(PillarboxError, match="already in use"):
        launch.bind_all([f"127.0.0.1 {given[0].getsockname()[1]}"], 1)
    bound = launch.bind_all([address], 3, given={address: given[0]})
    assert {one.getsockname() for one in bound[address]} == {given[0].getsockname()}
    with socket.create_connection(given[0].getsockname()):
        accepted, _ = bound[address][2].accept()
        accepted.close()
    for one in bound[address]:
        one.close()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_hears_that_we_are_ready(tmp_path: Path, abstract: bool) -> None:
    name = f"@pillarbox-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if abstract else name)
        activation.notify({"NOTIFY_SOCKET": name}, "READY=1")
        assert manager.recv(100) == f"READY=1\nMAINPID={os.getpid()}".encode()


def test_without_a_service_manager_nobody_is_told(tmp_path: Path) -> None:
    activation.notify({}, "READY=1")
    activation.notify({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, "READY=1")
