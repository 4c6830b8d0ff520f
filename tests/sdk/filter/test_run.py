"""A filter as a process: descriptors, order of answers, ends."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.sdk.child import Child

START = "import asyncio, logging\nfrom pillarbox.sdk.filter import Filter, FilterError, reject\n"
HANDSHAKE = [
    "config|smtpd-version|7.8.0", "config|protocol|0.7", "config|smtp-session-timeout|300",
    "config|subsystem|smtp-in", "config|subsystem|smtp-out", "config|admd|mail.example.org", "config|ready",
]  # fmt: skip
OLD_HANDSHAKE = ["config|smtpd-version|6.8.0p2", *HANDSHAKE[2:]]
PASS = """
filter = Filter(remember=False)

@filter.on.data_line
def data_line(session, line):
    return line

filter.run()
"""


@pytest.fixture
def argv(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """The program that the test is marked with."""
    program = tmp_path / "program.py"
    program.write_text(START + request.param)
    return [sys.executable, str(program)]


def program(text: str) -> pytest.MarkDecorator:
    """The test runs this program."""
    return pytest.mark.parametrize("argv", [text], indirect=True)


def asked(phase: str, session: int, param: str = "", version: str = "0.7") -> str:
    return f"filter|{version}|1576146008.006099|smtp-in|{phase}|{session:016x}|{7:016x}|{param}"


def told(event: str, session: int, *fields: str) -> str:
    return "|".join(["report|0.7|1576146008.006099|smtp-in", event, f"{session:016x}", *fields])


def answered(session: int, text: str) -> str:
    return f"filter-result|{session:016x}|{7:016x}|{text}"


def passed(session: int, line: str) -> str:
    return f"filter-dataline|{session:016x}|{7:016x}|{line}"


@program("""
filter = Filter()

@filter.on.mail_from
def mail_from(session, address):
    print("printed", address)
    logging.info("logged %s", session.helo)
    if address == "bug":
        raise ValueError("a secret")
    return reject(f"550 {input()}") if address == "input" else None

filter.run()
""")
def test_it_answers_until_the_server_goes_and_ends_well(argv: list[str]) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        assert (
            child.registered[0] == "report|smtp-in|link-connect" and child.registered[-1] == "filter|smtp-in|mail-from"
        )
        child.send(
            told("link-identify", 1, "EHLO", "caf\udce9"), asked("mail-from", 1, "a"), asked("mail-from", 2, "bug")
        )
        child.send(asked("mail-from", 3, "input"), asked("mail-from", 1, ""))
        later = "reject|451 4.3.0 Temporary failure in a filter, try again later"
        assert [child.line() for _ in range(4)] == [
            answered(1, "proceed"), answered(2, later), answered(3, later), answered(1, "proceed"),
        ]  # fmt: skip
        assert child.end() == 0
        log = child.log()
        assert "printed a" in log and "logged caf" in log and "ValueError: a secret" in log and "EOFError" in log


@program("""
filter = Filter(remember=False)
filter.on.mail_from(lambda session, address: reject(f"550 {filter.config['smtpd-version']}"))
filter.run()
""")
def test_the_server_s_version_decides_how_answers_are_written(argv: list[str]) -> None:
    with Child(argv, handshake=OLD_HANDSHAKE) as child:
        child.send(asked("mail-from", 1, "a", "0.6"), asked("mail-from", 1, "a", "0.4"))
        assert child.line() == answered(1, "reject|550 6.8.0p2")
        assert child.line() == f"filter-result|{7:016x}|{1:016x}|reject|550 6.8.0p2"


@program("""
filter = Filter()
gate = asyncio.Event()

@filter.on.rcpt_to
async def rcpt_to(session, address):
    if address == "open":
        gate.set()
    elif address == "wait":
        await gate.wait()
    return reject(f"550 {session.sender} {address}")

@filter.on.data_line
async def data_line(session, line):
    if line == "wait":
        await gate.wait()
    return line

filter.run()
""")
def test_a_slow_answer_holds_up_its_own_session_and_no_other(argv: list[str]) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        child.send(asked("rcpt-to", 1, "wait"), told("tx-mail", 1, "0badcafe", "ok", "a"), asked("rcpt-to", 1, "x"))
        child.send(*(asked("data-line", 2, line) for line in ("first", "wait", "last", ".")))
        child.send(told("tx-mail", 3, "0badcafe", "ok", "b"), asked("rcpt-to", 3, "y"))
        assert child.line() == answered(3, "reject|550 b y")
        child.send(asked("rcpt-to", 4, "open"))
        lines = [child.line() for _ in range(7)]
        assert [line for line in lines if "filter-result" in line] == [
            answered(4, "reject|550  open"), answered(1, "reject|550  wait"), answered(1, "reject|550 a x"),
        ]  # fmt: skip
        assert [line for line in lines if "dataline" in line] == [passed(2, x) for x in ("first", "wait", "last", ".")]
        child.send(asked("rcpt-to", 5, "z"))
        assert child.end() == 0  # what is under way is still answered
        assert child.line() == answered(5, "reject|550  z")


@program(PASS)
def test_a_message_passes_however_it_is_cut(argv: list[str]) -> None:
    lines = [asked("data-line", 1, text) for text in ("a|b", "", "..x", "caf\udce9", "é", ".")]
    with Child(argv, handshake=HANDSHAKE) as child:
        data = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
        for size in (1, 7, 1000):
            for start in range(0, len(data), size):
                os.write(child.process.stdin.fileno(), data[start : start + size])
            for text in ("a|b", "", "..x", "caf\udce9", "é", "."):
                assert child.line() == passed(1, text)
        assert child.end() == 0


@program(PASS)
def test_it_reads_on_while_its_output_is_not_read_up_to_a_bound(argv: list[str]) -> None:
    line = (asked("data-line", 1, "x" * 900) + "\n").encode() * 100
    with Child(argv, handshake=HANDSHAKE) as child:
        writing = child.process.stdin.fileno()
        os.set_blocking(writing, False)
        sent = 0
        with selectors.DefaultSelector() as selector:
            selector.register(writing, selectors.EVENT_WRITE)
            while sent < 200_000_000 and selector.select(1):
                sent += os.write(writing, line[sent % len(line) :])
        assert 10_000_000 < sent < 100_000_000
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 150_000, "KB"
        # As soon as the server reads, all of it comes out.
        os.set_blocking(writing, True)
        rest = threading.Thread(target=lambda: os.write(writing, line[sent % len(line) :]))
        rest.start()
        for _ in range(-(-sent // len(line)) * 100):
            assert child.line() == passed(1, "x" * 900)
        rest.join()
        assert child.end() == 0


@program(PASS)
def test_a_line_that_is_too_long_costs_no_memory_and_its_message_waits(argv: list[str]) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        child.send(asked("data-line", 1, "x" * 20_000_000), asked("data-line", 1, "."), asked("commit", 1))
        assert child.line().startswith(passed(1, "xxx"))
        assert child.line() == passed(1, ".")
        assert child.line().startswith(answered(1, "reject|451 4.3.0 "))
        status = Path(f"/proc/{child.process.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) < 60_000, "KB"
        assert child.end() == 0


@program(PASS)
@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "filter|0.7", "filter|1.0|1|smtp-in|mail-from|1|2|x", "filter|0.7|1|smtp-in|data-line|1|2",
     "report|0.7|x|smtp-in|tx-mail|1|2", "report|0.7|1|smtp-in|tx-mail|1|2", "report|0.7|1|smtp-in|newer|1|2",
     "config|late|1"],
)  # fmt: skip
def test_a_line_that_is_not_understood_is_logged_and_nothing_else_happens(argv: list[str], line: str) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        child.send(line, asked("data-line", 1, "x"), asked("wiz", 1))
        assert child.line() == passed(1, "x")
        assert child.line() == answered(1, "proceed")  # what it never registered must not hang the session either
        assert child.end() == 0
        assert child.log() == "" if "newer" in line else f"not understood: {line!r:.80}" in child.log()


@program(PASS)
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["nonsense"], "not a line of the handshake: 'nonsense'"),
        (["config|protocol|1.0"], "protocol '1.0' is not spoken here, only 0.4 to 0.7"),
    ],
)
def test_a_handshake_that_is_none_ends_the_program_with_the_reason(
    argv: list[str], lines: list[str], said: str
) -> None:
    with Child(argv, handshake=[]) as child:
        child.send(*lines)
        assert child.process.wait(20) == 1
        assert child.log() == f"{said}\n"


@pytest.mark.parametrize("start", ["def", "async def"])
@pytest.mark.parametrize("argv", ["", "import asyncio"], indirect=True)
def test_a_start_that_fails_ends_the_program_with_the_reason(argv: list[str], start: str) -> None:
    text = f"filter = Filter()\n@filter.start\n{start} start():\n    raise FilterError('no file')\nfilter.run()\n"
    Path(argv[1]).write_text(START + text)
    with Child(argv, handshake=[]) as child:
        child.send(*HANDSHAKE)
        assert child.process.wait(20) == 1
        assert child.log() == "no file\n"


@pytest.mark.parametrize("start", ["def", "async def"])
@pytest.mark.parametrize("error", ["ConnectionRefusedError('no database')", "FileNotFoundError('no database')"])
@pytest.mark.parametrize("argv", [""], indirect=True)
def test_what_start_needs_and_cannot_reach_is_not_taken_for_the_server(argv: list[str], start: str, error: str) -> None:
    text = f"filter = Filter()\n@filter.start\n{start} start():\n    raise {error}\nfilter.run()\n"
    Path(argv[1]).write_text(START + text)
    with Child(argv, handshake=[]) as child:
        child.send(*HANDSHAKE)
        assert child.process.wait(20) == 1
        log = child.log()
        assert "the program failed" in log and "no database" in log and "server" not in log.partition("\n")[0]


@program("""
print("early")
filter = Filter(remember=False)
filter.on.data(lambda session: print("asked"))
filter.run()
""")
def test_what_is_printed_is_logged_at_once_and_never_said_to_the_server(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Child(argv, handshake=HANDSHAKE) as child:
        assert child.registered == ["report|smtp-in|link-disconnect", "filter|smtp-in|data"]
        child.send(asked("data", 1))
        assert child.line() == answered(1, "proceed")
        assert child.log() == "early\nasked\n"


@program(PASS)
def test_a_recorded_conversation_can_be_played_from_a_file_into_a_file(argv: list[str], tmp_path: Path) -> None:
    recorded, written = tmp_path / "recorded", tmp_path / "written"
    lines = [*HANDSHAKE, *(asked("data-line", 1, str(n)) for n in range(20_000)), asked("data-line", 1, ".")]
    recorded.write_text("".join(f"{line}\n" for line in lines))
    with recorded.open() as reading, written.open("w") as writing:
        subprocess.run(argv, stdin=reading, stdout=writing, timeout=20, check=True)
    assert written.read_text().split("\n")[4:-2] == [passed(1, str(n)) for n in range(20_000)]


@program(PASS)
def test_both_descriptors_can_be_one_socket(argv: list[str]) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs) as process:
        theirs.close()
        with ours, ours.makefile("rb") as reading:
            ours.sendall("".join(f"{line}\n" for line in [*HANDSHAKE, asked("data-line", 1, "x")]).encode())
            lines = [reading.readline().decode().rstrip("\n") for _ in range(5)]
            assert lines[-2:] == ["register|ready", passed(1, "x")]
        assert process.wait(20) == 0


@program(PASS)
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


@program(PASS)
def test_it_ends_by_a_signal_while_it_waits(argv: list[str]) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(20) == -signal.SIGTERM


def test_a_program_loads_nothing_of_the_server() -> None:
    code = "import sys, pillarbox.sdk.filter; print(*(m for m in sys.modules if m.startswith('pillarbox')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert all(m == "pillarbox" or m.startswith("pillarbox.sdk") for m in done.stdout.split())


@program("""
import threading
filter = Filter(threads=1, deadline=0.1)
filter.on.mail_from(lambda session, address: threading.Event().wait())
filter.run()
""")
def test_a_thread_that_hangs_does_not_keep_the_program(argv: list[str]) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        child.send(asked("mail-from", 1, "a"))
        assert child.line().startswith(answered(1, "reject|451 "))
        assert child.end() == 0
        assert "thread handler_0 does not end" in child.log()


@program("""
import threading
filter = Filter(deadline=0.1)

@filter.on.mail_from
async def mail_from(session, address):
    await asyncio.to_thread(threading.Event().wait)

filter.run()
""")
def test_nor_does_one_of_the_author_s(argv: list[str]) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        child.send(asked("mail-from", 1, "a"))
        assert child.line().startswith(answered(1, "reject|451 "))
        assert child.end() == 0
        assert "does not end" in child.log()


@program("""
filter = Filter(remember=False)

@filter.on.mail_from
async def mail_from(session, address):
    session.report("asked")
    await asyncio.Event().wait()

filter.run()
""")
def test_a_report_does_not_wait_for_the_answer(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILLARBOX_ACCEPTS", "report")
    with Child(argv, handshake=HANDSHAKE) as child:
        child.send(asked("mail-from", 0xA, "a"))
        start, _, text = child.line().partition("|smtp-in|")
        assert start.startswith("report|") and text == "000000000000000a|asked"


@program("""
filter = Filter(remember=False)

def made(session):
    for number in range(100_000):
        session.state.made = number
        yield f"{number:0100}"

@filter.on.data_end
async def data_end(session):
    return made(session)

@filter.on.mail_from
def mail_from(session, address):
    return reject(f"550 {filter.first.state.made}")

@filter.on.data_line
def data_line(session, line):
    filter.first = session
    return []

filter.run()
""")
def test_what_is_made_as_it_is_asked_for_is_asked_for_as_the_server_reads(argv: list[str]) -> None:
    with Child(argv, handshake=HANDSHAKE) as child:
        child.send(asked("data-line", 1, "x"), asked("data-line", 1, "."))
        assert child.line() == passed(1, f"{0:0100}")
        child.send(asked("mail-from", 2, "a"))
        lines = [child.line() for _ in range(100_001)]
        assert [line for line in lines if "dataline" in line] == [
            *(passed(1, f"{number:0100}") for number in range(1, 100_000)), passed(1, "."),
        ]  # fmt: skip
        (answer,) = (line for line in lines if "result" in line)
        assert int(answer.rpartition(" ")[2]) < 50_000
