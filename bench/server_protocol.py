"""What the protocol core costs: `python bench/server_protocol.py`.

Microseconds a command that comes alone or with two others, a body of 4 KB, and a command, a chunk and a message of
which a client sends a whole buffer at once: the cost of each must not depend on how much follows it.
"""

import functools
import time
from collections.abc import Callable

from pillarbox.smtp.data import Terms
from pillarbox.smtp.server_protocol import Line, ServerProtocol

RUNS = 7  # the quickest counts
BUFFERS = (4, 64, 256, 1024)  # KB
_TERMS = Terms(10**9)
_MAIL = b"MAIL FROM:<alice@example.org> SIZE=4000\r\n"
_BODY = (b"x" * 70 + b"\r\n") * 57 + b".\r\n"


def play(data: bytes, times: int = 1) -> None:
    """All that comes of these bytes, so many times; DATA opens a message, BDAT a chunk of two bytes."""
    core = ServerProtocol()
    for _ in range(times):
        core.receive(data)
        while (event := core.next_event()) is not None:
            if type(event) is Line:
                if event.text == b"DATA":
                    core.begin_body(_TERMS)
                elif event.text == b"BDAT 2":
                    core.skip_chunk(2)


def bodies(times: int) -> None:
    """Messages of 4 KB."""
    core = ServerProtocol()
    for _ in range(times):
        core.begin_body(_TERMS)
        core.receive(_BODY)
        while core.next_event() is not None:
            pass


def microseconds(work: Callable[[], None], count: int) -> float:
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken) / count * 1e6


def main() -> None:
    print(f"a command alone: {microseconds(lambda: play(_MAIL, 10_000), 10_000):.2f} us")
    print(f"each of three: {microseconds(lambda: play(_MAIL * 3, 5_000), 15_000):.2f} us")
    print(f"a body of 4 KB: {microseconds(lambda: bodies(3_000), 3_000):.1f} us")
    for name, unit in (("NOOP", b"NOOP\r\n"), ("BDAT", b"BDAT 2\r\nxx"), ("DATA", b"DATA\r\nab\r\n.\r\n")):
        costs = []
        for kilobytes in BUFFERS:
            count = kilobytes * 1024 // len(unit)
            data = unit * count
            costs.append(f"{microseconds(functools.partial(play, data), count):.2f} us in {kilobytes} KB")
        print(f"{name} after {name}: " + ", ".join(costs))


if __name__ == "__main__":
    main()
