"""smtpctl and mailq as processes, against a control socket."""

import ctypes
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pillarbox.mail.envelope import Flag, Kind, encode_envelope
from pillarbox.queue import schema
from pillarbox.roles.filters import EVENTS, Status
from pillarbox.roles.parent import Reloaded
from pillarbox.routing.tokens import fits_token
from pillarbox.smtp.sasl import verifier
from tests.cli.programs import lines, run
from tests.control.memory import envelope, serving, state_directory

CORPUS = json.loads((Path(__file__).parents[1] / "corpus/ctl/commands.json").read_text())
# Those that neither need a certain queue nor a certain history.
PREFIXES = ("usage-", "trace-", "untrace-", "profile", "unprofile", "log-", "show-hosts-e", "show-r", "unsupported")
ALIKE = [c for c in CORPUS if c["id"].startswith(PREFIXES) and c["id"] not in ("show-relays", "show-routes")]
SEEN = envelope(0x1234567800000001)


def ctl(server, *arguments: str, **options):  # type: ignore[no-untyped-def]
    done = run(["smtpctl", *arguments], state=server.state, **options)
    return done.returncode, lines(done.stdout), lines(done.stderr)


@pytest.mark.parametrize("case", ALIKE, ids=lambda case: case["id"])
def test_it_says_what_the_reference_says(case) -> None:  # type: ignore[no-untyped-def]
    with serving() as server:
        done = run(case["argv"], state=server.state)
    assert (done.returncode, lines(done.stdout), lines(done.stderr)) == (case["exit"], case["stdout"], case["stderr"])


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["show", "queue", "zzz"], ["possibilities are:", "show queue <msgid>"]),
        (["pause", "mta", "from"], ["possibilities are:", "pause mta from <addr>"]),
        (["pa", "mt", "from", "1.2.3"], ["possibilities are:", "pause mta from <addr>"]),
        (["show", "status", "now"], ["invalid command"]),
        (["st"], None),
        (["remove", "0000000000000000"], ["possibilities are:", "remove <evpid>", "remove <msgid>", "remove all"]),
    ],
)
def test_hints_list_what_could_go_on(arguments: list[str], hint: list[str] | None) -> None:
    with serving() as server:
        status, _, errors = ctl(server, *arguments)
        assert status == 255
        assert errors == hint or (hint is None and errors[0] == "possibilities are:")
        assert not server.system.stopped


def test_words_may_be_abbreviated_and_stop_may_not() -> None:
    with serving() as server:
        assert ctl(server, "sh", "statu") == (0, ["MDA running", "MTA running", "SMTP running"], [])
        assert ctl(server, "p", "md")[0] == 255  # pause, profile
        assert ctl(server, "pa", "md") == (0, ["command succeeded"], [])
        assert ctl(server, "sto")[0] == 255
        assert ctl(server, "stop") == (0, ["command succeeded"], [])
        assert server.system.stopped


def test_reload_says_what_is_wrong_or_that_it_was_done() -> None:
    with serving() as server:
        assert ctl(server, "reload") == (0, ["command succeeded"], [])
        server.system.reloaded = Reloaded(notes=("smtpd.conf:3: warning: nobody gets here",))
        assert ctl(server, "reload") == (0, ["command succeeded"], ["smtpd.conf:3: warning: nobody gets here"])
        server.system.reloaded = Reloaded(problems=("smtpd.conf:1: no\n    x\n    ^", "smtpd.conf:2: nor that"))
        expected = ["smtpd.conf:1: no", "    x", "    ^", "smtpd.conf:2: nor that"]
        assert ctl(server, "reload") == (1, ["command failed"], expected)
        assert ctl(server, "reloa")[0] == 255


def test_a_reload_with_endless_problems_is_answered_in_bounds() -> None:
    with serving() as server:
        server.system.reloaded = Reloaded(problems=tuple(f"smtpd.conf:{n}: {'x' * 1000}" for n in range(10_000)))
        status, _, errors = ctl(server, "reload")
        assert status == 1
        assert errors[0].startswith("smtpd.conf:0: ")
        assert errors[-1] == f"{10_000 - len(errors) + 1} more"


def test_the_state_directory_may_be_named_before_the_command() -> None:
    with serving() as server:
        for option in (["--state", str(server.state)], [f"--state={server.state}"]):
            done = run(["smtpctl", *option, "show", "status"])
            assert done.returncode == 0, done.stderr


def test_show_queue_and_mailq() -> None:
    with serving() as server:
        bob = envelope(
            0x1234567800000002,
            sender="",
            rcpt="bob@example.org",
            dest="b@example.org",
            sockaddr="::1",
            flags=Flag.AUTHENTICATED | Flag.BOUNCE,
        )
        server.queue.add(SEEN, next_try=int(time.time()) + 100_000)
        server.queue.add(bob, suspended=True, state="inflight", next_try=0)
        far = envelope(0x1234567900000001, kind=Kind.MTA, sockaddr="local", errorline="451 a\\b\x1b[2J\u00e9", retry=3)
        server.queue.add(far)
        status, out, errors = ctl(server, "show", "queue")
        assert (status, errors) == (0, [])
        alice = "alice@client.example.net|alice@example.org|alice@example.org|1700000000|1700345600"
        assert [line.rsplit("|", 2)[0] for line in out] == [
            f"1234567800000001|inet4|mda||{alice}|0|0|pending",
            "1234567800000002|inet6|mda|bounce,auth,suspend|@|bob@example.org|b@example.org"
            "|1700000000|1700345600|0|0|inflight",
            f"1234567900000001|local|mta||{alice}|0|3|pending",
        ]
        assert 99_000 < int(out[0].split("|")[12]) <= 100_000
        assert out[2].split("|")[13] == r"451 a\\b\^[[2J\M-C\M-)"
        assert lines(run(["mailq", "-v"], state=server.state).stdout)[0][:16] == out[0][:16]
        assert [line[:16] for line in ctl(server, "show", "queue", "12345679")[1]] == ["1234567900000001"]


def test_show_config_is_what_the_server_has_in_full() -> None:
    with serving() as server:
        server.system.config = "match from local for local reject\n# é\n"
        done = run(["smtpctl", "show", "config"], state=server.state)
        assert (done.returncode, done.stdout.decode()) == (0, server.system.config)


def test_show_envelope() -> None:
    with serving() as server:
        server.queue.add(
            envelope(
                5 << 32 | 1,
                kind=Kind.MTA,
                dispatcher="out",
                sender="",
                errorline="451 4.7.1 later",
                mda_user="",
                dsn_ret="HDRS",
                dsn_envid="e1",
                esc_class=4,
                retry=1,
                flags=Flag.AUTHENTICATED | Flag.INTERNAL,
            )
        )
        assert ctl(server, "show", "envelope", f"{5 << 32 | 1:016x}")[1] == [
            "version: 3",
            "dispatcher: out",
            "type: mta",
            "smtpname: mail.example.org",
            "helo: client.example.net",
            "hostname: localhost",
            "errorline: 451 4.7.1 later",
            "sockaddr: 127.0.0.1",
            "sender: @",
            "rcpt: alice@example.org",
            "dest: alice@example.org",
            "ctime: 1700000000",
            "last-try: 0",
            "last-bounce: 0",
            "ttl: 0",
            "retry: 1",
            "flags: authenticated internal",
            "dsn-notify: 0",
            "dsn-ret: HDRS",
            "dsn-envid: e1",
            "esc-class: 4",
            "esc-code: 0",
        ]


def test_what_is_not_there_is_said_as_by_the_reference() -> None:
    with serving() as server:
        for what in (["envelope", "1234567800000009"], ["message", "12345678"], ["message", "1234567800000009"]):
            assert ctl(server, "show", *what) == (1, [], ["smtpctl: fopen: No such file or directory"])


def test_show_message_has_lf_line_ends_across_pieces() -> None:
    with serving() as server:
        body = (b"a" * 63 + b"\r\n") * 5000 + b"bare\rcr\r\n"  # the pieces end between CR and LF somewhere
        server.queue.add(SEEN, body=b"x" + body)
        for given in ("12345678", "1234567800000001"):
            done = run(["smtpctl", "show", "message", given], state=server.state)
            assert done.stdout == b"x" + body.replace(b"\r\n", b"\n")


def test_counts_are_said_in_words() -> None:
    with serving() as server:
        server.queue.add(*(envelope(1 << 32 | n) for n in (1, 2)))
        first, message, unknown = f"{1 << 32 | 1:016x}", "00000001", "00000009"
        for arguments, said in (
            (["pause", "envelope", first], "1 envelope paused"),
            (["pause", "envelope", first], "0 envelope paused"),
            (["pause", "envelope", "all"], "1 envelope paused"),
            (["resume", "envelope", message], "2 envelopes resumed"),
            (["schedule", "all"], "2 envelopes scheduled"),
            (["discover", message], "2 envelopes discovered"),
            (["discover", unknown], "0 envelopes discovered"),
            (["discover", first], "1 envelope discovered"),
            (["remove", unknown], "0 envelope removed"),
            (["remove", "all"], "2 envelopes removed"),
        ):
            assert ctl(server, *arguments) == (0, [said], [])


def test_pausing_twice_fails_and_shows_in_the_status() -> None:
    with serving() as server:
        for kind in ("mda", "mta", "smtp"):
            assert ctl(server, "pause", kind) == (0, ["command succeeded"], [])
            assert ctl(server, "pause", kind) == (1, ["command failed"], [])
        assert ctl(server, "show", "status")[1] == ["MDA paused", "MTA paused", "SMTP paused"]
        assert ctl(server, "resume", "smtp")[0] == 0
        assert ctl(server, "show", "status")[1][2] == "SMTP running"


def test_routes_are_paused_for_an_address_and_a_domain() -> None:
    with serving() as server:
        for address in ("127.0.0.1", "::1"):
            assert ctl(server, "pause", "mta", "from", address, "for", "far.example")[0] == 0
        assert ctl(server, "show", "mta", "paused")[1] == ["127.0.0.1 -> far.example", "::1 -> far.example"]
        ctl(server, "resume", "mta", "from", "127.0.0.1", "for", "far.example")
        assert ctl(server, "show", "mta", "paused")[1] == ["::1 -> far.example"]


def test_long_listings_come_whole() -> None:
    with serving() as server:
        server.queue.mta_lines["hosts"] = [f"host {n}" for n in range(2500)]
        assert ctl(server, "show", "hosts")[1] == server.queue.mta_lines["hosts"]


def test_show_filters_is_a_line_for_each() -> None:
    with serving() as server:
        server.filters.rows = [
            Status(
                name="rspamd",
                command='/usr/bin/filter-rspamd -s "x"',
                state="running",
                pid=4711,
                since=time.time() - 125 * 60,
                restarts=2,
                waiting=3,
                dropped=4,
                phases=("commit", "data-line", "connect"),
                events=(*(f"smtp-in {event}" for event in EVENTS), "smtp-out tx-rcpt", "smtp-out tx-mail"),
            ),
            Status(name="log", command="/log", state="down", since=time.time(), why="exec: \x1b not found"),
        ]
        shown = [re.sub(r"since=(2h5m|)\d+s", r"since=\1", line) for line in ctl(server, "show", "filters")[1]]
        assert shown == [
            "rspamd running pid=4711 since=2h5m restarts=2 waiting=3 dropped=4 phases=connect,data-line,commit "
            'events=smtp-in/*,smtp-out/tx-mail,smtp-out/tx-rcpt command="/usr/bin/filter-rspamd -s "x""',
            "log down pid=- since= restarts=0 waiting=0 dropped=0 phases=- events=- "
            'command="/log" why="exec: \\^[ not found"',
        ]
        server.filters.rows = [Status(name=f"f{n}", command="/f", state="running") for n in range(250)]
        assert [line.split()[0] for line in ctl(server, "show", "filters")[1]] == [f"f{n}" for n in range(250)]


def test_a_filter_is_restarted_by_its_name() -> None:
    with serving() as server:
        assert ctl(server, "restart", "filter", "f") == (0, ["command succeeded"], [])
        assert ctl(server, "restart", "filter", "g") == (1, ["command failed: no such filter"], [])
        assert server.filters.restarted == ["f", "g"]


def test_the_log_level_reaches_the_filter_role() -> None:
    with serving() as server:
        assert ctl(server, "log", "verbose")[0] == 0
        assert server.filters.verbose


def test_show_stats_adds_up_the_dispatchers_and_is_sorted() -> None:
    with serving() as server:
        server.queue.numbers = {"scheduler.envelope": 3, "mta.session": 1}
        for dispatcher in server.dispatchers:
            dispatcher.numbers = {"smtp.session": 2, "smtp.session.inet4": 5}
        out = ctl(server, "show", "stats")[1]
        assert out[:-2] == [
            "control.session=1",
            "mta.session=1",
            "scheduler.envelope=3",
            "smtp.session=4",
            "smtp.session.inet4=10",
        ]
        assert [line.partition("=")[0] for line in out[-2:]] == ["uptime", "uptime.human"]


def test_monitor_prints_a_line_a_second_at_once() -> None:
    recorded = next(case for case in CORPUS if case["id"] == "monitor-on-a-terminal")["stdout"]
    with serving() as server:
        server.queue.numbers = {
            "scheduler.envelope": 1,
            "scheduler.envelope.removed": 1,
            "scheduler.delivery.ok": 3,
            "scheduler.delivery.tempfail": 1,
        }
        server.dispatchers[0].numbers = {"smtp.session.inet4": 3}
        with pytest.raises(subprocess.TimeoutExpired) as stopped:
            run(["smtpctl", "monitor"], state=server.state, timeout=1.5)
        assert stopped.value.stdout is not None
        assert lines(stopped.value.stdout)[:3] == recorded
        assert lines(stopped.value.stdout)[3].split()[:6] == ["0", "0", "0", "1", "0", "0"]


def test_encrypt_needs_no_server_and_salts_each() -> None:
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    given = run(["smtpctl", "encrypt", "p4ss"]).stdout.strip()
    assert crypt(b"p4ss", given) == given
    read = run(["smtpctl", "encrypt"], stdin=b"same\nsame\n").stdout.split()
    assert len(set(read)) == 2
    assert all(crypt(b"same", hashed) == hashed for hashed in read)


def test_encrypt_makes_verifiers_and_hashes_of_tokens() -> None:
    def encrypt(*args: str, stdin: str = "") -> list[str]:
        return run(["smtpctl", "encrypt", *args], stdin=stdin.encode()).stdout.decode().split()

    (given,) = encrypt("--scram", "p4ss")
    assert verifier.parse(given).fits("p4ss") and verifier.parse(given).iterations == verifier.ITERATIONS
    first, second = encrypt("--scram", stdin="p\u00e4ss\np\u00e4ss\n")
    assert first != second and verifier.parse(first).fits("p\u00e4ss")
    (token,) = encrypt("--token", stdin="t0ken\n")
    assert fits_token("t0ken", token) and [token] == encrypt("--token", "t0ken")
    for secret in (b"\xff\n", b"\n", b"a\0b\n"):
        done = run(["smtpctl", "encrypt", "--scram"], stdin=secret)
        assert done.returncode == 1 and done.stdout == b"" and done.stderr.startswith(b"smtpctl: encrypt: it is ")


def test_without_a_server_it_says_so() -> None:
    with state_directory() as state:
        for command in (["show", "status"], ["pause", "mda"], ["discover", "12345678"], ["stop"]):
            done = run(["smtpctl", *command], state=state)
            assert (done.returncode, done.stdout) == (1, b"")
            assert done.stderr == b"smtpctl: smtpd doesn't seem to be running\n"
        done = run(["smtpctl", "show", "queue"], state=state)
        assert (done.returncode, done.stdout) == (0, b"")
        assert b"No such file or directory" in done.stderr


def test_without_a_server_the_store_is_shown() -> None:
    with state_directory() as state:
        (state / "queue/bodies/ab").mkdir(parents=True)
        db = schema.connect(str(state / "queue/queue.db"), writer=True)
        schema.prepare(db, "queue.db")
        for e in (SEEN, envelope(0x1234567900000001, errorline="no")):
            insert = "INSERT INTO envelope (evpid, destination, next_try, data) VALUES (?, 'x', 0, ?)"
            db.execute(insert, (e.evpid, encode_envelope(e)))
        insert = (
            "INSERT INTO message (msgid, size, eight_bit, smtputf8, segment, at, body) VALUES (?, ?, 0, 0, ?, ?, ?)"
        )
        db.execute(insert, (0x12345678, 9, None, None, b"a\r\nb\r\n"))
        db.execute(insert, (0x12345679, 9, None, None, None))
        db.execute(insert, (0x12345671, 6, 1, 2, None))
        db.close()
        (state / "queue/segments").mkdir()
        (state / "queue/segments/00000001").write_bytes(b"..d\r\ne\r\n..")
        (state / "queue/bodies/ab/12345679").write_bytes(b"c\r\n" * 100_000)
        rest = "alice@client.example.net|alice@example.org|alice@example.org|1700000000|1700000000|0|0|offline||"
        both = [f"1234567800000001|inet4|mda||{rest}", f"1234567900000001|inet4|mda||{rest}no"]
        assert lines(run(["mailq"], state=state).stdout) == both
        assert lines(run(["smtpctl", "show", "queue", "12345679"], state=state).stdout) == both[1:]
        assert b"errorline: no" in run(["smtpctl", "show", "envelope", "1234567900000001"], state=state).stdout
        assert run(["smtpctl", "show", "message", "12345678"], state=state).stdout == b"a\nb\n"
        assert run(["smtpctl", "show", "message", "12345679"], state=state).stdout == b"c\n" * 100_000
        assert run(["smtpctl", "show", "message", "12345671"], state=state).stdout == b"d\ne\n"
        assert run(["smtpctl", "show", "message", "12345670"], state=state).returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_others_need_to_be_root() -> None:
    nobody = 65534
    with serving() as server:
        for program, *arguments in (["smtpctl", "show", "queue"], ["mailq"], ["smtpctl", "stop"]):
            done = run([program, *arguments], state=server.state, user=nobody)
            assert (done.returncode, done.stdout) == (1, b"")
            assert done.stderr == f"{program}: need root privileges\n".encode()
        assert not server.system.stopped
    with state_directory() as state:
        assert run(["mailq"], state=state, user=nobody).stderr == b"mailq: need root privileges\n"
        assert run(["smtpctl", "encrypt", "x"], state=state, user=nobody).returncode == 0


def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    with serving() as server:
        server.queue.add(*(envelope(1 << 32 | n) for n in range(1, 5000)))
        done = subprocess.run(
            f"{sys.executable} -m pillarbox.cli.smtpctl show queue | head -n 1",
            shell=True,
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, "PILLARBOX_STATE": str(server.state)},
        )
        assert (len(lines(done.stdout)), done.stderr) == (1, b"")


def test_a_listing_goes_on_where_the_server_closed_an_idle_connection() -> None:
    from pillarbox.cli.live import Live
    from pillarbox.control.server import Limits

    with serving(limits=Limits(request=0.1)) as server:
        server.queue.add(*(envelope(1 << 32 | n) for n in range(1, 2500)))
        rows = Live(str(server.state)).rows()
        first = next(rows)
        deadline = time.monotonic() + 10
        while server.control.sessions():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert first.envelope.evpid == 1 << 32 | 1
        assert sum(1 for _ in rows) == 2498


def test_a_server_that_answers_nonsense_or_not_is_survived() -> None:
    with state_directory() as state:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(state / "smtpd.sock"))
        listener.listen()

        def serve(answer: bytes) -> None:
            connection, _ = listener.accept()
            connection.sendall(answer)
            connection.recv(1000)
            connection.close()

        for answer, said in (
            (b"PBC\x02\x00\x00\x00\x00", b"smtpctl: incompatible smtpctl and smtpd\n"),
            (b"220 mail ESMTP\r\n", b"smtpctl: not a control frame\n"),
            (b"", b"smtpctl: pipe closed\n"),
        ):
            thread = threading.Thread(target=serve, args=(answer,))
            thread.start()
            done = run(["smtpctl", "pause", "mda"], state=state)
            thread.join(10)
            assert (done.returncode, done.stderr) == (1, said)
        listener.close()


@pytest.mark.parametrize("argv", [["mailq"], ["sendmail", "-t"]])
def test_programs_start_at_once(argv: list[str]) -> None:
    """Under 100 ms of processor time, which says more on a busy machine than the clock does."""
    with serving() as server:
        spent = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run(argv, state=server.state, stdin=b"To: a@b\n\nx\n")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert min(spent) < 0.1, spent
