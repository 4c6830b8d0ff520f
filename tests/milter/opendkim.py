"""OpenDKIM with a key of its own, and an independent verifier of what it signs."""

import getpass
import subprocess
from pathlib import Path
from types import TracebackType

from tests.backends.servers import program
from tests.peers.dkimkeys import new_key, verified
from tests.system.server import wait_for

CONFIGURATION = """
Syslog no
Mode s
Domain example.org
Selector mail
KeyFile {folder}/key.pem
Socket local:{folder}/opendkim.sock
UMask 000
InternalHosts {hosts}
Canonicalization relaxed/simple
OversignHeaders From
RequireSafeKeys no
"""


class OpenDKIM:
    """Signs mail of example.org that `hosts` send. `folder`: where its files are."""

    def __init__(self, folder: Path, *, hosts: str) -> None:
        self._socket = folder / "opendkim.sock"
        self._key = new_key(folder / "key.pem", getpass.getuser())
        self._conf = folder / "opendkim.conf"
        self._conf.write_text(CONFIGURATION.format(folder=folder, hosts=hosts))
        self._program = program("opendkim")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        self._socket.unlink(missing_ok=True)
        self._process = process = subprocess.Popen([self._program, "-f", "-x", self._conf], stderr=subprocess.PIPE)
        assert wait_for(lambda: self._socket.exists() or process.poll() is not None, 20)
        assert process.poll() is None, process.communicate()

    def kill(self) -> None:
        """End it at once; asked to, libmilter takes five seconds."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __enter__(self) -> "OpenDKIM":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """As a bridge takes it."""
        return f"unix:{self._socket}"

    def signed(self, message: bytes) -> bool:
        """Does it bear one signature, of this key, that holds? `message`: with CRLF."""
        return verified(message, self._key, "mail")
