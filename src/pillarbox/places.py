"""Where things are: configuration file, state directory, control socket, host name.

One rule for the server and for the programs that look for it (design, "Places"). Imports little, because `sendmail`
and `mailq` start with it.
"""

import os
import pwd
import socket
import sys
from collections.abc import Mapping

SYSTEM_STATE = "/var/spool/pillarbox"
SYSTEM_CONFIGS = ("/etc/mail/smtpd.conf", "/etc/smtpd.conf")
MAILNAME = "/etc/mail/mailname"
HOSTS = "/etc/hosts"

_SUN_PATH = 107  # unix(7): 108 bytes with the closing NUL; a longer path is reached through its directory


def config_file(given: str | None, *, environ: Mapping[str, str], uid: int) -> str:
    """The configuration: `-f`, else the system's (root) or the user's own. It need not exist."""
    if given:
        return given
    if uid != 0:
        return os.path.join(_user_base(environ, uid, "XDG_CONFIG_HOME", ".config"), "pillarbox", "smtpd.conf")
    return next((path for path in SYSTEM_CONFIGS if os.path.exists(path)), SYSTEM_CONFIGS[0])


def server_state(given: str | None, *, environ: Mapping[str, str], uid: int) -> str:
    """The directory under which a server of this user writes everything: absolute, not made here."""
    named = given or environ.get("PILLARBOX_STATE")
    if named:
        return os.path.abspath(named)
    if uid == 0:
        return SYSTEM_STATE
    return os.path.join(_user_base(environ, uid, "XDG_STATE_HOME", ".local/state"), "pillarbox")


def client_state(given: str | None, *, environ: Mapping[str, str], uid: int) -> str:
    """The state directory of the server that a user's `smtpctl` or `sendmail` talks to.

    A user who runs no server of their own means the machine's.
    """
    own = server_state(given, environ=environ, uid=uid)
    if given or environ.get("PILLARBOX_STATE") or os.path.exists(control_socket(own)):
        return own
    return SYSTEM_STATE if os.path.isdir(SYSTEM_STATE) else own


def control_socket(state: str) -> str:
    """The control socket of a state directory."""
    return os.path.join(state, "smtpd.sock")


def offline_directory(state: str) -> str:
    """Where `sendmail` leaves messages while the server is down (mode 1733)."""
    return os.path.join(state, "offline")


def libexec() -> str:
    """The folder of our programs, where the reference has its `mail.*`."""
    if sys.prefix != sys.base_prefix:
        return os.path.join(sys.prefix, "bin")
    return os.path.dirname(os.path.realpath(sys.argv[0])) if os.path.isabs(sys.argv[0]) else "/usr/sbin"


def connect(path: str, timeout: float) -> socket.socket:
    """A connected stream socket; `timeout` in seconds goes on to bound each wait on it. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    directory = -1
    try:
        if len(os.fsencode(path)) > _SUN_PATH:
            directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY)
            path = f"/proc/self/fd/{directory}/{os.path.basename(path)}"
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    finally:
        if directory >= 0:
            os.close(directory)
    return connection


def host_name(*, mailname: str = MAILNAME, hosts: str = HOSTS) -> str:
    """This machine's mail name: `/etc/mail/mailname`, else gethostname(2) completed from /etc/hosts, never by DNS."""
    for line in _lines(mailname):
        return line
    name = socket.gethostname()
    if "." in name:
        return name
    for line in _lines(hosts):
        names = line.split()[1:]
        if name in names:
            return next((n for n in names if n.startswith(name + ".")), name)
    return name


def _lines(path: str) -> list[str]:
    """The lines of a small file without comments and empty ones; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 20)
    except OSError:
        return []
    return [line for line in (raw.partition("#")[0].strip() for raw in text.split("\n")) if line]


def _user_base(environ: Mapping[str, str], uid: int, variable: str, default: str) -> str:
    """An XDG base directory; a relative one is ignored, as that specification says."""
    base = environ.get(variable, "")
    if os.path.isabs(base):
        return base
    home = environ.get("HOME", "")
    if not os.path.isabs(home):
        try:
            home = pwd.getpwuid(uid).pw_dir
        except KeyError:
            home = "/"
    return os.path.join(home, default)
