"""`Config` → smtpd.conf: the canonical form, which parses to the same configuration.

One way of writing each thing: statements in a fixed order, options in the manual's, defaults left out where a statement
only changes settings and written out where they decide about mail (`from`, `for`). A table that was written where it is
used is written there again. Macros, includes and comments are gone: they are not part of the model.

"The same configuration" is what `uses.normal` says: places in files and the numbers of unnamed tables do not count.
"""

from collections.abc import Iterator

import msgspec

from pillarbox.conf.lexer import word_of
from pillarbox.conf.model import (
    AUTH_SYSTEM,
    Config,
    Criterion,
    Filter,
    Listener,
    Local,
    MdaLimits,
    MtaLimits,
    Proc,
    QueueOptions,
    Relay,
    Resolver,
    Rule,
    SchedulerLimits,
    SmtpOptions,
    Srs,
    Table,
    TableKind,
    TlsMode,
    pam_service,
)
from pillarbox.conf.tables import BUILTIN, MAX_KEY
from pillarbox.conf.uses import used_tables

_WIDTH = 100  # characters of a list on one line
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/@+-")
_TIMES = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
_SIZES = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))
_NO_LIMITS = ("max_message_size", "max_line_length", "max_data_time")  # statements of their own
_TLS = {
    TlsMode.NONE: "",
    TlsMode.STARTTLS: "tls",
    TlsMode.STARTTLS_REQUIRE: "tls-require",
    TlsMode.SMTPS: "smtps",
}


class CannotWrite(ValueError):
    """A string that the language cannot write: with a newline or NUL, or very long, or with a backslash at its end."""


def format_config(config: Config) -> str:
    """The whole configuration. Raises CannotWrite, which nothing that was parsed does."""
    sections = (
        _certificates(config),
        _settings(config),
        _tables(config),
        _filters(config),
        (format_listener(config, listener) for listener in config.listeners),
        (format_action(config, action) for action in config.actions.values()),
        (format_rule(config, rule) for rule in config.rules),
    )
    written = ("\n".join(lines) for lines in sections)
    return "\n\n".join(section for section in written if section) + "\n"


def quote(text: str) -> str:
    """A word as it is written: bare where that is the same word, else in quotes. Raises CannotWrite."""
    if text and _BARE.issuperset(text) and text[0] not in "/@+-." and word_of(text) == text:
        return text
    return quoted(text)


def quoted(text: str) -> str:
    """A word in quotes. Raises CannotWrite."""
    escaped = text.replace('"', '\\"').replace("\\ ", "\\\\ ").replace("\\\t", "\\\\\t")
    # A backslash at the end would take the quote with it; a bare word may end with one.
    for written in (f'"{escaped}"', text.replace("\\", "\\\\")):
        if word_of(written) == text:
            return written
    raise CannotWrite(f"no word of smtpd.conf can be {text[:60]!r}")


def format_time(seconds: int) -> str:
    """`4d`, `90s`: in the largest unit that keeps it whole."""
    return next(f"{seconds // unit}{letter}" for unit, letter in _TIMES if seconds % unit == 0)


def format_size(size: int) -> str:
    """`35M`, `1000`: likewise."""
    return next((f"{size // unit}{letter}" for unit, letter in _SIZES if size and size % unit == 0), str(size))


def format_listener(config: Config, listener: Listener) -> str:
    """`listen on …`."""
    words = ["listen on", "socket" if listener.socket else quote(listener.interface), listener.family]
    if listener.port:
        words.append(f"port {listener.port}")
    words += [_TLS[listener.tls], "verify" if listener.tls_verify else ""]
    words += [f"pki {quote(name)}" for name in listener.pki]
    words += _named(listener, "ca", "ciphers", "protocols")
    if listener.auth:
        words += ["auth-optional" if listener.auth_optional else "auth", _users(config, listener.auth)]
    if listener.mechanisms:
        words.append(f"mechanisms {{ {', '.join(map(quote, listener.mechanisms))} }}")
    words += _looked_up(config, listener, "tokens")
    words += _named(listener, "hostname")
    words += _looked_up(config, listener, "hostnames", "senders")
    words += _flags(listener, "masquerade", "mask_src", "no_dsn", "received_auth")
    words += _ours(config, listener)
    words += [_filter_option(config, listener.filter), *_named(listener, "tag")]
    return " ".join(filter(None, words))


def _users(config: Config, auth: str) -> str:
    """Who may log in. A list of one word is written in braces: `pam` is another thing."""
    if auth == AUTH_SYSTEM:
        return ""
    service = pam_service(auth)
    return f"pam {quoted(service)}" if service else _operand(config, auth, literal=False)


def format_action(config: Config, action: Local | Relay) -> str:
    """`action …`."""
    words = [f"action {quoted(action.name)}"]
    words += _local(config, action) if isinstance(action, Local) else _relay(config, action)
    if action.ttl:
        words.append(f"ttl {format_time(action.ttl)}")
    return " ".join(filter(None, words))


def format_rule(config: Config, rule: Rule) -> str:
    """`match …`, with `from` and `for` also where they are the defaults."""
    words = ["match", format_criterion(config, rule.source, "from"), format_criterion(config, rule.dest, "for")]
    for criterion in (rule.tag, rule.helo, rule.tls, rule.auth, rule.mail_from, rule.rcpt_to):
        words.append(format_criterion(config, criterion))
    words.append(f"action {quoted(rule.action)}" if rule.action else "reject")
    return " ".join(filter(None, words))


def format_criterion(config: Config, criterion: Criterion | None, place: str = "") -> str:
    """One condition of a rule or filter, "" without one; `place`: the `from` or `for` in front."""
    if criterion is None:
        return ""
    words = ["!" + (place or criterion.kind) if criterion.negated else place or criterion.kind]
    if place:
        words.append(criterion.kind)
    if criterion.regex:
        words.append("regex")
    if criterion.table:
        words.append(_operand(config, criterion.table))
    return " ".join(words)


def format_table(table: Table) -> str:
    """`table …`."""
    start = f"table {quote(table.name)} "
    match table.kind:
        case TableKind.STATIC:
            return start + _block(table)
        case TableKind.GETPWNAM:
            return start + "getpwnam"
        case TableKind.PROC:
            return start + quote(f"{table.backend}:{table.config}" if table.config else table.backend)
    return start + quote(f"{table.kind}:{table.config}")


def format_filter(config: Config, declared: Filter) -> str:
    """`filter …`."""
    start = f"filter {quote(declared.name)}"
    match declared.kind:
        case "proc":
            return f"{start} proc {quote(declared.proc)}"
        case "proc-exec":
            return f"{start} proc-exec {_command(config.procs[declared.proc])}"
        case "chain":
            return f"{start} chain {_names(declared.chain)}"
    words = [start, "phase", declared.phase, "match"]
    words += [format_criterion(config, condition) for condition in declared.conditions]
    words += [declared.decision, quoted(declared.argument) if declared.decision not in {"junk", "bypass"} else ""]
    return " ".join(filter(None, words))


# What statements are made of


def _named(item: msgspec.Struct, *fields: str) -> list[str]:
    """Options whose value is a word, where they have one."""
    return [f"{_keyword(field)} {quote(getattr(item, field))}" for field in fields if getattr(item, field)]


def _looked_up(config: Config, item: msgspec.Struct, *fields: str) -> list[str]:
    """Options whose value is a table."""
    return [f"{_keyword(field)} {_operand(config, getattr(item, field))}" for field in fields if getattr(item, field)]


def _flags(item: msgspec.Struct, *fields: str) -> list[str]:
    return [_keyword(field) for field in fields if getattr(item, field)]


def _keyword(field: str) -> str:
    return field.replace("_", "-")


def _ours(config: Config, listener: Listener) -> Iterator[str]:
    """What the reference does not have of a listener, or only in part."""
    yield from _flags(listener, "proxy_v2", "proxy")
    if listener.proxy_from:
        yield f"from {_operand(config, listener.proxy_from)}"
    if listener.greet_delay:
        yield f"greet-delay {format_time(listener.greet_delay)}"
    yield from _flags(listener, "unlimited")


def _operand(config: Config, name: str, *, literal: bool = True) -> str:
    """A table where it is used: `<name>`, or its content where it has no name of its own."""
    table = config.tables[name]
    if not table.is_unnamed():
        return f"<{quote(name)}>"
    if literal and len(table.entries) == 1 and not table.mapping:
        return quoted(table.entries[0][0])
    return _block(table)


def _block(table: Table) -> str:
    pair = "{} = {}".format
    if not table.entries:
        # No block is empty; a key that is too long is left out of a table (with a warning).
        left_out = quoted("-" * (MAX_KEY + 1))
        return f"{{ {pair(left_out, chr(34) * 2) if table.mapping else left_out} }}"
    elements = [pair(quoted(k), quoted(v)) if table.mapping else quoted(k) for k, v in table.entries]
    if sum(map(len, elements)) + 2 * len(elements) <= _WIDTH:
        return f"{{ {', '.join(elements)} }}"
    return "{\n\t" + ",\n\t".join(elements) + "\n}"


def _names(names: tuple[str, ...]) -> str:
    return f"{{ {', '.join(map(quote, names))} }}"


def _filter_option(config: Config, name: str) -> str:
    if not name:
        return ""
    chain = config.filters[name]
    return f"filter {_names(chain.chain) if chain.is_unnamed() else quote(name)}"


def _local(config: Config, action: Local) -> Iterator[str]:
    yield action.method
    if action.target or action.method in {"lmtp", "mda"}:
        yield quoted(action.target)
    yield "junk" if action.junk else ""
    yield "rcpt-to" if action.lmtp_rcpt_to else ""
    yield from _looked_up(config, action, "alias", "virtual")
    if action.userbase != Local(name="", method="").userbase:
        yield from _looked_up(config, action, "userbase")
    yield from _named(action, "user", "wrapper")


def _relay(config: Config, action: Relay) -> Iterator[str]:
    yield "relay"
    if action.backup:
        yield f"backup mx {quote(action.backup_mx)}" if action.backup_mx else "backup"
    if action.hosts:
        yield f"host {_operand(config, action.hosts, literal=False)}"
    yield from _named(action, "host")
    yield from _looked_up(config, action, "domain")
    if action.tls:
        yield "tls no-verify" if action.tls == "no-verify" else "tls"
    yield from _looked_up(config, action, "auth")
    yield from _named(action, "pki", "ca", "ciphers", "protocols", "helo")
    yield from _looked_up(config, action, "helo_src", "src")
    yield from _named(action, "mail_from")
    yield "srs" if action.srs else ""
    yield _filter_option(config, action.filter)


# Sections


def _certificates(config: Config) -> Iterator[str]:
    for pki in config.pki.values():
        dhe = f" dhe {pki.dhe}" if pki.dhe != "none" else ""
        yield f"pki {quote(pki.name)} cert {quoted(pki.cert)} key {quoted(pki.key)}{dhe}"
    for name, path in config.ca.items():
        yield f"ca {quote(name)} cert {quoted(path)}"


def _settings(config: Config) -> Iterator[str]:
    if config.admd:
        yield f"admd {quote(config.admd)}"
    if config.resolver.address:
        port = f" port {config.resolver.port}" if config.resolver.port != Resolver().port else ""
        yield f"dns resolver {quote(config.resolver.address)}{port}"
    yield from _smtp(config.smtp)
    yield from _queue(config.queue)
    yield from _limits(config)
    if config.bounce_warn != Config(hostname="").bounce_warn:
        yield f"bounce warn-interval {', '.join(map(format_time, config.bounce_warn))}"
    if config.srs.key:
        yield f"srs key {quoted(config.srs.key)}"
    if config.srs.backup_key:
        yield f"srs key backup {quoted(config.srs.backup_key)}"
    if config.srs.ttl != Srs().ttl:
        yield f"srs ttl {format_time(config.srs.ttl)}"
    for name, command in config.mda_wrappers.items():
        yield f"mda wrapper {quote(name)} {quoted(command)}"


def _smtp(options: SmtpOptions) -> Iterator[str]:
    default = SmtpOptions()
    if options.ciphers:
        yield f"smtp ciphers {quote(options.ciphers)}"
    limits = [field for field in SmtpOptions.__struct_fields__ if field.startswith("max_") and field not in _NO_LIMITS]
    yield from _changed("smtp limit", options, default, tuple(limits))
    for rate in options.rates:
        yield f"smtp rate {rate.what} {rate.count} {format_time(rate.seconds)}"
    if options.bare_newline != default.bare_newline:
        yield f"smtp bare-newline {options.bare_newline}"
    if options.max_line_length:
        yield f"smtp max-line-length {options.max_line_length}"
    for field in ("tarpit", "max_data_time"):
        if (seconds := getattr(options, field)) != getattr(default, field):
            yield f"smtp {_keyword(field)} {format_time(seconds)}"
    if options.max_message_size != default.max_message_size:
        yield f"smtp max-message-size {format_size(options.max_message_size)}"
    if options.sub_addr_delim != default.sub_addr_delim:
        yield f"smtp sub-addr-delim {quoted(options.sub_addr_delim)}"


def _queue(options: QueueOptions) -> Iterator[str]:
    if options.compression:
        yield "queue compression"
    if options.encryption_ask:
        yield "queue encryption"
    if options.encryption:
        yield f"queue encryption {quoted(options.encryption)}"
    if options.ttl != QueueOptions().ttl:
        yield f"queue ttl {format_time(options.ttl)}"


def _limits(config: Config) -> Iterator[str]:
    yield from _changed("mda limit", config.mda, MdaLimits(), MdaLimits.__struct_fields__)
    yield from _changed("scheduler limit", config.scheduler, SchedulerLimits(), SchedulerLimits.__struct_fields__)
    if config.mta_max_deferred != Config(hostname="").mta_max_deferred:
        yield f"mta max-deferred {config.mta_max_deferred}"
    # A domain's limits begin as the general ones are by then: written first, they begin as the defaults.
    for domain, limits in config.mta_domains.items():
        start = f"mta limit for domain {quote(domain)}"
        yield " ".join([start, *_mta_limits(limits)])
    if general := list(_mta_limits(config.mta)):
        yield " ".join(["mta limit", *general])


def _mta_limits(limits: MtaLimits) -> Iterator[str]:
    for field in MtaLimits.__struct_fields__:
        value = getattr(limits, field)
        if value != getattr(MtaLimits(), field):
            yield value if field == "family" else f"{_keyword(field)} {value}"


def _changed(start: str, options: msgspec.Struct, default: msgspec.Struct, fields: tuple[str, ...]) -> Iterator[str]:
    """`… limit KEYWORD NUMBER …`, those that differ from the defaults."""
    words = [
        f"{_keyword(field)} {getattr(options, field)}"
        for field in fields
        if getattr(options, field) != getattr(default, field)
    ]
    if words:
        yield " ".join([start, *words])


def _tables(config: Config) -> Iterator[str]:
    used = used_tables(config)
    for table in config.tables.values():
        if table.is_unnamed() or table.name in BUILTIN:
            continue
        # Without an entry it is neither list nor mapping, unless something uses it.
        nothing = table.kind is TableKind.STATIC and not table.entries and not table.mapping
        yield f"table {quote(table.name)} static" if nothing and table.name not in used else format_table(table)


def _filters(config: Config) -> Iterator[str]:
    executed = {declared.proc for declared in config.filters.values() if declared.kind == "proc-exec"}
    named = {declared.proc for declared in config.filters.values() if declared.kind == "proc"}
    named |= {report.proc for report in config.reports}
    for proc in config.procs.values():
        # A filter may name the process of a later `proc-exec`, which takes the place of a `proc` of its name.
        if proc.name not in executed or proc.name in named:
            yield f"proc {quote(proc.name)} {_command(proc)}"
    for report in config.reports:
        yield f"report {report.direction} on {quote(report.proc)}"
    for declared in config.filters.values():
        if not declared.is_unnamed():
            yield format_filter(config, declared)


def _command(proc: Proc) -> str:
    words = [quoted(proc.command), *_named(proc, "user", "group", "chroot")]
    default = Proc(name="", command="")
    if proc.timeout != default.timeout:
        words.append(f"timeout {format_time(proc.timeout)}")
    if proc.fail_open:
        words.append("fail open")
    if proc.protocol != default.protocol:
        words.append(f"protocol {quote(proc.protocol)}")
    return " ".join(words)
