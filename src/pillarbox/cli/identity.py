"""Who sends: the local user, their name in words, the addresses made of them."""

import base64
import os
import pwd
import re
import time

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_SPECIALS = re.compile(r'[()<>\[\]:;@\\,"]')  # RFC 5322 §3.2.3; a dot is tolerated in a phrase


def local_user(*, ask_terminal: bool) -> pwd.struct_passwd | None:
    """Who calls: the owner of the terminal where that may be (root after su), else of the process."""
    uid = os.getuid()
    if ask_terminal:
        try:
            entry = pwd.getpwnam(os.getlogin())
            if uid in (0, entry.pw_uid):
                return entry
        except (OSError, KeyError):
            pass
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def full_name(entry: pwd.struct_passwd) -> str:
    """The name out of the password file: up to the first comma, `&` being the login name (passwd(5))."""
    name = entry.pw_name
    return entry.pw_gecos.partition(",")[0].replace("&", name[:1].upper() + name[1:], 1)


def from_field(name: str, address: str) -> str:
    """The body of a From field. What is not plain text in the name is quoted or encoded, never left to be misread."""
    phrase = "".join(c if c >= " " and c != "\x7f" else " " for c in name).strip()
    if not phrase.isascii():
        words = base64.b64encode(phrase.encode("utf-8", "surrogateescape")).decode("ascii")
        phrase = f"=?utf-8?b?{words}?="  # RFC 2047 §2
    elif _SPECIALS.search(phrase) and not (phrase.startswith('"') and phrase.endswith('"')):
        phrase = '"' + phrase.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{phrase} <{address}>" if phrase else f"<{address}>"


def date_field(when: float) -> str:
    """RFC 5322 §3.3, in the local zone with its offset and name."""
    t = time.localtime(when)
    minutes = abs(t.tm_gmtoff) // 60
    zone = f"{'+' if t.tm_gmtoff >= 0 else '-'}{minutes // 60:02}{minutes % 60:02} ({t.tm_zone})"
    clock = f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
    return f"{_DAYS[t.tm_wday]}, {t.tm_mday} {_MONTHS[t.tm_mon - 1]} {t.tm_year} {clock} {zone}"
