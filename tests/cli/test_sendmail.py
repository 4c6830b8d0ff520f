"""sendmail as a process: what it completes, what it sends, and what it does without a server."""

import json
import os
import pwd
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pillarbox import places
from pillarbox.cli.identity import from_field, full_name
from tests.cli.programs import lines, run
from tests.control.memory import MemorySession, Server, serving, state_directory

CORPUS = json.loads((Path(__file__).parents[1] / "corpus/ctl/sendmail.json").read_text())
HOST = places.host_name()
ME = pwd.getpwuid(os.getuid())
DATE = re.compile(r"\w{3}, \d{1,2} \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4} \([\w+-]+\)")


def send(server: Server, *arguments: str, stdin: bytes = b"Subject: x\n\nx\n", **options: Any) -> tuple[int, list[str]]:
    done = run(["sendmail", *arguments], state=server.state, stdin=stdin, **options)
    return done.returncode, lines(done.stderr)


def sent(server: Server) -> tuple[MemorySession, list[str]]:
    ((session, body),) = server.messages
    assert body.endswith(b"\r\n")
    return session, body.decode("utf-8", "surrogateescape").split("\r\n")[:-1]


def recorded(case: dict[str, Any]) -> list[str]:
    """The message that the reference queued, without what its server added, and as if sent by us."""
    message = [line for line in case["queued"][0]["message"] if not line.startswith("Message-ID:")]
    while message[0].startswith(("Received:", "\t")):
        message.pop(0)
    return [_mine(line) for line in message]


def _mine(line: str) -> str:
    mine = from_field(full_name(ME), f"{ME.pw_name}@{HOST}")
    line = line.replace("Alice Example <alice@@HOSTNAME@>", mine)
    return line.replace("alice@@HOSTNAME@", f"{ME.pw_name}@{HOST}").replace("@HOSTNAME@", HOST)


@pytest.mark.parametrize("case", [c for c in CORPUS if c.get("queued")], ids=lambda case: case["id"])
def test_it_sends_what_the_reference_sends(case: dict[str, Any]) -> None:
    with serving() as server:
        assert send(server, *case["argv"][1:], stdin=case["stdin"].encode()) == (0, [])
        session, message = sent(server)
    assert [DATE.sub("<date>", line) for line in message] == recorded(case)
    sender, recipients = "", []
    for envelope in case["queued"][0]["envelopes"]:
        sender, _, rest = envelope.partition(" -> ")
        recipients.append(rest.split()[0])
    sender = sender.replace("alice@@HOSTNAME@", f"{ME.pw_name}@{HOST}")
    assert session.commands[1].split()[1] == f"FROM:<{sender if sender != '@' else ''}>"
    assert [c.split()[1] for c in session.commands if c.startswith("RCPT")] == [f"TO:<{r}>" for r in recipients]


@pytest.mark.parametrize("case", [c for c in CORPUS if c["exit"] == 70], ids=lambda case: case["id"])
def test_it_fails_as_the_reference_fails(case: dict[str, Any]) -> None:
    with serving() as server:
        server.reply("RCPT TO:<ghost", "550 Invalid recipient: <ghost@example.org>")
        assert send(server, *case["argv"][1:], stdin=case["stdin"].encode()) == (70, case["stderr"])
        assert server.messages == []


def test_dsn_options_become_parameters() -> None:
    with serving() as server:
        send(server, "-N", "success,failure", "-R", "hdrs", "-Venv1", "a@b")
        assert sent(server)[0].commands[1].endswith("> RET=hdrs ENVID=env1")
        assert sent(server)[0].commands[2] == "RCPT TO:<a@b> NOTIFY=success,failure"


def test_verbose_shows_the_dialogue_with_the_references_spaces() -> None:
    with serving() as server:
        done = run(["sendmail", "-v", "-f", "a@b", "c@d"], state=server.state, stdin=b"x\n")
        shown = lines(done.stdout)
        assert shown[:2] == ["<<< 220 mail.example.org ESMTP", ">>> EHLO localhost"]
        assert ">>> MAIL FROM:<a@b>  " in shown
        assert ">>> RCPT TO:<c@d> " in shown
        assert "MAIL FROM:<a@b>" in sent(server)[0].commands


def test_a_message_without_a_header_gets_one() -> None:
    with serving() as server:
        send(server, "-f", "a@b", "c@d", stdin=b"Warning: disk full\nreally\n")
        _, message = sent(server)
        assert message[0] == "From: <a@b>"
        assert message[2:] == ["", "Warning: disk full", "really"]


def test_an_empty_message_is_a_message() -> None:
    with serving() as server:
        assert send(server, "-f", "a@b", "c@d", stdin=b"") == (0, [])
        assert sent(server)[1][2:] == [""]


def test_folded_bcc_and_remains_of_a_mailbox_are_dropped() -> None:
    with serving() as server:
        text = (
            b"From x@y Mon\nReturn-Path: <x@y>\nFrom: q@r\nBCC: one@x,\n two@x\nSubject: s\n t\n\nFrom here\nBcc: no\n"
        )
        send(server, "-t", "three@x", stdin=text)
        session, message = sent(server)
        assert [line for line in message if not line.startswith("Date:")] == [
            "From: q@r",
            "Subject: s",
            " t",
            "",
            "From here",
            "Bcc: no",
        ]
        assert session.commands[2:5] == [f"RCPT TO:<{who}@x>" for who in ("three", "one", "two")]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_dots_survive(end: bytes) -> None:
    body = end.join((b"Subject: s", b"", b".", b"..x", b"", b".end"))
    with serving() as server:
        send(server, "a@b", stdin=body)
        assert sent(server)[1][-4:] == [".", "..x", "", ".end"]


def test_long_lines_and_odd_octets_are_encoded() -> None:
    import quopri

    for text in (b"x" * 2000, b"50%\r100%", b"a\0b", b"y" * 200_000 + b" "):
        with serving() as server:
            assert send(server, "a@b", stdin=b"Subject: s\n\n" + text + b"\n.\n")[0] == 0
            _, message = sent(server)
            blank = message.index("")
            assert "Content-Transfer-Encoding: quoted-printable" in message[:blank]
            assert max(map(len, message[blank:])) <= 76
            assert quopri.decodestring("\n".join(message[blank + 1 :]).encode()) == text + b"\n."


def test_a_body_that_says_how_it_is_encoded_is_left_alone() -> None:
    for field in (b"Content-Transfer-Encoding: 8bit", b"Content-Type: multipart/mixed; boundary=x"):
        with serving() as server:
            send(server, "a@b", stdin=b"Subject: s\n" + field + b"\n\n" + b"x" * 1500 + b"\n")
            assert sent(server)[1][-1] == "x" * 1500


def test_eight_bit_is_declared() -> None:
    with serving() as server:
        send(server, "a@b", stdin="Subject: s\n\nä\n".encode())
        assert sent(server)[0].commands[1].endswith(" BODY=8BITMIME")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-f", "a\nRCPT TO:<x>", "a@b"], 70, "sendmail: control character in address"),
        (["evil@x> ORCPT=rfc822;a@allowed"], 70, "sendmail: angle bracket in address"),
        (["-N", "NEVER\r\nRCPT TO:<x>", "a@b"], 70, "sendmail: invalid DSN parameter: 'NEVER\\r\\nRCPT TO:<x>'"),
        (["-R", "FULL\r\nDATA", "a@b"], 70, "sendmail: invalid DSN parameter: 'FULL\\r\\nDATA'"),
        (["-V", "x SIZE=1", "a@b"], 70, "sendmail: invalid DSN parameter: 'x SIZE=1'"),
        (["-f", "<a@b", "a@b"], 1, "sendmail: leading < but no trailing >"),
        (["-t"], 1, "sendmail: syntax error in address"),
        (["-Z"], 1, "sendmail: invalid option -- 'Z'"),
        (["-f"], 1, "sendmail: option requires an argument -- 'f'"),
        (["-q"], 70, None),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sent(arguments: list[str], status: int, said: str | None) -> None:
    with serving() as server:
        code, errors = send(server, *arguments, stdin=b'To: "open\n\nx\n')
        assert (code, errors[:1]) == (status, [said] if said else [])
        assert not any(dispatcher.sessions for dispatcher in server.dispatchers)


def test_names_cannot_bend_the_header() -> None:
    assert from_field("Doe, Jane", "j@x") == '"Doe, Jane" <j@x>'
    assert from_field("a\r\nBcc: b@x", "j@x") == '"a  Bcc: b@x" <j@x>'
    assert from_field("Jürgen", "j@x") == "=?utf-8?b?SsO8cmdlbg==?= <j@x>"
    assert from_field("", "j@x") == "<j@x>"


def test_without_a_server_the_message_is_left_whole() -> None:
    case = next(c for c in CORPUS if c["id"] == "sendmail-offline")
    with state_directory() as state:
        done = run(case["argv"], state=state, stdin=case["stdin"].encode())
        assert (done.returncode, done.stdout, done.stderr) == (case["exit"], b"", b"")
        (path,) = (state / "offline").iterdir()
        assert re.fullmatch(r"\d+\.\w{10}", path.name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text().split("\n")[:-1] == case["offline_files"][0]["content"]


def test_what_is_left_keeps_its_bcc() -> None:
    with state_directory() as state:
        run(["sendmail", "-t"], state=state, stdin=b"To: a@b\nBcc: c@d\n\nx\n")
        (path,) = (state / "offline").iterdir()
        assert "Bcc: c@d" in path.read_text()


def test_arguments_that_the_form_cannot_hold_are_refused() -> None:
    with state_directory() as state:
        done = run(["sendmail", "a|b@c"], state=state, stdin=b"x\n")
        assert (done.returncode, done.stderr) == (70, b"sendmail: a|b@c contains illegal character\n")
        assert list((state / "offline").iterdir()) == []


def test_nowhere_to_leave_it_is_said() -> None:
    with state_directory() as state:
        (state / "offline").rmdir()
        done = run(["sendmail", "a@b"], state=state, stdin=b"x\n")
        assert done.returncode == 69
        assert b"No such file or directory" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_a_user_leaves_mail_in_a_directory_that_they_cannot_list() -> None:
    with state_directory() as state:
        assert run(["sendmail", "a@b"], state=state, stdin=b"x\n", user=65534).returncode == 75
        (path,) = (state / "offline").iterdir()
        assert path.stat().st_uid == 65534


@pytest.mark.parametrize("command", ["EHLO", "MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("reply", ["", "421 4.3.2 shutting down"])
def test_a_server_that_goes_away_leaves_the_message_for_later(command: str, reply: str) -> None:
    with serving() as server:
        server.reply(command, reply)
        assert send(server, "a@b")[0] == 75
        assert len(list((server.state / "offline").iterdir())) == 1


def test_no_dispatcher_leaves_it_for_later_and_a_pause_refuses() -> None:
    with serving() as server:
        for dispatcher in server.dispatchers:
            dispatcher.restarting = True
        assert send(server, "a@b")[0] == 75
        for dispatcher in server.dispatchers:
            dispatcher.is_paused = True
        assert send(server, "a@b") == (1, ["sendmail: server disallowed submission request"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be a user with a home of the test's own")
def test_a_refused_message_is_kept_in_dead_letter(tmp_path: Path, machine: None) -> None:
    alice = pwd.getpwnam("alice")
    letter = Path(alice.pw_dir) / "dead.letter"
    letter.unlink(missing_ok=True)
    with serving() as server:
        server.reply("RCPT", "550 5.1.1 no")
        for _ in range(2):
            code, errors = send(server, "-f", "a@b", "c@d", stdin=b"Subject: s\n\nprecious\n", user=alice.pw_uid)
            assert (code, errors) == (70, ["sendmail: command failed: 550 5.1.1 no", ""])
    assert letter.read_text().count("Subject: s\n\nprecious\n\n") == 2
    assert letter.read_text().startswith("From: <a@b>\nDate: ")
    letter.unlink()


def test_a_large_message_costs_little_memory() -> None:
    """35 MB: the program's memory is measured within it, and what arrives is compared."""
    size = 35 * 1024 * 1024
    line = b"0123456789abcdef" * 4 + b"\n"
    text = b"Subject: big\n\n" + line * (size // len(line))
    program = (
        "import sys; from pillarbox.cli import sendmail; status = sendmail.run(sys.argv[1:]);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')));"
        "sys.exit(status)"
    )
    with serving() as server:
        done = subprocess.run(
            [sys.executable, "-c", program, "a@b"],
            input=text,
            capture_output=True,
            timeout=120,
            check=False,
            env={**os.environ, "PILLARBOX_STATE": str(server.state)},
        )
        assert done.returncode == 0, done.stderr
        ((_, body),) = server.messages
        assert body.endswith(line.replace(b"\n", b"\r\n"))
        assert len(body) > size
        assert int(done.stdout) < 40 * 1024, f"{int(done.stdout)} KB"
