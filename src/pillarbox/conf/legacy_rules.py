"""`accept` and `reject` → `action` and `match`: criteria and actions of the old grammar in today's words.

A rule's right-hand side becomes an action, one for all rules that say the same; what it matched becomes a match, in
the same place. Where both grammars use one word for two things, a comment above the match says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lark import Token

from pillarbox.conf.draft import Wrong, options
from pillarbox.conf.legacy_read import LegacyStatement, Node
from pillarbox.conf.legacy_state import State
from pillarbox.conf.legacy_statements import check_delay
from pillarbox.conf.legacy_text import Rewrite, comment, has, spell, tokens_of, value
from pillarbox.conf.legacy_url import RelayHost, parse_legacy_url

_CRITERIA = {
    "if_tagged": "tag",
    "if_authenticated": "auth",
    "if_sender": "mail-from",
    "if_recipient": "rcpt-to",
    "from_any": "from any",
    "from_local": "from local",
    "from_source": "from src",
    "for_any": "for any",
    "for_local": "for local",
    "for_domain": "for domain",
}
_VIRTUAL_RELAY = (
    "`virtual` on a relay was a list of recipients; it became rcpt-to, which knows user@domain and @domain, "
    "not names without a domain"
)


@dataclass(slots=True)
class Criteria:
    """The criteria of a rule as they are written today, in order, by what they are about."""

    texts: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)

    def line(self, outcome: str, **changes: str) -> str:
        """A match; `changes` take the place of criteria, or come first where there was none."""
        texts = self.texts | changes if all(name in self.texts for name in changes) else changes | self.texts
        return " ".join(["match", *(text for text in texts.values() if text), outcome])

    def negated(self, name: str) -> bool:
        """Whether a criterion is there and negated."""
        return name in self.nodes and has(self.nodes[name], "not")

    @property
    def local(self) -> bool:
        """Whether it is about local clients, as it is where nothing is said."""
        return "from" not in self.nodes or self.nodes["from"].data == "from_local"


@dataclass(slots=True)
class Rule:
    """A rule while it is converted."""

    state: State
    rewrite: Rewrite
    criteria: Criteria = field(default_factory=Criteria)
    above: list[str] = field(default_factory=list)  # lines above the match
    actions: list[str] = field(default_factory=list)  # lines above all matches
    rcpt_to: str = ""  # what a relay accepted recipients by

    @property
    def statement(self) -> LegacyStatement:
        """Where it stands."""
        return self.rewrite.statement

    def tell(self, message: str, *, attention: bool = True) -> None:
        """Say something: to everybody what wants attention, else only to who converts."""
        if attention:
            self.above.append(comment(message))
        self.state.remark(self.statement, message, attention=attention)


def convert_rule(state: State, statement: LegacyStatement) -> tuple[list[str], list[str]]:
    """The lines in a rule's place, and the actions that they need and that are not declared yet. Raises Wrong."""
    state.check_tables(statement)
    rule = Rule(state, Rewrite(statement))
    parts = options(statement.tree)
    _read_criteria(rule, [part for part in parts if part.data in _CRITERIA])
    rest = [part for part in parts if part.data not in _CRITERIA]
    state.rules += 1
    if statement.kind == "reject":
        for part in rest:
            rule.tell(f"`{rule.rewrite.part(part)}` had no effect on a reject", attention=False)
        outcome = "reject"
    else:
        state.seen_accept = True
        outcome = f'action "{_action(rule, rest)}"'
    matches = _matches(rule, outcome)
    return [*rule.above, *matches], rule.actions


def _read_criteria(rule: Rule, parts: list[Node]) -> None:
    for part in parts:
        kind = str(part.data)
        about = kind.partition("_")[0] if kind.startswith(("from", "for")) else _CRITERIA[kind]
        if about in rule.criteria.nodes:
            raise Wrong(part, f"{tokens_of(part)[0]} specified multiple times")
        rule.criteria.nodes[about] = part
        bang = "!" if has(part, "not") else ""
        rule.criteria.texts[about] = " ".join(filter(None, (bang + _CRITERIA[kind], _operand(rule, part))))


def _operand(rule: Rule, part: Node) -> str:
    """The table or word of an option as written, "" where it has none."""
    tables = [child for child in options(part) if child.data in {"literal", "block", "reference"}]
    if tables:
        return rule.rewrite.part(tables[0])
    found = [token for token in tokens_of(part) if token.type == "STRING"]
    return rule.rewrite.part(found[0]) if found else ""


def _matches(rule: Rule, outcome: str) -> list[str]:
    """The match; two where a relay took the recipients of a list and refused all others."""
    criteria = rule.criteria
    listed = rule.rcpt_to and "rcpt-to" not in criteria.texts
    if listed:
        criteria.texts["rcpt-to"] = f"rcpt-to {rule.rcpt_to}"
    elif rule.rcpt_to:
        rule.tell(f"both `recipient` and `virtual {rule.rcpt_to}` restricted it; only the first is left")
    changes = _local(rule, outcome) if criteria.local else {}
    match = criteria.line(outcome, **changes)
    if not listed:
        return [match]
    del criteria.texts["rcpt-to"]
    return [match, criteria.line("reject", **changes)]


def _local(rule: Rule, outcome: str) -> dict[str, str]:
    """Clients that authenticate were `local`, and are not today: say it in the match, or above it."""
    criteria = rule.criteria
    if "auth" in criteria.nodes:
        if criteria.negated("auth") or criteria.negated("from"):
            return {}
        return {"from": "from any"}
    if not _may_be_authenticated(rule):
        return {}
    if criteria.negated("from"):
        criteria.texts["auth"] = "!auth"
        rule.tell("clients that authenticate were local too: !auth was added", attention=False)
        return {}
    also = criteria.line(outcome, **{"from": "from auth"})
    rule.tell(f"clients that authenticate were local too, and matched this; not so today. To keep it, add: {also}")
    return {}


def _may_be_authenticated(rule: Rule) -> bool:
    tagged = rule.criteria.nodes.get("tag")
    tags = rule.state.declared.auth_tags
    if tagged is None:
        return bool(tags)
    return any((tag == value(tagged)) != has(tagged, "not") for tag in tags)


# Actions


@dataclass(slots=True)
class Body:
    """An action's text, option by option, and what makes it the same as another one's."""

    texts: dict[str, str] = field(default_factory=dict)
    key: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def put(self, name: str, text: str, tokens: list[Token]) -> bool:
        """Set an option; the later of two counts, as it did. Returns whether there was one."""
        again = self.texts.pop(name, None) is not None
        self.texts[name], self.key[name] = text, tuple(map(str, tokens))
        return again


def _action(rule: Rule, parts: list[Node]) -> str:
    """The name of the action that does what these parts say."""
    body = Body()
    methods = [part for part in parts if part.data in _METHODS]
    relays = bool(methods) and str(methods[0].data).startswith("relay")
    forward_only = any(part.data == "rule_forward_only" for part in parts)
    if methods and forward_only:
        raise Wrong(methods[0], "forward-only may not be used with a default action")
    if methods:
        _METHODS[str(methods[0].data)](rule, body, methods[0])
    else:
        _method(body, "forward-only" if forward_only else "expand-only")
    _lookups(rule, body, [part for part in parts if str(part.data) in _LOOKUPS], relays=relays)
    if user := body.texts.pop("user", ""):
        body.texts["user"] = user
    _expire(rule, body, [part for part in parts if part.data == "rule_expire"])
    return _named(rule, body)


def _named(rule: Rule, body: Body) -> str:
    key = tuple(sorted(body.key.items()))
    actions = rule.state.actions
    if key not in actions:
        actions[key] = f"act_{len(actions) + 1}"
        rule.actions.append(f'action "{actions[key]}" {" ".join(body.texts.values())}')
    return actions[key]


def _lookups(rule: Rule, body: Body, parts: list[Node], *, relays: bool) -> None:
    mapped = ""
    for part in parts:
        kind, text = str(part.data).removeprefix("rule_"), _operand(rule, part)
        if kind == "userbase" and relays:
            raise Wrong(part, "userbase may not be used with a relay rule")
        if (kind == "userbase" and "userbase" in body.texts) or (kind != "userbase" and mapped):
            raise Wrong(part, f"{kind} specified multiple times")
        mapped = mapped if kind == "userbase" else kind
        if not relays:
            body.put(kind, f"{kind} {text}", tokens_of(part))
        elif kind == "virtual":
            rule.rcpt_to = text
            rule.tell(_VIRTUAL_RELAY)
        else:
            rule.tell(f"`alias {text}` had no effect on a relay", attention=False)


def _expire(rule: Rule, body: Body, parts: list[Node]) -> None:
    if len(parts) > 1:
        raise Wrong(parts[1], "expire specified multiple times")
    for part in parts:
        check_delay(value(part), "expire")
        body.put("ttl", f"ttl {_operand(rule, part)}", [value(part)])


def _method(body: Body, name: str, *tokens: Token, text: str = "") -> None:
    # Without its words the text tells `lmtp X` from `lmtp X rcpt-to`, and `$path` from what it stands for.
    extra = " rcpt-to" if text.endswith(" rcpt-to") else ""
    body.put("method", f"{name} {text}".rstrip(), [Token("_", name + extra), *tokens])


def _mbox(rule: Rule, body: Body, node: Node) -> None:
    _method(body, "mbox")


def _maildir(rule: Rule, body: Body, node: Node) -> None:
    words = [token for token in tokens_of(node) if token.type == "STRING"]
    _method(body, "maildir", *words, text=" ".join(map(rule.rewrite.part, words)))


def _lmtp(rule: Rule, body: Body, node: Node) -> None:
    destination = value(node)
    if ":" not in destination and not destination.startswith("/"):
        raise Wrong(destination, f"invalid lmtp destination: {destination}; it is host:port or the path of a socket")
    rcpt_to = " rcpt-to" if has(node, "lmtp_rcpt_to") else ""
    _method(body, "lmtp", destination, text=rule.rewrite.part(destination) + rcpt_to)
    _user(rule, body, node)


def _mda(rule: Rule, body: Body, node: Node) -> None:
    _method(body, "mda", value(node), text=rule.rewrite.part(value(node)))
    _user(rule, body, node)


def _user(rule: Rule, body: Body, node: Node) -> None:
    for part in options(node):
        if part.data == "as_user":
            body.put("user", f"user {rule.rewrite.part(value(part))}", [value(part)])


def _relay(rule: Rule, body: Body, node: Node) -> None:
    _method(body, "relay")
    host = None
    for part in options(node):
        if part.data == "url":
            host = _host(rule, body, part)
        else:
            _relay_option(rule, body, part, host)
    if "helo" in body.texts and "helo-src" in body.texts:
        rule.tell("hostname and hostnames excluded one another; helo-src counts where it has the address")
    pki = body.key.get("pki", ("",))[0].lower()
    if pki in rule.state.declared.pki_ca and "ca" not in body.texts and body.texts.get("tls") == "tls":
        body.put("ca", f"ca {rule.state.declared.pki[pki]}", [Token("_", pki)])


def _host(rule: Rule, body: Body, part: Node) -> RelayHost:
    word = value(part)
    host = parse_legacy_url(str(word))
    if host is None:
        raise Wrong(word, f"invalid url: {word}")
    if host.told:
        rule.tell(f"{host.scheme}:// {host.told}", attention=host.attention)
    if host.backup:
        body.put("backup", f"backup mx {spell(host.url)}", [Token("_", host.url)])
        if host.tls:
            body.put("tls", "tls no-verify", [Token("_", "no-verify")])
        return host
    if host.url != word:
        quoted = rule.statement.source.text[word.start_pos or 0] in {'"', "'"}
        rule.rewrite.replace(word, f'"{host.url}"' if quoted else spell(host.url))
    body.put("host", f"host {rule.rewrite.part(word)}", [Token("_", host.url)])
    return host


def _relay_option(rule: Rule, body: Body, part: Node, host: RelayHost | None) -> None:
    kind = str(part.data).removeprefix("relay_")
    if kind in {"tls", "verify"}:
        if kind == "verify" and not (host and host.tls):
            raise Wrong(part, 'cannot "verify" with insecure protocol')
        strict = kind == "verify" or has(part, "verify") or body.texts.get("tls") == "tls"
        body.put("tls", "tls" if strict else "tls no-verify", [Token("_", str(strict))])
        return
    if kind == "certificate":
        rule.actions += rule.state.certificate(str(value(part)))
    elif kind == "pki":
        rule.state.use_pki(rule.rewrite, value(part))
    operand = _operand(rule, part)
    name, text = _RELAY_OPTIONS[kind], operand
    if kind == "backup":
        text = f"mx {operand}" if operand else ""
    if body.put(name, f"{name} {text}".rstrip(), tokens_of(part)[1:]):
        rule.tell(f"`{tokens_of(part)[0]}` stood twice; the last one counted, and is kept", attention=False)


_RELAY_OPTIONS = {
    "as": "mail-from",
    "source": "src",
    "hostname": "helo",
    "hostnames": "helo-src",
    "pki": "pki",
    "certificate": "pki",
    "ca": "ca",
    "backup": "backup",
    "auth": "auth",
}
_LOOKUPS = ("rule_alias", "rule_virtual", "rule_userbase")
_METHODS: dict[str, Callable[[Rule, Body, Node], None]] = {
    "to_mbox": _mbox,
    "to_maildir": _maildir,
    "to_lmtp": _lmtp,
    "to_mda": _mda,
    "relay": _relay,
    "relay_via": _relay,
}
