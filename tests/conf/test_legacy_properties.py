"""Whatever the old grammar could say becomes a configuration that today's parser takes, and that says the same."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pillarbox.conf.build import load_config
from pillarbox.conf.format import CannotWrite
from pillarbox.conf.legacy import convert_config
from pillarbox.conf.legacy_read import LEGACY_KEYWORDS
from pillarbox.conf.legacy_text import spell
from pillarbox.conf.lexer import word_of
from pillarbox.conf.model import Config, Criterion, Local, Relay, Rule
from pillarbox.errors import ConfigError

quick = settings(max_examples=300, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])

HEAD = """\
table maps { a = b }
table addrs { "a@b", "@c" }
table nets { 10.0.0.0/8 }
table "host" { 10.0.0.1 }
pki mx.example.org certificate "/c" key "/k"
ca own certificate "/ca"
m_word = "example.org"
m_pair = "domain example.org"
"""


@dataclass
class Old:
    """A piece of the old grammar, and what it means today: fields of the rule or of its action."""

    text: str
    rule: dict[str, Any] = field(default_factory=dict)
    action: dict[str, Any] = field(default_factory=dict)


def criterion(kind: str, *, table: tuple[str, ...] = (), negated: bool = False) -> tuple[str, tuple[str, ...], bool]:
    return kind, table, negated


TABLES = [
    ("<addrs>", ("a@b", "@c")),
    ('"x@y"', ("x@y",)),
    ("z.example", ("z.example",)),
    ("$m_word", ("example.org",)),
    ('{ "p@q", r.example }', ("p@q", "r.example")),
    ('{ "p@q"\n  # within\n "@s" }', ("p@q", "@s")),
]
tables = st.sampled_from(TABLES)
bangs = st.booleans()


def tabled(word: str, rule: str, kind: str) -> st.SearchStrategy[Old]:
    def make(bang: bool, table: tuple[str, tuple[str, ...]]) -> Old:
        first, *rest = word.split()
        text = " ".join([first, *(["!"] if bang else []), *rest, table[0]])
        return Old(text, {rule: criterion(kind, table=table[1], negated=bang)})

    return st.builds(make, bangs, tables)


def plain(word: str, rule: str, kind: str) -> st.SearchStrategy[Old]:
    def make(bang: bool) -> Old:
        first, second = word.split()
        return Old(f"{first} {'! ' if bang else ''}{second}", {rule: criterion(kind, negated=bang)})

    return st.builds(make, bangs)


SOURCES = st.one_of(plain("from any", "source", "any"), plain("from local", "source", "local"),
                    tabled("from source", "source", "src"))  # fmt: skip
DESTINATIONS = st.one_of(
    plain("for any", "dest", "any"),
    plain("for local", "dest", "local"),
    tabled("for domain", "dest", "domain"),
    st.just(Old("for $m_pair", {"dest": criterion("domain", table=("example.org",))})),
)
TAGS = st.builds(
    lambda bang: Old(f"tagged {'! ' if bang else ''}T", {"tag": criterion("tag", table=("T",), negated=bang)}), bangs
)
SENDERS = tabled("sender", "mail_from", "mail-from")
RECIPIENTS = tabled("recipient", "rcpt_to", "rcpt-to")


def lot(*options: st.SearchStrategy[Old]) -> st.SearchStrategy[list[Old]]:
    """Some of these, each at most once, in any order."""
    return st.tuples(*(st.none() | option for option in options)).flatmap(
        lambda chosen: st.permutations([option for option in chosen if option is not None])
    )


LOOKUPS = lot(
    st.sampled_from([Old("alias <maps>", action={"alias": "maps"}), Old("virtual <maps>", action={"virtual": "maps"})]),
    st.just(Old("userbase <maps>", action={"userbase": "maps"})),
)
METHODS = st.sampled_from(
    [
        Old("deliver to mbox", action={"method": "mbox"}),
        Old("deliver to maildir", action={"method": "maildir", "target": ""}),
        Old('deliver to maildir "~/%{dest.user}"', action={"method": "maildir", "target": "~/%{dest.user}"}),
        Old("deliver to lmtp '/run/lmtp'", action={"method": "lmtp", "target": "/run/lmtp"}),
        Old("deliver to lmtp h:24 rcpt-to as u", action={"method": "lmtp", "lmtp_rcpt_to": True, "user": "u"}),
        Old('deliver to mda "/bin/x -f"', action={"method": "mda", "target": "/bin/x -f"}),
        Old('deliver to mda "/bin/x" as u', action={"method": "mda", "user": "u"}),
        Old("", action={"method": "expand-only"}),
    ]
)
EXPIRE = st.sampled_from([Old(""), Old("expire 2h", action={"ttl": 7200}), Old('expire "1d"', action={"ttl": 86400})])
COMMON = (
    st.just(Old('as "@x.example"', action={"mail_from": "@x.example"})),
    st.just(Old("source <host>", action={"src": "host"})),
    st.sampled_from(
        [Old("hostname h.x", action={"helo": "h.x"}), Old("hostnames <maps>", action={"helo_src": "maps"})]
    ),
    st.just(Old("pki MX.example.org", action={"pki": "mx.example.org"})),
    st.just(Old("ca own", action={"ca": "own"})),
)
RELAYS = lot(
    *COMMON,
    st.sampled_from(
        [Old("backup", action={"backup": True}), Old("backup b", action={"backup": True, "backup_mx": "b"})]
    ),
    st.sampled_from([Old("tls", action={"tls": "no-verify"}), Old("tls verify", action={"tls": "require"})]),
)
HOSTS = st.sampled_from(
    [
        Old("smtp://h.x", action={"host": "smtp://h.x"}),
        Old("h.x:26", action={"host": "h.x:26"}),
        Old('"lmtp://h.x:24"', action={"host": "lmtp://h.x:24"}),
    ]
)
TLS_HOSTS = st.sampled_from(
    [
        Old("tls://h.x", action={"host": "smtp+tls://h.x"}),
        Old("smtps://h.x:466", action={"host": "smtps://h.x:466"}),
        Old("secure://h.x:465", action={"host": "smtps://h.x:465"}),
        Old("tls+auth://l@h.x auth <maps>", action={"host": "smtp+tls://l@h.x", "auth": "maps"}),
        Old("'smtps+auth://l@h.x' auth <maps>", action={"host": "smtps://l@h.x", "auth": "maps"}),
    ]
)
VERIFY = st.just(Old("verify", action={"tls": "require"}))
SPACES = st.sampled_from([" ", "  ", "\t", " \\\n    "])
COMMENTS = st.sampled_from(["", "# why\n", "\n", "\t# indented \\ too\n", "# two\n# lines\n\n"])


@dataclass
class OldRule:
    """A whole rule."""

    text: str
    rule: dict[str, Any]
    action: dict[str, Any] | None


@st.composite
def rules(draw: Callable[[Any], Any]) -> OldRule:
    parts: list[Old] = list(draw(lot(SOURCES, DESTINATIONS, TAGS, SENDERS, RECIPIENTS)))
    accepts = draw(st.booleans())
    if accepts:
        kind = draw(st.sampled_from(["local", "forward-only", "relay", "via", "via tls"]))
        if kind == "local":
            parts += [*draw(LOOKUPS), draw(METHODS)]
        elif kind == "forward-only":
            parts += [*draw(LOOKUPS), Old("forward-only", action={"method": "forward-only"})]
        else:
            host = Old("") if kind == "relay" else draw(HOSTS if kind == "via" else TLS_HOSTS)
            more = draw(RELAYS if kind == "relay" else lot(*COMMON, *([VERIFY] if kind == "via tls" else [])))
            parts += [Old("relay" if kind == "relay" else f"relay via {host.text}", action=host.action), *more]
        parts.append(draw(EXPIRE))
    words = [part.text for part in parts if part.text]
    text = "".join(draw(SPACES) + word for word in words)
    return OldRule(
        ("accept" if accepts else "reject") + text,
        {key: value for part in parts for key, value in part.rule.items()},
        {key: value for part in parts for key, value in part.action.items()} if accepts else None,
    )


def convert(text: str) -> str:
    return convert_config(file="old", read=lambda path: text, macros={}, hostname="mx.example.org", follow=False).files[
        "old"
    ]


def load(text: str) -> Config:
    return load_config(file="new", read=lambda path: text, macros={}, hostname="mx.example.org", checker=None)


def told(config: Config, found: Criterion | None) -> tuple[str, tuple[str, ...], bool] | None:
    if found is None:
        return None
    entries = tuple(key for key, _ in config.tables[found.table].entries) if found.table else ()
    return found.kind, entries, found.negated


def assert_says(config: Config, rule: Rule, old: OldRule) -> None:
    local = criterion("local")
    for name in ("source", "dest", "tag", "mail_from", "rcpt_to"):
        default = local if name in {"source", "dest"} else None
        assert told(config, getattr(rule, name)) == old.rule.get(name, default)
    if old.action is None:
        assert rule.action == ""
        return
    action = config.actions[rule.action]
    blank = Local(name="", method="") if isinstance(action, Local) else Relay(name="")
    for name in blank.__struct_fields__:
        if name not in {"name", "line", "file"} and not (name == "target" and "target" not in old.action):
            assert getattr(action, name) == old.action.get(name, getattr(blank, name)), name


@quick
@given(st.lists(st.tuples(COMMENTS, rules()), min_size=1, max_size=8))
def test_rules_mean_the_same_in_the_same_order(written: list[tuple[str, OldRule]]) -> None:
    text = HEAD + "".join(f"{comment}{rule.text}\n" for comment, rule in written)
    new = convert(text)
    config = load(new)
    assert len(config.rules) == len(written)
    for rule, (_, old) in zip(config.rules, written, strict=True):
        assert_says(config, rule, old)
    distinct = {repr(sorted(old.action.items())) for _, old in written if old.action is not None}
    assert list(config.actions) == [f"act_{n}" for n in range(1, len(distinct) + 1)]
    assert [line for line in text.splitlines() if line.lstrip().startswith("#")] == [
        line for line in new.splitlines() if line.lstrip().startswith("#")
    ]
    assert convert(new) == new


PIECES = [
    *LEGACY_KEYWORDS,
    *(
        "{",
        "}",
        "<",
        ">",
        ",",
        "!",
        "=",
        "\n",
        "\\\n",
        '"',
        "'",
        "#",
        "$m",
        "$",
        "25",
        "1d",
        "a",
        "<a>",
        '"a"',
        "{ a, b }",
    ),
    *("{ a = b }", "tls://h", "é", "\0", "\r", 'm = "a b"\n', "accept for any", "listen on lo", "include", "pki a"),
]
pieces = st.sampled_from(PIECES)


@quick
@given(st.one_of(st.text(max_size=200), st.lists(pieces, max_size=60).map(" ".join), st.lists(pieces).map("".join)))
def test_nothing_is_raised_but_a_configuration_error(text: str) -> None:
    try:
        convert(text)
    except ConfigError as error:
        assert error.problems


def seconds(text: str) -> float:
    start = time.process_time()
    convert(text)
    return time.process_time() - start


def test_time_is_linear_in_rules_and_in_tables() -> None:
    for line in (
        'accept from any for domain "d{}.example" alias <maps> deliver to mda "/bin/x {}"\n',
        "  a{} = b{},\n",
    ):
        few, many = (
            HEAD + "".join(line.format(n, n) for n in range(count))
            if line.startswith("accept")
            else HEAD
            + "table big {\n"
            + "".join(line.format(n, n) for n in range(count))
            + " z = z }\naccept for any\n"
            for count in (500, 5000)
        )
        seconds(few)
        assert seconds(many) < 40 * seconds(few) + 0.5


@quick
@given(st.text(alphabet="ab\\\"' \t$-é", min_size=1, max_size=8))
def test_a_word_is_written_so_that_it_is_read_again(word: str) -> None:
    try:
        written = spell(word)
    except CannotWrite:  # a backslash at the end of what must be quoted: no file can have held it
        assert word.endswith("\\")
    else:
        assert word_of(written) == word
