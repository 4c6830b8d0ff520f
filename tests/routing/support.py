"""Configurations by hand, and the smallest implementations of what lookup asks others for."""

import asyncio
import io

from pillarbox.conf.model import Config, Criterion, Local, Relay, Rule, SmtpOptions, Srs, Table, TableKind
from pillarbox.daemon.assembly.plans import Plans
from pillarbox.errors import PermFail, TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import decode_envelope
from pillarbox.roles.lookup import Client, Login, Recipient, ReverseName
from pillarbox.roles.parent import TableFile
from pillarbox.routing.lookup import Lookup

NOW = 1_700_000_000.0
KEY = b"k" * 32
LOCAL = Local(name="local", method="maildir", userbase="users")
RELAY = Relay(name="relay")
USERS = tuple((name, f"6001:6002:/home/{name}") for name in ("alice", "bob", "carol", "dave"))


def table(name, *entries, kind=TableKind.STATIC):
    """A table of keys, or of (key, value)."""
    pairs = tuple(e if isinstance(e, tuple) else (e, "") for e in entries)
    return Table(name=name, kind=kind, mapping=any(v for _, v in pairs), entries=pairs)


def login(table, user, address="192.0.2.1"):
    """Who wants to log in."""
    return Login(generation=0, table=table, user=user, address=address)


def match(action, *, source=None, dest=None, **criteria):
    """A rule; `from any for any` unless told otherwise. A criterion may be a table's name, perhaps after `!`."""
    return Rule(
        line=1,
        action=action,
        source=source or Criterion(kind="any"),
        dest=dest or Criterion(kind="any"),
        **{n: v if isinstance(v, Criterion) else criterion(n, v) for n, v in criteria.items()},
    )


def criterion(kind, text, *, regex=False):
    return Criterion(kind=kind, table=text.removeprefix("!"), negated=text.startswith("!"), regex=regex)


def configuration(*, rules=None, actions=(LOCAL, RELAY), tables=(), delimiter="+", srs=None, generation=0):
    """By default: example.org is delivered locally, example.net is relayed."""
    tables = (table("users", *USERS), table("ours", "example.org"), table("theirs", "example.net"), *tables)
    if rules is None:
        rules = (
            match("local", dest=criterion("domain", "ours")),
            match("relay", dest=criterion("domain", "theirs")),
        )
    return Config(
        hostname="mx.example.org",
        generation=generation,
        tables={t.name: t for t in tables},
        actions={a.name: a for a in actions},
        rules=tuple(rules),
        smtp=SmtpOptions(sub_addr_delim=delimiter),
        srs=srs or Srs(),
    )


class Parent:
    """`roles.parent.System`: files by path, tables by name."""

    def __init__(self, forwards=None, tables=None, passwords=None):
        self.forwards = forwards or {}
        self.tables = tables or {}
        self.paths = {}
        self.passwords = passwords or {}
        self.asked = []

    async def read_forward(self, user, uid, gid, home):
        self.asked.append((user, uid, gid, home))
        found = self.forwards.get(user)
        if isinstance(found, Exception):
            raise found
        return found

    async def check_password(self, user, password, service, address):
        return self.passwords.get((service, user) if service else user) == password

    async def login_secret(self):
        return b"secret" * 5

    async def read_table(self, name):
        if name not in self.tables:
            raise PermFail("no such file")
        return TableFile(self.paths.get(name, ""), self.tables[name])

    async def read_database(self, path, offset):
        raise TempFail(f"{path}: not there for the parent either")

    async def stop(self):
        raise AssertionError("lookup stops nobody")

    async def log_level(self, verbose):
        raise AssertionError("lookup is told, it does not tell")


class Names:
    """The resolver."""

    async def exchangers(self, domain, mx, family):
        return [(domain, mx, family)]

    async def reverse_name(self, address):
        return f"name-of-{address}"

    async def client_name(self, address):
        return ReverseName(name=f"name-of-{address}", fcrdns="pass")


def make_lookup(config=None, *, parent=None, stream=None, now=lambda: NOW):
    return Lookup(
        config=config or configuration(),
        system=parent or Parent(),
        resolver=Names(),
        seal_key=KEY,
        log=Log(stream if stream is not None else io.StringIO()),
        now=now,
        local_addresses=lambda: frozenset({"127.0.0.1", "::1", "192.0.2.25"}),
        libexec="/libexec",
        plans=Plans(libexec="/libexec", now=now),
    )


def client(**fields):
    defaults = {"listener": 0, "smtpname": "mail.example.org", "address": "198.51.100.7", "local": False}
    return Client(**{**defaults, **fields})


def recipient(rcpt, *, sender="s@client.example", generation=0, msgid=7, **fields):
    return Recipient(generation=generation, client=client(**fields), msgid=msgid, sender=sender, rcpt=rcpt)


def expand(lookup, rcpt, **fields):
    """(code and text) of a refusal, or the envelopes."""
    answer = asyncio.run(lookup.expand(recipient(rcpt, **fields)))
    if answer.code != 250:
        return f"{answer.code} {answer.text}"
    return [decode_envelope(sealed.data) for sealed in answer.envelopes]
