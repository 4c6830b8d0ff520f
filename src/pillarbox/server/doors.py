"""Listening sockets of a dispatcher: accepting on them, and letting one go without losing who is already there.

Accepting is done here rather than by the event loop's own server, because a process without descriptors must neither
spin nor stop for good. What a connection becomes is decided by whom it is handed to (`server/listener`).
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterable, Mapping

from pillarbox.conf.model import Config, Listener
from pillarbox.log import Log

ACCEPT_BATCH = 8  # connections taken before running sessions get their turn: two or three milliseconds
RETRY_ACCEPT = 1.0  # seconds, when the process has no descriptors left
LAST_CALL = 1.0  # seconds in which handshakes that have begun come to their end at a socket that is let go
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>; Python has no name for it
# socket(7), SO_ATTACH_FILTER: a classic BPF program over the TCP header that drops what opens a connection.
_NO_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of flags
        (0x45, 0, 1, 0x02),  # SYN?
        (0x06, 0, 0, 0),  # then nothing of it
        (0x06, 0, 0, 0xFFFFFFFF),  # else all
    )
)


class Serving:
    """What new connections get: a configuration, its TLS contexts by listener id, the addresses of this machine."""

    def __init__(
        self, config: Config, tls_contexts: Mapping[int, ssl.SSLContext], local_addresses: frozenset[str]
    ) -> None:
        self.config = config
        self.tls_contexts = tls_contexts
        self.local_addresses = local_addresses
        self._listeners = {listener.id: listener for listener in config.listeners}

    def listener(self, number: int) -> Listener | None:
        """The listener of that id."""
        return self._listeners.get(number)


class Door:
    """One listening socket: where it is (`address`, as the parent names it) and what those get who come in."""

    def __init__(self, address: str, listening: socket.socket, listener_id: int, serving: Serving) -> None:
        self.address = address
        self.socket = listening
        self.listener_id = listener_id
        self.serving = serving


Accepted = Callable[[Door, socket.socket, tuple[str, int]], None]


class Doors:
    """All of a server's. `accepted` is handed each connection and the peer's address."""

    def __init__(self, *, accepted: Accepted, log: Log) -> None:
        self._loop = asyncio.get_running_loop()
        self._accepted = accepted
        self._log = log
        self._doors: dict[str, Door] = {}
        self._leaving: set[Door] = set()
        self._shut: set[str] = set()  # why nothing is accepted
        self._no_descriptors: asyncio.TimerHandle | None = None

    def open(self, door: Door) -> None:
        """Accept on a socket that is bound and listening."""
        door.socket.setblocking(False)
        self._doors[door.address] = door
        if self._open():
            self._watch(door)

    def replace(self, serving: Serving, listening: Mapping[str, int]) -> None:
        """From now on those who come in get this. `listening`: listener ids by address; other sockets are let go."""
        for address, door in list(self._doors.items()):
            if address in listening:
                door.listener_id, door.serving = listening[address], serving
            else:
                self._let_go(self._doors.pop(address))

    def generations(self) -> set[int]:
        """Of which configurations sessions may still begin."""
        return {door.serving.config.generation for door in (*self._doors.values(), *self._leaving)}

    def shut(self, why: str) -> None:
        """Accept nothing until all reasons to do so are gone; clients wait in the backlog."""
        self._shut.add(why)
        self._unwatch(self._doors.values())

    def reopen(self, why: str) -> None:
        """This reason is gone."""
        self._shut.discard(why)
        if self._open():
            for door in self._doors.values():
                self._watch(door)

    def _open(self) -> bool:
        return not self._shut and self._no_descriptors is None

    def _watch(self, door: Door) -> None:
        self._loop.add_reader(door.socket.fileno(), self._accept, door)

    def _unwatch(self, doors: Iterable[Door]) -> None:
        for door in doors:
            if door.socket.fileno() >= 0:  # it may have been closed by its owner, the parent
                self._loop.remove_reader(door.socket.fileno())

    def _accept(self, door: Door, most: int = ACCEPT_BATCH) -> bool:
        """Take who waits there; False where there is nobody left, or they cannot be taken now."""
        for _ in range(most):
            try:
                connection, address = door.socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                self._failed(error)
                return False
            self._accepted(door, connection, address)
        return True

    def _failed(self, error: OSError) -> None:
        if error.errno not in _OUT_OF_DESCRIPTORS:
            self._log.warn(f"smtp: accept: {os.strerror(error.errno or 0)}")
            return
        self._log.warn(f"Disabling incoming SMTP connections for a moment: {error.strerror}")
        self._unwatch([*self._doors.values(), *self._leaving])
        if self._no_descriptors is None:
            self._no_descriptors = self._loop.call_later(RETRY_ACCEPT, self._retry)

    def _retry(self) -> None:
        self._no_descriptors = None
        if not self._shut:
            for door in self._doors.values():
                self._watch(door)

    # Letting go.

    def _let_go(self, door: Door) -> None:
        """Its address is no longer ours: let nobody new in, take who is in the backlog, and close.

        To close at once would reset those whose handshake is done but whom nobody has accepted yet. They are served
        by the configuration that they came for.
        """
        with contextlib.suppress(OSError):  # without the filter a connection of the last moment may be reset
            refuse_connections(door.socket)
        self._leaving.add(door)
        if not self._no_descriptors:
            self._watch(door)
        self._loop.call_later(LAST_CALL, self._close, door)

    def _close(self, door: Door) -> None:
        if self._accept(door) or self._no_descriptors is not None:
            self._loop.call_later(RETRY_ACCEPT if self._no_descriptors else 0, self._close, door)
            return
        self._unwatch([door])
        self._leaving.discard(door)
        door.socket.close()


def refuse_connections(listening: socket.socket) -> None:
    """Let no new handshake begin at a listening socket; those that have begun come to their end. Raises OSError."""
    program = ctypes.create_string_buffer(_NO_SYN, len(_NO_SYN))
    described = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
