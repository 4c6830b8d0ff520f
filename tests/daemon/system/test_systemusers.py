"""Passwords of system users: shadow(5), and PAM with services made for the test."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pillarbox.daemon.system import systemusers
from pillarbox.daemon.system.systemusers import fits_shadow
from pillarbox.errors import TempFail
from pillarbox.routing import crypt
from tests import sandbox

TODAY = int(time.time() // 86400)
USER = "root"  # is in every passwd(5); what shadow(5) says of it is the test's
HASH = (
    "$6$rounds=1000$corpussalt$aO.bGmOiIo/z6Ti2T5Sf7j6NRok6pA974x.rGPxsVkd6IkRFtoDb/dSzJVBxGhtd6kKH4j3GxGNkxMSKLKr6I/"
)


@pytest.fixture
def shadow(tmp_path: Path):
    """Write the entry of the user; gives the path."""

    def write(hashed: str = HASH, changed: object = TODAY, most: object = 99999, expire: object = "") -> str:
        path = tmp_path / "shadow"
        path.write_text(f"other:!:1:0:99999:7:::\n{USER}:{hashed}:{changed}:0:{most}:7::{expire}:\nlast:*:1::::::\n")
        return str(path)

    return write


def test_the_right_password_fits_and_others_do_not(shadow):
    assert fits_shadow(USER, "alice-pw", shadow=shadow())
    for wrong in ("", "alice-px", "alice-pw\0", HASH):
        assert not fits_shadow(USER, wrong, shadow=shadow())
    assert not fits_shadow("nobody-of-that-name", "alice-pw", shadow=shadow())


@pytest.mark.parametrize("hashed", ["", "!", "*", "!!", "!" + HASH, "x", "alice-pw"])
def test_accounts_that_are_locked_or_have_no_password_never_fit(shadow, hashed):
    assert not fits_shadow(USER, "alice-pw", shadow=shadow(hashed))
    assert not fits_shadow(USER, "", shadow=shadow(hashed))


@pytest.mark.parametrize(
    ("fields", "usable"),
    [
        ({"expire": TODAY + 1}, True),
        ({"expire": TODAY}, False),
        ({"expire": TODAY - 1}, False),
        ({"expire": 0}, False),
        ({"expire": -1}, True),
        ({"expire": "soon"}, False),
        ({"changed": TODAY - 30, "most": 30}, True),
        ({"changed": TODAY - 31, "most": 30}, False),
        ({"changed": TODAY - 31, "most": ""}, True),
        ({"changed": TODAY - 31, "most": -1}, True),
        ({"changed": 0}, False),  # it has to be changed at the next login
        ({"changed": ""}, True),
    ],
)
def test_expired_accounts_and_passwords_do_not_fit(shadow, fields, usable):
    assert fits_shadow(USER, "alice-pw", shadow=shadow(**fields)) is usable


def test_what_cannot_be_told_is_a_temporary_failure(shadow, tmp_path, monkeypatch):
    with pytest.raises(TempFail, match="no such entry"):  # root has "x" in passwd(5)
        fits_shadow(USER, "alice-pw", shadow=str(tmp_path / "absent"))
    with pytest.raises(TempFail, match="Is a directory"):
        fits_shadow(USER, "alice-pw", shadow=str(tmp_path))

    def down(name: str) -> None:
        raise TempFail(f'user "{name}": Connection refused')

    monkeypatch.setattr(systemusers, "system_user", down)
    with pytest.raises(TempFail, match="refused"):
        fits_shadow(USER, "alice-pw", shadow=shadow())


@pytest.mark.parametrize("method", ["$y$", "$6$", "$2b$"])
def test_unknown_and_locked_users_are_compared_with_the_hash_of_another(shadow, method, monkeypatch):
    library = crypt.load()
    setting = library.salt(method.encode(), 4 if method == "$2b$" else 0)
    if setting is None:
        pytest.skip(f"crypt(3) does not know {method!r} here")
    stored = library.hash(b"alice-pw", setting).decode()
    path = Path(shadow("!" + HASH))
    path.write_text(f"{path.read_text()}alice:{stored}:1:0:99999:7:::\n")
    asked = []

    class Library:
        @staticmethod
        def hash(secret, setting):
            asked.append(setting.decode())
            return library.hash(secret, setting)

    monkeypatch.setattr(crypt, "load", Library)
    monkeypatch.setattr(systemusers, "system_user", lambda name: name == USER or None)
    for user in (USER, "nobody-of-that-name"):
        assert not fits_shadow(user, "alice-pw", shadow=str(path))
    assert asked == [stored] * 2


CHECK = """
import sys
from pillarbox.daemon.system.systemusers import fits_pam
from pillarbox.errors import TempFail
from pillarbox.routing import crypt
try:
    print(fits_pam(*sys.argv[1:]))
except TempFail as error:
    print("tempfail", error)
"""


def pam(user: str, password: str, service: str, address: str = "192.0.2.1") -> str:
    """What PAM says, in a process of its own as in the server."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, user, password, service, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_MODULES = ("/lib/x86_64-linux-gnu/security", "/lib/aarch64-linux-gnu/security", "/lib/security", "/usr/lib64/security")


@pytest.fixture
def service(machine: None):
    """Write a PAM service; gives its name. In a sandbox, on top of the machine's own."""
    if not any(Path(folder, "pam_unix.so").exists() for folder in _MODULES):
        pytest.skip("PAM's modules are not installed (Debian: libpam-modules)")
    own = sandbox.own_directory("/etc/pam.d")

    def write(text: str, name: str = "pillarbox-test") -> str:
        (own / name).write_text(text)
        return name

    return write


UNIX = "auth required pam_unix.so\naccount required pam_unix.so\n"


def test_pam_checks_the_password(service):
    name = service(UNIX)
    assert pam("alice", "alice-pw", name) == "True"
    assert pam("alice", "bob-pw", name) == "False"
    assert pam("alice", "", name) == "False"
    assert pam("ghost", "alice-pw", name) == "False"


def test_pam_takes_no_empty_password_whatever_its_service_says(service):
    assert pam("alice", "", service("auth required pam_permit.so\naccount required pam_permit.so\n")) == "False"


def test_pam_refuses_an_account_that_may_not_be_used(service):
    assert pam("alice", "alice-pw", service("auth required pam_permit.so\naccount required pam_deny.so\n")) == "False"


def test_pam_knows_where_the_client_is(service, folder):
    rules = folder / "access.conf"
    rules.write_text("- : ALL : 192.0.2.1\n+ : ALL : ALL\n")
    name = service(f"auth required pam_permit.so\naccount required pam_access.so accessfile={rules}\n")
    assert pam("alice", "alice-pw", name, "192.0.2.1") == "False"
    assert pam("alice", "alice-pw", name, "192.0.2.2") == "True"


def test_a_pam_module_that_is_missing_is_a_temporary_failure(service):
    assert pam("alice", "alice-pw", service("auth required pam_there_is_none.so\n")).startswith("tempfail PAM: service")


def test_an_expired_password_is_refused_by_pam(service):
    text = Path("/etc/shadow").read_text()
    entry = next(line for line in text.splitlines() if line.startswith("alice:"))
    fields = entry.split(":")
    fields[2] = "0"
    try:
        Path("/etc/shadow").write_text(text.replace(entry, ":".join(fields)))
        assert pam("alice", "alice-pw", service(UNIX)) == "False"
    finally:
        Path("/etc/shadow").write_text(text)


def test_without_pam_it_cannot_be_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pamela", None)
    with pytest.raises(TempFail, match="PAM cannot be used"):
        systemusers.fits_pam("alice", "alice-pw", "smtp", "192.0.2.1")
