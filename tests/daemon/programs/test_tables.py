"""Programs of tables between parent and lookup: which are started, and that no socket gets lost or to the wrong one."""

import asyncio
import io
import os
import socket
from pathlib import Path

import pytest

from pillarbox.conf.model import Config, Table, TableKind
from pillarbox.daemon.check import find_table_program
from pillarbox.daemon.programs import handed
from pillarbox.daemon.programs.handed import HandedProgram, HandedPrograms
from pillarbox.daemon.programs.programs import Programs
from pillarbox.daemon.programs.tables import TablePrograms
from pillarbox.errors import TempFail
from pillarbox.log import Log


def parent(*tables: Table, generation: int = 1) -> TablePrograms:
    config = Config(hostname="h", generation=generation, tables={t.name: t for t in tables})
    return TablePrograms(
        configs={config.generation: config}.get, programs=Programs(account=None, log=Log(io.StringIO()))
    )


def executable(path: Path, text: str = 'echo "$0 $#" "$@"') -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def program(
    lookup: HandedPrograms, parent: "TablePrograms | Silent", generation: int = 1, table: str = "t"
) -> HandedProgram:
    return lookup.program(
        lambda token: parent.start_table(generation, table, token), lambda grace: parent.stop_table(generation, table)
    )


async def said(programs: TablePrograms, generation: int, table: str) -> str:
    """What a program writes until it ends."""
    lookup = HandedPrograms()
    programs.hand = lambda token, connection: lookup.add(token, connection.dup())
    with await program(lookup, programs, generation, table).start() as connection:
        connection.setblocking(False)
        text = b""
        while part := await asyncio.get_running_loop().sock_recv(connection, 4096):
            text += part
    await programs.stop_all()
    return text.decode()


def test_the_program_of_a_backend_gets_the_configuration_as_its_argument(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(folder / "table-mine")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    programs = parent(
        Table(name="t", kind=TableKind.PROC, backend="mine", config="/etc/mine.conf"),
        Table(name="bare", kind=TableKind.PROC, backend="mine"),
    )
    assert asyncio.run(said(programs, 1, "t")) == f"{folder}/table-mine 1 /etc/mine.conf\n"
    assert asyncio.run(said(programs, 1, "bare")) == f"{folder}/table-mine 0\n"


def test_proc_names_the_program_itself(folder: Path) -> None:
    path = executable(folder / "any-name")
    programs = parent(Table(name="t", kind=TableKind.PROC, backend="proc", config=str(path)))
    assert asyncio.run(said(programs, 1, "t")) == f"{path} 0\n"


def test_a_program_that_is_not_installed_is_named() -> None:
    programs = parent(Table(name="t", kind=TableKind.PROC, backend="no-such-backend"))
    with pytest.raises(TempFail, match="table-no-such-backend is not installed"):
        asyncio.run(programs.start_table(1, "t", 7))


@pytest.mark.parametrize(("generation", "table"), [(1, "file"), (1, "nowhere"), (2, "t")])
def test_lookup_can_start_nothing_but_tables_of_a_configuration(generation: int, table: str) -> None:
    programs = parent(
        Table(name="t", kind=TableKind.PROC, backend="proc", config="/bin/true"),
        Table(name="file", kind=TableKind.FILE, config="/bin/true"),
    )
    with pytest.raises(TempFail, match="no such table"):
        asyncio.run(programs.start_table(generation, table, 7))


def test_generations_come_and_go() -> None:
    async def body() -> None:
        table = Table(name="t", kind=TableKind.PROC, backend="proc", config="/bin/cat")
        configs = {2: Config(hostname="h", generation=2, tables={"t": table})}
        processes = Programs(account=None, log=Log(io.StringIO()))
        programs = TablePrograms(configs=configs.get, programs=processes)
        await programs.start_table(2, "t", 7)
        del configs[2]
        with pytest.raises(TempFail):
            await programs.start_table(2, "t", 8)
        await programs.stop_generation(20)
        assert list(processes._running) == ["2 t"]
        await programs.stop_generation(2)
        assert not processes._running

    asyncio.run(body())


def test_programs_are_looked_for_with_the_packages_before_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("packages", "path"):
        (folder / name).mkdir()
        executable(folder / name / "table-two")
    executable(folder / "path/table-one")
    monkeypatch.setenv("PATH", str(folder / "path"))
    assert find_table_program("two", [str(folder / "packages")]) == f"{folder}/packages/table-two"
    assert find_table_program("one", [str(folder / "packages")]) == f"{folder}/path/table-one"
    assert find_table_program("three", [str(folder / "packages")]) == ""
    assert find_table_program("../path/table-one", [str(folder / "packages")]) == ""


class Silent:
    """A parent that says it has started something, and hands nothing over."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.tokens: list[int] = []

    async def start_table(self, generation: int, table: str, token: int) -> None:
        self.tokens.append(token)
        if self.failure is not None:
            raise self.failure

    async def stop_table(self, generation: int, table: str) -> None:
        raise AssertionError("nothing was started")


def closed(connection: socket.socket) -> bool:
    return connection.fileno() < 0


def test_a_socket_that_does_not_arrive_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed, "ARRIVAL", 0.05)

    async def body() -> None:
        quiet = Silent()
        lookup = HandedPrograms()
        with pytest.raises(TempFail, match="did not arrive"):
            await program(lookup, quiet).start()
        ours, theirs = socket.socketpair()
        with theirs:
            lookup.add(quiet.tokens[0], ours)  # too late
            assert closed(ours)

    asyncio.run(body())


def test_a_socket_that_nobody_asked_for_is_closed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        HandedPrograms().add(7, ours)
        assert closed(ours)


def test_a_refusal_of_the_parent_is_told() -> None:
    refusing = Silent(TempFail("not executable"))
    with pytest.raises(TempFail, match="not executable"):
        asyncio.run(program(HandedPrograms(), refusing).start())


def test_a_socket_that_arrives_for_who_gave_up_is_closed() -> None:
    async def body() -> None:
        quiet = Silent()
        lookup = HandedPrograms()
        starting = asyncio.ensure_future(program(lookup, quiet).start())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ours, theirs = socket.socketpair()
        with theirs:
            lookup.add(quiet.tokens[0], ours)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert closed(ours)

    asyncio.run(body())
