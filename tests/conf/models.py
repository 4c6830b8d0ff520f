"""Whole configurations as hypothesis makes them up: everything that a file can say."""

from typing import Any

from hypothesis import strategies as st

from pillarbox.conf.lexer import KEYWORDS
from pillarbox.conf.model import (
    AUTH_SYSTEM,
    BEARER,
    MECHANISMS,
    PROTOCOLS,
    RATES,
    Config,
    Criterion,
    EventReport,
    Filter,
    Listener,
    Local,
    MdaLimits,
    MtaLimits,
    Pki,
    Proc,
    QueueOptions,
    Rate,
    Relay,
    Resolver,
    Rule,
    SchedulerLimits,
    SmtpOptions,
    Srs,
    Table,
    TableKind,
    TlsMode,
)

FILES = {"/list": "a\nb c\n", "/map": "k v\nl: w\n", "/empty": ""}
_FILE_ENTRIES = {"/list": (("a", ""), ("b c", "")), "/map": (("k", "v"), ("l", "w")), "/empty": ()}
INT_MAX = (1 << 31) - 1
LONG_MAX = (1 << 63) - 1

# A string cannot hold NUL or a newline, nor end with a backslash.
words = st.one_of(
    st.sampled_from(
        [
            "",
            "a",
            "x y",
            "25",
            "-1",
            "*",
            "@",
            "$x",
            "#",
            "a\\b",
            'q"',
            '\\"',
            "\\ x",
            "\\\t.",
            "é",
            "{",
            "'",
            "pam",
            "tokens",
        ]
    ),
    st.sampled_from([*sorted(KEYWORDS), "proxy", "greet-delay", "unlimited"]),
    st.text(st.characters(blacklist_characters="\n\0", blacklist_categories=["Cs"]), max_size=12),
).filter(lambda word: not word.endswith("\\"))
names = words.filter(bool)
seconds = st.one_of(st.integers(1, INT_MAX), st.integers(1, 24855).map(lambda days: days * 86400))
counts = st.integers(0, LONG_MAX)
flags = st.booleans()


@st.composite
def structs(draw: st.DrawFn, kind: Any, values: Any, **fields: Any) -> Any:
    """A struct of options, most of them as they are by default."""
    given = {f: values for f in kind.__struct_fields__ if f not in fields} if values is not None else {}
    chosen = draw(st.dictionaries(st.sampled_from(sorted(given)), values, max_size=4)) if given else {}
    return kind(**chosen, **{field: draw(value) for field, value in fields.items()})


def optional(value: Any) -> Any:
    return st.one_of(st.just(""), value)


class Maker:
    """One configuration in the making: `draw` chooses."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.tables = {"<getpwnam>": Table(name="<getpwnam>", kind=TableKind.GETPWNAM)}
        self.filters: dict[str, Filter] = {}
        self.procs: dict[str, Proc] = {}
        for name in self.unique(4):
            self.tables[name] = self.table(name)

    def unique(self, most: int) -> list[str]:
        return self.draw(st.lists(names.filter(lambda n: not n.startswith("<")), unique=True, max_size=most))

    def table(self, name: str) -> Table:
        kind = self.draw(st.sampled_from(TableKind))
        match kind:
            case TableKind.STATIC:
                return self.static(name, self.draw(flags))
            case TableKind.FILE:
                path = self.draw(st.sampled_from(sorted(FILES)))
                entries = _FILE_ENTRIES[path]
                return Table(name=name, kind=kind, config=path, entries=entries, mapping=path != "/list")
            case TableKind.DB:
                return Table(name=name, kind=kind, config="/" + self.draw(words))
            case TableKind.PROC:
                backend = self.draw(names.filter(lambda n: ":" not in n and n[0] != "/" and n not in _BUILT_IN))
                return Table(name=name, kind=kind, backend=backend, config=self.draw(optional(words.map("/{}".format))))
        return Table(name=name, kind=kind)

    def static(self, name: str, mapping: bool) -> Table:
        pairs = st.tuples(words, words if mapping else st.just(""))
        entries = self.draw(st.lists(pairs, min_size=1, max_size=4))
        return Table(name=name, kind=TableKind.STATIC, mapping=mapping, entries=tuple(entries))

    def use(self, mapping: bool | None, *, users: bool = False) -> str:
        """A table that may serve: declared above, or written where it is used."""
        fitting = [
            table.name
            for table in self.tables.values()
            if not table.is_unnamed()
            and (table.kind in (TableKind.DB, TableKind.PROC) or (table.entries and mapping in (None, table.mapping)))
        ]
        if users:
            fitting.append("<getpwnam>")
        if fitting and self.draw(flags):
            return self.draw(st.sampled_from(fitting))
        table = self.static(f"<dynamic:{len(self.tables)}>", self.draw(flags) if mapping is None else mapping)
        self.tables[table.name] = table
        return table.name

    def maybe(self, mapping: bool | None, *, users: bool = False) -> str:
        return self.use(mapping, users=users) if self.draw(flags) else ""

    def criterion(self, kind: str, mapping: bool | None = None, *, bare: bool = False, none: bool = False) -> Criterion:
        negated = self.draw(flags)
        if none or (bare and self.draw(flags)):
            return Criterion(kind=kind, negated=negated)
        regex = self.draw(flags)
        table = self.use(False if regex else mapping)
        return Criterion(kind=kind, table=table, regex=regex, negated=negated)

    def filter_option(self) -> str:
        """No filter, a declared one, or a chain."""
        members = [name for name, declared in self.filters.items() if declared.kind != "chain"]
        how = self.draw(st.sampled_from(["", "name", "chain"]))
        if how == "name" and (known := [n for n, f in self.filters.items() if not f.is_unnamed()]):
            return self.draw(st.sampled_from(known))
        if how == "chain" and members:
            chain = self.draw(st.lists(st.sampled_from(members), min_size=1, unique=True))
            name = f"<dynchain:{len(self.filters):08x}>"
            self.filters[name] = Filter(name=name, kind="chain", chain=tuple(chain))
            return name
        return ""

    def proc(self, name: str) -> Proc:
        return Proc(
            name=name,
            timeout=self.draw(st.integers(1, 600)),
            fail_open=self.draw(st.booleans()),
            protocol=self.draw(st.sampled_from(PROTOCOLS)),
            **{field: self.draw(words) for field in ("command", "user", "group", "chroot")},
        )

    def declare_filters(self) -> None:
        for name in self.unique(3):
            self.procs[name] = self.proc(name)
        for name in {
            **dict.fromkeys(self.unique(5)),
            **dict.fromkeys(self.draw(st.permutations(sorted(self.procs)))[:1]),
        }:
            self.filters[name] = self.filter(name)

    def filter(self, name: str) -> Filter:
        members = [n for n, declared in self.filters.items() if declared.kind != "chain"]
        kind = self.draw(st.sampled_from(["proc", "proc-exec", "chain", "builtin"]))
        if kind == "proc" and self.procs:
            return Filter(name=name, kind=kind, proc=self.draw(st.sampled_from(sorted(self.procs))))
        if kind == "proc-exec":
            self.procs[name] = self.proc(name)
            return Filter(name=name, kind=kind, proc=name)
        if kind == "chain" and members:
            return Filter(
                name=name,
                kind=kind,
                chain=tuple(self.draw(st.lists(st.sampled_from(members), min_size=1, unique=True))),
            )
        return self.builtin(name)

    def builtin(self, name: str) -> Filter:
        phase = self.draw(st.sampled_from(sorted(_PHASES)))
        kind = self.draw(st.sampled_from(_PHASES[phase]))
        decisions = ["reject", "disconnect", "rewrite", "report", *(["junk", "bypass"] if phase != "commit" else [])]
        decision = self.draw(st.sampled_from(decisions))
        condition = self.criterion(kind, bare=kind in ("rdns", "auth"), none=kind == "fcrdns")
        argument = "" if decision in ("junk", "bypass") else self.draw(words)
        return Filter(
            name=name, kind="builtin", phase=phase, conditions=(condition,), decision=decision, argument=argument
        )

    def listeners(self, pki: list[str], ca: list[str]) -> tuple[Listener, ...]:
        socket = self.draw(st.integers(0, 2))
        return tuple(
            self.socket(number) if number == socket else self.listener(number, pki, ca)
            for number in range(self.draw(st.integers(socket + 1, 3)))
        )

    def socket(self, number: int) -> Listener:
        fields = {"tag": self.draw(tags), "mask_src": self.draw(flags), "no_dsn": self.draw(flags)}
        return Listener(id=number, socket=True, filter=self.filter_option(), **fields)

    def listener(self, number: int, pki: list[str], ca: list[str]) -> Listener:
        tls = self.draw(st.sampled_from(TlsMode)) if pki else TlsMode.NONE
        secure = tls is not TlsMode.NONE
        strict = tls in (TlsMode.SMTPS, TlsMode.STARTTLS_REQUIRE)
        auth = self.draw(st.sampled_from(["", AUTH_SYSTEM, "<pam:smtp>", "<pam:mail.x>", "table"])) if secure else ""
        tokens = self.use(True) if auth and self.draw(flags) else ""
        mechanisms = tuple(self.draw(st.lists(st.sampled_from(MECHANISMS[:2]), unique=True))) if auth else ()
        senders = self.maybe(True)
        return Listener(
            id=number,
            interface=self.draw(words),
            family=self.draw(st.sampled_from(["", "inet4", "inet6"])),
            port=self.draw(st.integers(0, 65535)),
            tls=tls,
            tls_verify=strict and self.draw(flags),
            pki=tuple(self.draw(st.lists(st.sampled_from(pki), min_size=1, max_size=3))) if secure else (),
            ca=self.draw(st.sampled_from(["", *ca])),
            auth=self.use(None) if auth == "table" else auth,
            tokens=tokens,
            mechanisms=(*mechanisms, BEARER[0]) if tokens and mechanisms else mechanisms,
            auth_optional=bool(auth) and self.draw(flags),
            hostnames=self.maybe(True),
            senders=senders,
            masquerade=bool(senders) and self.draw(flags),
            filter=self.filter_option(),
            tag=self.draw(tags),
            greet_delay=self.draw(st.integers(0, 60)),
            **self.proxy(),
            **{field: self.draw(words) for field in ("hostname", "ciphers", "protocols")},
            **{field: self.draw(flags) for field in ("mask_src", "no_dsn", "received_auth", "unlimited")},
        )

    def proxy(self) -> dict[str, Any]:
        how = self.draw(st.sampled_from(["", "proxy", "proxy_v2"]))
        return {how: True, "proxy_from": self.maybe(False)} if how else {}

    def action(self, name: str, wrappers: list[str], srs: bool) -> Local | Relay:
        ttl = self.draw(st.one_of(st.just(0), seconds))
        return self.relay(name, ttl, srs) if self.draw(flags) else self.local(name, ttl, wrappers)

    def local(self, name: str, ttl: int, wrappers: list[str]) -> Local:
        method = self.draw(st.sampled_from(["expand-only", "forward-only", "lmtp", "maildir", "mbox", "mda"]))
        expands = self.draw(st.sampled_from(["", "alias", "virtual"]))
        return Local(
            name=name,
            method=method,
            target=self.draw(words) if method in ("lmtp", "maildir", "mda") else "",
            junk=method == "maildir" and self.draw(flags),
            lmtp_rcpt_to=method == "lmtp" and self.draw(flags),
            user=self.draw(words) if method in ("lmtp", "maildir", "mda") else "",
            wrapper=self.draw(st.sampled_from(["", *wrappers])),
            userbase=self.maybe(True, users=True) or "<getpwnam>",
            ttl=ttl,
            **({expands: self.use(True)} if expands else {}),
        )

    def relay(self, name: str, ttl: int, srs: bool) -> Relay:
        way = self.draw(st.sampled_from(["mx", "backup", "host", "hosts", "domain"]))
        hosted = way in ("host", "hosts", "domain")
        return Relay(
            name=name,
            ttl=ttl,
            backup=way == "backup",
            backup_mx=self.draw(words) if way == "backup" else "",
            host=self.draw(names) if way == "host" else "",
            hosts=self.use(False) if way == "hosts" else "",
            domain=self.use(True) if way == "domain" else "",
            auth=self.maybe(True) if hosted else "",
            tls=self.draw(st.sampled_from(["", "require", "no-verify"])),
            helo_src=self.maybe(True),
            src=self.maybe(None),
            srs=srs and self.draw(flags),
            filter=self.filter_option(),
            **{field: self.draw(words) for field in ("helo", "pki", "ca", "protocols", "ciphers", "mail_from")},
        )

    def rule(self, actions: list[str]) -> Rule:
        source = self.draw(st.sampled_from(["any", "local", "socket", "src", "rdns"]))
        dest = self.draw(st.sampled_from(["any", "local", "domain"]))
        return Rule(
            line=0,
            source=self.criterion(source, False, bare=source == "rdns", none=source in ("any", "local", "socket")),
            dest=self.criterion(dest, False, none=dest != "domain"),
            tag=self.criterion("tag", False) if self.draw(flags) else None,
            helo=self.criterion("helo", False) if self.draw(flags) else None,
            tls=self.criterion("tls", none=True) if self.draw(flags) else None,
            auth=self.criterion("auth", bare=True) if self.draw(flags) else None,
            mail_from=self.criterion("mail-from") if self.draw(flags) else None,
            rcpt_to=self.criterion("rcpt-to") if self.draw(flags) else None,
            action=self.draw(st.sampled_from(["", *actions])),
        )


_BUILT_IN = {"static", "file", "db", "getpwnam"}
_CONNECTED = ["fcrdns", "rdns", "src"]
_GREETED = [*_CONNECTED, "helo"]
_SENDING = [*_GREETED, "auth", "mail-from"]
_PHASES = {
    "connect": _CONNECTED,
    "helo": _GREETED,
    "ehlo": _GREETED,
    "auth": [*_GREETED, "auth"],
    "mail-from": _SENDING,
    "rcpt-to": [*_SENDING, "rcpt-to"],
    "data": _SENDING,
    "commit": _SENDING,
}
tags = words.filter(lambda word: len(word.encode()) <= 32)
hosts = st.sampled_from(["*", "mx.example.org", "a", "x_1.example"])
queues = structs(
    QueueOptions,
    None,
    compression=flags,
    encryption=st.sampled_from(["", "stdin", "0123456789abcdef0123456789abcdef", '0123456789abcdef0123456789abc\\"#']),
    encryption_ask=flags,
    ttl=seconds,
)
smtps = structs(
    SmtpOptions,
    None,
    ciphers=words,
    max_message_size=st.one_of(counts, st.integers(1, 1 << 20).map(lambda kilo: kilo << 10)),
    max_mails=counts,
    max_rcpt=counts,
    max_session=counts,
    max_session_per_source=counts,
    max_failed_commands=counts,
    max_failed_logins=counts,
    max_failed_logins_per_source=counts,
    rates=st.lists(
        st.builds(Rate, what=st.sampled_from(RATES), count=st.integers(1, 1 << 40), seconds=st.integers(1, 86400)),
        unique_by=lambda rate: rate.what,
    ).map(tuple),
    tarpit=st.integers(0, 60),
    bare_newline=st.sampled_from(["reject", "normalize"]),
    max_line_length=st.one_of(st.just(0), st.integers(998, 65534)),
    max_data_time=st.integers(1, 86400),
    sub_addr_delim=st.sampled_from(["+", "-", '"', "'", "#", "$", "a", "1"]),
)
mta_limits = structs(MtaLimits, counts, family=st.sampled_from(["", "inet4", "inet6"]))
srs_options = structs(Srs, None, key=words, backup_key=words, ttl=st.integers(1, 24855).map(lambda days: days * 86400))
resolvers = structs(Resolver, None, address=st.sampled_from(["127.0.0.1", "::1"]), port=st.integers(1, 65535))
ascii_words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10).filter(lambda w: w[-1:] != "\\")


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """A whole configuration, as a file could have made it."""
    make = Maker(draw)
    pki = {name: Pki(name=name, cert=draw(names), key=draw(names), dhe=draw(dhe)) for name in draw(st.sets(hosts))}
    ca = {name: draw(words) for name in draw(st.sets(hosts))}
    srs = draw(srs_options)
    wrappers = draw(st.dictionaries(words.filter(bool), words, max_size=2))
    make.declare_filters()
    chosen = draw(st.lists(st.sampled_from(sorted(make.procs)), unique=True)) if make.procs else []
    reports = [(draw(directions), proc) for proc in chosen]
    listeners = make.listeners(sorted(pki), sorted(ca))
    actions = {name: make.action(name, sorted(wrappers), bool(srs.key)) for name in make.unique(3)}
    rules = tuple(make.rule(sorted(actions)) for _ in range(draw(st.integers(1, 4))))
    return Config(
        hostname="mx.example.org",
        file="smtpd.conf",
        admd=draw(ascii_words),
        tables=make.tables,
        pki=pki,
        ca=ca,
        listeners=listeners,
        actions=actions,
        rules=rules,
        procs=make.procs,
        filters=make.filters,
        reports=tuple(EventReport(direction=direction, proc=proc) for direction, proc in reports),
        mda_wrappers=wrappers,
        smtp=draw(smtps),
        queue=draw(queues),
        mta=draw(mta_limits),
        mta_domains=draw(st.dictionaries(words, mta_limits, max_size=2)),
        mta_max_deferred=draw(counts),
        mda=draw(structs(MdaLimits, counts)),
        scheduler=draw(structs(SchedulerLimits, counts)),
        bounce_warn=tuple(draw(st.lists(seconds, min_size=1, max_size=4))),
        srs=srs,
        resolver=draw(st.one_of(st.just(Resolver()), resolvers)),
    )


dhe = st.sampled_from(["none", "auto", "legacy"])
directions = st.sampled_from(["smtp-in", "smtp-out", "mda"])
