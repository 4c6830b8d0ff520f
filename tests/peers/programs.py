"""Real counterparts: where they are, and how Dovecot's LMTP server is started on a port of its own."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.server import bound_ports, kill, tree, wait_for


def program(name: str) -> str:
    """The path of a program; skips the test, naming it, where it is not installed."""
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        pytest.skip(f"{name} is not installed (tools/setup peers, as root)")
    return path


def opensmtpd() -> None:
    """Skip where OpenSMTPD was not unpacked."""
    opensmtpd_program("smtpd")


def opensmtpd_program(name: str) -> str:
    """The path of a program of OpenSMTPD; skips where it was not unpacked."""
    path = Path(os.environ.get("PILLARBOX_HOME", "/nonexistent"), "opensmtpd/usr/sbin", name)
    if not path.exists():
        pytest.skip("OpenSMTPD is not unpacked (tools/setup peers, as root)")
    return str(path)


def debian_filter(name: str) -> str:
    """The path of a filter of OpenSMTPD that Debian has as a package; skips where it is not installed."""
    path = Path("/usr/libexec/opensmtpd", f"filter-{name}")
    if not path.exists():
        pytest.skip(f"opensmtpd-filter-{name} is not installed (tools/setup peers, as root)")
    return str(path)


def exim(folder: Path, port: int) -> list[str]:
    """The start of a command that has Exim send a message from stdin to the server on a port, by BDAT if it can."""
    binary = Path(os.environ.get("PILLARBOX_HOME", "/nonexistent"), "exim/usr/sbin/exim4")
    if not binary.exists():
        pytest.skip("Exim is not unpacked (tools/setup peers, as root)")
    folder.mkdir()
    (folder / "spool").mkdir()
    for path in (folder, folder / "spool"):
        shutil.chown(path, "Debian-exim", "Debian-exim")
    conf = folder / "exim.conf"
    conf.write_text(f"""\
exim_path = {binary}
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
primary_hostname = exim.example.net
keep_environment =
begin routers
all:
  driver = manualroute
  route_list = * 127.0.0.1 byname
  self = send
  transport = out
begin transports
out:
  driver = smtp
  port = {port}
  allow_localhost
  hosts_try_chunking = *
""")
    return [str(binary), "-C", str(conf), "-odf", "-oi", "-f"]


@contextmanager
def dovecot(folder: Path, port: int) -> Iterator[None]:
    """Dovecot's LMTP server on a port; it delivers to system users, into ~/Maildir."""
    binary = program("dovecot")
    if not Path("/usr/lib/dovecot/lmtp").exists():
        pytest.skip("Dovecot's lmtp is not installed (tools/setup peers, as root)")
    folder.mkdir()
    conf = folder / "dovecot.conf"
    conf.write_text(f"""\
protocols = lmtp
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
ssl = no
mail_location = maildir:~/Maildir
auth_username_format = %n
passdb {{
  driver = static
  args = nopassword=y
}}
userdb {{
  driver = passwd
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
}}
service stats {{
  chroot =
}}
""")
    process = subprocess.Popen([binary, "-F", "-c", str(conf)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        listening = wait_for(lambda: port in bound_ports() or process.poll() is not None, 20)
        if not listening or process.poll() is not None:
            assert process.stdout is not None
            log = (folder / "log").read_text() if (folder / "log").exists() else ""
            raise AssertionError(f"dovecot did not start: {process.stdout.read()!r} {log}")
        yield
    finally:
        for pid in tree(process.pid):
            kill(pid, signal.SIGTERM)
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
