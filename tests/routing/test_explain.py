"""Explain: what it says is what is decided, and saying it changes nothing."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.conf.model import Criterion, Listener, Local, Relay, Srs, Table, TableKind
from pillarbox.errors import PermFail, TempFail
from pillarbox.mail import srs
from pillarbox.mail.envelope import decode_envelope
from pillarbox.roles.explain import (
    EnvelopeMade,
    Explanation,
    ForwardRead,
    IncludeRead,
    LocalPlan,
    MemberFound,
    Note,
    Question,
    Refused,
    RelayPlan,
    Rules,
    SrsDecoded,
    TableAsked,
    UserAsked,
)
from pillarbox.routing.criteria import Criteria
from pillarbox.routing.ruleset import Ruleset, Subject
from pillarbox.routing.trace import NotSeen
from pillarbox.tables.berkeley_writer import write_hash
from pillarbox.tables.table import MemoryTable
from tests.routing.support import NOW, RELAY, Parent, configuration, criterion, make_lookup, match, table
from tests.routing.support import recipient as ask_recipient
from tests.routing.test_asked import Asked

ADDRESS = "198.51.100.7"


def explain(rcpt, *, config=None, parent=None, lookup=None, **fields):
    lookup = lookup or make_lookup(config, parent=parent)
    question = Question(**{"rcpt": rcpt, "sender": "s@client.example", "address": ADDRESS, **fields})
    explanation = asyncio.run(lookup.explain(question))
    # It crosses processes and is printed as JSON: both give back what was said.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(explanation), type=Explanation) == explanation
    assert msgspec.json.decode(msgspec.json.encode(explanation), type=Explanation) == explanation
    return explanation


def aliases(**entries):
    """A configuration whose action "local" has these aliases."""
    action = Local(name="local", method="maildir", userbase="users", alias="al")
    return configuration(actions=(action, RELAY), tables=[table("al", *entries.items())])


def steps(explanation, kind, member=None):
    return [
        step
        for m in explanation.members
        if member is None or m.number == member
        for step in m.steps
        if isinstance(step, kind)
    ]


# -- rules


def test_each_rule_is_told_up_to_the_one_that_matches():
    rules = (
        match("relay", source=Criterion(kind="local")),
        match("relay", dest=criterion("domain", "theirs"), helo="!bad"),
        match("local", dest=criterion("domain", "ours")),
        match("relay"),
    )
    config = configuration(rules=rules, tables=[table("bad", "x")])
    (step,) = steps(explain("alice@example.org", config=config), Rules)
    assert [rule.matches for rule in step.tried] == [False, False, True]
    assert step.action == "local"
    local, theirs, ours = (rule.criteria for rule in step.tried)
    assert [(c.text, c.holds, c.why) for c in local] == [
        ("from local", False, "198.51.100.7 is not an address of this host")
    ]
    assert [(c.text, c.holds) for c in theirs] == [("from any", True), ("for domain <theirs>", False)]
    assert theirs[1].why == 'example.org is not in "theirs" (smtpd.conf)'
    assert (ours[1].value, ours[1].table, ours[1].source, ours[1].entry) == (
        "example.org",
        "ours",
        "smtpd.conf",
        "example.org",
    )


def test_without_a_match_the_refusal_is_what_a_client_hears():
    explanation = explain("alice@elsewhere.example")
    assert explanation.verdict == "refused"
    assert explanation.reply == "550 Invalid recipient: <alice@elsewhere.example>"
    (step,) = steps(explanation, Rules)
    assert len(step.tried) == 2 and not any(rule.matches for rule in step.tried) and step.action == ""
    assert steps(explanation, Refused) == [Refused(code=550, text="Invalid recipient: <alice@elsewhere.example>")]


@pytest.mark.parametrize(
    ("criteria", "fields", "holds", "why", "entry"),
    [
        ({"source": criterion("src", "t")}, {}, True, '198.51.100.7 is in "t" (smtpd.conf)', "198.51.100.0/24"),
        ({"source": criterion("src", "!t")}, {}, False, '198.51.100.7 is in "t" (smtpd.conf)', "198.51.100.0/24"),
        ({"source": criterion("src", "t")}, {"address": "::7"}, False, '[::7] is not in "t" (smtpd.conf)', ""),
        ({"source": criterion("rdns", "t")}, {"hostname": ""}, False, "the client has no name", ""),
        ({"source": criterion("rdns", "!t")}, {"hostname": ""}, False, "the client has no name", ""),
        ({"source": criterion("rdns", "t")}, {"hostname": "name"}, True, 'name is in "t" (smtpd.conf)', "name"),
        ({"source": Criterion(kind="socket")}, {}, False, "the client is 198.51.100.7", ""),
        ({"source": Criterion(kind="socket")}, {"address": "local"}, True, "the client is on the control socket", ""),
        ({"dest": Criterion(kind="local")}, {}, False, "example.org is not this host's name or address", ""),
        ({"dest": criterion("domain", "t")}, {}, True, 'example.org is in "t" (smtpd.conf)', "*.org"),
        (
            {"dest": criterion("rcpt-to", "t", regex=True)},
            {},
            True,
            'alice@example.org matches "t" (smtpd.conf)',
            "al.ce@",
        ),
        ({"auth": Criterion(kind="auth")}, {}, False, "not authenticated", ""),
        ({"auth": Criterion(kind="auth")}, {"username": "bob"}, True, "authenticated as bob", ""),
        ({"auth": "t"}, {"username": "bob"}, True, 'bob is in "t" (smtpd.conf)', "bob"),
        ({"tls": Criterion(kind="tls", negated=True)}, {"tls": True}, False, "the session has TLS", ""),
        ({"mail_from": "t"}, {"sender": ""}, False, 'the null sender (@) is not in "t" (smtpd.conf)', ""),
        ({"helo": "t"}, {"helo": "name"}, True, 'name is in "t" (smtpd.conf)', "name"),
    ],
)
def test_why_a_criterion_holds(criteria, fields, holds, why, entry):
    keys = ["name", "198.51.100.0/24", "*.org", "bob", "al.ce@", "zzz"]
    config = configuration(rules=[match("relay", **criteria)], tables=[table("t", *keys)])
    (step,) = steps(explain("alice@example.org", config=config, **fields), Rules)
    (tried,) = [c for c in step.tried[0].criteria if c.why == why]
    assert (tried.holds, tried.why, tried.entry) == (holds, why, entry)


def test_a_regex_that_never_matches_says_why():
    config = configuration(
        rules=[match("relay", rcpt_to=criterion("rcpt-to", "t", regex=True))], tables=[table("t", "(", "xyz")]
    )
    (step,) = steps(explain("alice@example.org", config=config), Rules)
    assert '"(" never matches:' in step.tried[0].criteria[-1].why


def test_a_table_that_does_not_answer_is_why():
    config = configuration(rules=[match("relay", helo="far")], tables=[Table(name="far", kind=TableKind.PROC)])
    tables = {n: memory(t) for n, t in config.tables.items()} | {"far": Asked("far", asked=[])}
    tried = judge(config, tables, subject_of(helo="broken"), error=True)
    assert tried[0][-1].why == "far does not answer" and not tried[0][-1].holds


NAMES = ["", "example.org", "a.example.net", "b", "alice", "alice@example.org", "@example.net", "*.net", "198.51.100.7"]
NAMES += ["198.51.100.0/24", "local", "e.*g", "("]
tables_of_names = st.lists(st.sampled_from(NAMES[1:]), max_size=5)


@st.composite
def rules_and_subject(draw):
    names = ["t0", "t1", "t2"]
    contents = [table(name, *draw(tables_of_names)) for name in names]

    def maybe(kind):
        if draw(st.integers(0, 2)):
            return None
        return Criterion(kind=kind, table=draw(st.sampled_from(names)), **flags())

    def flags():
        return {"negated": draw(st.booleans()), "regex": draw(st.booleans())}

    def rule(number):
        source = draw(st.sampled_from(["any", "local", "socket", "src", "rdns"]))
        dest = draw(st.sampled_from(["any", "local", "domain", "rcpt-to"]))
        fields = {
            "source": Criterion(kind=source, negated=draw(st.booleans()))
            if source in ("any", "local", "socket")
            else Criterion(kind=source, table=draw(st.sampled_from(names)), **flags()),
            "dest": Criterion(kind=dest, negated=draw(st.booleans()))
            if dest in ("any", "local")
            else Criterion(kind=dest, table=draw(st.sampled_from(names)), **flags()),
            "tag": maybe("tag"),
            "helo": maybe("helo"),
            "auth": maybe("auth"),
            "mail_from": maybe("mail-from"),
            "rcpt_to": maybe("rcpt-to"),
            "tls": Criterion(kind="tls", negated=draw(st.booleans())) if draw(st.booleans()) else None,
        }
        return match(f"a{number}", **{k: v for k, v in fields.items() if v is not None})

    rules = [rule(number) for number in range(draw(st.integers(0, 6)))]
    name = st.sampled_from(NAMES)
    subject = Subject(
        sender=draw(name),
        dest=draw(st.sampled_from(["alice@example.org", "x@a.example.net", "b@localhost", "@"])),
        address=draw(st.sampled_from(["198.51.100.7", "127.0.0.1", "::1", "local"])),
        internal=draw(st.booleans()),
        hostname=draw(name),
        tag=draw(name),
        helo=draw(name),
        tls=draw(st.booleans()),
        authenticated=draw(st.booleans()),
        username=draw(st.sampled_from(["", "alice", "alice@example.org"])),
    )
    return rules, contents, subject, draw(st.sets(st.sampled_from(names)))


def memory(t):
    return MemoryTable(name=t.name, entries=t.entries, delimiter="+", on_bad_regex=lambda p, w: None)


def subject_of(**fields):
    return Subject(**{"sender": "s@client.example", "dest": "alice@example.org", "address": ADDRESS, **fields})


def judge(config, tables, subject, *, error=False):
    """The criteria of each rule; unless `error`, the verdicts are compared with the ruleset's."""
    addresses = {"config": config, "tables": tables, "local_addresses": lambda: frozenset({"127.0.0.1", "::1"})}

    async def run():
        criteria = Criteria(**addresses)
        tried = [[c async for c in criteria.tried(rule, subject)] for rule in config.rules]
        if not error:
            decided = await Ruleset(**addresses, on_bad_regex=lambda *_: None).decide(subject)
            first = next((r for r, t in zip(config.rules, tried, strict=True) if all(c.holds for c in t)), None)
            assert first == decided
        return tried

    return asyncio.run(run())


@settings(max_examples=300, deadline=None)
@given(rules_and_subject())
def test_what_is_said_of_the_rules_is_what_the_ruleset_decides(drawn):
    rules, contents, subject, outside = drawn
    config = configuration(rules=rules, tables=contents)
    tables = {name: memory(t) for name, t in config.tables.items()}
    tables |= {name: Asked(name, *tables[name].all_keys(), asked=[]) for name in outside}
    for tried in judge(config, tables, subject):
        assert all(c.holds for c in tried[:-1])
        for c in tried:
            assert not c.entry or c.entry in tables[c.table].all_keys()


def test_the_entry_is_found_in_a_large_table():
    keys = [f"d{n}.example" for n in range(20_000)]
    config = configuration(rules=[match("relay", dest=criterion("domain", "big"))], tables=[table("big", *keys)])
    (step,) = steps(explain("x@d17777.example", config=config), Rules)
    assert step.tried[0].criteria[-1].entry == "d17777.example"


# -- expansion


def test_virtual_keys_are_told_in_the_order_in_which_they_are_tried():
    action = Local(name="local", method="maildir", userbase="users", virtual="v")
    config = configuration(actions=(action, RELAY), tables=[table("v", ("@", "bob"))])
    explanation = explain("Alice+x@Example.org", config=config)
    found = [(s.key, s.value) for s in steps(explanation, TableAsked, member=1)]
    keys = ["alice+x@example.org", "alice@example.org", "alice+x", "alice", "@example.org", "@"]
    assert found == [(key, "bob" if key == "@" else None) for key in keys]
    assert steps(explanation, MemberFound)[0] == MemberFound(number=2, kind="user", text="bob")


def test_an_alias_is_followed_to_its_end():
    config = aliases(team="alice, |/bin/cat, carol@example.net", alice="bob", bob="bob")
    explanation = explain("team@example.org", config=config)
    assert [(m.number, m.parent, m.kind, m.text) for m in explanation.members] == [
        (1, 0, "address", "team@example.org"),
        (2, 1, "user", "team"),
        (3, 2, "user", "alice"),
        (4, 2, "command", "/bin/cat"),
        (5, 2, "address", "carol@example.net"),
        (6, 3, "user", "bob"),
        (7, 6, "user", "bob"),
    ]
    assert [(e.type, e.dest, e.mda_user, e.mda_exec, e.member) for e in explanation.envelopes] == [
        ("mda", "team@example.org", "_smtpd", "/bin/cat", 4),
        ("mta", "carol@example.net", "", "", 5),
        ("mda", "team@example.org", "bob", "", 7),
    ]
    assert [step.number for step in steps(explanation, EnvelopeMade)] == [1, 2, 3]
    (first, again) = steps(explanation, Rules)
    assert (first.internal, again.internal, again.dest) == (False, True, "carol@example.net")


def test_a_loop_ends_at_the_member_that_is_dropped():
    explanation = explain("a@example.org", config=aliases(a="b", b="a"))
    assert MemberFound(number=0, kind="user", text="a") in steps(explanation, MemberFound)
    assert explanation.verdict == "refused"
    assert explanation.reply == "524 5.2.4 Mailing list expansion problem: <a@example.org>"


def test_a_chain_that_is_too_long_says_so():
    chain = {f"u{n}": f"u{n + 1}" for n in range(12)}
    explanation = explain("u0@example.org", config=aliases(**chain))
    assert explanation.members[-1].depth == 10
    assert any("too long a chain" in note.text for note in steps(explanation, Note))


def test_forward_is_told_with_its_lines():
    parent = Parent(forwards={"alice": b"bob\n\\alice # me too\n"})
    explanation = explain("alice@example.org", parent=parent)
    forwards = steps(explanation, ForwardRead)
    assert forwards[0] == ForwardRead(path="/home/alice/.forward", state="read", content="bob\n\\alice # me too\n")
    assert ForwardRead(path="/home/bob/.forward", state="absent") in forwards
    assert any("not read: it was read already" in note.text for note in steps(explanation, Note))
    assert {e.mda_user for e in explanation.envelopes} == {"alice", "bob"}


@pytest.mark.parametrize(
    ("error", "state", "verdict"),
    [
        (PermFail("writable by others"), "insecure", "refused"),
        (TempFail("no answer"), "unreadable", "temporary"),
        (NotSeen("Permission denied"), "unknown", "unknown"),
    ],
)
def test_a_forward_that_cannot_be_used(error, state, verdict):
    explanation = explain("alice@example.org", parent=Parent(forwards={"alice": error}))
    assert steps(explanation, ForwardRead) == [ForwardRead(path="/home/alice/.forward", state=state, reason=str(error))]
    assert explanation.verdict == verdict
    assert bool(explanation.unknown) == (verdict == "unknown")
    assert bool(explanation.envelopes) == (verdict == "unknown")


def test_includes_and_their_failures(tmp_path):
    (tmp_path / "list").write_bytes(b"bob\ncaf\xe9\n")
    config = aliases(a=f":include:{tmp_path}/list, :include:{tmp_path}/none, alice")
    explanation = explain("a@example.org", config=config)
    read, missing = sorted(steps(explanation, IncludeRead), key=lambda step: step.path)
    assert read.content == "bob\ncaf\\xe9\n"
    assert missing.reason
    assert {e.mda_user for e in explanation.envelopes} == {"alice", "bob"}


def test_what_cannot_be_read_says_why():
    explanation = explain("a@example.org", config=aliases(a='"unbalanced'))
    assert explanation.verdict == "temporary"
    assert explanation.reply.startswith("424 ")
    assert any("unbalanced quote" in note.text for note in steps(explanation, Note))


def test_error_aliases_give_their_own_reply():
    explanation = explain("gone@example.org", config=aliases(gone="error:550 5.1.1 gone"))
    assert (explanation.verdict, explanation.reply) == ("refused", "550 5.1.1 gone: <gone@example.org>")


def test_srs_is_decoded():
    config = configuration(srs=Srs(key="k"))
    given = srs.encode("x@example.net", "example.org", key="k", now=NOW)
    explanation = explain(given, config=config, sender="")
    assert steps(explanation, SrsDecoded) == [SrsDecoded(given=given, decoded="x@example.net")]
    assert steps(explanation, Rules)[0].internal
    assert explanation.envelopes[0].dest == "x@example.net"
    forged = "SRS0=AAAA=AA=example.net=x@example.org"
    assert steps(explain(forged, config=config, sender=""), SrsDecoded)[0].decoded is None


def test_an_unknown_user():
    explanation = explain("ghost@example.org")
    assert steps(explanation, UserAsked) == [UserAsked(table="users", source="smtpd.conf", user="ghost")]
    assert explanation.reply == "550 Invalid recipient: <ghost@example.org>"


members = st.sampled_from(
    ["a", "b", "c", "alice", "bob", "\\alice", "a@example.org", "b@example.net", "|x", "/f", "error:450 4.1 x", "'"]
)
graphs = st.dictionaries(
    st.sampled_from(["a", "b", "c", "alice", "bob", "@example.org", "a@example.org", "@"]),
    st.lists(members, min_size=1, max_size=4).map(", ".join),
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(graphs, graphs, st.booleans(), st.sampled_from(["a", "alice", "b+x"]))
def test_envelopes_are_those_that_a_client_would_cause(entries, forwards, virtual, user):
    action = Local(name="local", method="maildir", userbase="users", **{"virtual" if virtual else "alias": "al"})
    config = configuration(actions=(action, RELAY), tables=[table("al", *entries.items())])
    parent = Parent(forwards={name: text.encode() for name, text in forwards.items()})
    lookup = make_lookup(config, parent=parent)
    rcpt = f"{user}@example.org"
    answer = asyncio.run(lookup.expand(ask_recipient(rcpt)))
    explanation = explain(rcpt, lookup=lookup)
    assert explanation.reply.startswith(f"{answer.code} {answer.text}".rstrip())
    made = [decode_envelope(sealed.data) for sealed in answer.envelopes]
    assert [(e.kind, e.dest, e.dispatcher, e.mda_user, e.mda_exec, e.mda_subaddress) for e in made] == [
        (e.type, e.dest, e.action, e.mda_user, e.mda_exec, e.mda_subaddress) for e in explanation.envelopes
    ]
    if explanation.verdict == "accepted":
        assert len(steps(explanation, EnvelopeMade)) == len(made)
    else:
        assert len(steps(explanation, Refused)) == 1


# -- actions


def plan(action, *, rcpt="alice@example.org", tables=(), config=None, **fields):
    config = config or configuration(actions=(action,), rules=[match(action.name)], tables=tables)
    (envelope,) = explain(rcpt, config=config, **fields).envelopes
    return envelope


def test_a_maildir_with_its_specifiers():
    action = Local(name="x", method="maildir", target="/m/%{dest.domain}/%{user.username:uppercase}", userbase="users")
    found = plan(action)
    assert found.plan == LocalPlan(
        method="maildir",
        target="/m/example.org/ALICE",
        pattern=action.target,
        user="alice",
        run_as="alice",
        home="/home/alice",
    )
    assert found.asked[0] == UserAsked(
        table="users", source="smtpd.conf", user="alice", uid=6001, gid=6002, home="/home/alice"
    )
    assert found.ttl == 4 * 86400


@pytest.mark.parametrize(
    ("fields", "method", "target"),
    [
        ({"method": "maildir"}, "maildir", "/home/alice/Maildir"),
        ({"method": "mbox"}, "mbox", "/var/mail/alice"),
        ({"method": "mda", "target": "/x %{sender}"}, "command", "/x s@client.example"),
        ({"method": "lmtp", "target": "127.0.0.1:24"}, "lmtp", "127.0.0.1:24"),
    ],
)
def test_methods_and_targets(fields, method, target):
    found = plan(Local(name="x", userbase="users", ttl=60, **fields))
    assert (found.plan.method, found.plan.target, found.ttl) == (method, target, 60)


def test_a_format_that_cannot_be_expanded_is_a_problem():
    found = plan(Local(name="x", method="mda", target="%{nothing}", userbase="users"))
    assert "could not be expanded" in found.plan.problem


def test_nothing_is_delivered_as_root_and_that_is_said():
    users = table("u", ("boss", "0:0:/root"))
    found = plan(Local(name="x", method="maildir", userbase="u"), rcpt="boss@example.org", tables=[users])
    assert "not allowed" in found.plan.problem


def test_a_wrapper_has_the_command_in_it():
    action = Local(name="x", method="mda", target="/bin/deliver %{dest}", userbase="users", wrapper="w")
    config = configuration(actions=(action,), rules=[match("x")])
    config = msgspec.structs.replace(config, mda_wrappers={"w": "timeout 9 %{mda}"})
    assert plan(action, config=config).plan.wrapper == "timeout 9 /bin/deliver alice@example.org"


def test_a_relay_by_mx():
    found = plan(Relay(name="x", mail_from="@ours.example", helo="me.example"), rcpt="b@Far.example").plan
    assert found == RelayPlan(
        relay="[relay:far.example,smtp,heloname=me.example]",
        domain="far.example",
        sender="s@ours.example",
        tls="opportunistic",
        verify=False,
        helo="me.example",
    )


def test_a_smarthost_of_a_table():
    urls = table("urls", ("far.example", "smtps://label@hub.example:4650"))
    creds = table("secrets", ("label", "user:password"))
    found = plan(Relay(name="x", domain="urls", auth="secrets"), rcpt="b@far.example", tables=[urls, creds])
    assert found.asked == (
        TableAsked(
            table="urls",
            source="smtpd.conf",
            service="relayhost",
            key="far.example",
            value="smtps://label@hub.example:4650",
        ),
    )
    assert (found.plan.url, found.plan.tls, found.plan.verify) == ("smtps://label@hub.example:4650", "immediate", True)
    assert found.plan.credentials == "label"
    missing = plan(Relay(name="x", domain="urls"), rcpt="b@other.example", tables=[urls])
    assert missing.plan.problem == "Cannot retrieve smarthost"
    assert missing.plan.relay == ""


def test_hosts_that_take_turns_are_not_moved_on():
    hosts = table("hosts", "smtp://a.example", "smtp://b.example")
    config = configuration(actions=(Relay(name="x", hosts="hosts"),), rules=[match("x")], tables=[hosts])
    lookup = make_lookup(config)

    def upcoming():
        return explain("b@far.example", lookup=lookup).envelopes[0].plan

    assert [upcoming().url, upcoming().url] == ["smtp://a.example"] * 2
    assert upcoming().in_turn == ("smtp://a.example", "smtp://b.example")
    assert asyncio.run(lookup.relay_url(0, "hosts", "")) == "smtp://a.example"
    assert upcoming().url == "smtp://b.example"


def test_a_list_that_is_not_in_memory_is_not_asked_for_its_next_entry():
    far = [Table(name="far", kind=TableKind.PROC), Table(name="src", kind=TableKind.PROC)]
    found = plan(Relay(name="x", hosts="far", src="src"), tables=far)
    assert [step.error for step in found.asked] == ["it is asked for its next entry when that is due"] * 2
    assert (found.plan.relay, found.plan.domain, found.plan.url, found.plan.problem) == ("", "", "", "")


def test_sources_and_the_name_for_them():
    tables = [table("src", "192.0.2.2", "192.0.2.1"), table("names", ("192.0.2.1", "one.example"))]
    found = plan(Relay(name="x", src="src", helo_src="names"), tables=tables).plan
    assert (found.sources, found.helo) == (("192.0.2.1", "192.0.2.2"), "one.example")


def test_sources_of_a_db_table_are_all_read(tmp_path):
    (tmp_path / "src.db").write_bytes(write_hash({b"192.0.2.2\0": b"<set>\0", b"192.0.2.1\0": b"<set>\0"}))
    tables = [Table(name="src", kind=TableKind.DB, config=str(tmp_path / "src.db"))]
    found = plan(Relay(name="x", src="src"), tables=tables)
    assert found.plan.sources == ("192.0.2.1", "192.0.2.2")
    assert [step.error for step in found.asked] == [""]


def test_a_forwarded_sender_is_rewritten():
    rules = [match("relay", dest=criterion("domain", "theirs")), match("local")]
    action = Local(name="local", method="maildir", userbase="users", alias="al")
    relay = Relay(name="relay", srs=True)
    config = configuration(
        actions=(action, relay), rules=rules, srs=Srs(key="k"), tables=[table("al", ("a", "b@example.net"))]
    )
    sender = explain("a@example.org", config=config).envelopes[0].plan.sender
    assert sender == srs.encode("s@client.example", "example.org", key="k", now=NOW)


# -- the session


def test_defaults_are_those_of_a_session_from_this_machine():
    lookup = make_lookup()
    explanation = asyncio.run(lookup.explain(Question()))
    session = explanation.session
    assert (session.sender, session.rcpt) == ("", "postmaster@mx.example.org")
    assert (session.address, session.local, session.helo) == ("127.0.0.1", True, "localhost")
    assert not (session.authenticated or session.tls or session.tag or session.username)


def test_the_control_socket_is_authenticated():
    session = explain("a@example.org", address="local").session
    assert (session.local, session.authenticated, session.hostname) == (True, True, "mx.example.org")


def test_the_reverse_name_is_asked_where_a_rule_looks_at_it():
    assert explain("a@example.org").session.hostname == ""
    config = configuration(rules=[match("relay", source=criterion("rdns", "ours"))])
    assert explain("a@example.org", config=config).session.hostname == f"name-of-{ADDRESS}"
    assert explain("a@example.org", config=config, hostname="x").session.hostname == "x"


def test_a_tag_chooses_its_listener():
    listeners = (Listener(id=1, hostname="one.example"), Listener(id=2, hostname="two.example", tag="T"))
    config = msgspec.structs.replace(configuration(), listeners=listeners)
    assert explain("a", config=config).session.rcpt == "a@one.example"
    assert explain("a", config=config, tag="T").session.rcpt == "a@two.example"
    with pytest.raises(TempFail, match="no listener has the tag"):
        explain("a", config=config, tag="other")


@pytest.mark.parametrize(
    ("fields", "reply"),
    [
        ({"rcpt": "a b@example.org"}, "501 5.1.3 Recipient address syntax error"),
        ({"rcpt": "<a@example.org> NOTIFY=NEVER"}, "501 5.1.3 Recipient address syntax error"),
        ({"rcpt": "a@example.org", "sender": "@@"}, "553 5.1.0 Sender address syntax error"),
    ],
)
def test_addresses_are_read_as_a_client_s(fields, reply):
    explanation = explain(**fields)
    assert (explanation.verdict, explanation.reply, explanation.members) == ("refused", reply, ())


def test_a_very_long_list_is_cut_and_says_so():
    names = [f"u{n}@example.net" for n in range(12_000)]
    explanation = explain("all@example.org", config=aliases(all=", ".join(names)))
    assert explanation.left_out > 0
    assert len(explanation.envelopes) == 500
    assert len(msgspec.msgpack.encode(explanation)) < 4 << 20


def test_bytes_that_are_no_text_are_shown():
    parent = Parent(forwards={"alice": b"bob\n# caf\xe9 \x1b[2J\n"})
    forward = steps(explain("alice@example.org", parent=parent), ForwardRead)[0]
    assert forward.content == "bob\n# caf\\xe9 \\x1b[2J\n"
