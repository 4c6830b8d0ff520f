"""What a configuration means: statements → model."""

import msgspec
import pytest

from pillarbox.conf.build import load_config
from pillarbox.conf.model import (
    AUTH_SYSTEM,
    Config,
    Criterion,
    EventReport,
    Filter,
    Listener,
    Local,
    MtaLimits,
    Proc,
    Relay,
    Resolver,
    TableKind,
    TlsMode,
)
from pillarbox.errors import ConfigError

PKI = 'pki a.example cert "/c" key "/k"\n'


def load(text: str, files: dict[str, str] | None = None, macros: dict[str, str] | None = None) -> Config:
    known = {"smtpd.conf": text, **(files or {})}

    def read(path: str) -> str:
        if path not in known:
            raise FileNotFoundError(2, "No such file or directory", path)
        return known[path]

    return load_config(file="smtpd.conf", read=read, macros=macros or {}, hostname="mx.example.org", checker=None)


def first_error(text: str, files: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text + "match reject\n", files)
    problem = caught.value.problems[0]
    return f"{problem.line}: {problem.message}"


def action(text: str, before: str = "") -> Local | Relay:
    return load(f'{before}action "a" {text}\nmatch reject\n').actions["a"]


def listener(text: str, before: str = "") -> Listener:
    return load(f"{before}listen on {text}\nmatch reject\n").listeners[0]


def test_defaults_are_the_models() -> None:
    config = load("match reject\n")
    assert config == Config(
        hostname="mx.example.org",
        file="smtpd.conf",
        listeners=(Listener(id=0, socket=True),),
        rules=config.rules,
        tables=config.tables,
    )
    assert list(config.tables) == ["<getpwnam>"]


def test_a_match_is_from_local_for_local_unless_it_says_so() -> None:
    rule = load("match reject").rules[0]
    assert (rule.source.kind, rule.dest.kind, rule.action) == ("local", "local", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mbox", Local(name="a", method="mbox", line=1)),
        ("maildir", Local(name="a", method="maildir", line=1)),
        (
            'maildir "~/Mail" junk ttl 2d',
            Local(name="a", method="maildir", target="~/Mail", junk=True, ttl=172800, line=1),
        ),
        ("maildir junk user vmail", Local(name="a", method="maildir", junk=True, user="vmail", line=1)),
        ('lmtp "/run/lmtp" rcpt-to', Local(name="a", method="lmtp", target="/run/lmtp", lmtp_rcpt_to=True, line=1)),
        ('mda "/bin/cat" user x', Local(name="a", method="mda", target="/bin/cat", user="x", line=1)),
        ("expand-only alias { a = b }", Local(name="a", method="expand-only", alias="<dynamic:0>", line=1)),
        ("forward-only virtual { a = b }", Local(name="a", method="forward-only", virtual="<dynamic:0>", line=1)),
        ("relay", Relay(name="a", line=1)),
        ("relay host smtp://mx.example:25", Relay(name="a", host="smtp://mx.example:25", line=1)),
        ("relay host { a, b }", Relay(name="a", hosts="<dynamic:0>", line=1)),
        ("relay domain { a = b } tls", Relay(name="a", domain="<dynamic:0>", tls="require", line=1)),
        ("relay backup mx mx2 tls no-verify", Relay(name="a", backup=True, backup_mx="mx2", tls="no-verify", line=1)),
        (
            'relay helo h src 127.0.0.1 mail-from "@x" pki p ca c ciphers X protocols Y',
            Relay(
                name="a",
                helo="h",
                src="<dynamic:0>",
                mail_from="@x",
                pki="p",
                ca="c",
                ciphers="X",
                protocols="Y",
                line=1,
            ),
        ),
    ],
)
def test_actions(text: str, expected: Local | Relay) -> None:
    found = action(text)
    assert found.file == "smtpd.conf"
    assert msgspec.structs.replace(found, file="") == expected


def test_relay_needs_an_srs_key_for_srs() -> None:
    relay = action("relay srs", before='srs key "k"\nsrs key backup "l"\nsrs ttl 36h\n')
    assert isinstance(relay, Relay)
    assert relay.srs


def test_inline_lists_become_numbered_tables() -> None:
    config = load(
        'action "a" maildir alias { root = x }\nmatch from src { 10.0.0.0/8 } for domain d.example action "a"\n'
    )
    assert config.tables["<dynamic:0>"].entries == (("root", "x"),)
    assert config.tables["<dynamic:0>"].mapping
    assert config.rules[0].source == Criterion(kind="src", table="<dynamic:1>")
    assert config.tables["<dynamic:2>"].entries == (("d.example", ""),)


@pytest.mark.parametrize(
    "block",
    [
        "{ a, b, c }",
        "{ a b c }",
        "{\na\nb\nc\n}",
        "{\n\n a,\n\n b\n c }",
        "{a\\\n,b,\\\nc}",
        "{ # x\n a, # y\n b # z\n c\n}",
    ],
)
def test_elements_of_a_block_may_be_set_apart_in_any_way(block: str) -> None:
    assert load(f"table t {block}\nmatch reject").tables["t"].entries == (("a", ""), ("b", ""), ("c", ""))


def test_pairs_take_an_equals_sign_or_an_arrow() -> None:
    table = load('table t { a = b, "c d" => "e f"\n\n g=h\n}\nmatch reject').tables["t"]
    assert table.entries == (("a", "b"), ("c d", "e f"), ("g", "h"))


@pytest.mark.parametrize(
    ("content", "mapping", "entries"),
    [
        ("a\nb # c\n\n# d\n", False, (("a", ""), ("b # c", ""))),
        ("k v w\nl: x\n\tm\ty\n", True, (("k", "v w"), ("l", "x"), ("m", "y"))),
        ("# @list\nk v\n", False, (("k v", ""),)),
        ("[::1] one\n[::2]: two\n", True, (("[::1]", "one"), ("[::2]", "two"))),
        ("", True, ()),
    ],
)
def test_table_files(content: str, mapping: bool, entries: tuple[tuple[str, str], ...]) -> None:
    table = load("table t file:/t\nmatch reject", {"/t": content}).tables["t"]
    assert (table.kind, table.mapping, table.entries) == (TableKind.FILE, mapping, entries)


@pytest.mark.parametrize("content", ["k v\nlone\n", "k:\n", "[::1 x\n"])
def test_a_malformed_table_file_is_an_error(content: str) -> None:
    assert "invalid configuration file /t for table t" in first_error("table t file:/t\n", {"/t": content})


def test_backends() -> None:
    config = load("table d db:/d\ntable u getpwnam\ntable p proc:/bin/p\ntable s sqlite:/s\nmatch reject")
    assert [(t.kind, t.backend, t.config) for n, t in config.tables.items() if len(n) == 1] == [
        (TableKind.DB, "", "/d"),
        (TableKind.GETPWNAM, "", ""),
        (TableKind.PROC, "proc", "/bin/p"),
        (TableKind.PROC, "sqlite", "/s"),
    ]


def test_a_key_that_is_too_long_is_left_out_with_a_warning() -> None:
    config = load(f'table d {{ "{"a" * 1024}", b }}\nmatch reject')
    assert config.tables["d"].entries == (("b", ""),)
    assert "failed to add" in config.warnings[0]


def test_criteria_with_negation_regex_and_tables() -> None:
    options = '!tls auth mail-from <t> !rcpt-to "@x" tag T !helo h'
    rule = load(f'table t {{ a }}\nmatch !from src <t> for domain regex "x" {options} reject').rules[0]
    assert rule.source == Criterion(kind="src", table="t", negated=True)
    assert rule.dest == Criterion(kind="domain", table="<dynamic:0>", regex=True)
    assert rule.tls == Criterion(kind="tls", negated=True)
    assert rule.auth == Criterion(kind="auth")
    assert rule.mail_from == Criterion(kind="mail-from", table="t")
    assert rule.rcpt_to == Criterion(kind="rcpt-to", table="<dynamic:1>", negated=True)
    assert rule.tag == Criterion(kind="tag", table="<dynamic:2>")
    assert rule.helo == Criterion(kind="helo", table="<dynamic:3>", negated=True)


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("!from auth", "auth", Criterion(kind="auth", negated=True)),
        ("from auth alice", "auth", Criterion(kind="auth", table="<dynamic:0>")),
        ("auth alice from auth", "auth", Criterion(kind="auth", table="<dynamic:0>")),
        ("auth alice from auth bob", "auth", Criterion(kind="auth", table="<dynamic:1>")),
        ("!from mail-from x", "mail_from", Criterion(kind="mail-from", table="<dynamic:0>", negated=True)),
        ("!for rcpt-to x", "rcpt_to", Criterion(kind="rcpt-to", table="<dynamic:0>", negated=True)),
    ],
)
def test_shorthand_is_any_and_a_criterion(text: str, field: str, expected: Criterion) -> None:
    rule = load(f"match {text} reject").rules[0]
    assert getattr(rule, field) == expected
    assert (rule.dest if field == "rcpt_to" else rule.source) == Criterion(kind="any")


def test_listener_options() -> None:
    text = (
        "lo inet4 port submission tls-require verify pki a.example auth tag T hostname h received-auth mask-src no-dsn "
        "hostnames { a = b } senders { c = d } masquerade proxy-v2 ciphers C protocols P ca Corp"
    )
    assert listener(text, before=PKI + 'ca corp cert "/ca"\n') == Listener(
        id=0,
        line=3,
        interface="lo",
        family="inet4",
        port=587,
        tls=TlsMode.STARTTLS_REQUIRE,
        tls_verify=True,
        pki=("a.example",),
        auth=AUTH_SYSTEM,
        tag="T",
        hostname="h",
        received_auth=True,
        mask_src=True,
        no_dsn=True,
        hostnames="<dynamic:0>",
        senders="<dynamic:1>",
        masquerade=True,
        proxy_v2=True,
        ciphers="C",
        protocols="P",
        ca="corp",
    )


@pytest.mark.parametrize(
    ("text", "port"), [("lo", 0), ("lo port 2525", 2525), ("lo port smtp", 25), ("lo port smtps", 465)]
)
def test_listener_ports(text: str, port: int) -> None:
    assert listener(text).port == port


def test_socket_listener_as_configured_or_by_default() -> None:
    config = load("listen on socket tag LOCAL mask-src\nlisten on lo\nmatch reject")
    assert [(item.id, item.socket, item.tag) for item in config.listeners] == [(0, True, "LOCAL"), (1, False, "")]
    assert [item.socket for item in load("listen on lo\nmatch reject").listeners] == [False, True]


def test_filters_and_processes() -> None:
    config = load(
        'proc p "/bin/p" user u group g chroot "/r"\n'
        "filter a proc p\n"
        'filter b proc-exec "/bin/q"\n'
        'filter c phase helo match !helo regex { "x" } reject "550 no"\n'
        "filter d phase auth match fcrdns junk\n"
        "filter e chain { a, b\n c }\n"
        "listen on lo filter { c, d }\n"
        "match reject"
    )
    assert config.procs == {
        "p": Proc(name="p", command="/bin/p", user="u", group="g", chroot="/r", line=1, file="smtpd.conf"),
        "b": Proc(name="b", command="/bin/q", line=3, file="smtpd.conf"),
    }
    assert config.filters["a"] == Filter(name="a", kind="proc", proc="p")
    assert config.filters["b"] == Filter(name="b", kind="proc-exec", proc="b")
    assert config.filters["c"] == Filter(
        name="c",
        kind="builtin",
        phase="helo",
        conditions=(Criterion(kind="helo", table="<dynamic:0>", regex=True, negated=True),),
        decision="reject",
        argument="550 no",
    )
    assert (config.filters["d"].phase, config.filters["d"].decision) == ("auth", "junk")
    assert config.filters["e"].chain == ("a", "b", "c")
    assert config.filters[config.listeners[0].filter].chain == ("c", "d")


def test_processors_may_have_options_of_ours_whose_words_are_names_elsewhere() -> None:
    config = load(
        'proc timeout fail timeout 90s fail open protocol "0.5" user fail group timeout chroot protocol\n'
        "proc fail timeout\n"
        'filter protocol proc-exec "/bin/q" protocol 0.4 timeout 1m\n'
        'filter open phase helo match helo { fail, open } reject "550 timeout"\n'
        "filter fail proc timeout\n"
        "listen on lo filter fail\n"
        "match reject"
    )
    assert msgspec.structs.replace(config.procs["timeout"], file="") == Proc(
        name="timeout",
        command="fail",
        user="fail",
        group="timeout",
        chroot="protocol",
        timeout=90,
        fail_open=True,
        protocol="0.5",
        line=1,
    )
    assert (config.procs["fail"].command, config.procs["fail"].fail_open) == ("timeout", False)
    assert (config.procs["protocol"].protocol, config.procs["protocol"].timeout) == ("0.4", 60)
    assert config.filters["fail"].proc == "timeout"


def test_reports_name_a_processor_and_smtp_is_both_ways() -> None:
    procs = 'proc p "/bin/p"\nproc q "/bin/q"\n'
    config = load(f"{procs}report smtp on p\nreport smtp-out on q\nreport mda on q\nmatch reject")
    assert config.reports == (
        EventReport(direction="smtp-in", proc="p", line=3),
        EventReport(direction="smtp-out", proc="p", line=3),
        EventReport(direction="smtp-out", proc="q", line=4),
        EventReport(direction="mda", proc="q", line=5),
    )
    assert first_error("report smtp-in on p\n") == "1: no processor exist with that name: p"
    assert first_error(f"{procs}report smtp on p\nreport smtp-in on p\n") == "4: smtp-in already reported on p"


def test_options_and_limits() -> None:
    config = load(
        "smtp limit max-rcpt 10 max-mails 5\nsmtp max-message-size 1.5K\nsmtp sub-addr-delim -\n"
        "mta limit max-conn-per-host 3\nmta limit for domain d.example inet6 task-hiwat 9\n"
        "mta max-deferred 7\nmda limit max-session 4\nscheduler limit max-inflight 8\n"
        "queue compression\nqueue ttl 1h\nqueue encryption 0123456789abcdef0123456789abcdef\n"
        'bounce warn-interval 1h, 2d\nadmd mx.example\nmda wrapper w "/bin/w"\nmatch reject'.replace(
            "delim -", 'delim "-"'
        )
    )
    assert (config.smtp.max_rcpt, config.smtp.max_mails, config.smtp.max_message_size) == (10, 5, 1536)
    assert config.smtp.sub_addr_delim == "-"
    assert config.mta == MtaLimits(max_conn_per_host=3)
    assert config.mta_domains == {"d.example": MtaLimits(max_conn_per_host=3, family="inet6", task_hiwat=9)}
    assert (config.mta_max_deferred, config.mda.max_session, config.scheduler.max_inflight) == (7, 4, 8)
    assert (config.queue.compression, config.queue.ttl, len(config.queue.encryption)) == (True, 3600, 32)
    assert (config.bounce_warn, config.admd, config.mda_wrappers) == ((3600, 172800), "mx.example", {"w": "/bin/w"})


def test_queue_key_may_be_asked_for() -> None:
    assert load("queue encryption\nmatch reject").queue.encryption_ask
    assert load("queue encryption -\nmatch reject".replace("-", '"-"')).queue.encryption == "stdin"


def test_resolver_is_ours_and_reserves_no_words() -> None:
    assert load("dns resolver ::1\nmatch reject").resolver == Resolver(address="::1", port=53)
    assert load("dns resolver 127.0.0.1 port 5353\nmatch reject").resolver == Resolver(address="127.0.0.1", port=5353)
    config = load("dns = resolver\ntable dns { resolver }\naction resolver mbox\nmatch tag $dns action resolver")
    assert set(config.tables) >= {"dns"}
    assert set(config.actions) == {"resolver"}


def test_macros_and_includes_are_in_force_for_the_next_statement() -> None:
    files = {"/inc": 'b = "x"\naction $a mbox\n'}
    config = load('a = act\ninclude "/inc" match tag $b action $a\n', files, macros={"a": "mine"})
    assert list(config.actions) == ["mine"]
    assert config.rules[0].file == "smtpd.conf"


def test_an_include_bomb_is_refused() -> None:
    files = {f"/{n}": f'include "/{n + 1}"\ninclude "/{n + 1}"\n' for n in range(40)} | {"/40": ""}
    assert "too many includes" in first_error('include "/0"\n', files)


def test_several_errors_are_all_reported() -> None:
    with pytest.raises(ConfigError) as caught:
        load('listen on lo port 0\naction "a" teleport\nqueue ttl x\nmatch for local action "b"\n')
    assert [problem.line for problem in caught.value.problems] == [1, 2, 3, 4]


def test_errors_come_with_line_column_and_source() -> None:
    with pytest.raises(ConfigError) as caught:
        load('match for domain\t<ghost> action "a"')
    problem = caught.value.problems[0]
    assert (problem.file, problem.line, problem.column) == ("smtpd.conf", 1, 18)
    assert problem.source == 'match for domain\t<ghost> action "a"'


def test_an_unreadable_file_is_a_config_error() -> None:
    def read(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    with pytest.raises(ConfigError, match="cannot read x: Permission denied"):
        load_config(file="x", read=read, macros={}, hostname="h", checker=None)


@pytest.mark.parametrize("text", ['maildir user "" user x', 'relay helo "" helo x', "relay host a host b"])
def test_an_option_counts_once_even_if_empty(text: str) -> None:
    assert "already specified" in first_error(f'action "a" {text}\n')


def test_what_follows_from_an_error_above_says_so() -> None:
    with pytest.raises(ConfigError) as caught:
        load('table t file:/none\naction "a" mbox alias <t>\nmatch for any action "a"\n')
    assert ["its declaration in line" in problem.message for problem in caught.value.problems] == [False, True, True]
