"""The servers under comparison: each writes its configuration into a folder, is started, measured, stopped, killed.

Limits of all are lifted alike. Postfix and Pillarbox sync before they say 250; OpenSMTPD does not.
"""

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.system.certificates import write_pair
from tests.system.server import BIN, answers, bound_ports, kill, tree, wait_for

PORT, SINK_PORT = 20125, 20126
USER = "alice"
LOCAL, REMOTE = f"{USER}@bench.test", "someone@dest.bench.test"
_HZ = os.sysconf("SC_CLK_TCK")
_LIMITS = """\
scheduler limit max-inflight 20000 max-schedule 1000
mta limit max-conn-per-host 50 max-conn-per-route 50 max-conn-per-connector 50
mta limit conn-delay-route 0 conn-delay-relay 0 reconn-delay-route 0 session-mail-max 100000
mta limit task-hiwat 2000 task-lowat 1000 task-release 1000
mda limit max-session 50 max-session-per-user 20 task-hiwat 2000 task-lowat 1000 task-release 1000
"""


class Missing(Exception):
    """This server is not here; the text says what to install."""


class Server:
    """One server in one folder. `deliver`: False holds everything in the queue; `tls`: it offers STARTTLS.

    Several may run at a time, each on a port of its own, but only one of each kind.
    """

    name = ""
    durable = True
    declared, options = "", ""  # lines of the configuration before the listener, and what follows it in its line

    def __init__(self, folder: Path, *, deliver: bool, tls: bool = False, port: int = PORT) -> None:
        self.folder, self.deliver, self.tls, self.port = folder, deliver, tls, port
        self.maildir = folder / "mail/Maildir"
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "log"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        account = pwd.getpwnam(USER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.user, self.uid, self.gid = account.pw_name, account.pw_uid, account.pw_gid
        make(self.maildir.parent, 0o700, self.uid, self.gid)

    def setup(self) -> None:
        """Write the configuration. Raises Missing."""
        raise NotImplementedError

    def certificate(self) -> tuple[Path, Path]:
        """A certificate (ECDSA) and its key."""
        cert, key = self.folder / "cert.pem", self.folder / "key.pem"
        write_pair(cert, key, "mx.bench.test")
        return cert, key

    def listener(self) -> str:
        """The listener in the grammar of smtpd.conf(5)."""
        plain = f"listen on 127.0.0.1 port {self.port} hostname mx.bench.test"
        if not self.tls:
            return f"{self.declared}{plain}{self.options}\n"
        cert, key = self.certificate()
        return f'pki "mx" cert "{cert}"\npki "mx" key "{key}"\n{self.declared}{plain} tls pki "mx"{self.options}\n'

    def start(self) -> None:
        """Start it and wait until it listens. Raises RuntimeError with the log."""
        self.setup()
        self.launch()
        if not wait_for(lambda: self._ended() or (self.port in bound_ports() and self.ready()), 30) or self._ended():
            raise RuntimeError(f"{self.name} did not start: {self.log()}")

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def launch(self) -> None:
        """Start its processes."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Called when it listens, until it says True."""
        return True

    def spawn(self, *argv: str, **environment: str) -> None:
        """Start a server that stays in the foreground."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={**os.environ, **environment},
            )

    def main_pid(self) -> int:
        """The first of its processes, 0 when it is not running."""
        return self.process.pid if self.process else 0

    def pids(self) -> list[int]:
        """All of its processes."""
        return tree(self.main_pid()) if self.main_pid() else []

    def cpu(self) -> float:
        """Seconds of CPU used so far, children that ended included."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15]))
        return total / _HZ

    def memory(self) -> float:
        """Megabytes (PSS) of all processes."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
                total += int(found[1]) if found else 0
        return total / 1024

    def delivered(self) -> int:
        """Messages in the Maildir."""
        try:
            return len(os.listdir(self.maildir / "new"))
        except OSError:
            return 0

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to what is left after five seconds."""
        processes = self.pids()
        if processes:
            kill(processes[0], signal.SIGTERM)
            wait_for(lambda: not self._alive(processes[0]), 5)
        self._finish(processes)

    def kill_all(self) -> None:
        """SIGKILL every process at once."""
        processes = self.pids()
        for pid in processes:
            kill(pid, signal.SIGSTOP)
        self._finish(processes)

    def _finish(self, processes: list[int]) -> None:
        for pid in processes:
            kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait(10)
            self.process = None
        wait_for(lambda: self.port not in bound_ports(), 5)

    def _alive(self, pid: int) -> bool:
        return self.process.poll() is None if self.process else Path(f"/proc/{pid}").exists()

    def log(self) -> str:
        """The end of its log."""
        return self.log_path.read_text(errors="replace")[-1500:] if self.log_path.exists() else ""


class Pillarbox(Server):
    """Ours: as root in processes of its own, with as many dispatchers as it starts by default; else in one process."""

    name = "pillarbox"
    dispatchers = 0  # 0: the default

    def setup(self) -> None:
        self.state = self.folder / "state"
        self.conf = self.folder / "smtpd.conf"
        self.conf.write_text(
            f"smtp limit max-mails 1000000\n{_LIMITS}"
            f"{self.listener()}"
            f'action "local" maildir "{self.maildir}" virtual {{ "@" = {self.user} }}\n'
            f'action "out" relay host smtp://127.0.0.1:{SINK_PORT}\n'
            'match from any for domain "bench.test" action "local"\nmatch from any for any action "out"\n'
        )

    def launch(self) -> None:
        paused = [] if self.deliver else ["-P", "mda", "-P", "mta"]
        wiring = ["--dispatchers", str(self.dispatchers)] if self.dispatchers else []
        if os.geteuid() != 0:
            wiring = ["--one-process"]
        self.spawn(str(BIN / "smtpd"), "-d", "-f", str(self.conf), "--state", str(self.state), *wiring, *paused)

    def ready(self) -> bool:
        return answers(self.state / "smtpd.sock")


# Debian 12's OpenSMTPD 6.8 marks the public keys of certificates as those whose private ones another process has.
# OpenSSL 3 loses the mark ("missing private key"), unless an engine does operations of public keys: then it handles
# them as it did before. This one passes on what is not for its tokens.
_OPENSSL = """\
openssl_conf = openssl
[openssl]
engines = engines
[engines]
pkcs11 = pkcs11
[pkcs11]
engine_id = pkcs11
dynamic_path = {engine}
default_algorithms = PKEY
init = 0
"""


class OpenSMTPD(Server):
    """Debian's, unpacked by `tools/setup peers`. Its places are compiled in: mounted over in our namespace."""

    name = "opensmtpd"
    durable = False

    def setup(self) -> None:
        home = Path(os.environ.get("PILLARBOX_HOME", ""))
        root = home / "opensmtpd/usr"
        self.openssl = self.folder / "openssl.cnf" if self.tls else None
        if self.openssl is not None:
            engines = list(home.glob("engines/usr/lib/*/engines-3/pkcs11.so"))
            if not engines:
                raise Missing("TLS of OpenSMTPD: tools/setup peers, as root")
            self.openssl.write_text(_OPENSSL.format(engine=engines[0]))
        self.program = root / "sbin/smtpd"
        if os.geteuid() != 0 or not self.program.exists():
            raise Missing("OpenSMTPD: tools/setup peers, as root")
        spool = make(self.folder / "spool", 0o711)
        queue_user = pwd.getpwnam("opensmtpq")
        make(spool / "offline", 0o770, 0, queue_user.pw_gid)
        for name in ("purge", "temporary"):
            make(spool / name, 0o700, queue_user.pw_uid)
        make(Path("/var/lib/opensmtpd/empty"))
        self._mount(spool, Path("/var/spool/smtpd"))
        libexec, programs = Path("/usr/libexec/opensmtpd"), self.folder / "libexec"
        make(programs)
        self._unmount(libexec)
        for file in (*libexec.glob("filter-*"), *(root / "libexec/opensmtpd").iterdir()):
            shutil.copy2(file, programs)  # filters that are installed stay there
        self._mount(programs, libexec)
        self.conf = self.folder / "smtpd.conf"
        self.conf.write_text(
            f"smtp limit max-mails 1000000\n{_LIMITS}"
            f"{self.listener()}"
            f'action "local" maildir "{self.maildir}"\n'
            f'action "out" relay host "smtp://127.0.0.1:{SINK_PORT}"\n'
            'match from any for domain "bench.test" action "local"\nmatch from any for any action "out"\n'
        )

    def _unmount(self, target: Path) -> None:
        if os.path.ismount(target):
            subprocess.run(["umount", str(target)], check=True)

    def _mount(self, source: Path, target: Path) -> None:
        self._unmount(target)
        make(target)
        subprocess.run(["mount", "--bind", str(source), str(target)], check=True)

    def launch(self) -> None:
        paused = [] if self.deliver else ["-P", "mda", "-P", "mta"]
        openssl = {"OPENSSL_CONF": str(self.openssl)} if self.openssl is not None else {}
        self.spawn(str(self.program), "-d", "-f", str(self.conf), *paused, **openssl)

    def ready(self) -> bool:
        return answers(Path("/var/run/smtpd.sock"))


class Postfix(Server):
    """Debian's, with a configuration, queue and log of its own."""

    name = "postfix"

    def setup(self) -> None:
        if os.geteuid() != 0 or not shutil.which("postfix", path="/usr/sbin:/usr/bin"):
            raise Missing("Postfix: tools/setup peers, as root")
        self.conf = make(self.folder / "etc")
        self.queue = make(self.folder / "queue")
        make(self.folder / "data", 0o700, pwd.getpwnam("postfix").pw_uid)
        hold = "smtpd_end_of_data_restrictions = check_client_access static:HOLD\n"
        (self.conf / "main.cf").write_text(self._main() + self._tls() + ("" if self.deliver else hold))
        (self.conf / "master.cf").write_text(_master(self.port))

    def _tls(self) -> str:
        if not self.tls:
            return ""
        cert, key = self.certificate()
        return (
            f"smtpd_tls_security_level = may\nsmtpd_tls_cert_file = {cert}\nsmtpd_tls_key_file = {key}\n"
            "smtpd_client_new_tls_session_rate_limit = 0\n"
        )

    def _main(self) -> str:
        return f"""\
compatibility_level = 3.6
config_directory = {self.conf}
queue_directory = {self.queue}
data_directory = {self.folder}/data
maillog_file = {self.log_path}
maillog_file_prefixes = {self.folder}
myhostname = mx.bench.test
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
smtpd_relay_restrictions = permit_mynetworks, reject
relayhost = [127.0.0.1]:{SINK_PORT}
virtual_mailbox_domains = bench.test
virtual_mailbox_base = {self.maildir.parent}
virtual_mailbox_maps = static:Maildir/
virtual_uid_maps = static:{self.uid}
virtual_gid_maps = static:{self.gid}
default_process_limit = 600
in_flow_delay = 0
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_client_event_limit_exceptions = 127.0.0.0/8
smtpd_peername_lookup = no
initial_destination_concurrency = 20
default_destination_concurrency_limit = 50
virtual_destination_concurrency_limit = 20
"""

    def launch(self) -> None:
        started = subprocess.run(
            ["/usr/sbin/postfix", "-c", str(self.conf), "start"], capture_output=True, text=True, check=False
        )
        if started.returncode:
            raise RuntimeError(f"postfix: {started.stderr}{self.log()}")

    def main_pid(self) -> int:
        try:
            pid = int((self.queue / "pid/master.pid").read_text())
        except (OSError, ValueError):
            return 0
        return pid if Path(f"/proc/{pid}").exists() else 0

    def release(self) -> None:
        """Let go what was held: for a restart with delivery."""
        subprocess.run(["/usr/sbin/postsuper", "-c", str(self.conf), "-r", "ALL"], capture_output=True, check=True)


def _master(port: int) -> str:
    """Debian's master.cf on our port, without chroots, pipes and what needs them."""
    lines = []
    for line in Path("/usr/share/postfix/master.cf.dist").read_text().splitlines():
        fields = line.split()
        if len(fields) < 8 or line[0] in "# \t" or fields[7] == "pipe":
            continue
        fields[4] = "n"
        if fields[1] == "inet":
            fields[0] = f"127.0.0.1:{port}"
        lines.append(" ".join(fields))
    return "\n".join(lines) + "\n"


def make(path: Path, mode: int = 0o755, uid: int = -1, gid: int = -1) -> Path:
    """A folder with this mode and owner."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    os.chown(path, uid, gid)
    return path


SERVERS: dict[str, Callable[..., Server]] = {s.name: s for s in (Pillarbox, Postfix, OpenSMTPD)}


def settle(seconds: float = 0.5) -> None:
    """Let a server that just started come to rest."""
    time.sleep(seconds)
