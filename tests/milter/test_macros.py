"""The macros that milters find at each command."""

import re
from pathlib import Path

from tests.milter.driver import PROCEED, Bridge
from tests.milter.scripted import ScriptedMilter, options


def test_a_milter_that_chooses_nothing_finds_all_that_is_known(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        client.starttls()
        client.auth("alice")
        assert client.mail("alice@example.org", " SIZE=100 BODY=8BITMIME AUTH=alice@example.org") == PROCEED
        assert client.rcpt("bob@example.net", " NOTIFY=NEVER ORCPT=rfc822;bob@example.net") == PROCEED
        assert client.rcpt("carol@example.com") == PROCEED
        assert client.data() == PROCEED
        client.content()
        heard = milter.last
        connect = heard.macros("C")
        assert connect.pop("j")  # the machine's name: the server has not greeted yet
        assert connect.pop("{if_name}")
        assert connect == {
            "_": "client.example.net [192.0.2.1]",
            "v": "OpenSMTPD 7.8.0",
            "{daemon_name}": "smtpd",
            "{daemon_addr}": "192.0.2.25",
            "{daemon_port}": "25",
            "{if_addr}": "192.0.2.25",
            "{client_addr}": "192.0.2.1",
            "{client_name}": "client.example.net",
            "{client_port}": "4711",
            "{client_ptr}": "client.example.net",
            "{client_resolve}": "OK",
        }
        assert heard.macros("H") == {
            "j": "mail.example.org",
            "s": "client.example.net",
            "r": "ESMTPS",
            "{tls_version}": "TLSv1.3",
            "{cipher}": "TLS_AES_256_GCM_SHA384",
            "{cipher_bits}": "256",
        }
        mail = heard.macros("M")
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} [+-]\d{4}", mail.pop("b"))
        assert re.fullmatch(r"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}", mail.pop("d"))
        assert re.fullmatch(r"\d{12}", mail.pop("t"))
        assert mail == {
            "r": "ESMTPSA",
            "s": "client.example.net",
            "{auth_type}": "PLAIN",
            "{auth_authen}": "alice",
            "{auth_author}": "alice@example.org",
            "{mail_addr}": "alice@example.org",
            "{mail_host}": "example.org",
            "{mail_mailer}": "esmtp",
            "{tls_version}": "TLSv1.3",
            "{cipher}": "TLS_AES_256_GCM_SHA384",
            "{cipher_bits}": "256",
        }
        assert heard.macros("R") == {
            "i": client.msgid,
            "{rcpt_addr}": "carol@example.com",
            "{rcpt_host}": "example.com",
            "{rcpt_mailer}": "esmtp",
        }
        assert heard.macros("T") == {"i": client.msgid, "{nrcpts}": "2"}
        assert heard.macros("N") == {"i": client.msgid, "{msg_id}": "<1@example.org>"}
        assert heard.macros("E") == {"i": client.msgid, "{msg_id}": "<1@example.org>", "{nrcpts}": "2"}
        assert heard.said("M") == [[b"<alice@example.org>", b"SIZE=100", b"BODY=8BITMIME", b"AUTH=alice@example.org"]]
        assert heard.said("R")[0] == [b"<bob@example.net>", b"NOTIFY=NEVER", b"ORCPT=rfc822;bob@example.net"]


def test_a_milter_gets_the_macros_that_it_chooses_where_it_chooses(tmp_path: Path) -> None:
    chosen = {0: "v {client_addr}", 1: "", 2: "{client_addr}, {f} i {nosuch}", 3: "{mail_addr} i", 5: "j {i} b"}
    with ScriptedMilter(tmp_path, negotiated=options(macros=chosen)) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        client.begin()
        client.content()
        heard = milter.last
        assert list(heard.macros("C")) == ["v", "{client_addr}"]
        assert heard.macros("H") == {}
        assert heard.macros("M") == {"{client_addr}": "192.0.2.1", "{f}": "alice@example.org"}
        assert heard.macros("R") == {"{mail_addr}": "alice@example.org", "i": client.msgid}
        assert list(heard.macros("E")) == ["j", "{i}", "b"]
        assert "i" in heard.macros("T")  # about which it said nothing


def test_the_postmaster_sets_macros(tmp_path: Path) -> None:
    arguments = ("--macro", "{daemon_name}=ORIGINATING", "--macro", "j=mx.example.org", "--macro", "{mine}=1")
    with (
        ScriptedMilter(tmp_path, negotiated=options(macros={0: "j {daemon_name} {mine}"})) as milter,
        Bridge(milter.address, *arguments) as bridge,
    ):
        bridge.session().connect()
        assert milter.last.macros("C") == {"j": "mx.example.org", "{daemon_name}": "ORIGINATING", "{mine}": "1"}


def test_a_macro_that_only_the_postmaster_knows_goes_out_at_connect_where_nothing_is_chosen(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address, "--macro", "{mine}=1", "--macro", "i=2") as bridge:
        client = bridge.session()
        client.connect()
        assert client.mail() == PROCEED
        assert milter.last.macros("C")["{mine}"] == "1"
        assert "i" not in milter.last.macros("C") and milter.last.macros("M")["i"] == "2"


def test_who_logged_in_before_the_bridge_was_started_has_logged_in(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        client.report("link-auth", "pass", "alice")  # the server tells this again, what the client said it does not
        assert client.mail() == PROCEED
        macros = milter.last.macros("M")
        assert (macros["{auth_type}"], macros["{auth_authen}"]) == ("PLAIN", "alice")


def test_clients_without_a_name_and_with_one_that_is_not_theirs(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        bridge.session().connect(rdns="", fcrdns="fail", src="[2001:db8::1]:1025")
        assert milter.last.said("C") == [[b"[2001:db8::1]", b"6\x04\x012001:db8::1"]]
        macros = milter.last.macros("C")
        assert (macros["_"], macros["{client_ptr}"], macros["{client_resolve}"]) == ("[2001:db8::1]", "unknown", "FAIL")
        bridge.session().connect(rdns="mx.example.com", fcrdns="fail")
        assert milter.last.said("C") == [[b"[192.0.2.1]", b"4\x12g192.0.2.1"]]
        macros = milter.last.macros("C")
        assert (macros["{client_name}"], macros["{client_ptr}"]) == ("[192.0.2.1]", "mx.example.com")
        assert macros["{client_resolve}"] == "FORGED"


def test_mail_of_this_machine_comes_from_127_0_0_1(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect(rdns="localhost", src="unix:/run/smtpd.sock")
        client.begin()
        assert milter.last.said("C") == [[b"localhost", b"4\0", b"127.0.0.1"]] or milter.last.said("C") == [
            [b"localhost", b"4", b"", b"127.0.0.1"]
        ]
        assert milter.last.macros("C")["{client_addr}"] == "127.0.0.1"
        assert milter.last.macros("M")["{mail_mailer}"] == "local"


def test_the_null_sender_and_quoted_addresses(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.connect()
        client.mail("", " SIZE=1")
        client.rcpt('"a > b"@example.net', " NOTIFY=NEVER")
        assert milter.last.said("M") == [[b"<>", b"SIZE=1"]]
        assert milter.last.said("R") == [[b'<"a > b"@example.net>', b"NOTIFY=NEVER"]]
