"""The configuration as values. Immutable and numbered; every default of the server is in this file.

Made by `conf/build`; read by every role. A table is always referred to by *name*: a literal or an inline list in
the file becomes a table of its own (`<dynamic:1>`, …) in `Config.tables`. Sizes are bytes, times are seconds.
"""

from enum import StrEnum

import msgspec

UNNAMED_TABLE = "<dynamic:"  # how the names begin that tables and chains get which have none
UNNAMED_CHAIN = "<dynchain:"


class TableKind(StrEnum):
    """Where a table's content comes from."""

    STATIC = "static"  # written in smtpd.conf
    FILE = "file"
    DB = "db"
    GETPWNAM = "getpwnam"
    PROC = "proc"  # an external program, smtpd-tables(7)


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A named table. `entries` are (key, value) pairs, value "" in a list; filled for STATIC and, when loaded, FILE."""

    name: str
    kind: TableKind
    config: str = ""  # path for FILE and DB; the command's configuration for PROC
    backend: str = ""  # for PROC: the word before the colon
    mapping: bool = False  # key → value rather than a list
    entries: tuple[tuple[str, str], ...] = ()

    def is_unnamed(self) -> bool:
        """Whether it was written where it is used."""
        return self.kind is TableKind.STATIC and self.name.startswith(UNNAMED_TABLE)


class Pki(msgspec.Struct, frozen=True, kw_only=True):
    """`pki NAME cert|key|dhe`. Paths; `name` "*" is the default for SNI."""

    name: str
    cert: str = ""
    key: str = ""
    dhe: str = "none"  # none, legacy, auto


class TlsMode(StrEnum):
    """What a listener or relay does about TLS."""

    NONE = "none"
    STARTTLS = "starttls"  # listener: tls
    STARTTLS_REQUIRE = "starttls-require"  # listener: tls-require
    SMTPS = "smtps"


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """One `listen on`. `interface` is as written (name, group, address, host); the parent resolves it to sockets.

    `port` 0: the default (25, or 465 with smtps).
    """

    id: int
    line: int = 0
    socket: bool = False  # `listen on socket`: the control socket's submissions
    interface: str = ""
    family: str = ""  # "", "inet4", "inet6"
    port: int = 0
    hostname: str = ""
    hostnames: str = ""  # table: local address → name
    tag: str = ""
    tls: TlsMode = TlsMode.NONE
    tls_verify: bool = False
    pki: tuple[str, ...] = ()
    ca: str = ""
    ciphers: str = ""
    protocols: str = ""
    auth: str = ""  # "": none; "<anonymous>": system users; "<pam:SERVICE>": they, by PAM; else a credentials table
    auth_optional: bool = False
    mechanisms: tuple[str, ...] = ()  # of AUTH, (): those that every user of the table can do
    tokens: str = ""  # table user → hashes of bearer tokens
    senders: str = ""  # table user → addresses
    masquerade: bool = False
    mask_src: bool = False
    no_dsn: bool = False
    received_auth: bool = False
    proxy_v2: bool = False
    proxy: bool = False  # ours: PROXY headers of version 1, too
    proxy_from: str = ""  # table of addresses that may send one, "": anybody
    greet_delay: int = 0  # seconds in which a client must not speak
    unlimited: bool = False  # limits of sessions and rates are not for its clients
    filter: str = ""


AUTH_SYSTEM = "<anonymous>"
PAM_SERVICE = "smtp"  # unless `auth pam NAME` says otherwise
MECHANISMS = ("PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "XOAUTH2", "OAUTHBEARER")
BEARER = ("XOAUTH2", "OAUTHBEARER")  # those that want tokens


def pam_service(auth: str) -> str:
    """The PAM service of a listener's `auth`, "" where it is none."""
    return auth.removeprefix("<pam:").removesuffix(">") if auth.startswith("<pam:") else ""


class Criterion(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of a match. `kind` says which; `table` "" where it needs none; `regex`: the table holds regexes."""

    kind: str
    table: str = ""
    regex: bool = False
    negated: bool = False


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One `match`. `source` kinds: any local socket src rdns; `dest` kinds: any local domain rcpt-to.

    `action` "" means reject. An absent criterion is None. `auth` with table "": any authenticated user.
    """

    line: int
    file: str = ""
    source: Criterion = Criterion(kind="local")
    dest: Criterion = Criterion(kind="local")
    tag: Criterion | None = None
    helo: Criterion | None = None
    tls: Criterion | None = None
    auth: Criterion | None = None
    mail_from: Criterion | None = None
    rcpt_to: Criterion | None = None
    action: str = ""


class Local(msgspec.Struct, frozen=True, kw_only=True, tag="local"):
    """An action that delivers here.

    `method`: expand-only forward-only lmtp maildir mbox mda. `target`: the maildir path pattern ("" = ~/Maildir),
    the mda command, the LMTP destination (`host:port`, `host`, or a socket's path).
    """

    name: str
    method: str
    line: int = 0
    file: str = ""
    target: str = ""
    junk: bool = False  # maildir junk
    lmtp_rcpt_to: bool = False  # lmtp … rcpt-to
    alias: str = ""
    virtual: str = ""
    userbase: str = "<getpwnam>"
    user: str = ""
    ttl: int = 0
    wrapper: str = ""


class Relay(msgspec.Struct, frozen=True, kw_only=True, tag="relay"):
    """An action that sends on. `host`: a relay URL or "" for MX; `domain`: a table domain → relay URL.

    `hosts`: instead of `host`, a table whose entries are relay URLs, to be used in turn.

    `tls`: "" (as the URL says), "require" (`tls`), "no-verify" (`tls no-verify`). `backup`: act as a secondary MX,
    `backup_mx` the name to look for ("" = ours).
    """

    name: str
    line: int = 0
    file: str = ""
    ttl: int = 0
    host: str = ""
    hosts: str = ""
    domain: str = ""
    backup: bool = False
    backup_mx: str = ""
    helo: str = ""
    helo_src: str = ""  # table: source address → name
    pki: str = ""
    ca: str = ""
    tls: str = ""
    protocols: str = ""
    ciphers: str = ""
    auth: str = ""  # table label → user:password
    mail_from: str = ""
    src: str = ""  # table of source addresses
    srs: bool = False
    filter: str = ""


PROTOCOLS = ("0.4", "0.5", "0.6", "0.7")  # versions of smtpd-filters(7)


class Proc(msgspec.Struct, frozen=True, kw_only=True):
    """`proc NAME "command"` and the process of a `proc-exec` filter.

    Ours are `timeout` (seconds for an answer), `fail_open` (sessions go on without it), and `protocol`.
    """

    name: str
    command: str
    user: str = ""
    group: str = ""
    chroot: str = ""
    timeout: int = 60
    fail_open: bool = False
    protocol: str = PROTOCOLS[-1]  # the version that it speaks
    line: int = 0
    file: str = ""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """A filter by name. `kind`: proc, proc-exec, chain, builtin. A builtin has phase, conditions and a decision."""

    name: str
    kind: str
    proc: str = ""
    chain: tuple[str, ...] = ()
    phase: str = ""
    conditions: tuple[Criterion, ...] = ()
    decision: str = ""
    argument: str = ""

    def is_unnamed(self) -> bool:
        """Whether it is a chain that was written where it is used."""
        return self.kind == "chain" and self.name.startswith(UNNAMED_CHAIN)


class EventReport(msgspec.Struct, frozen=True, kw_only=True):
    """`report smtp-in|smtp-out|mda on PROC` (ours): the events of these sessions, or deliveries, go to a processor."""

    direction: str  # smtp-in, smtp-out, mda
    proc: str
    line: int = 0


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """`smtp rate WHAT COUNT TIME` (ours): so many at once, and then so many in that time, evenly."""

    what: str
    count: int
    seconds: int


RATES = (
    "session-per-source",
    "mails-per-source",
    "mails-per-user",
    "rcpt-per-source",
    "rcpt-per-user",
    "failed-commands-per-source",
    "failed-commands-per-user",
)


class SmtpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`smtp …`. Of limits that are ours 0 means none."""

    ciphers: str = ""
    max_message_size: int = 36700160
    max_mails: int = 100
    max_rcpt: int = 1000
    max_session: int = 0
    max_session_per_source: int = 0
    max_failed_commands: int = 100  # of a session; refused recipients are not counted
    rates: tuple[Rate, ...] = ()
    tarpit: int = 0  # seconds by which refusals are late
    bare_newline: str = "reject"  # or "normalize"
    max_line_length: int = 0  # of a message, without CRLF; 0: as the reference
    max_data_time: int = 6 * 3600  # seconds for a whole message, however it makes progress
    max_failed_logins: int = 10  # a session, which ends with the last
    max_failed_logins_per_source: int = 30  # at once; one is forgotten each minute
    sub_addr_delim: str = "+"

    @property
    def limits_sessions(self) -> bool:
        """Whether the whole server counts them."""
        return bool(self.max_session or self.max_session_per_source) or self.has_rate("session")

    def has_rate(self, what: str) -> bool:
        """Whether there is a rate of `mails`, `rcpt`, …, per source or per user."""
        return any(rate.what.startswith(f"{what}-per-") for rate in self.rates)


class QueueOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`queue …`. `encryption`: the key, or "stdin" to read it there; `encryption_ask`: at the terminal."""

    compression: bool = False
    encryption: str = ""
    encryption_ask: bool = False
    ttl: int = 4 * 86400


class MtaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`mta limit …`, for all domains or for one. Delays and lifetimes in seconds."""

    family: str = ""  # "", "inet4", "inet6"
    max_conn_per_host: int = 10
    max_conn_per_route: int = 5
    max_conn_per_source: int = 100
    max_conn_per_connector: int = 20
    max_conn_per_relay: int = 100
    max_conn_per_domain: int = 100
    conn_delay_host: int = 0
    conn_delay_route: int = 5
    conn_delay_source: int = 0
    conn_delay_connector: int = 0
    conn_delay_relay: int = 2
    conn_delay_domain: int = 0
    reconn_delay_route: int = 3
    session_mail_max: int = 100
    session_transaction_delay: int = 0
    session_keepalive: int = 10
    max_failures_per_session: int = 25
    task_hiwat: int = 50
    task_lowat: int = 30
    task_release: int = 10


class MdaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`mda limit …`."""

    max_session: int = 50
    max_session_per_user: int = 7
    task_hiwat: int = 50
    task_lowat: int = 30
    task_release: int = 10


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`scheduler limit …`."""

    max_inflight: int = 5000
    max_schedule: int = 10
    max_evp_batch_size: int = 256
    max_msg_batch_size: int = 1024


class Srs(msgspec.Struct, frozen=True, kw_only=True):
    """`srs key SECRET [backup SECRET]`, `srs ttl`."""

    key: str = ""
    backup_key: str = ""
    ttl: int = 4 * 86400


class Resolver(msgspec.Struct, frozen=True, kw_only=True):
    """`dns resolver ADDRESS [port N]` (ours): "" = what resolv.conf names."""

    address: str = ""
    port: int = 53


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """One whole configuration. `generation` numbers those that a running server has used."""

    hostname: str
    file: str = ""
    generation: int = 0
    admd: str = ""
    tables: dict[str, Table] = {}
    pki: dict[str, Pki] = {}
    ca: dict[str, str] = {}
    listeners: tuple[Listener, ...] = ()
    actions: dict[str, Local | Relay] = {}
    rules: tuple[Rule, ...] = ()
    procs: dict[str, Proc] = {}
    filters: dict[str, Filter] = {}
    reports: tuple[EventReport, ...] = ()
    mda_wrappers: dict[str, str] = {}
    smtp: SmtpOptions = SmtpOptions()
    queue: QueueOptions = QueueOptions()
    mta: MtaLimits = MtaLimits()
    mta_domains: dict[str, MtaLimits] = {}
    mta_max_deferred: int = 100
    mda: MdaLimits = MdaLimits()
    scheduler: SchedulerLimits = SchedulerLimits()
    bounce_warn: tuple[int, ...] = (4 * 3600,)
    srs: Srs = Srs()
    resolver: Resolver = Resolver()
    warnings: tuple[str, ...] = ()  # what is legal but hardly meant, to be said when it is loaded
