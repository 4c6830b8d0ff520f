"""Plays a scripted SMTP client and records what the server answers."""

import select
import socket
import ssl
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tests.corpus.runner.text import ROOT, fill

PATIENCE = 6.0  # seconds: a reply that is later counts as none ("TIMEOUT")
_SILENCE = 0.25  # seconds in which nothing must come where no reply is expected
Step = dict[str, Any]


def raw(parts: Any) -> bytes:
    """The bytes of a `send`: a text, or a list of texts, `{repeat, text}` and `{hex}`."""
    if isinstance(parts, str):
        return fill(parts).encode("latin-1")
    if isinstance(parts, Mapping):
        return raw(parts["text"]) * parts["repeat"] if "repeat" in parts else bytes.fromhex(parts["hex"])
    return b"".join(raw(part) for part in parts)


def context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """The TLS client of a `tls` step."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if cert := options.get("cert"):
        made.load_cert_chain(ROOT / f"certs/{cert}.crt", ROOT / f"certs/{cert}.key")
    if options.get("max") == "tlsv1.2":
        made.maximum_version = ssl.TLSVersion.TLSv1_2
    if options.get("max") == "tlsv1.1":
        made.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        made.maximum_version = ssl.TLSVersion.TLSv1_1
    return made


def play(steps: Sequence[Mapping[str, Any]]) -> list[Step]:
    """One session: the steps as far as they came, with `expect`, `closed` and the like as they were seen."""
    options = steps[0].get("connect", {})
    first: Step = {"connect": options}
    try:
        client = Client(options)
    except ConnectionRefusedError:
        return [{**first, "refused": True}]
    with client:
        done = [client.greet(first, options)]
        for step in steps[1:]:
            if client.closed:
                break
            done.append(client.step(dict(step)))
        if not client.closed and not client.left:
            done[-1]["closed"] = client.ended(0.3)
    return done


class Client:
    """One connection. `closed`: the server ended it; `left`: we did."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        address = options.get("dest", "127.0.0.1")
        self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.buffer = bytearray()
        self.closed = self.left = False
        try:
            if source := options.get("source"):
                self.socket.bind((source, 0))
            self.socket.settimeout(PATIENCE)
            self.socket.connect((address, int(fill(str(options.get("port", "@PORT1@"))))))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    def greet(self, first: Step, options: Mapping[str, Any]) -> Step:
        """The first step: implicit TLS where asked for, and the banner."""
        if "tls" in options:
            first["tls_ok"] = self.start_tls(options["tls"])
        if not self.closed:
            first["expect"] = self.replies(options.get("replies", 1))
        if self.closed:
            first["closed"] = True
        return first

    def step(self, step: Step) -> Step:
        """Do one step and note what came of it."""
        if "send" in step:
            self._send(step)
        elif "tls" in step:
            step["tls_ok"] = self.start_tls(step["tls"])
        elif "wait" in step:
            time.sleep(step["wait"])
        elif "close" in step:
            self._close(step["close"])
        if self.closed:
            step["closed"] = True
        return step

    def _send(self, step: Step) -> None:
        try:
            self.socket.sendall(raw(step["send"]))
        except OSError:
            self.closed = True
        if count := step.get("replies", 1):
            step["expect"] = self.replies(count)
        elif not self.ended(_SILENCE) and self.buffer:
            step["unexpected"] = self.buffer.decode("latin-1")

    def _close(self, how: str) -> None:
        if how == "rst":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        self.left = True

    def start_tls(self, options: Mapping[str, Any]) -> bool:
        """A client handshake; a failed one ends the session."""
        try:
            self.socket.settimeout(PATIENCE)
            self.socket = context(options).wrap_socket(self.socket)
        except OSError:
            self.closed = True
            return False
        return True

    def replies(self, count: int) -> list[list[str] | str]:
        """That many replies, each its lines without CRLF, or "TIMEOUT"; fewer where the server closed."""
        found: list[list[str] | str] = []
        while len(found) < count and not self.closed:
            lines = self._reply()
            if lines:
                found.append(lines)
            if lines is None:
                found.append("TIMEOUT")
                break
        return found

    def _reply(self) -> list[str] | None:
        lines: list[str] = []
        end = time.monotonic() + PATIENCE
        while True:
            while (at := self.buffer.find(b"\n")) >= 0:
                line = bytes(self.buffer[: at + 1])
                del self.buffer[: at + 1]
                text = line.decode("latin-1")
                lines.append(text[:-2] if text.endswith("\r\n") else text[:-1] + "(no CRLF)")
                if line[3:4] != b"-":
                    return lines
            self.socket.settimeout(max(end - time.monotonic(), 0.001))
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                return None
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return lines
            self.buffer += data

    def ended(self, seconds: float) -> bool:
        """Does the server close within that time? What it sends instead is kept."""
        readable, _, _ = select.select([self.socket], [], [], seconds)
        if not readable:
            return False
        try:
            self.socket.settimeout(PATIENCE)
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        self.buffer += data
        self.closed = self.closed or not data
        return not data
