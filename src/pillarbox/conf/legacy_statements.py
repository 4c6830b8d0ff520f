"""All statements of the old grammar but rules: words are replaced in place, so that layout and macros stay.

Each converter gets the statement as a `Rewrite`. What has no equivalent becomes a comment, and a remark.
"""

from collections.abc import Callable

from lark import Token

from pillarbox.conf.draft import Wrong, options, words
from pillarbox.conf.legacy_read import LegacyStatement, Node, is_macro
from pillarbox.conf.legacy_state import State
from pillarbox.conf.legacy_text import Rewrite, has, spell, tokens_of, value
from pillarbox.conf.values import parse_delay

_FILTERS = "filters speak another protocol now, smtpd-filters(7); see `filter` in smtpd.conf(5)"


def convert_statement(state: State, statement: LegacyStatement) -> list[str] | None:
    """The lines that take a statement's place, None where it stays. Raises Wrong."""
    state.check_tables(statement)
    rewrite = Rewrite(statement)
    convert = _CONVERTERS.get(statement.kind)
    if convert is not None:
        convert(state, rewrite)
    return rewrite.lines()


def _leave(state: State, rewrite: Rewrite, message: str) -> None:
    """Leave the statement as a comment, and say why."""
    rewrite.gone = True
    _tell(state, rewrite, message)


def _without_equivalent(state: State, rewrite: Rewrite, message: str) -> None:
    _leave(state, rewrite, f"no equivalent: {message}")


def _tell(state: State, rewrite: Rewrite, message: str) -> None:
    rewrite.explain(message)
    state.remark(rewrite.statement, message)


def _table(state: State, rewrite: Rewrite) -> None:
    state.tables.add(words(rewrite.statement.tree)[0])


def _words(*replacements: str) -> Callable[[State, Rewrite], None]:
    """A statement whose first words are others today."""

    def convert(state: State, rewrite: Rewrite) -> None:
        for token, text in zip(tokens_of(rewrite.statement.tree), replacements, strict=False):
            rewrite.replace(token, text)

    return convert


def _bounce_warn(state: State, rewrite: Rewrite) -> None:
    tree = rewrite.statement.tree
    if not words(tree):
        _without_equivalent(state, rewrite, "delay warnings cannot be turned off; without this the default is 4h")
        return
    for token in tokens_of(tree):
        if token.type == "STRING":
            check_delay(token, "bounce")
    rewrite.replace(tokens_of(tree)[0], "bounce warn-interval")


def check_delay(token: Token, what: str) -> None:
    """Refuse what is no time."""
    try:
        parse_delay(str(token))
    except ValueError:
        raise Wrong(token, f"invalid {what} delay: {token}; a time is a number and s, m, h or d") from None


def _expire(state: State, rewrite: Rewrite) -> None:
    tree = rewrite.statement.tree
    check_delay(value(tree), "expire")
    rewrite.replace(tokens_of(tree)[0], "queue ttl")
    if state.seen_accept:
        _tell(state, rewrite, "this was for the rules below it; `queue ttl` is for those above it too")


def _queue_key(state: State, rewrite: Rewrite) -> None:
    rewrite.replace(tokens_of(rewrite.statement.tree)[2], "")


def _curve(state: State, rewrite: Rewrite) -> None:
    _without_equivalent(state, rewrite, "the curve of TLS key exchanges is chosen by the TLS library")


def _filter(state: State, rewrite: Rewrite) -> None:
    _without_equivalent(state, rewrite, _FILTERS)


def _ca(state: State, rewrite: Rewrite) -> None:
    rewrite.replace(tokens_of(rewrite.statement.tree)[2], "cert")


def _pki(state: State, rewrite: Rewrite) -> None:
    name = tokens_of(rewrite.statement.tree)[1]
    state.pki.add(name.lower())
    parts = options(rewrite.statement.tree)
    for part in parts:
        keyword, word = tokens_of(part)
        if part.data == "pki_certificate":
            rewrite.replace(keyword, "cert")
        elif part.data == "pki_ca":
            rewrite.before.append(f"ca {rewrite.part(name)} cert {rewrite.part(word)}")
            rewrite.drop(part)
        elif part.data == "pki_dhparams":
            rewrite.replace(keyword, "dhe")
            rewrite.replace(word, "auto")
            _tell(state, rewrite, f"no equivalent: own DH parameters, {word}; `dhe auto` takes well-known ones")
    if parts and all(part.data == "pki_ca" for part in parts):
        rewrite.instead = rewrite.before.pop()


def _listen(state: State, rewrite: Rewrite) -> None:
    parts = {str(part.data): part for part in options(rewrite.statement.tree)}
    if len(parts) < len(options(rewrite.statement.tree)):
        _refuse_twice(options(rewrite.statement.tree))
    for name, part in parts.items():
        if name in _LISTEN_OPTIONS:
            _LISTEN_OPTIONS[name](state, rewrite, part)
    modes = [name for name in _TLS_MODES if name in parts]
    if not modes:
        _require_tls(parts)
        return
    if len(modes) > 1:
        raise Wrong(parts[modes[1]], "TLS mode already specified")
    extra = _listen_pki(state, rewrite, parts)
    if rewrite.gone:
        return
    if modes[0] == "listen_secure":
        _secure(rewrite, parts, extra)
    else:
        rewrite.after = extra


_TLS_MODES = ("listen_smtps", "listen_tls", "listen_tls_require", "listen_secure")


def _refuse_twice(parts: list[Node]) -> None:
    seen: set[str] = set()
    for part in parts:
        if part.data in seen:
            raise Wrong(part, f"{str(part.data).removeprefix('listen_').replace('_', '-')} already specified")
        seen.add(str(part.data))


def _require_tls(parts: dict[str, Node]) -> None:
    for name in ("listen_auth", "listen_auth_optional", "listen_pki"):
        if name in parts:
            raise Wrong(parts[name], f"invalid listen option: {tokens_of(parts[name])[0]!s} requires tls/smtps")


def _secure(rewrite: Rewrite, parts: dict[str, Node], extra: str) -> None:
    """`secure`: SMTPS on 465 and STARTTLS on 25, today two listeners."""
    if "listen_port" in parts:
        raise Wrong(parts["listen_port"], "invalid listen option: tls/smtps on same port")
    keyword = tokens_of(parts["listen_secure"])[0]
    rewrite.replace(keyword, "smtps")
    second = rewrite.text() + extra
    rewrite.replace(keyword, "tls")
    rewrite.before.append(rewrite.text() + extra)
    rewrite.instead = second


def _listen_pki(state: State, rewrite: Rewrite, parts: dict[str, Node]) -> str:
    """What to add to a listener with TLS: the pki that it used without saying so, and its CA."""
    names = state.declared.pki
    if "listen_pki" in parts:
        name = str(value(parts["listen_pki"])).lower()
        state.use_pki(rewrite, value(parts["listen_pki"]))
        extra = ""
    elif "listen_certificate" in parts:
        name = str(value(parts["listen_certificate"])).lower()
        rewrite.before += state.certificate(str(value(parts["listen_certificate"])))
        extra = ""
    else:
        name = _implied_pki(state, rewrite, parts)
        if not name:
            _leave(state, rewrite, "TLS without a pki, and which one it took cannot be told: name one")
        elif name in names and name not in state.pki:
            _leave(
                state, rewrite, f"it took the pki {names[name]}, which must stand above: name it, and move this there"
            )
        extra = f" pki {names.get(name) or spell(name)}"
    verifies = any(has(part, "verify") for part in parts.values())
    if verifies and name in state.declared.pki_ca and "listen_ca" not in parts:
        extra += f" ca {names[name]}"
    return extra


def _implied_pki(state: State, rewrite: Rewrite, parts: dict[str, Node]) -> str:
    """The certificate that a listener used without naming it: 5.4 to 6.3 took the one of its host name, or of "*"."""
    names = state.declared.pki
    host = str(value(parts["listen_hostname"])) if "listen_hostname" in parts else state.hostname
    if host.lower() in names:
        return host.lower()
    if "*" in names:
        return "*"
    if len(names) == 1:
        only = next(iter(names))
        message = f"no pki was named here, and none is called {host}: {only} is taken, as the only one"
        _tell(state, rewrite, message)
        return only
    if names or not state.declared.whole:
        return ""
    # 5.3 knew no pki: the certificate was called like the interface.
    interface = str(tokens_of(rewrite.statement.tree)[2])
    name = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in interface).strip("-") or "default"
    _tell(state, rewrite, f"the certificate was looked for by the name of the interface: check that {name} is it")
    rewrite.before += state.certificate(name)
    return name


def _drop_option(message: str) -> Callable[[State, Rewrite, Node], None]:
    """An option of a listener that has no equivalent."""

    def convert(state: State, rewrite: Rewrite, part: Node) -> None:
        written = rewrite.part(part)
        rewrite.drop(part)
        _tell(state, rewrite, f"no equivalent: `{written}`: {message}")

    return convert


def _renamed(today: str) -> Callable[[State, Rewrite, Node], None]:
    def convert(state: State, rewrite: Rewrite, part: Node) -> None:
        rewrite.replace(tokens_of(part)[0], today)

    return convert


def _port(state: State, rewrite: Rewrite, part: Node) -> None:
    word = tokens_of(part)[1]
    if word == "smtp" and not is_macro(rewrite.statement.source, word):
        rewrite.replace(word, "smtp")  # a keyword that the port may be


_LISTEN_OPTIONS: dict[str, Callable[[State, Rewrite, Node], None]] = {
    "listen_port": _port,
    "listen_mask_source": _renamed("mask-src"),
    "listen_certificate": _renamed("pki"),
    "listen_filter": _drop_option(_FILTERS),
    "listen_dsn_notify": _drop_option("NOTIFY is either served or, with `no-dsn`, not offered"),
    "listen_dsn_ret": _drop_option("a client chooses by RET what a bounce returns"),
}

_CONVERTERS: dict[str, Callable[[State, Rewrite], None]] = {
    "table_static": _table,
    "table_backend": _table,
    "bounce_warn": _bounce_warn,
    "expire_default": _expire,
    "max_message_size": _words("smtp max-message-size"),
    "max_mta_deferred": _words("mta max-deferred"),
    "subaddressing": _words("smtp sub-addr-delim"),
    "ciphers": _words("smtp ciphers"),
    "limit_session": _words("smtp", "limit"),
    "limit_mda": _words("mda", "limit"),
    "limit_mta": _words("mta", "limit"),
    "limit_mta_for": _words("mta", "limit"),
    "limit_scheduler": _words("scheduler", "limit"),
    "queue_key": _queue_key,
    "curve": _curve,
    "enqueuer": _filter,
    "filter": _filter,
    "ca": _ca,
    "pki": _pki,
    "listen_socket": _listen,
    "listen_on": _listen,
}
