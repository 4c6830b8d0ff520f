"""What a filter on the SDK costs: CPU of a pass-through `data-line` filter for each message of 4 KB, 52 lines.

python bench/sdkfilter.py [MESSAGES] [MESSAGES A READ]

The driver plays the server, over a socket, and waits for the answers to what it wrote before it writes more.
"""

import socket
import subprocess
import sys
import time
from pathlib import Path

_TIME = "1576146008.006099"
_LINE = "x" * 76
PROGRAM = """
from pillarbox.sdk.filter import Filter
filter = Filter(remember={remember})
filter.on.data_line(lambda session, line: line)
filter.run()
"""
HANDSHAKE = b"config|smtpd-version|7.8.0\nconfig|protocol|0.7\nconfig|ready\n"


def session(id: str, *, remember: bool) -> bytes:
    """What the server says of a session with one message."""

    def report(event: str, *fields: str) -> str:
        return "|".join(["report|0.7", _TIME, "smtp-in", event, id, *fields])

    def ask(phase: str, param: str) -> str:
        return "|".join(["filter|0.7", _TIME, "smtp-in", phase, id, "1ef1c203cc576e5d", param])

    before = [
        report("link-connect", "client.example.net", "pass", "192.0.2.1:33174", "192.0.2.25:25"),
        report("link-identify", "EHLO", "client.example.net"),
        report("tx-begin", "0badcafe"),
        report("tx-mail", "0badcafe", "ok", "sender@example.net"),
        report("tx-rcpt", "0badcafe", "ok", "alice@example.org"),
    ]
    message = [ask("data-line", line) for line in [*[_LINE] * 52, "."]]
    after = [report("tx-reset", "0badcafe")] if remember else []
    lines = [*(before if remember else []), *message, ask("commit", ""), *after, report("link-disconnect")]
    return "".join(f"{line}\n" for line in lines).encode()


def cpu(pid: int) -> float:
    """Seconds of CPU that a process used: what `stat` counts in ticks is too coarse for bursts of microseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def measure(messages: int, batch: int, *, remember: bool) -> tuple[float, float]:
    """Milliseconds a message: CPU of the filter, and elapsed."""
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-c", PROGRAM.format(remember=remember)]
    with subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno()) as process, ours:
        theirs.close()
        ours.sendall(HANDSHAKE)
        got = b""
        while b"register|ready\n" not in got:
            got += ours.recv(1 << 16)
        started, used = time.perf_counter(), cpu(process.pid)
        for first in range(0, messages, batch):
            ours.sendall(b"".join(session(f"{first + n:016x}", remember=remember) for n in range(batch)))
            got = b""
            while got.count(b"\nfilter-result|") < batch:
                got += ours.recv(1 << 20)
        elapsed, used = time.perf_counter() - started, cpu(process.pid) - used
    return used / messages * 1000, elapsed / messages * 1000


def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    batches = [int(sys.argv[2])] if len(sys.argv) > 2 else [1, 10]
    for batch in batches:
        for remember in (True, False):
            used, elapsed = measure(messages, batch, remember=remember)
            print(f"{batch:>3} a read, remember={remember!s:<5}: {used:.3f} ms of CPU ({elapsed:.3f} elapsed)")


if __name__ == "__main__":
    main()
