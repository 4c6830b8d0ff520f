"""What agent, forker and delivery children say to each other, and how it is framed.

agent → forker: one `Start` a datagram, with the child's socket attached. forker → agent: one `Ended` a datagram.
agent → child: `Job`s, and a `Chunk` for each `Want`. child → agent: `Want`s and `Report`s. On the child's socket a
frame is its length in four bytes, then MessagePack.
"""

import struct
from collections.abc import Callable

import msgspec

from pillarbox.mail.envelope import Result

LENGTH = struct.Struct("!I")
CHUNK = 32 * 1024  # bytes of a large body that are asked for at a time: a child with twice as much needs 0.4 MB more
TIME_LIMIT = 300  # seconds for one message, as the reference


class Start(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Fork a child for `count` jobs of one user. `run_as`: the action's `user`, whom the child looks up itself.

    `mailbox`: the user whose system mailbox is written, "" for other methods; it has to be made before rights are
    dropped.
    """

    child: int
    user: str
    uid: int
    gid: int
    home: str
    count: int
    run_as: str = ""
    mailbox: str = ""


class Ended(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A child is gone. `status` as waitpid gives it; `error`: it could not be forked."""

    child: int
    status: int = 0
    error: str = ""


class Kill(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="kill"):
    """agent → forker: end a child that takes too long."""

    child: int


class Fork(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="fork"):
    """agent → forker: start a child; its socket is attached."""

    start: Start


class Job(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="job"):
    """One message for one user. `method`: maildir, mbox, file, command, lmtp.

    `target`: path pattern, command or LMTP destination, with specifiers still in it (the child expands them);
    `addresses`: where the host of an LMTP destination is. A body not larger than it may be travels along, another
    is asked for.
    """

    index: int
    method: str
    sender: str
    rcpt: str
    dest: str
    user: str
    directory: str
    home: str
    target: str = ""
    subaddress: str = ""
    delimiter: str = "+"
    junk: bool = False
    rcpt_to: bool = False
    addresses: tuple[str, ...] = ()
    two_shells: bool = False
    wrapper: str = ""
    size: int
    body: bytes = b""


class Chunk(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="chunk"):
    """A piece of a body; `lost`: it cannot be read."""

    data: bytes
    lost: bool = False


class Want(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="want"):
    """The child is ready for the next piece."""

    index: int
    offset: int


class Report(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="report"):
    """How one job ended. `sysexit`: sysexits.h, 0 where there is none; `text`: the reason as `show queue` prints it."""

    index: int
    result: Result
    sysexit: int = 0
    text: str = ""


ToForker = Fork | Kill
ToChild = Job | Chunk
FromChild = Want | Report

_encode = msgspec.msgpack.Encoder().encode
decode_to_forker: Callable[[bytes], ToForker] = msgspec.msgpack.Decoder(ToForker).decode
decode_to_child: Callable[[bytes], ToChild] = msgspec.msgpack.Decoder(ToChild).decode
decode_from_child: Callable[[bytes], FromChild] = msgspec.msgpack.Decoder(FromChild).decode
decode_ended: Callable[[bytes], Ended] = msgspec.msgpack.Decoder(Ended).decode


def datagram(message: Fork | Kill | Ended) -> bytes:
    """One message of the forker's socket."""
    return _encode(message)


def frame(message: ToChild | FromChild) -> bytes:
    """One framed message of a child's socket."""
    data = _encode(message)
    return LENGTH.pack(len(data)) + data
