"""The channel between the parent and one role: messages with descriptors, over a SEQPACKET socketpair.

It carries what calls cannot: sockets, links to peers, keys, configurations. Parent to role: `boot`, `peer`, `program`,
`alive`, `drain`, `stop`, and for a reload `prepare`, `commit`, `abort`, `retire`, `forget`, `using`; role to parent:
`ready`, `drained`, `faulty PEER`, `answer`. A role ends at its end of file.
"""

import array
import asyncio
import errno
import fcntl
import os
import socket
from collections.abc import Callable

import msgspec

from pillarbox.errors import PillarboxError

_MAX_MESSAGE = 64 * 1024
_MAX_DESCRIPTORS = 250  # SCM_MAX_FD is 253
_MAX_TEXT = 8 * 1024  # characters of an answer


class Message(msgspec.Struct, frozen=True):
    """`op` and what it needs; `names` tells what each descriptor that travels along is.

    `number`: the configuration that it is about, or the question that it answers, and `text` the answer.
    """

    op: str
    names: tuple[str, ...] = ()
    number: int = 0
    text: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode


class Channel:
    """One end. `receive` is called with each message and its descriptors (its to close); `closed` at the end."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket = connection
        self._pending: list[tuple[bytes, list[int]]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, receive: Callable[[Message, list[int]], None], closed: Callable[[], None]) -> None:
        """Watch the channel from the running loop."""
        loop = self._loop = asyncio.get_running_loop()

        def readable() -> None:
            while True:
                try:
                    got = receive_message(self.socket)
                except BlockingIOError:
                    return
                except OSError:
                    got = None
                if got is None:
                    loop.remove_reader(self.socket)
                    closed()
                    return
                receive(*got)

        loop.add_reader(self.socket, readable)

    def send(self, op: str, descriptors: dict[str, int] | None = None, *, number: int = 0, text: str = "") -> None:
        """Send a message with descriptors, which stay ours; kept until the peer reads where the socket is full.

        Raises PillarboxError where there are more of them than one message carries.
        """
        descriptors = descriptors or {}
        if self.socket.fileno() < 0:
            return  # closed: the peer has ended
        if len(descriptors) > _MAX_DESCRIPTORS:
            raise PillarboxError(f"{len(descriptors)} descriptors at once; {_MAX_DESCRIPTORS} at most")
        data = _encode(Message(op, tuple(descriptors), number, text[:_MAX_TEXT]))
        copies = [os.dup(fd) for fd in descriptors.values()]
        self._pending.append((data, copies))
        self._flush()

    def _flush(self) -> None:
        while self._pending:
            data, copies = self._pending[0]
            try:
                _send(self.socket, data, copies)
            except BlockingIOError:
                if self._loop is not None:
                    self._loop.add_writer(self.socket, self._flush)
                return
            except OSError:
                pass  # the peer is gone; the reading side notices
            self._pending.pop(0)
            for fd in copies:
                os.close(fd)
        if self._loop is not None:
            self._loop.remove_writer(self.socket)

    def close(self) -> None:
        """Forget the channel and what was not sent."""
        if self._loop is not None:
            self._loop.remove_reader(self.socket)
            self._loop.remove_writer(self.socket)
        for _, copies in self._pending:
            for fd in copies:
                os.close(fd)
        self._pending.clear()
        self.socket.close()


def _send(connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive_message(connection: socket.socket) -> tuple[Message, list[int]] | None:
    """One message with its descriptors (close-on-exec); None at the end of file.

    Descriptors that this process has no room for are lost with their connections, so that is an end too: OSError.
    """
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, _, _ = connection.recvmsg(_MAX_MESSAGE, space, socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
    if not data:
        return None
    message = _decode(data)
    if len(message.names) != len(descriptors):
        for fd in descriptors:
            os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return message, list(descriptors)


def sealed_memory(name: str, data: bytes) -> int:
    """A descriptor of sealed, anonymous memory that holds `data`: for boot values and keys; never on a disk."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd


def read_memory(fd: int) -> bytes:
    """What `sealed_memory` holds; closes the descriptor."""
    try:
        return os.pread(fd, os.fstat(fd).st_size, 0)
    finally:
        os.close(fd)
