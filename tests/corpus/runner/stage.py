"""The server that cases play against; one is kept for the next case with the same configuration."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from tests.corpus.runner.cases import Case
from tests.corpus.runner.place import fresh, joined
from tests.corpus.runner.text import ROOT, fill
from tests.sandbox import WORK
from tests.system.server import Server, Wiring, wait_for


class Stage:
    """Starts servers in one wiring; `close` it at the end."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self._kept: tuple[str, Server] | None = None

    def server(self, case: Case, *args: str, keep: bool = False) -> Server:
        """A server with a case's configuration and files, just started, or kept and emptied. Raises AssertionError."""
        config = fill(joined(case.data["config"]))
        if keep and self._kept and self._kept[0] == config and not case.data.get("files"):
            server = self._kept[1]
            if server.process is not None and server.process.poll() is None:
                remove_all(server)
                server.log_path.open("w").close()
                return server
        self.close()
        fresh(case.data.get("files"))
        folder = WORK / "server"
        shutil.rmtree(folder, ignore_errors=True)
        server = Server(folder, config, self.wiring, args, path=str(ROOT / "bin"))
        self._kept = (config, server)
        server.start()
        return server

    def close(self) -> None:
        """Stop the server that was kept."""
        if self._kept:
            self._kept[1].stop()
            self._kept = None


def remove_all(server: Server) -> None:
    """Empty the queue."""
    result = server.ctl("remove", "all")
    assert result.exit == 0, f"remove all: {result}"


def queued(server: Server) -> list[dict[str, Any]]:
    """The queue as a recording holds it: messages with their lines and envelopes."""
    messages: dict[str, dict[str, Any]] = {}
    for row in server.queue():
        msgid = row[0][:8]
        if msgid not in messages:
            text = server.ctl("show", "message", msgid).out
            messages[msgid] = {"message": text.split("\n")[:-1], "envelopes": []}
        messages[msgid]["envelopes"].append(envelope(server, row[0]))
    return list(messages.values())


def envelope(server: Server, evpid: str) -> dict[str, str]:
    """The fields of an envelope as `smtpctl show envelope` prints them."""
    result = server.ctl("show", "envelope", evpid)
    return dict(line.split(": ", 1) for line in result.out.splitlines() if ": " in line)


def transaction(case: Mapping[str, Any], rcpts: Sequence[str], helo: str) -> list[dict[str, Any]]:
    """The steps that send a case's message."""
    sender, parameters = case["sender"], (case.get("mail_params", ""), case.get("rcpt_params", ""))
    steps: list[dict[str, Any]] = [{"connect": {}}, {"send": f"EHLO {helo}\r\n"}]
    for _ in range(case.get("messages", 1)):
        steps.append({"send": f"MAIL FROM:<{sender}>{parameters[0]}\r\n"})
        steps += [{"send": f"RCPT TO:<{rcpt}>{parameters[1]}\r\n"} for rcpt in rcpts]
        steps += [{"send": "DATA\r\n"}, {"send": body(case["message"])}]
    return [*steps, {"send": "QUIT\r\n"}]


def body(message: Any) -> Any:
    """The bytes of a message: given whole, or as a number of equal lines."""
    if isinstance(message, Mapping):
        return ["Subject: long\r\n\r\n", {"repeat": message["repeat_lines"], "text": "x" * 70 + "\r\n"}, ".\r\n"]
    return message


def settle(check: Any, seconds: float) -> str:
    """Ask `check` until it finds nothing wrong; after `seconds`, what is still wrong."""
    last = "never checked"

    def good() -> bool:
        nonlocal last
        last = check()
        return not last

    wait_for(good, seconds, every=0.1)
    return last
