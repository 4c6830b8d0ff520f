"""Passwords of system users: by PAM, or by what shadow(5) has. Both block; `system` calls them in a child.

The right password of an account that is locked or has expired does not fit, nor one that has expired itself: the mail
server is no way around what the machine refuses.
"""

import hashlib
import hmac
import pwd
import time

from pillarbox.errors import TempFail
from pillarbox.routing import crypt
from pillarbox.tables.passwd import system_user

# Linux-PAM's open_err, symbol_err, service_err, system_err, buf_err, authinfo_unavail, abort, module_unknown.
_CANNOT_TELL = (1, 2, 3, 4, 5, 9, 26, 28)
_PAM_FLAGS = 0x8000 | 0x0001  # PAM_SILENT, PAM_DISALLOW_NULL_AUTHTOK
_NEVER = ("", "-1")
_FIELDS = 8  # of an entry in shadow(5), at least
_HASH_MIN = 13  # characters: that of DES
_NOBODY = "$6$unknownuser$"


def fits_shadow(user: str, password: str, *, shadow: str = "/etc/shadow") -> bool:
    """Compare with the shadow entry; a locked, expired or passwordless account never fits.

    Where there is nothing to compare with, it takes the time of some other user. TempFail where it cannot be told.
    """
    secret = password.encode("utf-8", "surrogateescape")
    if b"\0" in secret:
        return False
    entries = _entries(shadow)
    stored = _stored(user, entries)
    setting = (stored or _decoy(user, entries)).encode("utf-8", "surrogateescape")
    library = crypt.load()
    if library is None:
        raise TempFail("this system has no libcrypt")
    hashed = library.hash(secret, setting)
    return bool(stored) and hashed is not None and hmac.compare_digest(hashed, setting)


def _entries(shadow: str) -> dict[str, list[str]]:
    """The fields of each entry by user; none where the system keeps no such file."""
    try:
        with open(shadow, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":") for line in file]
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TempFail(f"{shadow}: {error.strerror}") from None
    return {fields[0]: fields for fields in reversed(lines) if len(fields) >= _FIELDS}  # of two the first counts


def _stored(user: str, entries: dict[str, list[str]]) -> str:
    """The hash that a password must fit, "" where none may."""
    if system_user(user) is None:
        return ""
    fields = entries.get(user)
    if fields is not None:
        usable = _usable(fields[1]) and not _expired(fields, int(time.time() // 86400))
        return fields[1] if usable else ""
    try:
        stored = pwd.getpwnam(user).pw_passwd
    except KeyError:
        raise TempFail(f'user "{user}": no longer there') from None
    if stored == "x":
        raise TempFail(f'user "{user}": the password is in shadow(5), which has no such entry')
    return stored if _usable(stored) else ""


def _usable(stored: str) -> bool:
    return len(stored) >= _HASH_MIN and stored[0] not in "!*"


def _decoy(user: str, entries: dict[str, list[str]]) -> str:
    """The hash of another user, always the same one: what comparing takes differs from method to method."""
    usable = sorted(fields[1] for fields in entries.values() if _usable(fields[1]))
    point = hashlib.sha256(user.encode("utf-8", "surrogateescape")).digest()
    return usable[int.from_bytes(point[:8]) * len(usable) >> 64] if usable else _NOBODY


def _expired(fields: list[str], today: int) -> bool:
    """The account, or its password (shadow(5): days since 1970; a number that is none counts as expired)."""
    try:
        changed, most, account = (None if fields[n] in _NEVER else int(fields[n]) for n in (2, 4, 7))
    except ValueError:
        return True
    if account is not None and today >= account:
        return True
    return changed == 0 or (changed is not None and most is not None and today > changed + most)


def fits_pam(user: str, password: str, service: str, address: str) -> bool:
    """Ask PAM, for the password and then for the account. `address`: the client's, PAM's PAM_RHOST.

    TempFail where PAM cannot be asked.
    """
    try:
        import pamela  # noqa: PLC0415 - looks for libpam when it is imported
    except (ImportError, OSError, AttributeError) as error:
        raise TempFail(f"PAM cannot be used: {error}") from None
    name, secret = (x.encode("utf-8", "surrogateescape") for x in (user, password))
    if not (name and secret) or b"\0" in name + secret:
        return False
    conversation = pamela.new_simple_password_conv((secret,), "utf-8")  # libpam calls it: to be kept until the end
    try:
        handle = pamela.pam_start(service, name, conversation)
        handle.set_item(pamela.PAM_RHOST, address)
    except pamela.PAMError as error:
        raise TempFail(f"PAM: service {service}: {error.message}") from None
    status = pamela.PAM_AUTHENTICATE(handle, _PAM_FLAGS)
    if status == pamela.PAM_SUCCESS:
        status = pamela.PAM_ACCT_MGMT(handle, _PAM_FLAGS)
    pamela.PAM_END(handle, status)
    if status in _CANNOT_TELL:
        raise TempFail(f"PAM: service {service}: {pamela.pam_strerror(handle, status)}")
    return bool(status == pamela.PAM_SUCCESS)
