"""`action NAME METHOD options` → `Local` or `Relay`."""

from collections.abc import Callable
from typing import Any

import msgspec

from pillarbox.conf.draft import Draft, Node, Wrong, option, options, token, word, words
from pillarbox.conf.model import Local, Relay
from pillarbox.conf.tables import Shape
from pillarbox.conf.values import parse_delay

_LOCAL_ONLY = {"mbox": "this dispatcher", "forward-only": "forward-only", "expand-only": "expand-only"}


def build_action(draft: Draft, node: Node) -> None:
    """Declare an action; one with an error is not declared."""
    name = word(node)
    if name in draft.actions:
        raise Wrong(token(node), f"dispatcher already declared with that name: {name}")
    draft.declare("action", name, node)
    method, *rest = options(node)
    relays = method.data == "method_relay"
    action: Local | Relay = Relay(name=name, line=draft.line) if relays else _local(name, draft.line, method)
    action = msgspec.structs.replace(action, file=draft.source.name)
    for part in rest:
        with draft.collecting():
            changes = _OPTIONS[str(part.data)](draft, action, part)
            action = msgspec.structs.replace(action, **changes)
    if draft.failed:
        draft.report.broken("action", name, draft.line)
    else:
        draft.actions[name] = action


def _local(name: str, line: int, method: Node) -> Local:
    kind = str(method.data).removeprefix("method_").replace("_", "-")
    return Local(
        name=name,
        method=kind,
        line=line,
        target=next(iter(words(method)), ""),
        junk=option(method, "junk") is not None,
        lmtp_rcpt_to=option(method, "rcpt_to") is not None,
    )


def _ttl(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if action.ttl:
        raise Wrong(node, "ttl already specified for this dispatcher")
    text = word(node)
    try:
        return {"ttl": parse_delay(text)}
    except ValueError:
        raise Wrong(token(node), f'ttl delay "{text}" is invalid') from None


def _user(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if action.method in _LOCAL_ONLY:
        raise Wrong(node, f"user may not be specified for {_LOCAL_ONLY[action.method]}")
    if not draft.first("user"):
        raise Wrong(node, "user already specified for this dispatcher")
    return {"user": word(node)}


def _expansion(field: str) -> Callable[[Draft, Any, Node], dict[str, Any]]:
    def build(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
        name = draft.table(options(node)[0])
        for other in ("alias", "virtual") if field == "alias" else ("virtual", "alias"):
            if getattr(action, other):
                raise Wrong(node, f"{other} mapping already specified for this dispatcher")
        draft.require_shape(node, name, Shape.MAP, f'table "{{}}" may not be used for {field} lookups')
        return {field: name}

    return build


def _userbase(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if not draft.first("userbase"):
        raise Wrong(node, "userbase mapping already specified for this dispatcher")
    refusal = 'table "{}" may not be used for userbase lookups'
    return {"userbase": draft.serving_table(options(node)[0], Shape.MAP, refusal, userinfo=True)}


def _wrapper(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    name = word(node)
    if name not in draft.mda_wrappers:
        raise Wrong(token(node), f"no mda wrapper with that name: {name}", names=draft.mda_wrappers, near=name)
    return {"wrapper": name}


def _once(field: str) -> Callable[[Draft, Any, Node], dict[str, Any]]:
    """An option whose value is a word, given once."""

    def build(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
        if not draft.first(field):
            raise Wrong(node, f"{field.replace('_', '-')} already specified for this dispatcher")
        return {field: word(node)}

    return build


def _helo_src(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if action.helo_src:
        raise Wrong(node, "helo-source mapping already specified for this dispatcher")
    refusal = 'table "{}" may not be used for helo-source lookups'
    return {"helo_src": draft.serving_table(options(node)[0], Shape.MAP, refusal)}


def _src(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if action.src:
        raise Wrong(node, "source mapping already specified for this dispatcher")
    refusal = 'table "{}" may not be used for source lookups'
    return {"src": draft.serving_table(options(node)[0], Shape.LIST | Shape.MAP, refusal)}


def _has_host(action: Relay) -> bool:
    return bool(action.host or action.hosts or action.domain)


def _backup(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if action.backup:
        raise Wrong(node, "backup already specified for this dispatcher")
    if _has_host(action):
        raise Wrong(node, "backup and host are mutually exclusive")
    return {"backup": True, "backup_mx": next(iter(words(node)), "")}


def _host(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    name = draft.table(options(node)[0])
    if _has_host(action):
        raise Wrong(node, "host mapping already specified for this dispatcher")
    if action.backup:
        raise Wrong(node, "backup and host are mutually exclusive")
    draft.require_shape(node, name, Shape.LIST, 'table "{}" may not be used for host lookups')
    if options(node)[0].data == "literal" and (url := word(options(node)[0])):
        del draft.tables.all[name]  # one URL needs no table
        return {"host": url}
    return {"hosts": name}


def _domain(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    name = draft.table(options(node)[0])
    if _has_host(action):
        raise Wrong(node, "host mapping already specified for this dispatcher")
    if action.backup:
        raise Wrong(node, "backup and domain are mutually exclusive")
    draft.require_shape(node, name, Shape.MAP, 'table "{}" may not be used for host lookups')
    return {"domain": name}


def _tls(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if action.tls:
        raise Wrong(node, "tls already specified for this dispatcher")
    return {"tls": "no-verify" if options(node) else "require"}


def _auth(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    name = draft.table(options(node)[0])
    if not _has_host(action):
        raise Wrong(node, "auth may not be specified without host on a dispatcher")
    if action.auth:
        raise Wrong(node, "auth mapping already specified for this dispatcher")
    draft.require_shape(node, name, Shape.MAP, 'table "{}" may not be used for auth lookups')
    return {"auth": name}


def _filter(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if action.filter:
        raise Wrong(node, "filter already specified for this dispatcher")
    return {"filter": draft.filter(node)}


def _srs(draft: Draft, action: Any, node: Node) -> dict[str, Any]:
    if not draft.get("srs").key:
        raise Wrong(node, "an srs key is required for srs to be specified in an action")
    if action.srs:
        raise Wrong(node, "srs already specified for this dispatcher")
    return {"srs": True}


_OPTIONS: dict[str, Callable[[Draft, Any, Node], dict[str, Any]]] = {
    "action_ttl": _ttl,
    "local_user": _user,
    "local_alias": _expansion("alias"),
    "local_virtual": _expansion("virtual"),
    "local_userbase": _userbase,
    "local_wrapper": _wrapper,
    "relay_helo": _once("helo"),
    "relay_helo_src": _helo_src,
    "relay_pki": _once("pki"),
    "relay_ca": _once("ca"),
    "relay_ciphers": _once("ciphers"),
    "relay_protocols": _once("protocols"),
    "relay_src": _src,
    "relay_mail_from": _once("mail_from"),
    "relay_backup": _backup,
    "relay_host": _host,
    "relay_domain": _domain,
    "relay_tls": _tls,
    "relay_auth": _auth,
    "relay_filter": _filter,
    "relay_srs": _srs,
}
