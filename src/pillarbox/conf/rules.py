"""`match …` → `Rule`; and the conditions that filters share with it."""

from typing import Any

import msgspec

from pillarbox.conf.draft import Draft, Node, Wrong, options, token, word
from pillarbox.conf.model import Criterion, Rule
from pillarbox.conf.tables import Shape

_LIST, _ANY = Shape.LIST, Shape.LIST | Shape.MAP

# Option → (field of Rule, the criterion's kind, what messages call the lookup, shapes without `regex`).
_PLAIN = {
    "on_tag": ("tag", "tag", "tag", _LIST),
    "on_helo": ("helo", "helo", "helo", _LIST),
    "on_tls": ("tls", "tls", "tls", _ANY),
    "on_auth": ("auth", "auth", "auth", _ANY),
    "on_mail_from": ("mail_from", "mail-from", "mail-from", _ANY),
    "on_rcpt_to": ("rcpt_to", "rcpt-to", "rcpt-to", _ANY),
    "from_socket": ("source", "socket", "from", _ANY),
    "from_local": ("source", "local", "from", _ANY),
    "from_any": ("source", "any", "from", _ANY),
    "from_src": ("source", "src", "from", _LIST),
    "from_rdns": ("source", "rdns", "rdns", _LIST),
    "for_local": ("dest", "local", "'for'", _ANY),
    "for_any": ("dest", "any", "'for'", _ANY),
    "for_domain": ("dest", "domain", "'for'", _LIST),
}
# `from auth` is `from any auth`, `for rcpt-to` is `for any rcpt-to`, and a negation belongs to the second part.
_SHORTHAND = {
    "from_auth": ("source", "auth", "auth", "from", _LIST),
    "from_mail_from": ("source", "mail_from", "mail-from", "from", _ANY),
    "for_rcpt_to": ("dest", "rcpt_to", "rcpt-to", "for", _ANY),
}
_SAID = {"source": "from", "dest": "for", "mail_from": "mail-from", "rcpt_to": "rcpt-to"}


def build_match(draft: Draft, node: Node) -> None:
    """Add a rule; one with an error is left out."""
    *criteria, outcome = options(node)
    fields: dict[str, Any] = {}
    for part in criteria:
        with draft.collecting():
            fields |= _criterion(draft, part, fields)
    if outcome.data == "use_action":
        with draft.collecting():
            fields["action"] = _action(draft, outcome)
    if not draft.failed:
        draft.declare("match", len(draft.rules), node)
        draft.rules.append(Rule(line=draft.line, file=draft.source.name, **fields))


def _action(draft: Draft, node: Node) -> str:
    name = word(node)
    if name in draft.actions:
        return name
    missing = draft.report.missing("action", name)
    raise Wrong(token(node), f"no such dispatcher: {name}{missing}", names=() if missing else draft.actions, near=name)


def _criterion(draft: Draft, node: Node, so_far: dict[str, Any]) -> dict[str, Any]:
    node, negated = unwrap(node)
    kind = str(node.data)
    if kind in _SHORTHAND:
        return _shorthand(draft, node, negated, so_far)
    field, name, lookup, shapes = _PLAIN[kind]
    table, regex = operand(draft, node, shapes, f'table "{{}}" may not be used for {lookup} lookups')
    if field in so_far:
        raise Wrong(node, f"{_SAID.get(field, field)} already specified for this rule")
    return {field: Criterion(kind=name, table=table, regex=regex, negated=negated)}


def _shorthand(draft: Draft, node: Node, negated: bool, so_far: dict[str, Any]) -> dict[str, Any]:
    place, field, name, lookup, shapes = _SHORTHAND[str(node.data)]
    table, regex = operand(draft, node, shapes, f'table "{{}}" may not be used for {lookup} lookups')
    if place in so_far:
        raise Wrong(node, f"{_SAID[place]} already specified for this rule")
    criterion = Criterion(kind=name, table=table, regex=regex, negated=negated)
    if not table and field in so_far:
        # `auth alice from auth` still means alice; any other earlier one is replaced.
        criterion = msgspec.structs.replace(so_far[field], negated=negated)
    return {place: Criterion(kind="any"), field: criterion}


def condition(draft: Draft, node: Node) -> Criterion:
    """The condition of a builtin filter: any table will do."""
    node, negated = unwrap(node)
    kind = str(node.data).removeprefix("on_").removeprefix("if_").replace("_", "-")
    table, regex = operand(draft, node, Shape.NONE, "")
    return Criterion(kind=kind, table=table, regex=regex, negated=negated)


def unwrap(node: Node) -> tuple[Node, bool]:
    """What is negated, and whether it is."""
    return (options(node)[0], True) if node.data == "negated" else (node, False)


def operand(draft: Draft, node: Node, shapes: Shape, refusal: str) -> tuple[str, bool]:
    """The table of a criterion ("" where it has none) and whether it holds regexes. No `refusal`: any table serves."""
    if not options(node):
        return "", False
    child = options(node)[0]
    regex = child.data == "regex"
    if regex:
        child = options(child)[0]
        shapes = Shape.LIST
    if not refusal:
        return draft.table(child), regex
    return draft.serving_table(child, shapes, refusal), regex
