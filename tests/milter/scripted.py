"""A milter that does what a test says and keeps what it hears; written from the documents of libmilter."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

CONTINUE, ACCEPT, REJECT, TEMPFAIL, DISCARD, SKIP, PROGRESS = (
    (struct.pack(">I", 1) + letter) for letter in (b"c", b"a", b"r", b"t", b"d", b"s", b"p")
)
SHUTDOWN, CONNECTION_FAILURE = struct.pack(">I", 1) + b"4", struct.pack(">I", 1) + b"f"
NOTHING = b""
HANG_UP = None
SILENT = b"AQKD"  # commands that have no answer

Answer = bytes | None | Callable[[bytes], bytes | None]


def packet(letter: bytes, *fields: bytes) -> bytes:
    """A packet whose fields NUL ends."""
    payload = letter + b"".join(each + b"\0" for each in fields)
    return struct.pack(">I", len(payload)) + payload


def numbered(letter: bytes, index: int, *fields: bytes) -> bytes:
    """A packet that begins with a number."""
    payload = letter + struct.pack(">I", index) + b"".join(each + b"\0" for each in fields)
    return struct.pack(">I", len(payload)) + payload


def body(data: bytes) -> bytes:
    """A piece of a new body."""
    return struct.pack(">I", len(data) + 1) + b"b" + data


def options(version: int = 6, actions: int = 0x1FF, steps: int = 0, macros: Mapping[int, str] | None = None) -> bytes:
    """The answer to the negotiation."""
    payload = struct.pack(">III", version, actions, steps)
    for stage, names in (macros or {}).items():
        payload += struct.pack(">I", stage) + names.encode() + b"\0"
    return struct.pack(">I", len(payload) + 1) + b"O" + payload


@dataclass
class Connection:
    """What was said on one connection: `C`, `D` and so on with what followed, in the order in which it came."""

    heard: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def commands(self) -> str:
        """The letters, without macros and the negotiation."""
        return "".join(letter for letter, _ in self.heard if letter not in "DO")

    def said(self, letter: str) -> list[list[bytes]]:
        """The fields of every command of this letter."""
        return [payload.removesuffix(b"\0").split(b"\0") for each, payload in self.heard if each == letter]

    def macros(self, letter: str) -> dict[str, str]:
        """The macros that came before commands of this letter, the last ones."""
        found = [payload[1:] for each, payload in self.heard if each == "D" and payload[:1] == letter.encode()]
        texts = [text.decode() for text in found[-1].split(b"\0")[:-1]]
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def body(self) -> bytes:
        """All pieces of the body."""
        return b"".join(payload for letter, payload in self.heard if letter == "B")


class ScriptedMilter:
    """Listens on a UNIX socket. `answers`: by the letter of a command, what it is answered with; else "continue"."""

    def __init__(
        self, folder: Path, *, negotiated: bytes | None = None, answers: Mapping[str, Answer] | None = None
    ) -> None:
        self.path = folder / "milter.sock"
        self.negotiated = options() if negotiated is None else negotiated
        self.answers = dict(answers or {})
        self.connections: list[Connection] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self.start()

    def start(self) -> None:
        """Listen, again after `stop`."""
        self._listener = socket.socket(socket.AF_UNIX)
        self.path.unlink(missing_ok=True)
        self._listener.bind(str(self.path))
        self._listener.listen(50)
        self._run(self._accept, self._listener)

    def forget(self) -> None:
        """What was heard, and what is answered."""
        self.negotiated = options()
        self.answers.clear()
        self.connections.clear()

    def __enter__(self) -> "ScriptedMilter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """As the bridge takes it."""
        return f"unix:{self.path}"

    @property
    def last(self) -> Connection:
        """The newest connection."""
        return self.connections[-1]

    def hears(self, commands: str) -> str:
        """The letters on the newest connection, when they are these; what they are instead, when they never are."""
        end = time.monotonic() + 5
        while self.last.commands != commands and time.monotonic() < end:
            time.sleep(0.005)
        return self.last.commands

    def say(self, data: bytes) -> None:
        """Unasked, on the newest connection."""
        self._sockets[-1].sendall(data)

    def stop(self) -> None:
        """As if it were killed."""
        self.path.unlink(missing_ok=True)
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)
        self._threads.clear()

    def _run(self, function: Callable[[socket.socket], None], given: socket.socket) -> None:
        thread = threading.Thread(target=function, args=(given,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                made, _ = listener.accept()
                self._sockets.append(made)
                self._run(self._serve, made)

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            heard = Connection()
            self.connections.append(heard)
            while head := stream.read(4):
                data = stream.read(struct.unpack(">I", head)[0])
                letter, payload = data[:1].decode(), data[1:]
                heard.heard.append((letter, payload))
                answer = self._answer(letter, payload)
                if answer is None:
                    return
                if answer:  # even nothing cannot be sent to who is gone
                    connection.sendall(answer)

    def _answer(self, letter: str, payload: bytes) -> bytes | None:
        answer = self.answers.get(letter, NOTHING if letter.encode() in SILENT else CONTINUE)
        if letter == "O":
            answer = self.answers.get("O", self.negotiated)
        return answer(payload) if callable(answer) else answer
