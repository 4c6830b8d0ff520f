"""Whatever is killed, and whenever: what was acknowledged is delivered, and nobody hears twice that it was not."""

import asyncio
import os
import pwd
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.load import Mailbox, RecordingSink, Sender, Tally, read_maildir
from tests.system.server import Server, Wiring, free_port, kill

KILLS = 5
SENDERS = 6
PATIENCE = 40.0  # seconds after the load until all of it must have arrived
RCPTS = ("someone@far.example", "refused@far.example", "local@bench.test")


def account() -> pwd.struct_passwd:
    """Whose Maildir it is: deliveries never run as root."""
    return pwd.getpwnam("alice") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())


def make_server(folder: Path, wiring: Wiring, sink: int, port: int) -> Server:
    """A server that relays to the sink, and delivers mail for bench.test (bounces too) into a Maildir."""
    owner = account()
    mail = folder / "mail"
    mail.mkdir()
    os.chown(mail, owner.pw_uid, owner.pw_gid)
    config = f"""\
mta limit conn-delay-route 0 conn-delay-relay 0 reconn-delay-route 0
listen on 127.0.0.1 port {port} hostname mail.bench.test
action "local" maildir "{mail}/Maildir" virtual {{ "@" = "{owner.pw_name}" }}
action "out" relay host smtp://127.0.0.1:{sink}
match from any for domain "bench.test" action "local"
match from any for any action "out"
"""
    return Server(folder, config, wiring, dispatchers=2)


async def load_and_kill(server: Server, sink: int, port: int, hurt: Callable[[], None]) -> tuple[Tally, Mailbox]:
    """Keep a load on the server, hurt it now and then, and wait until what was acknowledged has come out."""
    tally, stop = Tally(), asyncio.Event()
    maildir = server.folder / "mail/Maildir"
    listening = await asyncio.start_server(RecordingSink(tally).serve, "127.0.0.1", sink, limit=1 << 20)
    async with listening:
        senders = [
            Sender(
                tally, n, port, RCPTS, sender="sender@bench.test", size=random.choice([400, 4000, 200_000]), again=True
            )
            for n in range(SENDERS)
        ]
        tasks = [asyncio.create_task(sender.run(stop)) for sender in senders]
        for _ in range(KILLS):
            await asyncio.sleep(random.uniform(0.3, 1.5))
            await asyncio.to_thread(hurt)
        await asyncio.sleep(0.5)
        stop.set()
        await asyncio.gather(*tasks)
        for _ in range(int(PATIENCE / 2)):
            box = await asyncio.to_thread(read_maildir, maildir)
            if not missing(tally, box):
                break
            # What failed with the process that carried it waits for its next try.
            await asyncio.to_thread(server.ctl, "schedule", "all")
            await asyncio.sleep(2)
    return tally, box


def missing(tally: Tally, box: Mailbox) -> set[str]:
    """Acknowledged messages of which a delivery, or the bounce of the refused recipient, did not come."""
    return {n for n in tally.acknowledged if n not in tally.arrived or n not in box.arrived or n not in box.bounces}


def check(tally: Tally, box: Mailbox, server: Server) -> None:
    """Nothing lost, no bounce made twice."""
    assert len(tally.acknowledged) > 20, f"no load: {len(tally.sent)} sent\n{server.log()[-3000:]}"
    lost = missing(tally, box)
    assert not lost, (
        f"{len(lost)} of {len(tally.acknowledged)} incomplete, e.g. {sorted(lost)[:3]}\n{server.log()[-3000:]}"
    )
    twice = {number: ids for number, ids in box.bounces.items() if len(ids) > 1}
    assert not twice, f"bounces made twice: {dict(list(twice.items())[:3])}"


def test_nothing_is_lost_when_all_processes_are_killed(folder: Path, wiring: Wiring) -> None:
    sink, port = free_port(), free_port()
    with make_server(folder, wiring, sink, port) as server:

        def hurt() -> None:
            server.kill_all()
            server.start()

        check(*asyncio.run(load_and_kill(server, sink, port, hurt)), server)


def test_nothing_is_lost_when_single_processes_are_killed(folder: Path, machine: None) -> None:
    sink, port = free_port(), free_port()
    with make_server(folder, Wiring.MANY, sink, port) as server:

        def hurt() -> None:
            kill(random.choice(server.pids()[1:]), signal.SIGKILL)

        check(*asyncio.run(load_and_kill(server, sink, port, hurt)), server)
        assert server.process is not None
        assert server.process.poll() is None, "the parent ended"


@pytest.mark.parametrize("which", ["queue", "lookup", "control", "dispatcher"])
def test_a_role_that_is_killed_is_started_again(folder: Path, machine: None, which: str) -> None:
    sink, port = free_port(), free_port()
    with make_server(folder, Wiring.MANY, sink, port) as server:
        before = role(server, which)
        kill(before[0], signal.SIGKILL)

        async def works() -> bool:
            tally, stop = Tally(), asyncio.Event()
            sender = Sender(tally, 0, port, ("local@bench.test",), again=True)
            task = asyncio.create_task(sender.run(stop))
            for _ in range(200):
                if tally.acknowledged and len(role(server, which)) == len(before):
                    break
                await asyncio.sleep(0.1)
            stop.set()
            await task
            return bool(tally.acknowledged)

        assert asyncio.run(works()), server.log()[-3000:]
        assert before[0] not in role(server, which)
        assert len(role(server, which)) == len(before)
        assert server.ctl("show", "status").exit == 0


def role(server: Server, name: str) -> list[int]:
    """The processes of a role, told by their command lines."""
    found = []
    for pid in server.pids()[1:]:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/comm").read_bytes()
        except OSError:
            continue
        if name.encode() in words:
            found.append(pid)
    return found


def test_a_killed_parent_takes_all_roles_with_it(folder: Path, machine: None) -> None:
    sink, port = free_port(), free_port()
    server = make_server(folder, Wiring.MANY, sink, port)
    server.start()
    processes = server.pids()
    assert len(processes) > 4
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    for _ in range(100):
        left = [pid for pid in processes[1:] if Path(f"/proc/{pid}/cmdline").exists() and _running(pid)]
        if not left:
            break
        asyncio.run(asyncio.sleep(0.1))
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in left]
    server.process = None


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
