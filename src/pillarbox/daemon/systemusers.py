"""Passwords of system users: by PAM, or by what shadow(5) has. Both block; `system` calls them in a child.

The right password of an account that is locked or has expired does not fit, nor one that has expired itself: the mail
server is no way around what the machine refuses.
"""

import ctypes
import hmac
import pwd
import time

from pillarbox.errors import TempFail

# Linux-PAM's open_err, symbol_err, service_err, system_err, buf_err, authinfo_unavail, abort, module_unknown.
_CANNOT_TELL = (1, 2, 3, 4, 5, 9, 26, 28)
_PAM_FLAGS = 0x8000 | 0x0001  # PAM_SILENT, PAM_DISALLOW_NULL_AUTHTOK
_NEVER = ("", "-1")


def fits_shadow(user: str, password: str, *, shadow: str = "/etc/shadow") -> bool:
    """Compare with the shadow entry; a locked, expired or passwordless account never fits."""
    stored = _stored(user, shadow)
    usable = len(stored) > 1 and stored[0] not in "!*"
    library = ctypes.CDLL("libcrypt.so.1")
    library.crypt.restype = ctypes.c_char_p
    # Unknown users cost the same work as known ones.
    salt = stored if usable else "$6$unknownuser$"
    secret, setting = (x.encode("utf-8", "surrogateescape") for x in (password, salt))
    if b"\0" in secret:
        return False
    hashed = library.crypt(secret, setting)
    return usable and hashed is not None and hmac.compare_digest(hashed, setting)


def _stored(user: str, shadow: str) -> str:
    """The hash that a password must fit, "" where none may."""
    try:
        stored = pwd.getpwnam(user).pw_passwd
    except KeyError:
        return ""
    try:
        with open(shadow, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.rstrip("\n").split(":")
                if fields[0] == user and len(fields) >= 8:
                    return "" if _expired(fields, int(time.time() // 86400)) else fields[1]
    except OSError:
        pass
    return stored


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
