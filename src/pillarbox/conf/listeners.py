"""`listen on …` → `Listener`."""

import re
from collections.abc import Callable
from typing import Any

from pillarbox.conf.draft import Draft, Node, Wrong, option, options, token, values, word, words
from pillarbox.conf.model import AUTH_SYSTEM, BEARER, MECHANISMS, PAM_SERVICE, Listener, TlsMode, pam_service
from pillarbox.conf.tables import Shape

MAX_TAG = 32  # characters
MAX_PKI = 32
PORT_MAX = 65535
_WELL_KNOWN = {"smtp": 25, "smtps": 465, "submission": 587, "submissions": 465}

_SERVICE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # the name of a file in /etc/pam.d

_Fields = dict[str, Any]


def build_listen_socket(draft: Draft, node: Node) -> None:
    """`listen on socket`: what local submissions go through."""
    fields = _options(draft, node)
    if any(listener.socket for listener in draft.listeners):
        raise Wrong(node, "socket listener already configured")
    _add(draft, node, socket=True, **fields)


def build_listen_on(draft: Draft, node: Node) -> None:
    """`listen on INTERFACE`: one listener, whatever number of addresses it comes to."""
    fields = _options(draft, node)
    if not draft.failed:
        _check_tls(fields, node)
        _check_auth(fields, node)
        _warn_of_secrets(draft, fields, node)
        _check_names(draft, fields, node)
        listener = _add(draft, node, interface=word(node), **fields)
        if draft.checker is not None and (fault := draft.checker.listener(listener)):
            raise Wrong(token(node), fault)


def _add(draft: Draft, node: Node, **fields: Any) -> Listener:
    draft.declare("listener", len(draft.listeners), node)
    listener = Listener(id=len(draft.listeners), line=draft.line, **fields)
    draft.listeners.append(listener)
    return listener


def _options(draft: Draft, node: Node) -> _Fields:
    fields: _Fields = {}
    for part in options(node):
        with draft.collecting():
            fields |= _OPTIONS[str(part.data)](draft, fields, part)
    return fields


def _check_tls(fields: _Fields, node: Node) -> None:
    tls = fields.get("tls", TlsMode.NONE) is not TlsMode.NONE
    if "auth" in fields and not tls:
        raise Wrong(node, "invalid listen option: auth requires tls/smtps")
    if "pki" in fields and not tls:
        raise Wrong(node, "invalid listen option: pki requires tls/smtps")
    if tls and "pki" not in fields:
        raise Wrong(node, "invalid listen option: pki required for tls/smtps")


def _check_names(draft: Draft, fields: _Fields, node: Node) -> None:
    for name in fields.get("pki", ()):
        if name not in draft.pki:
            raise Wrong(node, f"pki name not found: {name}", names=draft.pki, near=name)
    ca = fields.get("ca", "")
    if ca and ca.lower() not in draft.ca:
        raise Wrong(node, f"ca name not found: {ca}", names=draft.ca, near=ca)
    if ca:
        fields["ca"] = ca.lower()


def _filter(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    if "filter" in fields:
        raise Wrong(node, "filter already specified")
    return {"filter": draft.filter(node)}


def _flag(field: str, name: str) -> Callable[[Draft, _Fields, Node], _Fields]:
    def build(draft: Draft, fields: _Fields, node: Node) -> _Fields:
        if field in fields:
            raise Wrong(node, f"{name} already specified")
        return {field: True}

    return build


def _text(field: str) -> Callable[[Draft, _Fields, Node], _Fields]:
    def build(draft: Draft, fields: _Fields, node: Node) -> _Fields:
        if field in fields:
            raise Wrong(node, f"{field} already specified")
        return {field: word(node)}

    return build


def _tag(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    if "tag" in fields:
        raise Wrong(node, "tag already specified")
    if len(word(node).encode("utf-8", "surrogatepass")) > MAX_TAG:
        raise Wrong(token(node), f"tag name too long: {MAX_TAG} characters at most")
    return {"tag": word(node)}


def _family(family: str) -> Callable[[Draft, _Fields, Node], _Fields]:
    def build(draft: Draft, fields: _Fields, node: Node) -> _Fields:
        if "family" in fields:
            raise Wrong(node, "address family already specified")
        return {"family": family}

    return build


def _port(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    if "port" in fields:
        raise Wrong(node, "port already specified")
    if options(node):
        return {"port": _WELL_KNOWN[str(options(node)[0].data).removeprefix("port_")]}
    child = token(node)
    if child.type == "NUMBER":
        port = int(child)
        if not 0 < port <= PORT_MAX:
            raise Wrong(child, f"invalid port: {child}")
        return {"port": port}
    port = draft.checker.service_port(str(child)) if draft.checker is not None else 0
    port = port or _WELL_KNOWN.get(str(child), 0)
    if not port:
        raise Wrong(child, f"invalid port: {child}", names=_WELL_KNOWN, near=child)
    return {"port": port}


def _tls(mode: TlsMode) -> Callable[[Draft, _Fields, Node], _Fields]:
    def build(draft: Draft, fields: _Fields, node: Node) -> _Fields:
        if "tls" in fields:
            raise Wrong(node, "TLS mode already specified")
        return {"tls": mode, "tls_verify": option(node, "verify") is not None}

    return build


def _pki(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    names: tuple[str, ...] = fields.get("pki", ())
    if len(names) == MAX_PKI:
        raise Wrong(node, "too many pki specified")
    return {"pki": (*names, word(node))}


def _auth(optional: bool) -> Callable[[Draft, _Fields, Node], _Fields]:
    def build(draft: Draft, fields: _Fields, node: Node) -> _Fields:
        how = option(node, "pam")
        if how is not None:
            service = words(how)[0] if words(how) else PAM_SERVICE
            if not _SERVICE.fullmatch(service):
                raise Wrong(token(how), f"invalid PAM service: {service}")
            table = f"<pam:{service}>"
        else:
            table = draft.table(options(node)[0]) if options(node) else AUTH_SYSTEM
        if "auth" in fields:
            raise Wrong(node, "auth already specified")
        return {"auth": table, "auth_optional": optional}

    return build


def _mechanisms(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    if "mechanisms" in fields:
        raise Wrong(node, "mechanisms already specified")
    given = values(node) or values(options(node)[0])
    for name in given:
        if name.upper() not in MECHANISMS:
            raise Wrong(name, f"unknown AUTH mechanism: {name}", names=MECHANISMS, near=name.upper())
    return {"mechanisms": tuple(dict.fromkeys(name.upper() for name in given))}


def _tokens(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    if "tokens" in fields:
        raise Wrong(node, "tokens already specified")
    refusal = 'invalid use of table "{}" as TOKENS parameter'
    return {"tokens": draft.serving_table(options(node)[0], Shape.MAP, refusal)}


def _check_auth(fields: _Fields, node: Node) -> None:
    """Are there users for the mechanisms, and mechanisms for the tokens?"""
    auth, tokens, mechanisms = fields.get("auth", ""), fields.get("tokens", ""), fields.get("mechanisms", ())
    for name in ("mechanisms", "tokens"):
        if name in fields and not auth:
            raise Wrong(node, f"invalid listen option: {name} requires auth or auth-optional")
    if not tokens and any(name in BEARER for name in mechanisms):
        raise Wrong(node, f"invalid listen option: {' and '.join(BEARER)} require tokens")
    if tokens and mechanisms and not any(name in BEARER for name in mechanisms):
        raise Wrong(node, f"invalid listen option: tokens require {' or '.join(BEARER)} among the mechanisms")
    if (auth == AUTH_SYSTEM or pam_service(auth)) and any(name.startswith("SCRAM-") for name in mechanisms):
        raise Wrong(node, "invalid listen option: system users cannot do SCRAM, only a table of credentials can")


def _warn_of_secrets(draft: Draft, fields: _Fields, node: Node) -> None:
    """Passwords and tokens that are kept in a form in which they can never be right."""
    if any(name.startswith("SCRAM-") for name in fields.get("mechanisms", ())):
        wrong = _without(draft, fields["auth"], "SCRAM-SHA-256$")
        if wrong:
            draft.warn(node, f"no SCRAM for {wrong}: smtpctl encrypt --scram makes what it needs")
    wrong = _without(draft, fields.get("tokens", ""), "SHA-256$")
    if wrong:
        draft.warn(node, f"no token fits {wrong}: smtpctl encrypt --token makes what is to be kept")


def _without(draft: Draft, name: str, prefix: str) -> str:
    """Whose secrets in a table that is in memory are not of this form: `2 of 5 users of table "x"`, or ""."""
    entries = draft.tables.all[name].entries if name in draft.tables.all else ()
    wrong = [key for key, value in entries if not value.startswith(prefix) and f":{prefix}" not in value]
    return f'{len(wrong)} of {len(entries)} users of table "{name}"' if wrong else ""


def _hostnames(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    if "hostnames" in fields:
        raise Wrong(node, "hostnames already specified")
    refusal = 'invalid use of table "{}" as HOSTNAMES parameter'
    return {"hostnames": draft.serving_table(options(node)[0], Shape.MAP, refusal)}


def _senders(draft: Draft, fields: _Fields, node: Node) -> _Fields:
    if "senders" in fields:
        raise Wrong(node, "senders already specified")
    refusal = 'invalid use of table "{}" as SENDERS parameter'
    table = draft.serving_table(options(node)[0], Shape.MAP, refusal)
    return {"senders": table, "masquerade": option(node, "masquerade") is not None}


_OPTIONS: dict[str, Callable[[Draft, _Fields, Node], _Fields]] = {
    "listen_filter": _filter,
    "listen_mask_src": _flag("mask_src", "mask-source"),
    "listen_no_dsn": _flag("no_dsn", "no-dsn"),
    "listen_tag": _tag,
    "inet4": _family("inet4"),
    "inet6": _family("inet6"),
    "listen_port": _port,
    "listen_smtps": _tls(TlsMode.SMTPS),
    "listen_tls": _tls(TlsMode.STARTTLS),
    "listen_tls_require": _tls(TlsMode.STARTTLS_REQUIRE),
    "listen_ciphers": _text("ciphers"),
    "listen_protocols": _text("protocols"),
    "listen_pki": _pki,
    "listen_ca": _text("ca"),
    "listen_auth": _auth(optional=False),
    "listen_auth_optional": _auth(optional=True),
    "listen_mechanisms": _mechanisms,
    "listen_tokens": _tokens,
    "listen_hostname": _text("hostname"),
    "listen_hostnames": _hostnames,
    "listen_received_auth": _flag("received_auth", "received-auth"),
    "listen_proxy_v2": _flag("proxy_v2", "proxy-v2"),
    "listen_senders": _senders,
}
