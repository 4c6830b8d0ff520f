"""Expansion of a recipient into envelopes (aliases(5), forward(5), smtpd.conf(5) virtual and userbase)."""

import asyncio
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pillarbox.conf.model import Criterion, Local, Srs
from pillarbox.errors import PermFail, TempFail
from pillarbox.mail import srs
from pillarbox.mail.envelope import Flag, Kind, Notify, decode_envelope
from pillarbox.mail.seal import verify
from tests.routing.support import (
    KEY,
    NOW,
    RELAY,
    Parent,
    client,
    configuration,
    criterion,
    expand,
    make_lookup,
    match,
    recipient,
    table,
)

LIST_PERM = "524 5.2.4 Mailing list expansion problem"
LIST_TEMP = "424 4.2.4 Mailing list expansion problem"


def lookup(*, aliases=(), virtual=(), forwards=None, stream=None, parent=None, **options):
    tables = [table("aliases", *aliases), table("virtual", *virtual)]
    fields = {"alias": "aliases"} if aliases else {"virtual": "virtual"} if virtual else {}
    action = Local(name="local", userbase="users", **{"method": "maildir", **fields, **options})
    config = configuration(actions=[action, RELAY], tables=tables)
    return make_lookup(config, parent=parent or Parent(forwards), stream=stream)


def users(answer):
    return answer if isinstance(answer, str) else sorted(e.mda_user or e.dest for e in answer)


def test_an_envelope_carries_what_is_known():
    answer = asyncio.run(
        make_lookup().expand(
            recipient(
                "Alice+Tag+x@example.org",
                hostname="mx.client.example",
                helo="client.example",
                tag="T",
                username="bob",
                msgid=0xABCDEF01,
            )
        )
    )
    (sealed,) = answer.envelopes
    assert verify(KEY, sealed.data, sealed.mac)
    envelope = decode_envelope(sealed.data)
    assert envelope.msgid == 0xABCDEF01
    assert envelope.evpid & 0xFFFFFFFF
    assert (envelope.kind, envelope.dispatcher, envelope.mda_user) == (Kind.MDA, "local", "alice")
    assert (envelope.rcpt, envelope.dest) == ("Alice+Tag+x@example.org", "Alice+Tag+x@example.org")
    assert envelope.mda_subaddress == "tag+x"
    assert (envelope.sender, envelope.sockaddr, envelope.helo) == ("s@client.example", "198.51.100.7", "client.example")
    assert (envelope.hostname, envelope.tag, envelope.username) == ("mx.client.example", "T", "bob")
    assert (envelope.flags, envelope.ctime, envelope.ttl) == (Flag.AUTHENTICATED, int(NOW), 0)


def test_dsn_parameters_belong_to_the_envelope():
    question = recipient("x@example.net")
    question = type(question)(
        generation=0, client=client(), msgid=7, sender="", rcpt="x@example.net",
        dsn_notify=Notify.NEVER, dsn_orcpt="rfc822;y@z", dsn_ret="HDRS", dsn_envid="id",
    )  # fmt: skip
    (sealed,) = asyncio.run(make_lookup().expand(question)).envelopes
    envelope = decode_envelope(sealed.data)
    assert (envelope.kind, envelope.dispatcher, envelope.dest) == (Kind.MTA, "relay", "x@example.net")
    assert (envelope.dsn_notify, envelope.dsn_orcpt) == (Notify.NEVER, "rfc822;y@z")
    assert (envelope.dsn_ret, envelope.dsn_envid, envelope.flags) == ("HDRS", "id", Flag.NONE)
    assert envelope.hostname == "<unknown>"


@pytest.mark.parametrize("fields", [{"address": "local"}, {"internal": True}])
def test_local_submissions_and_bounces_count_as_authenticated(fields):
    (envelope,) = expand(make_lookup(), "x@example.net", **fields)
    assert envelope.flags is Flag.AUTHENTICATED


def test_unknown_users_and_unmatched_addresses_are_refused():
    for rcpt in ("ghost@example.org", "+tag@example.org", "x@elsewhere.example"):
        assert expand(make_lookup(), rcpt) == f"550 Invalid recipient: <{rcpt}>"


def test_the_refused_address_is_shown_as_the_reference_shows_it():
    assert expand(make_lookup(), "@elsewhere.example") == "550 Invalid recipient: <>"
    assert expand(make_lookup(), "x@") == "550 Invalid recipient: <x>"


def test_a_broken_user_base_is_temporary():
    action = Local(name="local", method="maildir", userbase="broken")
    config = configuration(actions=[action, RELAY], tables=[table("broken", ("alice", "no uid"))])
    assert expand(make_lookup(config), "alice@example.org") == "451 Temporary failure: <alice@example.org>"


def test_aliases_of_aliases_addresses_and_sub_addresses():
    aliases = [("postmaster", "root"), ("root", "ALICE"), ("list+a", "bob"), ("list", "carol, x@example.net")]
    each = lookup(aliases=aliases)
    assert users(expand(each, "postmaster@example.org")) == ["ALICE"]
    assert users(expand(each, "List+A@example.org")) == ["bob"]
    assert users(expand(each, "list+b@example.org")) == ["carol", "x@example.net"]
    assert users(expand(each, "dave@example.org")) == ["dave"]


def test_one_bad_member_refuses_the_list():
    each = lookup(aliases=[("a", "alice, ghost"), ("b", "alice, z@norule.example"), ("c", "alice, b!d")])
    assert expand(each, "a@example.org") == "550 Invalid recipient: <a@example.org>"
    assert expand(each, "b@example.org") == "550 Invalid recipient: <b@example.org>"
    assert expand(each, "c@example.org") == f"{LIST_TEMP}: <c@example.org>"


def test_loops_end():
    each = lookup(aliases=[("a", "b"), ("b", "a"), ("self", "self"), ("alice", "alice")])
    assert expand(each, "a@example.org").startswith(LIST_PERM)
    assert expand(each, "self@example.org").startswith("550 Invalid recipient")
    assert users(expand(each, "alice@example.org")) == ["alice"]
    forwards = lookup(forwards={"alice": b"bob\n", "bob": b"alice\n", "carol": b"carol@example.org\n"})
    assert expand(forwards, "alice@example.org").startswith(LIST_PERM)
    assert expand(forwards, "carol@example.org").startswith(LIST_PERM)


def test_depth_is_limited():
    chain = [(f"n{i}", f"n{i + 1}") for i in range(1, 12)] + [("n12", "alice")]
    each = lookup(aliases=chain)
    assert users(expand(each, "n5@example.org")) == ["alice"]
    assert expand(each, "n4@example.org").startswith(LIST_PERM)


def test_duplicates_are_dropped():
    each = lookup(aliases=[("all", "a, b"), ("a", "alice, bob, alice"), ("b", "alice, x@example.net, x@example.net")])
    assert users(expand(each, "all@example.org")) == ["alice", "bob", "x@example.net"]


def test_commands_and_files_of_aliases():
    stream = io.StringIO()
    each = lookup(aliases=[("c", "|/bin/prog a"), ("f", "/var/mail/x")], stream=stream)
    (command,) = expand(each, "c@example.org")
    assert (command.mda_user, command.mda_exec, command.dest) == ("_smtpd", "/bin/prog a", "c@example.org")
    (file,) = expand(each, "f@example.org")
    assert file.mda_exec == "/libexec/mail.mboxfile -f %{mbox.from} /var/mail/x"
    assert stream.getvalue() == "commands executed from aliases run with _smtpd privileges\n"


def test_errors_are_the_reply():
    each = lookup(aliases=[("e", "error:550 5.1.1 gone"), ("t", ":error:451 4.2.0 later")])
    assert expand(each, "e@example.org") == "550 5.1.1 gone: <e@example.org>"
    assert expand(each, "t@example.org") == "451 4.2.0 later: <t@example.org>"


def test_includes(tmp_path):
    (tmp_path / "list").write_text("# members\nalice\nbob, carol # no comment\nb!d, bob\n\n  dave\n:include:/other\n")
    (tmp_path / "empty").write_text("")
    aliases = [
        ("i", f":include:{tmp_path}/list"),
        ("e", f":include:{tmp_path}/empty"),
        ("m", f":include:{tmp_path}/missing"),
        ("d", f"include:{tmp_path}"),
    ]
    stream = io.StringIO()
    each = lookup(aliases=aliases, stream=stream)
    assert users(expand(each, "i@example.org")) == ["alice", "bob", "dave"]
    assert expand(each, "e@example.org").startswith(LIST_PERM)
    assert expand(each, "m@example.org").startswith("550 Invalid recipient")
    assert expand(each, "d@example.org").startswith("550 Invalid recipient")
    assert f'failed to open include file "{tmp_path}/missing"' in stream.getvalue()


def test_virtual_lookup_order():
    entries = [
        ("u+t@example.org", "alice"),
        ("u@example.org", "bob"),
        ("v+t", "alice"),
        ("v", "carol"),
        ("@example.org", "dave"),
        ("@", "alice"),
    ]
    each = lookup(virtual=entries)
    found = {rcpt: users(expand(each, f"{rcpt}@example.org")) for rcpt in ("u+t", "U+z", "u", "v+t", "v+z", "v", "x")}
    assert found == {
        "u+t": ["alice"],
        "U+z": ["bob"],
        "u": ["bob"],
        "v+t": ["alice"],
        "v+z": ["carol"],
        "v": ["carol"],
        "x": ["dave"],
    }
    assert expand(lookup(virtual=[("known@example.org", "alice")]), "x@example.org").startswith(LIST_PERM)


@pytest.mark.parametrize(
    ("entries", "rcpt", "found"),
    [
        ([("@", "alice")], "x@example.org", ["alice"]),
        ([("@", "alice"), ("@example.org", "bob")], "x@example.org", ["bob"]),
        ([("@", "alice"), ("x", "bob")], "x+t@example.org", ["bob"]),
        ([("x+", "alice"), ("x", "bob")], "x+@example.org", ["bob"]),  # an empty tag is none
        ([("x+T@EXAMPLE.org", "alice"), ("@", "bob")], "X+t@example.org", ["alice"]),
        ([("a", "b"), ("b", "alice"), ("@", "c")], "a@example.org", ["alice"]),  # names go on without catch-alls
        ([("a", "c"), ("@", "x@example.net")], "a@example.org", "550 Invalid recipient: <a@example.org>"),
    ],
)
def test_virtual_entries_and_catch_alls(entries, rcpt, found):
    answer = expand(lookup(virtual=entries), rcpt)
    assert answer == found if isinstance(found, str) else users(answer) == found


def test_an_error_in_a_list_is_the_answer_for_all_of_it():
    each = lookup(aliases=[("e", "error:450 4.1.1 wait, alice"), ("g", "ghost, error:550 no")])
    assert expand(each, "e@example.org") == "450 4.1.1 wait: <e@example.org>"
    assert expand(each, "g@example.org") == "550 Invalid recipient: <g@example.org>"


def test_expand_only_runs_what_aliases_name():
    each = lookup(aliases=[("c", "|/bin/prog"), ("n", "alice")], method="expand-only")
    assert [e.mda_exec for e in expand(each, "c@example.org")] == ["/bin/prog"]
    assert expand(each, "n@example.org") == f"{LIST_PERM}: <n@example.org>"


def test_an_include_ends_where_its_file_does(tmp_path):
    (tmp_path / "list").write_bytes(b"alice,\r\n  bob \r\n\r\n# carol, dave\ndave")
    each = lookup(aliases=[("i", f":include:{tmp_path}/list, carol")])
    assert users(expand(each, "i@example.org")) == ["alice", "bob", "carol", "dave"]


def test_addresses_in_utf8_are_found_however_they_are_written():
    entries = (("Jürgen@bücher.example", "alice"), ("@xn--mnchen-3ya.example", "bob"), ("用户", "carol"))
    action = Local(name="virtual", method="maildir", userbase="users", virtual="v")
    config = configuration(
        actions=(action,),
        tables=(table("v", *entries), table("d", "bücher.example", "xn--mnchen-3ya.example")),
        rules=(match("virtual", dest=criterion("domain", "d")),),
    )
    lookup = make_lookup(config)
    for rcpt, user in (
        ("jürgen@bücher.example", "alice"),
        ("JÜRGEN@XN--BCHER-KVA.example", "alice"),
        ("ju\u0308rgen@BÜCHER.example", "alice"),
        ("any@münchen.example", "bob"),
        ("用户@bücher.example", "carol"),
    ):
        (envelope,) = expand(lookup, rcpt)
        assert (envelope.mda_user, envelope.dest) == (user, rcpt)


def test_virtual_addresses_start_over():
    entries = [("a@example.org", "b@example.org"), ("b@example.org", "alice"), ("l@example.org", "l@example.org")]
    (envelope,) = expand(lookup(virtual=entries), "a@example.org")
    assert (envelope.rcpt, envelope.dest, envelope.mda_user) == ("a@example.org", "b@example.org", "alice")
    assert expand(lookup(virtual=entries), "l@example.org").startswith(LIST_PERM)


def test_forward_files():
    forwards = {"alice": b"\\alice, bob\n|/bin/vacation alice\n", "bob": b"# nothing\n"}
    parent = Parent(forwards)
    answer = expand(lookup(parent=parent), "alice+x@example.org")
    assert sorted((e.mda_user, e.mda_exec) for e in answer) == [
        ("alice", ""),
        ("alice", "/bin/vacation alice"),
        ("bob", ""),
    ]
    assert parent.asked == [("alice", 6001, 6002, "/home/alice"), ("bob", 6001, 6002, "/home/bob")]


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        (b"", None),
        (b"\n\n", None),
        (b":include:/etc/passwd\n", None),
        (b"not a valid line\nbob\n", LIST_TEMP),
        (b"bob\n" * 1024, LIST_TEMP),
        (b",".join(b"u%d" % i for i in range(150)) + b"\n", LIST_TEMP),
        (PermFail("insecure"), LIST_PERM),
        (TempFail("too many open files"), LIST_TEMP),
    ],
)
def test_forward_files_that_are_not_used(content, reply):
    answer = expand(lookup(forwards={"alice": content}), "alice@example.org")
    if reply is None:
        assert users(answer) == ["alice"]
    else:
        assert answer == f"{reply}: <alice@example.org>"


def test_forward_only_and_expand_only():
    forwards = {"alice": b"x@example.net\n", "bob": b"|/bin/cat\n"}
    only = lookup(forwards=forwards, method="forward-only")
    assert users(expand(only, "alice@example.org")) == ["x@example.net"]
    assert expand(only, "bob@example.org") == "451 Temporary failure: <bob@example.org>"
    assert expand(only, "carol@example.org") == f"{LIST_TEMP}: <carol@example.org>"
    only = lookup(forwards=forwards, method="expand-only")
    assert users(expand(only, "alice@example.org")) == ["x@example.net"]
    assert expand(only, "carol@example.org") == f"{LIST_PERM}: <carol@example.org>"


def test_with_user_the_forward_files_of_others_are_skipped():
    each = lookup(forwards={"alice": b"bob\n", "dave": b"carol\n"}, user="dave")
    assert users(expand(each, "alice@example.org")) == ["alice"]
    assert users(expand(each, "dave@example.org")) == ["carol"]


def test_root_has_no_commands_and_files_in_its_forward_file():
    action = Local(name="local", method="maildir", userbase="base")
    config = configuration(actions=[action, RELAY], tables=[table("base", ("root", "0:0:/root"))])
    for line in (b"|/bin/cat\n", b"/var/mail/root\n"):
        each = make_lookup(config, parent=Parent({"root": line}))
        assert expand(each, "root@example.org") == "451 Temporary failure: <root@example.org>"


def test_forwarded_addresses_are_our_own_mail():
    aliases = table("aliases", ("a", "x@example.net"))
    action = Local(name="local", method="maildir", userbase="users", alias="aliases")

    def answer(source):
        rules = [
            match("local", dest=criterion("domain", "ours")),
            match("relay", source=source, dest=criterion("domain", "theirs")),
        ]
        return expand(
            make_lookup(configuration(rules=rules, actions=[action, RELAY], tables=[aliases])), "a@example.org"
        )

    assert users(answer(Criterion(kind="local"))) == ["x@example.net"]
    assert answer(Criterion(kind="any", negated=True)) == "550 Invalid recipient: <a@example.org>"
    assert answer(Criterion(kind="socket")) == "550 Invalid recipient: <a@example.org>"


def test_a_bounce_to_a_rewritten_sender_goes_to_the_sender():
    config = configuration(
        srs=Srs(key="secret", backup_key="old"),
        rules=[match("relay", source=Criterion(kind="local"), dest=criterion("domain", "theirs"))],
    )
    stream = io.StringIO()
    each = make_lookup(config, stream=stream)
    rewritten = srs.encode("x@example.net", "example.org", key="old", now=NOW)
    (envelope,) = expand(each, rewritten, sender="")
    assert (envelope.dest, envelope.rcpt) == ("x@example.net", rewritten)
    assert expand(each, rewritten, sender="not@null").startswith("550 ")
    assert expand(each, rewritten.replace("x@", "y@"), sender="").startswith("550 ")
    forged = "SRS0=AAAA=AA=example.net=x@example.org"
    assert expand(each, forged, sender="").startswith("550 ")
    assert f"SRS failed to decode: {forged}" in stream.getvalue()


def test_envelope_ids_do_not_repeat():
    each = lookup(aliases=[("all", ", ".join(f"x{i}@example.net" for i in range(2000)))])
    ids = {e.evpid for _ in range(3) for e in expand(each, "all@example.org")}
    assert len(ids) == 6000
    assert all(i >> 32 == 7 and i & 0xFFFFFFFF for i in ids)


NAMES = ["alice", "bob", "a", "b", "c", "ghost", "a@example.org", "b@example.org", "x@example.net", "|cmd", "/file"]
NAMES += ["\\a", "error:550 no", "a+t", "x y", '"']
VALUES = st.lists(st.sampled_from(NAMES), max_size=5).map(", ".join)
TABLES = st.dictionaries(st.sampled_from(["a", "b", "c", "a@example.org", "@example.org", "@", "alice"]), VALUES)


@settings(max_examples=60, deadline=None)
@given(TABLES, TABLES.map(lambda d: {k: v.encode() for k, v in d.items()}), st.booleans(), st.sampled_from(NAMES[:9]))
def test_expansion_terminates(entries, forwards, virtual, name):
    kind = "virtual" if virtual else "aliases"
    each = lookup(**{kind: tuple(entries.items())}, forwards=forwards)
    answer = expand(each, name if "@" in name else f"{name}@example.org")
    assert answer
