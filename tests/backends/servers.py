"""The databases, each started in a folder of its own on a unix socket or a port of loopback, and ended by its pid."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pymysql.constants.CLIENT
import pytest

from tests.system.server import bound_ports, free_port, kill, tree, wait_for

USER = "nobody"  # for servers that refuse to be root
BASE_DN = "dc=example,dc=org"
ADMIN = f"cn=admin,{BASE_DN}"
CERTS = Path(__file__).resolve().parent.parent / "corpus/fixtures/certs"
PASSWORD = "it's %s a 'secret'"  # what a configuration must be able to hold


def program(name: str, *places: str) -> str:
    """The path of a server's program; skips the test, naming it, where it is not installed."""
    path = shutil.which(name, path=":".join([*places, "/usr/sbin:/usr/bin:/sbin:/bin"]))
    if path is None:
        pytest.skip(f"{name} is not installed (tools/setup peers, as root)")
    return path


class Database:
    """A server that can be stopped and started again with what it holds."""

    stopped_by = signal.SIGTERM

    def __init__(self, folder: Path, argv: Sequence[str], *, port: int = 0) -> None:
        self._argv = argv
        self._port = port
        self._log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=_user())
        listening = wait_for(lambda: self._listens() or self._ended(), 60)
        assert listening and not self._ended(), self._log.read_text(errors="replace")[-3000:]

    def stop(self, number: signal.Signals | None = None) -> None:
        """End it."""
        if self.process is not None:
            for pid in tree(self.process.pid):
                kill(pid, signal.SIGCONT)
            self.process.send_signal(number or self.stopped_by)
            self.process.wait(60)
            self.process = None

    def pause(self) -> None:
        """It hangs from now on: connections stay, answers do not come."""
        assert self.process is not None
        for pid in tree(self.process.pid):
            kill(pid, signal.SIGSTOP)
            assert wait_for(partial(_stopped, pid), 5)

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _listens(self) -> bool:
        return self._port in bound_ports()


@contextlib.contextmanager
def running(database: Database) -> Iterator[Database]:
    """Started now, and stopped whatever happens."""
    try:
        database.start()
        yield database
    finally:
        database.stop(signal.SIGKILL)


def _user() -> str | None:
    return USER if os.geteuid() == 0 else None


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def home(folder: Path) -> Path:
    """A folder that belongs to who runs the server."""
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
    return folder


def _call(argv: Sequence[str], text: str = "", **environ: str) -> None:
    done = subprocess.run(
        argv,
        input=text,
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
        user=_user(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"


class Postgres(Database):
    """PostgreSQL on a unix socket in its folder; the role is `mail`."""

    stopped_by = signal.SIGINT  # SIGTERM would wait for its clients

    def __init__(self, folder: Path) -> None:
        places = [str(place / "bin") for place in sorted(Path("/usr/lib/postgresql").glob("*"), reverse=True)]
        initdb, server = program("initdb", *places), program("postgres", *places)
        self.folder, self._psql = home(folder), program("psql", *places)
        data = folder / "data"
        _call([initdb, "-D", str(data), "-U", "mail", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C"])
        argv = [server, "-D", str(data), "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"]
        super().__init__(folder, argv)
        self._asked = [program("pg_isready", *places), "-q", "-h", str(folder)]
        self.conninfo = f"host='{folder}' user='mail' dbname='postgres'"

    def _listens(self) -> bool:
        return subprocess.run(self._asked, timeout=20, check=False).returncode == 0

    def sql(self, text: str) -> None:
        """Execute statements."""
        _call([self._psql, "-qX", "-v", "ON_ERROR_STOP=1", "-h", str(self.folder), "-U", "mail", "postgres"], text)


class Mariadb(Database):
    """MariaDB on a unix socket and a port; user `mail`, database `mail`."""

    def __init__(self, folder: Path) -> None:
        install, server = program("mariadb-install-db"), program("mariadbd")
        home(folder)
        self.socket, self.port = folder / "socket", free_port()
        account = pwd.getpwuid(os.geteuid()).pw_name if _user() is None else USER
        # Temporary files of its own: two that are made at once would take each other's.
        common = ["--no-defaults", f"--datadir={folder}/data", f"--tmpdir={home(folder / 'tmp')}"]
        _call([install, *common, "--auth-root-authentication-method=normal", "--skip-test-db", f"--user={account}"])
        argv = [server, *common, f"--socket={self.socket}", "--bind-address=127.0.0.1", f"--port={self.port}"]
        argv += [f"--pid-file={folder}/pid", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M"]
        super().__init__(folder, argv, port=self.port)

    def sql(self, text: str) -> None:
        """Execute statements."""
        many = pymysql.constants.CLIENT.MULTI_STATEMENTS
        with (
            pymysql.connect(unix_socket=str(self.socket), user="root", autocommit=True, client_flag=many) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(text)
            while cursor.nextset():
                pass


class RedisServer(Database):
    """Redis on a unix socket and a port; it keeps nothing on disk."""

    def __init__(self, folder: Path, *options: str) -> None:
        server = program("redis-server")
        self._client = program("redis-cli")
        home(folder)
        self.socket, self.port = folder / "socket", free_port()
        argv = [server, "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)]
        argv += ["--unixsocketperm", "777", "--save", "", "--dir", str(folder), *options]
        super().__init__(folder, argv, port=self.port)

    def command(self, *words: str) -> None:
        """Execute one command."""
        _call([self._client, "-s", str(self.socket), "-e", *words])


class Slapd(Database):
    """OpenLDAP on a unix socket and a port, with `people` below the base."""

    def __init__(self, folder: Path) -> None:
        server = program("slapd")
        self._add = program("ldapadd")
        home(folder)
        home(folder / "data")
        self.port = free_port()
        self.url = f"ldap://127.0.0.1:{self.port}"
        self.secure = f"ldaps://127.0.0.1:{free_port()}"
        self.local = f"ldapi://{str(folder / 'socket').replace('/', '%2F')}"
        conf = folder / "slapd.conf"
        schemas = "".join(
            f"include /etc/ldap/schema/{name}.schema\n" for name in ("core", "cosine", "nis", "inetorgperson")
        )
        for name in ("rsa.crt", "rsa.key", "ca.crt"):
            shutil.copy(CERTS / name, folder)
            (folder / name).chmod(0o644)
        tls = f"TLSCACertificateFile {folder}/ca.crt\nTLSCertificateFile {folder}/rsa.crt\n"
        tls += f"TLSCertificateKeyFile {folder}/rsa.key\n"
        conf.write_text(
            f"{tls}{schemas}modulepath /usr/lib/ldap\nmoduleload back_mdb\npidfile {folder}/pid\n"
            f'database mdb\nsuffix "{BASE_DN}"\nrootdn "{ADMIN}"\nrootpw "{PASSWORD}"\ndirectory {folder}/data\n'
        )
        conf.chmod(0o644)
        argv = [server, "-f", str(conf), "-h", f"{self.url} {self.secure} {self.local}", "-d", "0"]
        super().__init__(folder, argv, port=self.port)

    def add(self, ldif: str) -> None:
        """Add entries."""
        _call([self._add, "-x", "-H", self.url, "-D", ADMIN, "-w", PASSWORD], ldif)
