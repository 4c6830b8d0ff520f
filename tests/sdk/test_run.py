"""A table program as a process: descriptors, order of answers, ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sdk.child import HANDSHAKE, Child

START = "import asyncio, logging\nfrom pillarbox.sdk.table import Service, Table, TableError\n"
ECHO = "table = Table()\ntable.lookup(Service.ALIAS)(lambda key: key)\ntable.run()\n"


@pytest.fixture
def argv(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """The program that the test is marked with."""
    program = tmp_path / "program.py"
    program.write_text(START + request.param)
    return [sys.executable, str(program)]


def program(text: str) -> pytest.MarkDecorator:
    """The test runs this program."""
    return pytest.mark.parametrize("argv", [text], indirect=True)


@program(ECHO)
def test_it_answers_until_the_server_goes_and_ends_well(argv: list[str]) -> None:
    with Child(argv) as child:
        assert child.registered == ["alias"]
        assert child.lookup("alias", "a|b c:d") == "found|a|b c:d"
        assert child.lookup("alias", "caf\udce9") == "found|caf\udce9"  # bytes that are no UTF-8
        assert child.lookup("alias", "") == "error|the value is empty"
        assert child.update() == "ok"
        assert child.end() == 0
        assert child.log() == ""


@program(
    """
table = Table(concurrency=3)
gate = asyncio.Event()
waiting = most = 0

@table.lookup(Service.ALIAS)
async def alias(key):
    global waiting, most
    if key == "open":
        gate.set()
    elif key == "most":
        return str(most)
    else:
        waiting += 1
        most = max(most, waiting)
        await gate.wait()
        waiting -= 1
    return key

table.run()
"""
)
def test_slow_answers_do_not_hold_up_others_and_their_number_is_bounded(argv: list[str]) -> None:
    with Child(argv) as child:
        child.send(*(f"table|0.1|1|t|lookup|alias|slow{n}|{n}" for n in range(2)))
        assert child.lookup("alias", "most") == "found|2"  # the last question is answered first
        child.send("table|0.1|1|t|lookup|alias|open|open")
        assert sorted(child.line() for _ in range(3)) == [
            "lookup-result|open|found|open",
            "lookup-result|slow0|found|0",
            "lookup-result|slow1|found|1",
        ]
        # The gate is open now, so that a hundred at a time get through; three of them at once.
        child.send(*(f"table|0.1|1|t|lookup|alias|many{n}|{n}" for n in range(100)))
        assert len({child.line() for _ in range(100)}) == 100
        assert int(child.lookup("alias", "most").removeprefix("found|")) <= 3
        assert child.end() == 0


@program(
    """
table = Table()

@table.lookup(Service.ALIAS)
def alias(key):
    print("printed", key)
    logging.info("logged %s", key)
    if key == "bug":
        raise ValueError("a secret")
    return input() if key == "input" else "alice"

table.run()
"""
)
def test_what_a_program_prints_reads_or_breaks_does_not_reach_the_server(argv: list[str]) -> None:
    with Child(argv) as child:
        assert child.lookup("alias", "root") == "found|alice"
        assert child.lookup("alias", "bug") == "error|ValueError in the table program"
        assert child.lookup("alias", "input") == "error|EOFError in the table program"
        assert child.lookup("alias", "root") == "found|alice"
        assert child.end() == 0
        log = child.log()
        assert "printed root" in log and "logged root" in log and "ValueError: a secret" in log


@program(ECHO)
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["nonsense"], "not a line of the handshake: 'nonsense'"),
        (["config|protocol|0.2"], "protocol '0.2' is not spoken here, only 0.1"),
        ([*HANDSHAKE, "table|0.1|1|t|burn|1"], "unknown operation 'burn'"),
        ([*HANDSHAKE, "table|0.2|1|t|update|1"], "protocol '0.2' is not spoken here, only 0.1"),
    ],
)
def test_what_is_not_the_protocol_ends_the_program_with_the_reason(
    argv: list[str], lines: list[str], said: str
) -> None:
    with Child(argv, handshake=[]) as child:
        child.send(*lines)
        assert child.process.wait(20) == 1
        assert child.log() == f"{said}\n"


@program("table = Table()\n@table.start\ndef start():\n    raise TableError('no file')\ntable.run()\n")
def test_a_start_that_fails_ends_the_program_with_the_reason(argv: list[str]) -> None:
    with Child(argv, handshake=[]) as child:
        child.send(*HANDSHAKE)
        assert child.process.wait(20) == 1
        assert child.log() == "no file\n"


@program("table = Table()\n@table.start\ndef start():\n    raise ConnectionRefusedError('no database')\ntable.run()\n")
def test_what_start_cannot_reach_is_not_taken_for_the_server(argv: list[str]) -> None:
    with Child(argv, handshake=[]) as child:
        child.send(*HANDSHAKE)
        assert child.process.wait(20) == 1
        assert "ConnectionRefusedError: no database" in child.log()


@program(ECHO)
def test_a_line_without_end_is_an_error_and_costs_no_memory(argv: list[str]) -> None:
    with Child(argv) as child:
        child.send("table|0.1|1|t|lookup|alias|77|" + "x" * 20_000_000)
        assert child.line() == "lookup-result|77|error|the request is longer than 1048576 bytes"
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 60_000, "KB"
        assert child.lookup("alias", "x") == "found|x"


@program(ECHO)
def test_a_recorded_conversation_can_be_played_from_a_file(argv: list[str], tmp_path: Path) -> None:
    recorded = tmp_path / "recorded"
    recorded.write_text("".join(f"{line}\n" for line in [*HANDSHAKE, "table|0.1|1|t|lookup|alias|1|root"]))
    with recorded.open() as file:
        done = subprocess.run(argv, stdin=file, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "register|alias\nregister|ready\nlookup-result|1|found|root\n"


@program(ECHO)
def test_it_ends_quietly_when_the_server_is_gone_in_the_middle(argv: list[str]) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        os.close(reading)
        assert process.stdin and process.stderr
        process.stdin.write("".join(f"{line}\n" for line in HANDSHAKE).encode())
        process.stdin.flush()
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


@program(ECHO)
def test_it_ends_by_a_signal_while_it_waits(argv: list[str]) -> None:
    with Child(argv) as child:
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(20) == -signal.SIGTERM


def test_a_program_loads_nothing_of_the_server() -> None:
    code = "import sys, pillarbox.sdk.table; print(*(m for m in sys.modules if m.startswith('pillarbox')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert all(m == "pillarbox" or m.startswith("pillarbox.sdk") for m in done.stdout.split())
