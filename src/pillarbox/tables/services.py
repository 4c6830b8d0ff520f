"""The services of a table: how a value is read for each use (table(5)).

A table stores strings; what they mean depends on who asks. Pure: the functions raise `TempFail` on a value that
cannot be read, because the reference answers 451 then and somebody will mend the table.
"""

import socket
from enum import StrEnum

from pillarbox.errors import TempFail
from pillarbox.roles.lookup import User
from pillarbox.smtp.sasl.verifier import PREFIX as SCRAM

ID_MAX = 2**32 - 2  # uid_t and gid_t; -1 means "no change" to chown(2) and setuid(2)


class Service(StrEnum):
    """What a table may be asked for, under the names of smtpd-tables(7)."""

    ALIAS = "alias"
    DOMAIN = "domain"
    CREDENTIALS = "credentials"
    NETADDR = "netaddr"
    USERINFO = "userinfo"
    SOURCE = "source"
    MAILADDR = "mailaddr"
    MAILADDRMAP = "mailaddrmap"
    ADDRNAME = "addrname"
    RELAYHOST = "relayhost"
    STRING = "string"
    REGEX = "regex"
    AUTH = "auth"  # programs only: check `user:password`


def parse_userinfo(name: str, value: str) -> User:
    """`uid:gid:home` of the user `name`; the home may be empty and may hold colons. Raises TempFail on all else."""
    fields = value.split(":", 2)
    if len(fields) != 3:
        raise TempFail(f'user "{name}": expected uid:gid:directory, got "{value}"')
    return User(name=name, uid=_parse_id(name, fields[0]), gid=_parse_id(name, fields[1]), home=fields[2])


def _parse_id(name: str, text: str) -> int:
    digits = text.strip(" \t")
    if not (digits.isascii() and digits.isdigit()) or int(digits) > ID_MAX:
        raise TempFail(f'user "{name}": "{text}" is not a numeric id')
    return int(digits)


def parse_credentials(key: str, value: str) -> tuple[str, str]:
    """`user:password`, or a password alone, which then belongs to the key; raises TempFail if there is hardly any."""
    if len(value) < 3:
        raise TempFail(f'credentials of "{key}" are too short')
    user, colon, password = value.partition(":")
    if not colon or value.startswith(SCRAM):  # which has colons of its own
        return key, value
    if not user or not password:
        raise TempFail(f'credentials of "{key}": expected user:password')
    return user, password


def parse_source(value: str) -> str:
    """An address to send from, without brackets; raises TempFail on anything else."""
    address = parse_address(value)
    if address is None:
        raise TempFail(f'"{value}" is not an address to send from')
    return address


def parse_address(text: str) -> str | None:
    """The canonical form of `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]`, `[IPv6:…]`; None where it is none of them."""
    try:
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text))
    except (OSError, ValueError):
        pass
    inner = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    if inner[:5].lower() == "ipv6:":
        inner = inner[5:]
    inner, percent, scope = inner.partition("%")
    try:
        return socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, inner)) + percent + scope
    except (OSError, ValueError):
        return None


def bracketed(address: str) -> str:
    """IPv6 addresses in brackets, as the reference writes them where a table or a regex sees them."""
    return f"[{address}]" if ":" in address and address[:1] != "[" else address


def split_address(address: str) -> tuple[str, str]:
    """User and domain of `user@domain`, `user` or `@domain`, split at the last `@`; either may be empty."""
    user, at, domain = address.rpartition("@")
    return (user, domain) if at else (domain, "")
