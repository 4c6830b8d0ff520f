"""smtpd-events as people call it. What its recorder and replays do is in tests/eventlog."""

import gzip
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pillarbox.cli.events import parse_time
from tests.cli.programs import lines, run
from tests.eventlog.recorded import BEGIN, SCRIPTED, case_log, whole_log, write_log

NAME = "report-tls-and-auth"
ID = "0000000000000002"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "events.log", case_log(NAME))


def call(*arguments: object, stdin: bytes = b"", **environment: str) -> tuple[int, list[str], list[str]]:
    done = run(["smtpd-events", *map(str, arguments)], stdin=stdin, environment=environment)
    return done.returncode, lines(done.stdout), lines(done.stderr)


def test_a_session_is_printed(log: Path) -> None:
    status, out, err = call("session", ID[:14], log)
    assert (status, len(out), err) == (0, len(case_log(NAME)) + 1, [])
    assert out[0] == f"{ID} smtp-in 2023-11-14 22:13:20.000000 UTC"
    assert out[3] == "    0.002000  S: 220 mail.example.org ESMTP OpenSMTPD"


def test_a_session_as_json_is_an_event_a_line(log: Path) -> None:
    status, out, err = call("session", "--json", "00000001", log)  # by its message
    first = json.loads(out[0])
    assert (status, len(out), err) == (0, len(case_log(NAME)), [])
    assert first == {
        "time": BEGIN,
        "subsystem": "smtp-in",
        "event": "link-connect",
        "session": ID,
        "fields": {"rdns": "localhost", "fcrdns": "pass", "src": "127.0.0.1:4321", "dest": "127.0.0.1:251"},
    }


def test_an_ambiguous_session_is_listed_or_all_are_printed(tmp_path: Path) -> None:
    other = [line.replace(ID, "0000000000000003") for line in case_log(NAME)]
    log = write_log(tmp_path / "events.log", [*case_log(NAME), *other])
    status, out, err = call("session", "0000", log)
    assert (status, err) == (1, ["smtpd-events: several sessions are 0000…; one of them, or --all:"])
    assert out == [f"{name} smtp-in 2023-11-14 22:13:20.000000 UTC 127.0.0.1:4321" for name in (ID, "0000000000000003")]
    status, out, err = call("session", "0000", log, "--json")
    assert (status, [json.loads(line)["session"] for line in out]) == (1, [ID, "0000000000000003"])
    status, out, err = call("session", "0000", log, "--all")
    assert (status, len(out)) == (0, 2 * (len(case_log(NAME)) + 2))


def test_a_session_that_is_not_there_is_said(log: Path) -> None:
    assert call("session", "abcd", log) == (1, [], ["smtpd-events: no session abcd in this log"])
    assert call("session", "xyz", log) == (
        2,
        [],
        ["smtpd-events: not the id of a session: xyz (1 to 16 hexadecimal digits)"],
    )


def test_a_session_is_followed_until_it_ends(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", case_log(NAME)[:10])
    with subprocess.Popen(
        [sys.executable, "-m", "pillarbox.cli.events", "session", "--follow", ID, str(log)], stdout=subprocess.PIPE
    ) as following:
        assert following.stdout is not None
        for _ in range(11):
            assert following.stdout.readline()
        with log.open("a") as file:
            file.writelines(f"{line}\n" for line in case_log(NAME)[10:])
        assert following.wait(timeout=20) == 0
        assert following.stdout.read().endswith(b"-- disconnected\n")


def test_lines_are_given_out_as_a_filter_reads_them(log: Path) -> None:
    status, out, err = call("cat", log)
    assert (status, err) == (0, [])
    assert out[:4] == ["config|smtpd-version|7.8.0", "config|protocol|0.7", "config|subsystem|smtp-in", "config|ready"]
    assert out[4:] == case_log(NAME)
    again = call("cat", "-", "--event", "link-tls", stdin=gzip.compress("\n".join(out).encode()))
    assert again == (0, [*out[:4], *(line for line in out if "|link-tls|" in line)], [])


def test_a_filter_in_any_language_can_be_fed_by_a_pipe(log: Path) -> None:
    """S1: an event processor may be as simple as a shell's `while read`."""
    shell = "while IFS='|' read -r stream _ _ _ event _ rest; do [ $event = tx-rcpt ] && echo $rest; done"
    piped = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m pillarbox.cli.events cat {log} | {shell}"], capture_output=True, check=False
    )
    assert lines(piped.stdout) == ["00000001|ok|alice@example.org"]


def test_only_what_happened_then(log: Path) -> None:
    status, out, err = call(
        "cat", log, "--json", "--since", f"{BEGIN + 0.0045}", "--until", "2023-11-14T22:13:20.0075Z"
    )
    assert (status, [json.loads(line)["event"] for line in out], err) == (
        0,
        ["filter-response", "link-identify", "protocol-server"],
        [],
    )


def test_figures_are_printed(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", whole_log())
    status, out, err = call("stats", log, "--top", "1")
    assert (status, err) == (0, [])
    assert out[0] == f"{len(whole_log())} events from 2023-11-14 22:13:20.000000 to 2023-11-14 22:13:20.055000 UTC"
    assert "smtp-in" in out
    assert "smtp-out" in out
    assert "  senders' domains, 1 more" in out
    assert "           1  message: 554 5.3.4 Message too big for system: Transaction failed, message too big" in out


def test_figures_as_json_are_one_object(log: Path) -> None:
    status, out, err = call("stats", "--json", log)
    assert (status, len(out), err) == (0, 1, [])
    assert json.loads(out[0])["subsystems"]["smtp-in"]["messages"] == 1


def test_logs_are_looked_for_where_the_environment_says(log: Path) -> None:
    assert call("stats", SMTPD_EVENTS=str(log.parent))[0] == 0
    assert call("stats", SMTPD_EVENTS=f"{log.parent}/none") == (
        2,
        [],
        [f"smtpd-events: {log.parent}/none: No such file or directory"],
    )


def test_a_replay_is_told_in_words(tmp_path: Path, log: Path) -> None:
    script = {"log": str(tmp_path / "heard"), "register": [], "rules": [], "dataline": []}
    script["register"] = ["filter|smtp-in|connect", "filter|smtp-in|rcpt-to", "filter|smtp-in|data-line"]
    script["rules"] = [{"phase": "rcpt-to", "reply": "reject|550 5.7.1 no"}]
    script["dataline"] = [{"match": "^Subject", "emit": ["Subject: new"]}]
    (tmp_path / "script").write_text(json.dumps(script))
    filter_ = [sys.executable, SCRIPTED, tmp_path / "script"]
    status, out, err = call("replay", "--fast", log, "--", *filter_)
    assert (status, err) == (0, [])
    assert out[:3] == [
        f"{ID} 2023-11-14 22:13:20.000000 127.0.0.1:4321",
        "    rcpt-to (alice@example.org): reject 550 5.7.1 no [then: proceed]",
        out[2],
    ]
    assert out[2].startswith("    message: changed, ")
    assert out[3] == "    proceed, 1 times"
    assert out[4].startswith("1 sessions, 0 events, 3 questions in ")
    _, out, _ = call("replay", "--fast", "-v", log, "--", *filter_)
    assert "    connect (localhost|127.0.0.1): proceed" in out
    assert "      | Subject: new" in out


def test_a_replay_wants_a_filter(log: Path) -> None:
    said = "smtpd-events: which filter? smtpd-events replay LOG… -- COMMAND ARGUMENTS…"
    assert call("replay", log) == (2, [], [said])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["stats", "--since", "yesterday"], "not a time: yesterday"),
        (["stats", "--top", "0"], "not a number above 0: 0"),
        (["record", "--size", "-1"], "not a number above 0: -1"),
        (["record", "--compress", "lzma"], "invalid choice: 'lzma'"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], said: str) -> None:
    status, out, err = call(*arguments)
    assert (status, out) == (2, [])
    assert said in err[-1]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90s", 999_999_910.0),
        ("2h", 999_992_800.0),
        ("1w", 999_395_200.0),
        ("1000000001.5", 1_000_000_001.5),
        ("2001-09-09", 999_993_600.0),
        ("2001-09-09T01:46", 999_999_960.0),
        ("2001-09-09 01:46:40Z", 1_000_000_000.0),
        ("2001-09-09T03:46:40+02:00", 1_000_000_000.0),
    ],
)
def test_times_are_read_as_people_write_them(text: str, wanted: float) -> None:
    assert parse_time(text, 1_000_000_000.0) == wanted


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", whole_log() * 100)
    command = f"{sys.executable} -m pillarbox.cli.events cat {log} | head -1"
    piped = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert (lines(piped.stdout), piped.stderr) == (["config|smtpd-version|7.8.0"], b"")


def test_it_starts_at_once(log: Path) -> None:
    times = []
    for _ in range(3):
        began = time.monotonic()
        call("session", ID, log)
        times.append(time.monotonic() - began)
    assert min(times) < 1.0  # 0.1 on a machine that has nothing else to do


def test_a_recorder_is_a_link_between_a_server_and_the_other_commands(tmp_path: Path) -> None:
    told = "".join(f"{line}\n" for line in ["config|subsystem|smtp-in", "config|ready", *case_log(NAME)]).encode()
    status, out, err = call("record", "--dir", tmp_path / "log", stdin=told)
    assert (status, out, err) == (0, ["register|report|smtp-in|*", "register|ready"], [])
    assert len(os.listdir(tmp_path / "log")) == 1
    assert call("session", ID, tmp_path / "log")[0] == 0


def test_all_sessions_are_printed_of_what_can_be_read_once(log: Path) -> None:
    other = "".join(f"{line.replace(ID, '0000000000000003')}\n" for line in case_log(NAME))
    status, out, err = call("session", "0000", "--all", "-", stdin=log.read_bytes() + other.encode())
    assert (status, len(out), err) == (0, 2 * (len(case_log(NAME)) + 2), [])


def test_all_and_follow_do_not_go_together(log: Path) -> None:
    status, _, err = call("session", "0000", "--all", "--follow", log)
    assert (status, err[-1]) == (
        2,
        "smtpd-events session: error: argument --follow: not allowed with argument --all",
    )


def test_a_session_whose_beginning_is_missing_is_said_to_be_one(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", case_log(NAME)[1:])
    status, out, err = call("session", ID, log)
    assert (status, len(out)) == (0, len(case_log(NAME)))
    assert err == [f"smtpd-events: session {ID}: its beginning is not in what was read"]


ODD = b"m\xfc\x1b[31m\xc2\x9b31m\xe2\x80\xae@x"
ODD_LINE = b"report|0.7|1700000000.000000|smtp-in|tx-mail|00000000000000a1|11111111|ok|" + ODD + b"\n"


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "POSIX"])
@pytest.mark.parametrize("encoding", ["", "latin-1", "ascii"])
def test_lines_are_the_bytes_that_the_server_wrote(locale: str, encoding: str) -> None:
    environment = {"LC_ALL": locale, "PYTHONIOENCODING": encoding}
    done = run(["smtpd-events", "cat", "-"], stdin=ODD_LINE, environment=environment)
    assert done.stdout.endswith(b"\n" + ODD_LINE)
    done = run(
        ["smtpd-events", "cat", "--json", "-"],
        stdin=ODD_LINE.replace(b"@x", "@ä".encode()),
        environment=environment,
    )
    text = done.stdout.decode()
    assert text.removesuffix("\n").isprintable()
    assert json.loads(text)["fields"]["address"] == "m\\xfc\x1b[31m\x9b31m\u202e@ä"


def test_a_terminal_gets_no_bytes_of_a_client(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(ODD_LINE)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "pillarbox.cli.events", "cat", str(tmp_path / "x")]
    subprocess.run(words, stdout=theirs, timeout=30, check=True)
    os.close(theirs)
    shown = os.read(ours, 10_000)
    os.close(ours)
    assert b"|ok|m\\xfc\\x1b[31m\\x9b31m\\u202e@x" in shown


@pytest.mark.parametrize("command", ["cat", "stats", "session"])
def test_a_full_disk_is_said(log: Path, command: str) -> None:
    arguments = [ID] if command == "session" else []
    with open("/dev/full", "wb") as full:
        words = [sys.executable, "-m", "pillarbox.cli.events", command, *arguments, str(log)]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, b"smtpd-events: standard output: No space left on device\n")


def test_a_closed_output_is_said(log: Path) -> None:
    script = f"{sys.executable} -m pillarbox.cli.events cat {log} >&-"
    done = subprocess.run(["sh", "-c", script], stderr=subprocess.PIPE, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, b"smtpd-events: standard output: Bad file descriptor\n")


def test_an_event_that_there_is_not_is_named(log: Path) -> None:
    status, _, err = call("cat", "--event", "rcpt", log)
    assert status == 2
    assert "argument --event: no such event: rcpt (link-connect, " in err[-1]


def test_logs_may_stand_behind_options(log: Path) -> None:
    assert call("session", ID, "--json", log) == call("session", "--json", ID, log)
    assert call("session", ID, log, "--json") == call("session", "--json", ID, log)
    status, _, err = call("record", "--keep", 3, log)
    assert (status, err[-1]) == (2, f"smtpd-events: error: unrecognized arguments: {log}")
    status, _, err = call("session", ID, "--jsn", log)
    assert (status, err[-1]) == (2, "smtpd-events: error: unrecognized arguments: --jsn")
