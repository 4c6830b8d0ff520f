"""A scripted SMTP or LMTP server that records its sessions: the other side of a relay case.

The script: `greeting` (a reply, or by number of session; null: stay silent), `replies` (rules, the first that fits a
command wins: `cmd` regex, `reply`, `nth`, `session`, `starttls`, `close`, `delay`), `eom`, `eom_close`, `data_close`,
`tls`, `cert`.
"""

import contextlib
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tests.corpus.runner.text import ROOT

_EHLO = ["250-sink.example.net", "250-8BITMIME", "250-SIZE 1000000", "250-DSN", "250 HELP"]
_REPLIES: dict[str, Any] = {
    "EHLO": _EHLO,
    "LHLO": _EHLO,
    "HELO": "250 sink.example.net",
    "DATA": "354 go",
    "QUIT": "221 2.0.0 bye",
}


class Sink:
    """One server; `sessions` holds what each connection said: "C: …", "S: …", "TLS: …", "CLOSE: who"."""

    def __init__(self, where: int | Path, script: Mapping[str, Any], address: str = "127.0.0.1") -> None:
        self.script = script
        self.sessions: list[list[str]] = []
        self.done: list[bool] = []
        if isinstance(where, Path):
            self.server = socket.socket(socket.AF_UNIX)
            self.server.bind(str(where))
            where.chmod(0o777)
            self.server.listen(16)
        else:
            self.server = socket.create_server((address, where), backlog=16)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()

    @property
    def idle(self) -> bool:
        """No session is open."""
        return all(self.done)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            events: list[str] = []
            self.sessions.append(events)
            self.done.append(False)
            threading.Thread(target=self._serve, args=(connection, events, len(self.sessions)), daemon=True).start()

    def _serve(self, connection: socket.socket, events: list[str], number: int) -> None:
        session = Session(self.script, connection, events, number)
        try:
            session.run()
        except TimeoutError:
            events.append("CLOSE: server timeout")
        except OSError:
            events.append("CLOSE: client")
        finally:
            session.end()
            self.done[number - 1] = True


class Session:
    """One connection of a sink."""

    def __init__(self, script: Mapping[str, Any], connection: socket.socket, events: list[str], number: int) -> None:
        self.script, self.connection, self.events, self.number = script, connection, events, number
        self.seen: Counter[str] = Counter()
        self.connection.settimeout(30)
        self.file: BinaryIO = self.connection.makefile("rb")

    def run(self) -> None:
        """Greet, then answer command by command until somebody closes."""
        if self.script.get("tls") and not self.start_tls():
            return
        greeting = self._of_session(self.script.get("greeting", "220 sink.example.net ESMTP"))
        if greeting is not None:
            self.reply(greeting)
        while (line := self.read()) is not None:
            if not self.command(line):
                return

    def read(self) -> str | None:
        """The next line, None at the end."""
        data = self.file.readline()
        if not data:
            self.events.append("CLOSE: client")
            return None
        line = data.decode("latin-1").rstrip("\r\n") + ("" if data.endswith(b"\r\n") else "<no CRLF>")
        self.events.append(f"C: {line}")
        return line

    def command(self, line: str) -> bool:
        """Answer a command; False: the session is over."""
        verb = line.split(" ", 1)[0].upper()
        self.seen[verb] += 1
        rule = next((r for r in self.script.get("replies", []) if self._fits(r, verb, line)), None)
        rule = rule or {"reply": _REPLIES.get(verb, "250 2.0.0 ok")}
        time.sleep(rule.get("delay", 0))
        answer = rule.get("reply")
        if answer is not None:
            self.reply(answer)
        if rule.get("starttls") and not self.start_tls():
            return False
        if rule.get("close"):
            self.events.append("CLOSE: server")
            return False
        first = answer if isinstance(answer, str) else (answer or [""])[-1]
        if verb == "DATA" and first.startswith("354"):
            return self.message()
        return True

    def message(self) -> bool:
        """Take a message and answer its end."""
        lines = 0
        while (line := self.read()) is not None:
            lines += 1
            if self.script.get("data_close") == lines or (line == "." and self.script.get("eom_close")):
                self.events.append("CLOSE: server")
                return False
            if line == ".":
                self.reply(self._of_session(self.script.get("eom", "250 2.0.0 accepted")))
                return True
        return False

    def reply(self, lines: str | list[str]) -> None:
        """Send a reply."""
        for line in [lines] if isinstance(lines, str) else lines:
            self.events.append(f"S: {line}")
            self.connection.sendall(f"{line}\r\n".encode("latin-1"))

    def start_tls(self) -> bool:
        """A server handshake."""
        cert = self.script.get("cert", "sink")
        try:
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            made.load_cert_chain(ROOT / f"certs/{cert}.crt", ROOT / f"certs/{cert}.key")
            self.connection = made.wrap_socket(self.connection, server_side=True)
        except OSError:
            self.events.append("TLS: False")
            return False
        self.file = self.connection.makefile("rb")
        self.events.append("TLS: True")
        return True

    def end(self) -> None:
        """Close without a reset: our end first, then whatever still comes."""
        with contextlib.suppress(OSError):
            if self.events[-1:] == ["CLOSE: server"] and not isinstance(self.connection, ssl.SSLSocket):
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(1)
                while self.connection.recv(65536):
                    pass
        with contextlib.suppress(OSError):
            self.file.close()
            self.connection.close()

    def _of_session(self, value: Any) -> Any:
        return value.get(str(self.number), value.get("*")) if isinstance(value, dict) else value

    def _fits(self, rule: Mapping[str, Any], verb: str, line: str) -> bool:
        return (
            re.search(rule["cmd"], line, re.IGNORECASE) is not None
            and rule.get("nth", self.seen[verb]) == self.seen[verb]
            and rule.get("session", self.number) == self.number
        )
