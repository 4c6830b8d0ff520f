"""`filter-milter` beside a milter that follows a script: what it says to whom, and what becomes of mail."""

import subprocess
from pathlib import Path

from pillarbox.milter.macros import DEFAULT
from pillarbox.milter.program import build_parser
from tests.milter.driver import MESSAGE, PROCEED, Bridge
from tests.milter.scripted import ScriptedMilter
from tests.sdk.child import installed


def test_a_message_goes_through_unchanged_and_the_milter_hears_all_of_it(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        assert client.connect() == PROCEED
        assert client.deliver() == (list(MESSAGE), PROCEED)
        client.quit()
        assert bridge.end() == 0
        assert milter.hears("CHMRTLLLLNBEQ") == "CHMRTLLLLNBEQ"
        heard = milter.last
        assert heard.said("C") == [[b"client.example.net", b"4\x12g192.0.2.1"]]
        assert heard.said("H") == [[b"client.example.net"]]
        assert heard.said("M") == [[b"<alice@example.org>"]]
        assert heard.said("R") == [[b"<bob@example.net>"]]
        assert heard.said("L")[2] == [b"Subject", b"greetings"]
        assert heard.body() == b"Hello Bob,\r\n.a line with a dot\r\nAlice\r\n"
        assert bridge.log() == ""


def test_it_registers_what_it_needs_and_no_more(tmp_path: Path) -> None:
    with Bridge(f"unix:{tmp_path}/none.sock") as bridge:
        events = [line for line in bridge.registered if line.startswith("report")]
        assert [line.removeprefix("report|smtp-in|") for line in events] == [
            "link-connect",
            "link-greeting",
            "link-identify",
            "link-tls",
            "link-auth",
            "link-disconnect",
            "tx-reset",
            "tx-begin",
            "tx-rcpt",
            "protocol-client",
        ]
        phases = [line.removeprefix("filter|smtp-in|") for line in bridge.registered if line.startswith("filter")]
        assert phases == ["connect", "helo", "ehlo", "mail-from", "rcpt-to", "data", "commit", "data-line"]


def test_it_knows_a_session_that_began_before_it_was_started(tmp_path: Path) -> None:
    with ScriptedMilter(tmp_path) as milter, Bridge(milter.address) as bridge:
        client = bridge.session()
        client.report("link-connect", "client.example.net", "pass", "192.0.2.1:4711", "192.0.2.25:25")
        client.report("link-greeting", "mail.example.org")
        client.report("link-identify", "EHLO", "client.example.net")
        assert client.deliver() == (list(MESSAGE), PROCEED)
        assert milter.last.said("C") == [[b"client.example.net", b"4\x12g192.0.2.1"]]
        assert milter.last.said("H") == [[b"client.example.net"]]


def test_a_program_without_a_milter_to_ask_says_what_is_wrong(tmp_path: Path) -> None:
    for arguments, said in {
        (): "the following arguments are required: ADDRESS",
        ("/run/opendkim.sock",): "an address is unix:PATH, inet:PORT@HOST or inet6:PORT@HOST",
        ("unix:x.sock",): "the path of a socket begins with /",
        ("inet:1@x", "--on-error", "ignore"): "invalid choice: 'ignore'",
        ("inet:1@x", "--max-size", "ten"): "a size is a number, or one with K, M or G: ten",
        ("inet:1@x", "--macro", "j"): "write a macro as NAME=VALUE or {name}=VALUE: j",
        ("inet:1@x", "--connections", "0"): "at least 1, not 0",
        ("inet:1@x", "--answer-within", "-1"): "not a number of seconds: -1",
    }.items():
        done = subprocess.run(
            [installed("filter-milter"), *arguments], input="", capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 2 and said in done.stderr, arguments
        assert done.stdout == ""


def test_the_documents_name_every_option_and_every_macro() -> None:
    text = (Path(__file__).resolve().parent.parent.parent / "docs/milters.md").read_text()
    options = [option for action in build_parser()._actions for option in action.option_strings if "help" not in option]
    assert [option for option in options if f"`{option}" not in text] == ["-h"]
    macros = text[text.index("**Macros.**") : text.index("## When")]
    assert [name for names in DEFAULT.values() for name in names if f"`{name}`" not in macros] == []
