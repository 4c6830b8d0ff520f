"""The agent with its real delivery process: as root each delivery runs as nobody, otherwise as the caller."""

import asyncio
import os
import signal

import msgspec
import pytest

from pillarbox.conf.model import Config, Local, MdaLimits
from pillarbox.errors import TempFail
from pillarbox.mail.envelope import Result
from pillarbox.mda.process import DeliveryProcess
from pillarbox.mda.wire import Ended, Report, frame
from pillarbox.roles.delivery import InFlight
from tests.mda.support import AS_ROOT, GID, LOCAL_BODY, UID, World, deliver, in_world, read_tree

MAILDIR = Local(name="a", method="maildir")
TRACE = b"Return-Path: <s@x.example>\nDelivered-To: alice@example.org\n"


def command(text: str, **more: str) -> Local:
    return Local(name="a", method="mda", target=text, **more)  # type: ignore[arg-type]


def test_batch_goes_into_a_maildir_that_is_made():
    outcomes, log, files = deliver(*[lambda w, n=n: w.order(n, "a") for n in range(1, 61)], a=MAILDIR)
    assert [o.result for o in outcomes] == [Result.OK] * 60
    assert sorted(set(map(os.path.dirname, files))) == ["Maildir/new"]
    assert set(files.values()) == {TRACE + LOCAL_BODY}
    assert log.count("result=Ok stat=Delivered") == 60


def test_maildir_file_is_the_users_alone():
    async def body(world: World) -> None:
        await world.agent.deliver([world.order(1, "a")])
        await world.outcomes(1)
        folder = f"{world.home}/Maildir/new"
        (name,) = os.listdir(folder)
        found = os.stat(f"{folder}/{name}")
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o600, UID, GID)
        assert [os.stat(f"{world.home}/{d}").st_mode & 0o777 for d in ("Maildir", "Maildir/new")] == [0o700] * 2

    in_world(body, a=MAILDIR)


def test_large_body_is_pulled_in_pieces():
    large = b"Subject: l\r\n\r\n" + b"0123456789abcdef\r\n" * 60000

    async def body(world: World) -> None:
        await world.agent.deliver([world.order(1, "a", body=large, stream=True)])
        (outcome,) = await world.outcomes(1)
        assert outcome.result is Result.OK
        assert list(read_tree(world.home).values()) == [TRACE + large.replace(b"\r\n", b"\n")]
        assert world.queue.largest <= 128 * 1024

    in_world(body, a=MAILDIR)


def test_large_body_that_is_lost_leaves_nothing():
    async def body(world: World) -> None:
        order = world.order(1, "a", body=b"A: b\r\n" + b"x" * 400000, stream=True)
        world.queue.bodies[1] = world.queue.bodies[1][:200000]
        await world.agent.deliver([order])
        (outcome,) = await world.outcomes(1)
        assert (outcome.result, outcome.errorline) == (Result.TEMPFAIL, "Error reading body")
        assert [f for f in os.walk(world.home) if f[2]] == []

    in_world(body, a=MAILDIR)


def test_home_that_is_missing_is_temporary():
    outcomes, log, _ = deliver(lambda w: w.order(1, "a", home="/nonexistent/alice"), a=MAILDIR)
    assert outcomes[0].result is Result.TEMPFAIL
    assert (outcomes[0].errorline, outcomes[0].esc_class, outcomes[0].esc_code) == (
        '"mail.maildir: No such file or directory"', 4, 30,
    )  # fmt: skip
    assert 'stat=Error (temporary failure: "mail.maildir: No such file or directory")' in log


def test_message_that_was_here_before_is_a_loop():
    outcomes, log, files = deliver(
        lambda w: w.order(1, "a", body=b"delivered-to: ALICE@example.org\r\n\r\n"), lambda w: w.order(2, "a"), a=MAILDIR
    )
    assert [o.result for o in outcomes] == [Result.LOOP, Result.OK]
    assert "result=PermFail stat=Loop detected" in log
    assert len(files) == 1


def test_subaddress_and_junk_choose_the_folder():
    junk = Local(name="a", method="maildir", target="~/M/%{user.username}", junk=True)

    async def body(world: World) -> None:
        os.makedirs(f"{world.home}/M/alice/.li_ts", 0o755)
        for folder in ("M", "M/alice", "M/alice/.li_ts"):
            os.chown(f"{world.home}/{folder}", UID, GID)
        spam = b"X-Spam: yes\r\n\r\n"
        await world.agent.deliver(
            [
                world.order(1, "a", mda_subaddress="li_ts"),
                world.order(2, "a", mda_subaddress="nosuch"),
                world.order(3, "a", body=spam, mda_subaddress="li_ts"),
                world.order(4, "a", mda_subaddress="."),
            ]
        )
        assert {o.result for o in await world.outcomes(4)} == {Result.OK}
        count = {f: len(os.listdir(f"{world.home}/M/alice/{f}new")) for f in ("", ".li_ts/", ".Junk/")}
        assert count == {"": 2, ".li_ts/": 1, ".Junk/": 1}

    in_world(body, a=junk)


def test_file_of_an_alias_is_appended_to_in_mbox_form():
    target = "/usr/libexec/mail.mboxfile -f %{mbox.from} {home}/box %{user.username}"

    def order(number):
        return lambda w: w.order(number, "a", mda_exec=target.replace("{home}", w.home))

    outcomes, _, files = deliver(order(1), order(2), a=MAILDIR)
    assert [o.result for o in outcomes] == [Result.OK] * 2
    first, second = files["box alice"].split(b"From s@x.example ")[1:]
    assert first.partition(b"\n")[2] == second.partition(b"\n")[2]
    assert first.endswith(b"\nhello\n>From here\n\n>From there\n\n")


def test_command_gets_message_and_clean_environment():
    outcomes, _, files = deliver(
        lambda w: w.order(1, "a", mda_subaddress="x"), a=command("cat > msg; env | sort > env; pwd > pwd; id -u > uid")
    )
    assert outcomes[0].result is Result.OK
    assert files["msg"] == TRACE + LOCAL_BODY
    home = files["pwd"].decode().strip()
    assert set(files["env"].decode().splitlines()) - {"_=/usr/bin/env", "SHLVL=0"} == {
        "DOMAIN=example.org",
        "EXTENSION=x",
        f"HOME={home}",
        "LOCAL=alice",
        "LOGNAME=alice",
        "ORIGINAL_RECIPIENT=alice@example.org",
        "PATH=/usr/bin:/bin",
        f"PWD={home}",
        "RECIPIENT=alice@example.org",
        "SENDER=s@x.example",
        "SHELL=/bin/sh",
        "USER=alice",
    }
    assert files["uid"] == b"%d\n" % UID


@pytest.mark.parametrize(
    ("text", "result", "line", "stat"),
    [
        ("echo a; echo b >&2; exit 2", Result.PERMFAIL, '"b"', '("b")'),
        ("echo no; exit 67", Result.PERMFAIL, '"no"', '(user unknown: "no")'),
        ("printf 'a\\\\\\\\b\\\\001'; exit 75", Result.TEMPFAIL, '"a\\\\b\\^A"', '(temporary failure: "a\\\\b\\^A")'),
        ("exit 71", Result.TEMPFAIL, "exited abnormally", "(system resource problem: exited abnormally)"),
        ("kill -9 $$", Result.TEMPFAIL, "terminated; signal 9", "(terminated; signal 9)"),
        ("/nonexistent/x 2>/dev/null", Result.PERMFAIL, "exited abnormally", "(exited abnormally)"),
        ("sleep 1000 & true", Result.OK, "", "Delivered"),
        ("true", Result.OK, "", "Delivered"),
        ("echo %{nosuch}", Result.PERMFAIL, '"smtpd: mda command line could not be expanded"', "could not be expanded"),
    ],
)
def test_end_of_a_command_decides(text, result, line, stat):
    outcomes, log, _ = deliver(lambda w: w.order(1, "a"), a=command(text))
    assert (outcomes[0].result, outcomes[0].errorline) == (result, line)
    assert stat in log


def test_command_that_does_not_read_a_long_message_is_tried_again():
    large = b"A: b\r\n\r\n" + b"x" * 100 * 1024
    outcomes, _, _ = deliver(lambda w: w.order(1, "a", body=large), a=command("exit 0"))
    assert (outcomes[0].result, outcomes[0].errorline) == (Result.TEMPFAIL, "mda exited prematurely")


def test_command_that_talks_without_end_is_survived():
    outcomes, _, _ = deliver(lambda w: w.order(1, "a"), a=command("yes | head -c 5000000; echo; echo the end; exit 65"))
    assert outcomes[0].errorline == '"the end"'


def test_wrapper_goes_around_the_command():
    outcomes, _, files = deliver(
        lambda w: w.order(1, "a"), a=command("echo $W %{rcpt} > out; cat > /dev/null", wrapper="w")
    )
    assert outcomes[0].result is Result.OK
    assert files["out"].split()[-1] == b"alice@example.org"


def test_delivery_that_would_run_as_root_is_refused():
    outcomes, log, files = deliver(lambda w: w.order(1, "a", uid=0, gid=0, user="root"), a=MAILDIR)
    assert outcomes[0].result is Result.PERMFAIL
    assert "stat=Error (permission denied: MDA not allowed to deliver to: root)" in log
    assert files == {}


def test_action_that_is_gone_is_temporary():
    outcomes, _, _ = deliver(lambda w: w.order(1, "other"), a=MAILDIR)
    assert outcomes[0].result is Result.TEMPFAIL


@pytest.mark.skipif(not AS_ROOT, reason="needs root to become another user")
def test_command_of_another_user_cannot_reach_what_is_roots():
    outcomes, _, files = deliver(
        lambda w: w.order(1, "a"),
        a=command(
            "cat >/dev/null; id -u; id -G; cat /etc/shadow > x; cat /proc/$PPID/environ > y; ls /proc/self/fd > fds"
        ),
    )
    assert outcomes[0].result is Result.OK
    assert files.get("x") == b""
    assert files.get("y") == b""
    assert set(files["fds"].split()) <= {b"0", b"1", b"2", b"3"}


@pytest.mark.skipif(not AS_ROOT, reason="needs root to become another user")
def test_user_of_the_action_is_who_it_runs_as():
    outcomes, _, files = deliver(
        lambda w: w.order(1, "a", uid=12345, gid=12345),
        a=Local(
            name="a",
            method="mda",
            target="cat >/dev/null; cd %{user.directory}; id -un > who; echo $USER >> who",
            user="nobody",
        ),
    )
    assert outcomes[0].result is Result.OK
    assert files["who"] == b"nobody\nalice\n"


def test_outcome_is_told_until_it_is_acknowledged():
    async def body(world: World) -> None:
        world.queue.refuse = [TempFail("not now")]
        await world.agent.deliver([world.order(1, "a")])
        await world.until(lambda: not world.queue.refuse)
        assert [o.result for o in (await world.agent.in_flight()).outcomes] == [Result.OK]
        await world.outcomes(1)
        await asyncio.sleep(0)
        assert await world.agent.in_flight() == InFlight()
        assert world.agent.generations() == set()

    in_world(body, a=MAILDIR)


def test_delivery_process_that_dies_is_started_again():
    async def body(world: World) -> None:
        await world.agent.deliver([world.order(1, "a", mda_exec="sleep 60"), world.order(2, "a", mda_exec="true")])
        (first,) = await world.outcomes(1)
        assert (first.evpid >> 32, first.result) == (2, Result.OK)
        assert (await world.agent.in_flight()).running == ((1 << 32 | 1, 1),)
        os.kill(world.process.pid, signal.SIGKILL)
        await world.agent.deliver([world.order(3, "a", mda_exec="true")])
        outcomes = await world.outcomes(2)
        assert [o.evpid >> 32 for o in outcomes if o.result is Result.OK][:1] == [2]
        assert "delivery process died" in world.text.getvalue()
        await world.agent.deliver([world.order(4, "a", mda_exec="true")])
        await world.until(lambda: 4 in [o.evpid >> 32 for o in world.queue.outcomes])
        assert world.queue.outcomes[-1].result is Result.OK

    in_world(body, a=MAILDIR)


def test_one_slow_command_does_not_hold_up_others():
    async def body(world: World) -> None:
        slow = world.order(1, "a", mda_exec="sleep 30")
        await world.agent.deliver(
            [slow, *(world.order(n, "a", mda_exec="true") for n in range(2, 12)), world.order(12, "a")]
        )
        assert {o.result for o in await world.outcomes(11)} == {Result.OK}

    in_world(body, a=MAILDIR)


def test_order_that_is_repeated_is_done_once():
    async def body(world: World) -> None:
        order = world.order(1, "a")
        await world.agent.deliver([order, order])
        await world.agent.deliver([order])
        await world.outcomes(1)
        assert len(read_tree(world.home)) == 1

    in_world(body, a=MAILDIR)


def test_too_many_orders_are_refused_whole():
    async def body(world: World) -> None:
        await world.agent.deliver([world.order(n, "a", mda_exec="sleep 5") for n in range(1, 103)])
        with pytest.raises(TempFail):
            await world.agent.deliver([world.order(200, "a")])
        assert len((await world.agent.in_flight()).running) == 102
        assert world.agent.generations() == {0}

    in_world(body, a=MAILDIR)


def test_what_a_child_said_before_it_ended_counts():
    """It may end while the agent is still giving it jobs: those reported are not delivered twice."""

    class Ends(DeliveryProcess):
        def fork(self, make, connection):
            mine = connection.dup()
            mine.send(frame(Report(index=0, result=Result.OK)))
            mine.close()
            ended = asyncio.get_running_loop().create_future()
            ended.set_result(Ended(child=1, status=9))
            return 1, ended

    async def body(world: World) -> None:
        world.agent._process = Ends(log=world.log)
        await world.agent.deliver([world.order(n, "a", body=b"x" * 400_000) for n in (1, 2)])
        outcomes = await world.outcomes(2)
        assert [(o.result, o.errorline) for o in outcomes] == [
            (Result.OK, ""),
            (Result.TEMPFAIL, "terminated; signal 9"),
        ]

    in_world(body, a=MAILDIR)


def test_command_whose_message_does_not_come_in_time_is_ended_with_it():
    async def body(world: World) -> None:
        order = world.order(
            1, "a", body=b"A: b\r\n\r\n" + b"x" * 400_000, stream=True, mda_exec="cat >all && touch end"
        )
        read, pieces = world.queue.read, asyncio.Semaphore(4)

        async def stalls(msgid: int, offset: int, count: int) -> bytes:
            await pieces.acquire()
            return await read(msgid, offset, count)

        world.queue.read = stalls  # type: ignore[method-assign]
        await world.agent.deliver([order])
        async with asyncio.timeout(10):
            while not os.path.exists(f"{world.home}/all") or not os.path.getsize(f"{world.home}/all"):  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.05)
        with open(f"/proc/{world.process.pid}/task/{world.process.pid}/children") as children:  # noqa: ASYNC230
            os.kill(int(children.read()), signal.SIGALRM)
        pieces.release()
        (outcome,) = await world.outcomes(1)
        assert (outcome.result, outcome.errorline) == (Result.TEMPFAIL, "terminated; timeout")
        await asyncio.sleep(0.3)
        assert "end" not in read_tree(world.home)

    in_world(body, a=MAILDIR)


def test_an_order_is_carried_out_by_the_configuration_that_it_names() -> None:
    async def body(world: World) -> None:
        later = {"file": Local(name="file", method="mda", target="exit 75")}
        world.agent.add_config(Config(hostname="mx.example.org", generation=1, actions=later))
        orders = [world.order(n, "file") for n in (1, 2, 3)]
        orders = [msgspec.structs.replace(order, generation=n) for n, order in enumerate(orders)]
        await world.agent.deliver(orders)
        outcomes = await world.outcomes(3)
        assert [o.result for o in outcomes] == [Result.OK, Result.TEMPFAIL, Result.TEMPFAIL]
        assert outcomes[2].errorline == "Unknown action: file"

    in_world(body, file=Local(name="file", method="mda", target="cat >/dev/null"))


def test_limits_are_those_of_the_configuration_in_use() -> None:
    async def body(world: World) -> None:
        world.agent.add_config(Config(hostname="mx", generation=1, actions={}, mda=MdaLimits(max_session=-1)))
        await world.agent.deliver([])
        world.agent.use_config(1)
        with pytest.raises(TempFail, match="too many"):
            await world.agent.deliver([])

    in_world(body)
