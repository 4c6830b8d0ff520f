"""Filters of all manners, driven from logs with no server: what they were told, and what is said of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.eventlog.recorded import SCRIPTED, case_log, whole_log, write_log

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
BAD = '''
import sys
def say(line): print(line, flush=True)
for line in sys.stdin:
    fields = line.rstrip("\\n").split("|")
    if fields[:2] == ["config", "ready"]:
        {register}
    elif fields[0] == "filter":
        stream, version, time, subsystem, phase, session, token, *params = fields
        {answer}
'''  # fmt: skip
REGISTER = 'say("register|filter|smtp-in|mail-from"); say("register|filter|smtp-in|rcpt-to"); say("register|ready")'
ANSWER = 'say(f"filter-result|{session}|{token}|proceed")'

TIMED = """
import sys, time
for line in sys.stdin:
    if line == "config|ready\\n":
        print("register|report|smtp-in|*\\nregister|ready", flush=True)
    elif line.startswith("report|"):
        print(time.monotonic(), file=sys.stderr)
"""


class Played:
    """What one replay said."""

    def __init__(self, log: Path, command: list[str], *options: str) -> None:
        words = [sys.executable, "-m", "pillarbox.cli.events", "replay", "--json", *options, str(log), "--", *command]
        done = subprocess.run(words, capture_output=True, timeout=60, check=False)
        self.status = done.returncode
        self.said = done.stderr.decode()
        *sessions, last = [json.loads(line) for line in done.stdout.splitlines()] or [{}]
        self.sessions: list[dict[str, Any]] = sessions
        self.summary: dict[str, Any] = last.get("summary", {})

    @property
    def decisions(self) -> list[tuple[str, str, str | None]]:
        """Phase, answer, and what was answered then, of all sessions."""
        return [(one["phase"], one["answer"], one["then"]) for s in self.sessions for one in s["decisions"]]


class Filter:
    """The recording filter of the corpus, with a script."""

    def __init__(self, folder: Path, register: list[str], rules: list[dict] | None = None, **script: Any) -> None:
        self.heard_path = folder / "heard"
        path = folder / "script.json"
        path.write_text(json.dumps({"log": str(self.heard_path), "register": register, "rules": rules or [], **script}))
        self.command = [sys.executable, str(SCRIPTED), str(path)]

    @property
    def heard(self) -> list[str]:
        """What it was told behind the handshake."""
        lines = [line[2:] for line in self.heard_path.read_text(encoding="latin-1").splitlines() if line[0] == "<"]
        return lines[lines.index("config|ready") + 1 :]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "events.log", case_log("report-tls-and-auth"))


def bad(answer: str = ANSWER, register: str = REGISTER) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(BAD).format(register=register, answer=answer)]


def test_a_filter_hears_what_was_recorded_line_by_line(tmp_path: Path, log: Path) -> None:
    filter_ = Filter(tmp_path, ["report|smtp-in|*"])
    played = Played(log, filter_.command, "--fast")
    assert (played.status, played.said) == (0, "")
    assert filter_.heard == case_log("report-tls-and-auth")
    assert filter_.heard_path.read_text().startswith("< config|smtpd-version|7.8.0")


def test_it_hears_only_what_it_registered(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", case_log("report-tls-and-auth") + case_log("smtp-out-report-events"))
    filter_ = Filter(tmp_path, ["report|smtp-in|tx-mail", "report|smtp-out|tx-rcpt"])
    Played(log, filter_.command, "--fast")
    assert [line.split("|")[3:5] for line in filter_.heard] == [
        ["smtp-in", "tx-mail"],
        ["smtp-out", "tx-rcpt"],
        ["smtp-out", "tx-rcpt"],
    ]


def test_it_is_asked_and_its_decisions_are_told(tmp_path: Path, log: Path) -> None:
    filter_ = Filter(
        tmp_path,
        ["report|smtp-in|filter-response", *(f"filter|smtp-in|{phase}" for phase in ("connect", "rcpt-to", "commit"))],
        [{"phase": "rcpt-to", "param": "^alice@example.org$", "reply": "reject|550 not | here"}],
    )
    played = Played(log, filter_.command, "--fast")
    assert played.decisions == [
        ("connect", "proceed", "proceed"),
        ("rcpt-to", "reject|550 not | here", "proceed"),
        ("commit", "proceed", "proceed"),
    ]
    assert (played.status, played.summary["differences"], played.summary["faults"]) == (0, 1, 0)
    responses = ["|".join(line.split("|")[6:]) for line in filter_.heard if "|filter-response|" in line]
    assert "rcpt-to|reject|550 not | here" in responses
    assert "mail-from|proceed" in responses


def test_with_same_a_difference_is_a_failure(tmp_path: Path, log: Path) -> None:
    filter_ = Filter(tmp_path, ["filter|smtp-in|rcpt-to"], [{"phase": "rcpt-to", "reply": "junk"}])
    assert Played(log, filter_.command, "--fast", "--same").status == 1
    same = Filter(tmp_path, ["filter|smtp-in|rcpt-to"])
    assert Played(log, same.command, "--fast", "--same").status == 0


def test_what_comes_of_a_question_comes_behind_its_answer(tmp_path: Path, log: Path) -> None:
    filter_ = Filter(tmp_path, ["report|smtp-in|tx-mail", "report|smtp-in|protocol-client", "filter|smtp-in|mail-from"])
    Played(log, filter_.command, "--fast")
    lines = filter_.heard_path.read_text().splitlines()
    kinds = [
        line[:2] + line.split("|")[4 if line[0] == "<" else 3]
        for line in lines
        if "register" not in line and "config" not in line
    ]
    at = kinds.index("< mail-from")
    assert kinds[at - 1 : at + 3] == ["< protocol-client", "< mail-from", "> proceed", "< tx-mail"]


def test_a_client_that_is_sent_away_is_gone(tmp_path: Path, log: Path) -> None:
    filter_ = Filter(
        tmp_path, ["report|smtp-in|*", "filter|smtp-in|rcpt-to"], [{"phase": "rcpt-to", "reply": "disconnect|550 go"}]
    )
    played = Played(log, filter_.command, "--fast")
    assert played.sessions[0]["sent_away"]
    assert ["|".join(line.split("|")[4:]) for line in filter_.heard[-5:]] == [
        "filter-response|0000000000000002|rcpt-to|disconnect|550 go",
        "protocol-server|0000000000000002|550 go",
        "tx-rollback|0000000000000002|00000001",
        "tx-reset|0000000000000002|00000001",
        "link-disconnect|0000000000000002",
    ]


def test_a_made_up_message_is_filtered(tmp_path: Path, log: Path) -> None:
    filter_ = Filter(
        tmp_path, ["filter|smtp-in|data-line"], dataline=[{"match": "^Subject: (.*)", "emit": ["Subject: [x] \\1"]}]
    )
    (message,) = Played(log, filter_.command, "--fast").sessions[0]["messages"]
    assert message["complete"]
    assert message["changed"]
    told = [line.split("|", 7)[7] for line in filter_.heard]
    assert told[0].startswith("Received: from client.example.net (localhost [127.0.0.1])")
    assert "From: <s@client.example.net>" in told
    assert "To: <alice@example.org>" in told
    assert any(line.startswith("..A line with a dot") for line in told)
    assert told[-1] == "."
    assert "Subject: [x] Replayed\n" in message["output"]


def test_a_message_of_one_s_own_is_filtered(tmp_path: Path, log: Path) -> None:
    (tmp_path / "mail").write_bytes(b"Subject: mine\n\n.dot\r\nlast")
    filter_ = Filter(tmp_path, ["filter|smtp-in|data-line"])
    (message,) = Played(log, filter_.command, "--fast", "--message", str(tmp_path / "mail")).sessions[0]["messages"]
    assert [line.split("|", 7)[7] for line in filter_.heard][-5:] == ["Subject: mine", "", "..dot", "last", "."]
    assert (message["changed"], message["output"].endswith("Subject: mine\n\n.dot\nlast")) == (False, True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('say(f"filter-result|{session}|{token}|maybe")', "decided what is no decision"),
        ('say(f"filter-result|{session}|{token}|reject")', "decided without what belongs to it"),
        ('say(f"filter-result|{session}|{token}|reject|no")', "wants a reply that begins with 4xx or 5xx"),
        ('say(f"filter-result|{session}|{token}|rewrite|a@b")', "wants <address>"),
        ('say(f"filter-result|{session}|0123456789abcdef|proceed")', "a wrong token"),
        ('say(f"filter-dataline|{session}|{token}|x")', "answered mail-from with lines of a message"),
        ('say(f"hello {session}")', "wrote a line that is none"),
        ('say(f"register|filter|smtp-in|nothing|{session}|")', "registers what there is not"),
    ],
)
def test_answers_that_are_not_well_formed_are_named(log: Path, answer: str, said: str) -> None:
    played = Played(log, bad(answer), "--fast", "--timeout", "2")
    assert played.status == 1
    assert f"line {4} of the filter: " in played.said
    assert said in played.said
    assert played.summary["faults"] >= 2


def test_after_twenty_faults_it_is_given_up(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", whole_log() * 20)
    played = Played(log, bad('say(f"filter-result|{session}|{token}|maybe")'), "--fast", "--timeout", "2")
    assert (played.status, played.summary["over"]) == (1, "20 faults are enough")


def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(log: Path) -> None:
    played = Played(log, bad("pass"), "--fast", "--timeout", "0.3")
    assert played.status == 1
    assert "session 0000000000000002: mail-from was not answered within 0.3 s" in played.said
    assert [answer for _, answer, _ in played.decisions] == ["", ""]


def test_an_answer_of_before_does_not_answer_what_is_asked_now(log: Path) -> None:
    late = 'old = globals().get("old", []); old.append(token); say(f"filter-result|{session}|{old[0]}|junk")'
    played = Played(log, bad(late), "--fast", "--timeout", "0.3")
    assert [answer for _, answer, _ in played.decisions] == ["junk", ""]
    assert played.summary["ignored"] == 1


def test_one_that_dies_is_named_with_its_status(log: Path) -> None:
    played = Played(log, bad("sys.exit(3)"), "--fast")
    assert (played.status, played.summary["over"]) == (1, "the filter ended, or closed its output")
    assert "(exit status 3)" in played.said


def test_one_that_ends_badly_behind_the_last_event_is_named(log: Path) -> None:
    code = textwrap.dedent(BAD).format(register=REGISTER, answer=ANSWER)
    played = Played(log, [sys.executable, "-c", f"{code}\nsys.exit(7)"], "--fast")
    assert (played.status, played.summary["exit_status"]) == (0, 7)
    assert played.said == "smtpd-events: the filter ended as its input did, but not well (exit status 7)\n"


def test_one_that_never_reads_is_not_waited_for(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", whole_log() * 100)
    sleeper = "import time; print('register|report|smtp-in|*\\nregister|ready', flush=True); time.sleep(60)"
    played = Played(log, [sys.executable, "-c", sleeper], "--fast", "--timeout", "0.5")
    assert played.status == 1
    assert "did not read for 0.5 s" in played.said


def test_one_that_floods_is_stopped(log: Path) -> None:
    flood = 'print(f"filter-result|0000000000000009|{token}|proceed\\n" * 1000000, flush=True)'
    played = Played(log, bad(flood), "--fast")
    assert (played.status, played.summary["over"]) == (1, "the filter answers and answers what nobody asked")


def test_one_that_does_not_end_is_ended_with_what_it_started(log: Path) -> None:
    register = f"{REGISTER}; import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = textwrap.dedent(BAD).format(register=register, answer=ANSWER)
    shell = f"{sys.executable} -c '{code}'; sleep 1000"
    assert "does not end" not in shell
    played = Played(log, ["sh", "-c", shell], "--fast")
    assert played.status == 1
    assert "it was killed" in played.said


def test_one_that_cannot_be_started_is_named(log: Path) -> None:
    played = Played(log, ["/nonexistent/filter"])
    assert (played.status, played.said) == (2, "smtpd-events: /nonexistent/filter: No such file or directory\n")


def test_its_pace_is_that_of_then_or_as_many_times_as_fast(tmp_path: Path) -> None:
    lines = [f"report|0.7|{1.7e9 + n:.6f}|smtp-in|link-greeting|{1:016x}|mx" for n in range(4)]
    log = write_log(tmp_path / "events.log", lines)
    played = Played(log, [sys.executable, "-c", TIMED], "--speed", "10")
    first, *_, last = map(float, played.said.split())
    assert 0.25 < last - first < 3


def test_older_versions_are_spoken_where_asked(tmp_path: Path, log: Path) -> None:
    filter_ = Filter(tmp_path, ["report|smtp-in|link-auth", "report|smtp-in|tx-mail"])
    Played(log, filter_.command, "--fast", "--protocol", "0.5")
    assert ["|".join([line.split("|")[1], *line.split("|")[6:]]) for line in filter_.heard] == [
        "0.5|alice|pass",
        "0.5|00000001|s@client.example.net|ok",
    ]


def test_many_sessions_at_once_wait_each_for_its_own_answer(tmp_path: Path) -> None:
    lines = []
    for line in case_log("report-tls-and-auth"):
        lines += [line.replace("|0000000000000002", f"|{number:016x}", 1) for number in range(100, 400)]
    log = write_log(tmp_path / "events.log", lines)
    filter_ = Filter(tmp_path, ["report|smtp-in|*", "filter|smtp-in|ehlo", "filter|smtp-in|commit"])
    played = Played(log, filter_.command, "--fast")
    assert played.status == 0
    assert (len(played.sessions), played.summary["questions"]) == (300, 900)
    assert all(len(session["decisions"]) == 3 for session in played.sessions)


def test_a_session_of_a_log_can_be_played_alone(tmp_path: Path) -> None:
    log = write_log(tmp_path / "events.log", whole_log())
    one = next(line.split("|")[5] for line in whole_log() if "|link-tls|" in line)
    filter_ = Filter(tmp_path, ["report|smtp-in|*"])
    Played(log, filter_.command, "--fast", "--session", one[:9])
    assert {line.split("|")[5] for line in filter_.heard} == {one}


@pytest.mark.parametrize("name", ["filter-hide-client", "filter-no-programs"])
def test_filters_on_the_sdk_do_well(tmp_path: Path, name: str) -> None:
    lines = [line for line in whole_log() if "|link-connect|" not in line]  # most cases recorded none
    log = write_log(tmp_path / "events.log", lines)
    played = Played(log, [sys.executable, str(EXAMPLES / name)], "--fast")
    assert (played.status, played.said, played.summary["faults"]) == (0, "", 0)
    messages = [message for session in played.sessions for message in session["messages"]]
    assert len(messages) > 10
    assert all(message["complete"] for message in messages)


def test_a_session_without_its_beginning_is_left_out(tmp_path: Path) -> None:
    """As the first of a log whose older files were deleted: no server says anything of a session before it begins."""
    whole = [line.replace("0000000000000002", "00000000000000a1") for line in case_log("report-tls-and-auth")]
    log = write_log(tmp_path / "events.log", [*case_log("report-tls-and-auth")[1:], *whole])
    filter_ = Filter(tmp_path, ["report|smtp-in|*", "filter|smtp-in|rcpt-to"])
    played = Played(log, filter_.command, "--fast")
    assert (played.status, played.summary["sessions"], played.summary["left_out"]) == (0, 1, 1)
    assert {line.split("|")[5] for line in filter_.heard} == {"00000000000000a1"}


@pytest.mark.parametrize(
    ("session", "status", "said"),
    [
        ("beef", 1, "no session beef in this log"),
        ("xyz", 2, "not the id of a session: xyz (1 to 16 hexadecimal digits)"),
    ],
)
def test_a_session_that_is_not_there_is_no_success(log: Path, session: str, status: int, said: str) -> None:
    played = Played(log, bad(), "--fast", "--session", session)
    assert (played.status, played.said) == (status, f"smtpd-events: {said}\n")


def test_one_that_says_something_before_it_registers_is_not_waited_for(log: Path) -> None:
    played = Played(log, ["sh", "-c", "echo starting; exec sleep 1000"], "--fast")
    assert (played.status, played.summary["over"]) == (1, "the filter did not register as it should")
    assert "line 1 of the filter: said something before register|ready" in played.said


def test_it_is_started_as_the_server_starts_one(tmp_path: Path, log: Path) -> None:
    """With the subsystems that a log may have, and told that it may report."""
    look = """if True:
        import os, sys
        told = "".join(iter(sys.stdin.readline, "config|ready\\n"))
        open(sys.argv[1], "w").write(os.environ.get("PILLARBOX_ACCEPTS", "") + told)"""
    Played(log, [sys.executable, "-c", look, str(tmp_path / "seen")], "--fast")
    seen = (tmp_path / "seen").read_text()
    assert seen.startswith("report")
    assert [line for line in seen.split("\n") if "|subsystem|" in line] == [
        f"config|subsystem|{name}" for name in ("smtp-in", "smtp-out", "mda")
    ]


def test_many_reports_are_counted_not_kept(log: Path) -> None:
    report = 'say("\\n".join(f"report|{time}|smtp-in|{session}|hello" for _ in range(5000)))'
    played = Played(log, bad(f"{report}; {ANSWER}"), "--fast")
    assert (played.status, len(played.sessions[0]["reports"])) == (0, 1000)
    assert played.sessions[0]["more_reports"] == 5000 * len(played.decisions) - 1000


def test_one_that_reports_for_ever_and_does_not_read_that_is_stopped(log: Path) -> None:
    register = f'say("register|report|smtp-in|*"); {REGISTER}'
    flood = 'block = f"report|{time}|smtp-in|{session}|hello\\n" * 10000\n        while True: sys.stdout.write(block)'
    played = Played(log, bad(flood, register), "--fast", "--timeout", "30")
    assert (played.status, played.summary["over"]) == (1, "the filter reports more than it reads")


def test_nobody_who_reads_what_is_wrong_is_no_reason_to_hang(log: Path) -> None:
    words = [sys.executable, "-m", "pillarbox.cli.events", "replay", "--fast", str(log), "--", *bad('say("what?")')]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as replaying:
        assert replaying.stderr is not None
        replaying.stderr.close()
        assert replaying.wait(8) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_filter_too(tmp_path: Path, number: signal.Signals) -> None:
    deaf = 'open(sys.argv[1], "w").write("asked"); import time; time.sleep(1000)'
    words = [sys.executable, "-m", "pillarbox.cli.events", "replay", "--fast", "-", "--", *bad(deaf)]
    lock = tmp_path / "lock"
    os.mkfifo(lock)
    with subprocess.Popen([*words, str(lock)], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as replaying:
        assert replaying.stdin is not None
        replaying.stdin.write("".join(f"{line}\n" for line in case_log("report-tls-and-auth")).encode())
        replaying.stdin.flush()
        assert lock.read_text() == "asked"  # and the log has not ended
        replaying.send_signal(number)
        assert replaying.wait(20) == 128 + number
        assert replaying.stderr is not None
        assert replaying.stderr.read() == b""  # which the filter would hold open


def test_a_log_that_comes_slowly_holds_up_neither_questions_nor_answers(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    os.mkfifo(heard)
    tell = f'open(sys.argv[1], "w").write(phase); {ANSWER}'
    words = [sys.executable, "-m", "pillarbox.cli.events", "replay", "--fast", "--json", "-", "--"]
    with subprocess.Popen([*words, *bad(tell), str(heard)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as replaying:
        assert replaying.stdin is not None
        assert replaying.stdout is not None
        asked = 0
        for line in case_log("report-tls-and-auth"):
            replaying.stdin.write(f"{line}\n".encode())
            replaying.stdin.flush()
            if "|filter-response|" in line and line.split("|")[6] in ("mail-from", "rcpt-to"):
                assert heard.read_text() == line.split("|")[6]
                asked += 1
        replaying.stdin.close()
        *_, last = replaying.stdout.read().splitlines()
        assert (replaying.wait(20), asked) == (0, 2)
        assert json.loads(last)["summary"]["faults"] == 0
