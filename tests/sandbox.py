"""A machine of our own for tests that run as root: private mounts, network and host name, with users to deliver to.

Whoever enters it (a worker of pytest, the corpus runner) and all its children see a loopback-only network on which any
port may be used, the host name `mx.example.org`, an own `/etc/passwd`, `/home`, `/run`, `/var/spool`, `/var/mail`, and
a `resolv.conf` that names loopback. Nothing leaks to the machine outside, and it ends with its last process.
"""

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
from pathlib import Path

HOSTNAME = "mx.example.org"
SECOND_ADDRESS = "198.51.100.1"  # TEST-NET-2: a local address that is not loopback
WORK = Path("/run/pillarbox-test")

# People, with the password "<name>-pw" (crypt(3), few rounds).
_HASH = "$6$rounds=1000$corpussalt$"
PEOPLE = {
    "alice": (6001, "aO.bGmOiIo/z6Ti2T5Sf7j6NRok6pA974x.rGPxsVkd6IkRFtoDb/dSzJVBxGhtd6kKH4j3GxGNkxMSKLKr6I/"),
    "bob": (6002, "tAZdWiVlnDaEgYLHYdV6hiQ8VANexBJ8DebchbHs.1PEvjXr61WVLll4WtGp.6sDvwI8Gw/xs/7g9CTs4ztyA/"),
    "carol": (6003, "S1EhqtE51egiuZCCS70xz.zDtgeHC6Qxipxq124XramufyLZgwcRZXtFXtnonZfTSXclQ6MUPlu5zoSkhy01N1"),
    "dave": (6004, "QIU.YByxS/S3nG0f44scOuQectd8Rv50vgnZUQ34FIdhJAUiY.BZR0rU4P0MF4QPOINXlCCU43sS0iv9KspyZ0"),
    "erin": (6005, "qw4zjxNxIFIWKaWHwVh4E/6C.TPS2Y2H0p6GiZRoXeYSlDkbZSPWSXwlMvzgm8oEggQMbBRch9zrsyqW9fQtA."),
    "frank": (6006, "f01gs/gSariOOEJmhAmA9x7Zq97MUJyRZqdb81USodjXOvOZ6UqsS/MvECLNGKIERmtllufCbVXF4kLQe6mug."),
    "vmail": (6010, "wLxEYm6PKVqX/7RSacK.M88yhLgqa2h6vw2HCIFhC9xvnpzAZocx48uajjMiM6gcbWXLM9JTFp7sB.03Mcpji."),
}
# The server's roles, and the users that Debian's OpenSMTPD wants.
SERVICES = {
    name: 6101 + n
    for n, name in enumerate(
        ["_smtpd", "_smtpn", "_smtpl", "_smtpq", "_smtpc", "_smtpf", "opensmtpd", "opensmtpq", "Debian-exim"],
    )
}

_NEW_NAMESPACES = 0x00020000 | 0x40000000 | 0x04000000  # CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8916, 0x891C, 0x8913, 0x8914, 1


class Refused(Exception):
    """This machine does not let us make namespaces; the text is the reason to skip with."""


def enter() -> None:
    """Move the calling process into a sandbox of its own, for good. Raises Refused."""
    if os.geteuid() != 0:
        raise Refused("needs root")
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NAMESPACES):
        raise Refused(f"needs namespaces of its own: unshare: {os.strerror(ctypes.get_errno())}")
    _mount("--make-rprivate", "/")
    files = {name: Path("/etc", name).read_text() for name in ("passwd", "group", "shadow")}
    for folder in ("/run", "/var/spool", "/var/mail"):
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", folder)
    _hide_home()
    WORK.mkdir()
    Path("/var/spool/mail").symlink_to("/var/mail")
    os.chmod("/var/mail", 0o1777)
    _write_accounts(files)
    _replace("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.0.1 {HOSTNAME}\n")
    _replace("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    _replace("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n")
    socket.sethostname(HOSTNAME)
    _network_up()


def _mount(*args: str) -> None:
    done = subprocess.run(["mount", *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"needs mounts of its own: {done.stderr.strip()}")


def _hide_home() -> None:
    """An own /home in which what was there can still be reached: the checkout may lie in it."""
    old = Path("/run/old-home")
    old.mkdir()
    _mount("--rbind", "/home", str(old))
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/home")
    for entry in old.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            Path("/home", entry.name).mkdir()
            _mount("--rbind", str(entry), f"/home/{entry.name}")


def _replace(path: str, text: str, mode: int = 0o644) -> None:
    folder = Path("/run/etc")
    folder.mkdir(exist_ok=True)
    own = folder / Path(path).name
    own.write_text(text)
    own.chmod(mode)
    real = os.path.realpath(path)
    if not os.path.exists(real):
        return  # nothing reads a file that the machine does not have
    _mount("--bind", str(own), real)


def _write_accounts(files: dict[str, str]) -> None:
    passwd, group, shadow = files["passwd"], files["group"], files["shadow"]
    present = {line.split(":")[0] for line in passwd.splitlines()}
    for name, (uid, digest) in PEOPLE.items():
        passwd += f"{name}:x:{uid}:{uid}:{name.title()} Example:/home/{name}:/bin/sh\n"
        group += f"{name}:x:{uid}:\n"
        shadow += f"{name}:{_HASH}{digest}:19000:0:99999:7:::\n"
        home = Path("/home", name)
        home.mkdir(mode=0o755)
        os.chown(home, uid, uid)
    for name, uid in SERVICES.items():
        if name not in present:
            passwd += f"{name}:x:{uid}:{uid}::/var/empty:/usr/sbin/nologin\n"
            group += f"{name}:x:{uid}:\n"
            shadow += f"{name}:!:19000:0:99999:7:::\n"
    _replace("/etc/passwd", passwd)
    _replace("/etc/group", group)
    _replace("/etc/shadow", shadow, 0o600)


def _network_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
        for call, address in ((_SIOCSIFADDR, SECOND_ADDRESS), (_SIOCSIFNETMASK, "255.255.255.0")):
            packed = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, call, struct.pack("16s16s", b"lo:1", packed))


def own_directory(path: str) -> Path:
    """Lay a copy of a folder over it that tests may write into; the same one each time."""
    own = Path("/run/etc", Path(path).name)
    if not own.exists():
        shutil.copytree(path, own)
        _mount("--bind", str(own), path)
    return own


def clean_homes() -> None:
    """Empty the homes and the system mailboxes: the state that tests leave behind."""
    for name in PEOPLE:
        for entry in Path("/home", name).iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for entry in Path("/var/mail").iterdir():
        entry.unlink()
