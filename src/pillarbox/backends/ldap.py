"""`table-ldap`: a search below one entry for each service, `SERVICE_filter`, and the attributes that make its value."""

import contextlib
import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ldap

from pillarbox.backends.pool import CONNECT_TIMEOUT, DEADLINE, Lost, Pool
from pillarbox.backends.settings import Format, Settings, read_settings
from pillarbox.sdk.table import Service, Table, TableError, Value

MAX_ENTRIES = 1000
# How many attributes make a value.
ATTRIBUTES = {
    Service.ALIAS: 1,
    Service.CREDENTIALS: 2,
    Service.DOMAIN: 1,
    Service.USERINFO: 3,
    Service.MAILADDR: 1,
    Service.MAILADDRMAP: 1,
    Service.NETADDR: 1,
}
KEYS = (
    "url", "username", "password", "basedn", "ca_file", "auth_filter",
    *(f"{service}_{what}" for service in ATTRIBUTES for what in ("filter", "attributes")),
)  # fmt: skip

_SCHEMES = ("ldap", "ldaps", "ldapi", "ldap+tls")
_GONE = (ldap.SERVER_DOWN, ldap.CONNECT_ERROR, ldap.UNAVAILABLE, ldap.BUSY, ldap.TIMEOUT, ldap.TIMELIMIT_EXCEEDED)
_NO_ATTRIBUTES = ["1.1"]  # RFC 4511 §4.5.1.8

Entry = dict[str, list[bytes]]  # keys in lower case


@dataclass(frozen=True, slots=True)
class Search:
    """What is looked for, and which attributes of it are wanted."""

    filter: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Directory:
    """Where the server is and who asks it."""

    url: str
    start_tls: bool
    username: str
    password: str
    basedn: str
    ca_file: str | None


def load(path: str, table: Table) -> "LdapBackend":
    """The backend of a configuration file; filters may name the table. Raises TableError."""
    return LdapBackend(read_settings(path, Format(KEYS, lenient=True)), table)


def parse_directory(settings: Settings) -> Directory:
    """The server of a file. COMPAT: a `url` may be a host alone; what follows the host is ignored."""
    url = settings.required("url")
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "ldap", url
    if scheme.lower() not in _SCHEMES:
        raise TableError(f'{settings.path}: url must begin with one of {", ".join(_SCHEMES)}, not "{scheme}"')
    start_tls = scheme.lower() == "ldap+tls"
    return Directory(
        url=f"{'ldap' if start_tls else scheme.lower()}://{rest.partition('/')[0]}",
        start_tls=start_tls,
        username=settings.get("username") or "",
        password=settings.get("password") or "",
        basedn=settings.get("basedn") or "",
        ca_file=settings.get("ca_file"),
    )


def fill(text: str, key: str, table: str) -> str:
    """A filter with `%u` (or `%s`) replaced by the key and `%h` by the table's name, harmless in it (RFC 4515 §3)."""
    user, name = _escaped(key), _escaped(table)
    values = {"u": user, "s": user, "h": name, "%": "%"}
    return re.sub("%(.)", lambda match: values[match[1]], text)


def _escaped(text: str) -> str:
    """Any bytes as the value in a filter."""
    raw = text.encode(errors="surrogateescape")
    return "".join(f"\\{byte:02x}" if byte in b"\\*()\0" or byte > 126 else chr(byte) for byte in raw)


def parse_searches(settings: Settings) -> dict[Service, Search]:
    """The search of each service that has a filter. Raises TableError."""
    found = {}
    for service, count in ATTRIBUTES.items():
        text = settings.get(f"{service}_filter")
        if text is None:
            continue
        names = tuple(name.strip() for name in settings.required(f"{service}_attributes").split(","))
        if len(names) != count or not all(names):
            raise TableError(f"{settings.path}: {service}_attributes must name {count}")
        found[service] = Search(_checked(settings, service, text), names)
    if text := settings.get("auth_filter"):
        found[Service.AUTH] = Search(_checked(settings, Service.AUTH, text))
    if not found:
        raise TableError(f"{settings.path}: there is no …_filter in it")
    return found


def _checked(settings: Settings, service: Service, text: str) -> str:
    if unknown := re.search("%(?![ush])", text.replace("%%", "")):
        raise TableError(f'{settings.path}: {service}_filter: "{text[unknown.start() :][:2]}" is not %u, %h or %%')
    return text


class LdapBackend:
    """The searches of one file."""

    fetches: Sequence[Service] = ()

    def __init__(self, settings: Settings, table: Table) -> None:
        directory = parse_directory(settings)
        self._table = table
        self._searches = parse_searches(settings)
        self._pool: Pool[Ldap] = Pool(partial(Ldap, directory))
        self.lookups = [service for service in self._searches if service is not Service.AUTH]
        self.checks = list(self._searches)

    async def lookup(self, service: Service, key: str) -> Value:
        """The value that the attributes of what was found make."""
        search = self._searches[service]
        text = fill(search.filter, key, self._table.name)
        entries = await self._pool.run(lambda connection: connection.search(text, search.attributes))
        return value(service, search.attributes, entries)

    async def check(self, service: Service, key: str) -> bool:
        """Whether anything is found; for `auth`, whether the directory lets that user in with that password."""
        user, _, password = key.partition(":") if service is Service.AUTH else (key, "", "")
        text = fill(self._searches[service].filter, user, self._table.name)
        if service is Service.AUTH:
            return await self._pool.run(lambda connection: connection.authenticate(text, password))
        return await self._pool.run(lambda connection: connection.exists(text))

    async def fetch(self, service: Service) -> Value:
        """There is nothing to fetch from a directory."""
        raise TableError(f"{service} cannot be fetched")

    async def probe(self) -> None:
        """Whether the directory lets us in."""
        await self._pool.run(lambda connection: connection.exists("(objectClass=*)"))

    def close(self) -> None:
        """Give up the connections."""
        self._pool.close()


def value(service: Service, names: Sequence[str], entries: Sequence[Entry]) -> Value:
    """All values of all entries for a list of addresses; else the first values of the last entry that has them all."""
    if service in (Service.ALIAS, Service.MAILADDRMAP):
        return [text for entry in entries for text in _texts(entry, names[0])]
    complete = [[_texts(entry, name)[0] for name in names] for entry in entries if all(_texts(entry, n) for n in names)]
    return complete[-1] if complete else None


def _texts(entry: Entry, name: str) -> list[str]:
    return [text.decode(errors="surrogateescape") for text in entry.get(name.lower(), [])]


class Ldap:
    """A connection, bound as the file says."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        try:
            self._server = _open(directory)
            self._server.simple_bind_s(directory.username, directory.password)
        except ldap.LDAPError as error:
            raise Lost(f"LDAP: {directory.url}: {_reason(error)}") from None

    def search(self, text: str, attributes: Sequence[str]) -> list[Entry]:
        """Every entry that matches, with these attributes. Raises Lost, TableError."""
        return [entry for _, entry in self._find(text, list(attributes), MAX_ENTRIES)]

    def exists(self, text: str) -> bool:
        """Whether any entry matches. Raises Lost, TableError."""
        return bool(self._find(text, _NO_ATTRIBUTES, 1))

    def authenticate(self, text: str, password: str) -> bool:
        """Whether the one entry that matches can bind with this password. Raises Lost, TableError."""
        found = self._find(text, _NO_ATTRIBUTES, 2)
        if len(found) > 1:
            raise TableError("auth_filter matches more than one entry")
        if not found or not password:  # RFC 4513 §5.1.2: a bind without a password succeeds and proves nothing
            return False
        try:
            user = _open(self._directory)
            user.simple_bind_s(found[0][0], password)
            user.unbind_s()
        except (ldap.INVALID_CREDENTIALS, ldap.INAPPROPRIATE_AUTH):
            return False
        except ldap.LDAPError as error:
            raise TableError(f"LDAP: {_reason(error)}") from None
        return True

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(ldap.LDAPError):
            self._server.unbind_s()

    def abort(self) -> None:
        """Nothing to do: every operation ends by its own deadline."""

    def _find(self, text: str, attributes: list[str], most: int) -> list[tuple[str, Entry]]:
        """Up to `most` entries with their names; more than MAX_ENTRIES are an error."""
        found: list[tuple[str, Entry]] = []
        try:
            request = self._server.search_ext(self._directory.basedn, ldap.SCOPE_SUBTREE, text, attributes)
            kind = None
            while kind != ldap.RES_SEARCH_RESULT:
                kind, entries = self._server.result(request, all=0, timeout=DEADLINE)[:2]
                found += [(name, _lowered(entry)) for name, entry in entries if name is not None]  # None: a referral
                if len(found) >= most and kind != ldap.RES_SEARCH_RESULT:
                    self._server.abandon(request)
                    break
        except ldap.NO_SUCH_OBJECT:
            raise TableError(f'LDAP: there is no basedn "{self._directory.basedn}"') from None
        except ldap.LDAPError as error:
            raise (Lost if isinstance(error, _GONE) else TableError)(f"LDAP: {_reason(error)}") from None
        if len(found) >= MAX_ENTRIES:
            raise TableError(f"LDAP: {MAX_ENTRIES} entries or more match {text}")
        return found


def _open(directory: Directory) -> Any:
    """A connection on which nobody is bound yet; libldap connects with the first operation."""
    server = ldap.initialize(directory.url)
    server.protocol_version = ldap.VERSION3
    server.set_option(ldap.OPT_REFERRALS, 0)
    server.set_option(ldap.OPT_NETWORK_TIMEOUT, CONNECT_TIMEOUT)
    server.set_option(ldap.OPT_TIMEOUT, DEADLINE)
    if directory.ca_file:
        server.set_option(ldap.OPT_X_TLS_CACERTFILE, directory.ca_file)
        try:
            server.set_option(ldap.OPT_X_TLS_NEWCTX, 0)
        except ValueError:  # libldap does not say what it did not like
            raise Lost(f"LDAP: the ca_file {directory.ca_file} cannot be used") from None
    if directory.start_tls:
        server.start_tls_s()
    return server


def _lowered(entry: dict[str, list[bytes]]) -> Entry:
    return {name.lower(): values for name, values in entry.items()}


def _reason(error: Exception) -> str:
    """What libldap and the server say, without python-ldap's dictionary around it."""
    details = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    # EAGAIN is what happened to be in errno when libldap refused something by itself.
    keys = ("desc",) if details.get("errno") == errno.EAGAIN else ("desc", "info")
    return ": ".join(str(details[key]) for key in keys if details.get(key)) or str(error)
