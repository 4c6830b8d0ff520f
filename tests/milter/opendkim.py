"""OpenDKIM with a key of its own, and dkimpy, which is another's work, to verify what it signs."""

import base64
import subprocess
from pathlib import Path
from types import TracebackType

import dkim
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.backends.servers import program
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
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (folder / "key.pem").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
        conf = folder / "opendkim.conf"
        conf.write_text(CONFIGURATION.format(folder=folder, hosts=hosts))
        self._process = subprocess.Popen([program("opendkim"), "-f", "-x", str(conf)], stderr=subprocess.PIPE)

    def __enter__(self) -> "OpenDKIM":
        assert wait_for(lambda: self._socket.exists() or self._process.poll() is not None, 20)
        assert self._process.poll() is None and self._process.stderr, self._process.communicate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # libmilter takes five seconds to end when it is asked to
        self._process.communicate()

    @property
    def address(self) -> str:
        """As a bridge takes it."""
        return f"unix:{self._socket}"

    def signed(self, message: bytes) -> bool:
        """Does it bear a signature of this key that holds? `message`: with CRLF."""
        valid: bool = dkim.verify(message, dnsfunc=lambda name, timeout=5: self._record)
        return valid
