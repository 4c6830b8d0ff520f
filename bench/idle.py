"""`python -m bench.idle [--connections 10000] [--limit 400]`: idle connections on one dispatcher, and what they cost.

Exit status 1 where all processes together have more than `--limit` MB (PSS), or a connection is not served.
"""

import argparse
import resource
import selectors
import socket
import sys
import tempfile
import time
from pathlib import Path

from bench.servers import PORT, Pillarbox, settle
from tests import sandbox

_SPARE = 300  # descriptors for everything else
_HELLO = b"EHLO client.bench.test\r\n"
_DEADLINE = 120.0  # seconds for all of them
_AT_ONCE = 100  # connections under way: less than a listen backlog
_A_SOURCE = 2000  # connections from one address


class TooFew(Exception):
    """This machine does not allow so many descriptors; the text says how many."""


class Idle:
    """Connections that said EHLO and do nothing, from many addresses of 127/8. `at_once`: how many are under way."""

    def __init__(self, port: int, *, at_once: int = _AT_ONCE) -> None:
        self._port, self._at_once = port, at_once
        self._selector = selectors.DefaultSelector()
        self.idle: list[socket.socket] = []
        self._received: dict[socket.socket, bytes] = {}

    def open(self, count: int) -> None:
        """Connect so many. Raises TimeoutError or ConnectionError."""
        end = time.monotonic() + _DEADLINE
        begun = 0
        while len(self.idle) < count:
            while begun < count and len(self._received) < self._at_once:
                self._begin(begun)
                begun += 1
            for key, _ in self._selector.select(1):
                assert isinstance(key.fileobj, socket.socket)
                self._read(key.fileobj)
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self.idle)} of {count} connections after {_DEADLINE:.0f} s")

    def _begin(self, number: int) -> None:
        connection = socket.socket()
        connection.bind((f"127.3.{number // _A_SOURCE}.{1 + number % 250}", 0))
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", self._port))
        self._received[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        data = connection.recv(4096)
        if not data:
            raise ConnectionError(f"closed after {self._received[connection]!r}")
        before = self._received[connection]
        self._received[connection] = data = before + data
        if before == b"" and data.startswith(b"220 ") and data.endswith(b"\n"):
            connection.sendall(_HELLO)
        elif b"\n250 " in data and data.endswith(b"\n"):
            self._selector.unregister(connection)
            del self._received[connection]
            self.idle.append(connection)
        elif not data.startswith(b"220 "):
            raise ConnectionError(f"turned away: {data!r}")

    def answers(self, number: int) -> bool:
        """Whether one of them is still served."""
        connection = self.idle[number]
        connection.settimeout(20)
        connection.sendall(b"NOOP\r\n")
        return connection.recv(100).startswith(b"250 ")

    def close(self) -> None:
        """Hang up."""
        for connection in [*self.idle, *self._received]:
            connection.close()
        self._selector.close()


def raise_descriptors(count: int) -> None:
    """Room for so many sockets here and in the server, which takes a quarter of its own for outgoing ones.

    Raises TooFew.
    """
    wanted = (count + _SPARE) * 4 // 3
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (OSError, ValueError) as error:
            raise TooFew(f"RLIMIT_NOFILE is {hard}, and {wanted} are needed") from error
    elif soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def measure(folder: Path, count: int) -> tuple[float, float]:
    """Megabytes of one dispatcher's server without connections, and with so many. Raises as `Idle.open`."""
    raise_descriptors(count)
    server = Pillarbox(folder, deliver=False)
    server.dispatchers = 1
    server.start()
    idle = Idle(PORT)
    try:
        settle(1)
        before = server.memory()
        idle.open(count)
        settle(1)
        after = server.memory()
        if not all(idle.answers(number) for number in range(0, count, max(1, count // 20))):
            raise ConnectionError("a connection is not served any more")
        return before, after
    finally:
        idle.close()
        server.stop()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.idle", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--limit", type=float, default=400.0, help="MB (PSS) of all processes")
    options = parser.parse_args()
    try:
        sandbox.enter()
        folder = Path(tempfile.mkdtemp(prefix="idle-", dir=sandbox.WORK))
        before, after = measure(folder, options.connections)
    except (sandbox.Refused, TooFew, OSError) as failed:
        print(f"bench.idle: {failed}", file=sys.stderr)
        return 1
    each = (after - before) * 1024 / options.connections
    print(f"{options.connections} idle connections: {after:.0f} MB, {before:.0f} MB without them, {each:.1f} KB each")
    return int(after > options.limit)


if __name__ == "__main__":
    sys.exit(main())
