"""`smtpd -n`, and the checks of the machine that go with reading a configuration.

`conf` is pure: it reads files through `read` and asks a `Checker` about certificates, interfaces, services and table
programs. Both are here, and nowhere else does a configuration meet the machine before it is used.
"""

import errno
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from pillarbox import places
from pillarbox.conf.build import load_config
from pillarbox.conf.format import format_config
from pillarbox.conf.model import Config, Listener, Pki
from pillarbox.daemon import interfaces
from pillarbox.errors import ConfigError, PillarboxError, Problem
from pillarbox.log import Log
from pillarbox.mta.url import parse_relay_url
from pillarbox.tables.db import check_database
from pillarbox.tables.matchers import regex_fault
from pillarbox.tables.patterns import parse_network

MAX_FILE = 1 << 30  # bytes; a table may be large
CERT_MODE = 0o755  # at most, as the reference demands
KEY_MODE = 0o740
PACKAGES = (  # where the reference's packages put table-NAME and filter-NAME
    "/usr/local/libexec/smtpd",
    "/usr/local/libexec/opensmtpd",
    "/usr/libexec/opensmtpd",
    "/usr/lib/opensmtpd",
    "/usr/lib/x86_64-linux-gnu/opensmtpd",
)


def read_file(path: str) -> str:
    """A configuration or table file: UTF-8, or else Latin-1, so that no byte in a comment is an error.

    Raises OSError.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_config(file: str, macros: dict[str, str]) -> Config:
    """The configuration, checked against this machine. Raises ConfigError."""
    return load_config(file=file, read=read_file, macros=macros, hostname=places.host_name(), checker=Machine())


def check_config(file: str, macros: dict[str, str], *, output: TextIO | None = None, show: TextIO | None = None) -> int:
    """`smtpd -n`: say what is wrong, each as `file:line: message`, or `configuration OK`; returns the exit status.

    `show` (`smtpd -n -v`) takes a good configuration in canonical form.
    """
    output = output or sys.stderr
    try:
        config = read_config(file, macros)
        if config.queue.encryption == "stdin":
            # COMPAT: only a server that starts reads the key, so there is none to check.
            raise ConfigError([Problem("invalid key for queue encryption: a check does not read it from stdin", file)])
    except ConfigError as error:
        _say(output, *map(str, error.problems))
        return 1
    if show is not None:
        _say(show, format_config(config).removesuffix("\n"))
    _say(output, *config.warnings, "configuration OK")
    return 0


def log_warnings(warnings: Iterable[str], log: Log) -> None:
    """What a server says of the configuration that it begins to use, each `file:line: warning: …`."""
    for warning in warnings:
        log.warn(warning.partition("\n")[0].replace(": warning: ", ": ", 1))


def _say(output: TextIO, *lines: str) -> None:
    for line in lines:
        # A file may hold any byte: what this terminal's encoding lacks is shown escaped.
        encoding = output.encoding or "utf-8"
        output.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    output.flush()


class Machine:
    """The `Checker` of this machine."""

    def __init__(self, *, table_programs: Sequence[str] = PACKAGES) -> None:
        self._table_programs = table_programs

    def local_addresses(self) -> Sequence[str]:
        """Every address of this machine."""
        return sorted(interfaces.local_addresses())

    def listener(self, listener: Listener) -> str:
        """What is wrong with the interface, address or host name that it names."""
        try:
            interfaces.endpoints(listener)
        except PillarboxError:
            family = f" ({listener.family})" if listener.family else ""
            return f"invalid virtual ip or interface: {listener.interface}{family}"
        return ""

    def endpoints(self, listener: Listener) -> list[str]:
        """The addresses and ports that it binds."""
        try:
            return [f"{address} port {port}" for _, address, port in interfaces.endpoints(listener)]
        except PillarboxError:
            return []

    def everybody_reads(self, path: str) -> bool:
        """Whether any user of the machine may read a file: its folders are not looked at."""
        try:
            return bool(os.stat(path).st_mode & stat.S_IROTH)
        except (OSError, ValueError):
            return False

    def value(self, what: str, text: str) -> str:
        """What is wrong with a regex, netaddr or relay-url."""
        return _VALUES[what](text)

    def service_port(self, name: str) -> int:
        """The TCP port of a service, services(5); 0 where there is none."""
        try:
            return socket.getservbyname(name, "tcp")
        except (OSError, ValueError):
            return 0

    def table_program(self, backend: str) -> bool:
        """Whether `table-BACKEND` is installed."""
        return bool(find_table_program(backend, self._table_programs))

    def table_database(self, path: str) -> str:
        """What is wrong with the file of a `db:` table."""
        return check_database(path)

    def pki(self, pki: Pki) -> tuple[str, str]:
        """What keeps a certificate or key from being loaded; and that they do not belong together, a warning.

        COMPAT: the reference accepts a pair that does not match, and a file that holds no certificate.
        """
        fault = _insecure(pki.cert, CERT_MODE)
        if fault:
            return f"failed to load certificate file {pki.cert}: {fault}", ""
        fault = _insecure(pki.key, KEY_MODE)
        if fault:
            return f"failed to load key file {pki.key}: {fault}", ""
        try:
            key = load_pem_private_key(_bytes(pki.key), None)
        except TypeError:
            return f"failed to load key file {pki.key}: it is encrypted", ""
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            return f"failed to load key file {pki.key}: {_reason(error)}", ""
        try:
            certificate = x509.load_pem_x509_certificates(_bytes(pki.cert))[0]
            public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            return "", f"pki {pki.name}: {pki.cert} holds no usable certificate: {_reason(error)}"
        if public != key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
            return "", f"pki {pki.name}: the key {pki.key} does not belong to the certificate {pki.cert}"
        return "", ""

    def ca(self, path: str) -> str:
        """What is wrong with a file of CA certificates."""
        fault = _insecure(path, CERT_MODE)
        return f"failed to load CA file {path}: {fault}" if fault else ""


def find_table_program(backend: str, folders: Sequence[str] = PACKAGES) -> str:
    """The path of `table-BACKEND`; "": none."""
    return find_program(f"table-{backend}", folders)


def find_program(program: str, folders: Sequence[str] = PACKAGES) -> str:
    """The path of a program: beside our own, with the reference's packages, or in PATH; "": none."""
    if "/" in program or "\0" in program:
        return ""
    for folder in (places.libexec(), *folders):
        path = os.path.join(folder, program)
        if os.path.exists(path):
            return path
    found = shutil.which(program)
    return os.path.abspath(found) if found else ""


def _regex(text: str) -> str:
    fault = regex_fault(text)
    return f"this regular expression never matches ({fault})" if fault else ""


def _netaddr(text: str) -> str:
    if text.lower() == "local" or parse_network(text) is not None:
        return ""
    return "this is no address and no network, so it never matches"


def _relay_url(text: str) -> str:
    return "" if parse_relay_url(text) is not None else "this is no relay URL"


_VALUES: dict[str, Callable[[str], str]] = {"regex": _regex, "netaddr": _netaddr, "relay-url": _relay_url}


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(1 << 20)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _insecure(path: str, mode: int) -> str:
    """What forbids using a file that secrets or trust come from: its owner (root, or whoever we are) or its mode."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
    except (OSError, ValueError) as error:
        return _reason(error)
    if not stat.S_ISREG(status.st_mode):
        return "not a file"
    if status.st_uid not in {0, os.geteuid()}:
        return "not owned by root" if os.geteuid() == 0 else "not owned by root or by this user"
    if stat.S_IMODE(status.st_mode) & 0o777 & ~mode:
        return f"insecure permissions: they must be at most {mode:04o}"
    return ""
