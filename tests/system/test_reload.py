"""Reload under load: nobody is refused, nothing is lost, and whatever goes wrong leaves everything as it was."""

import asyncio
import itertools
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.system.certificates import write_pair
from tests.system.reloading import Client, Dialogue, Record, Site, site
from tests.system.server import Wiring, tree, wait_for
from tests.system.test_limits import memory

RELOADS = 50


def changes(site: Site) -> list[Callable[[], None]]:
    """What an operator may change, one thing after the other."""

    def doors() -> None:
        site.doors = not site.doors

    def action() -> None:
        site.box = "B" if site.box == "A" else "A"

    def table() -> None:
        site.domains = ("bench.test", *(f"d{n}.example" for n in range(random.randrange(50))))

    def certificate() -> None:
        site.der = write_pair(site.cert, site.key, site.name)

    return [doors, action, table, certificate]


def clients(record: Record, site: Site) -> list[Client]:
    kept = [Client(record, "kept", site.port, messages=90) for _ in range(5)]
    single = [Client(record, "single", site.port) for _ in range(5)]
    secure = [Client(record, "secure", site.port, tls=True) for _ in range(3)]
    secure += [Client(record, "secure", site.port, tls=True, messages=20)]
    visitors = [Client(record, "visitor", port, optional=True) for port in site.ports]
    return [*kept, *single, *secure, *visitors]


async def under_load(site: Site, work: Callable[[], None]) -> Record:
    """Do the work in a thread while all clients are busy; wait until everything that was taken is delivered."""
    record, stop = Record(), asyncio.Event()
    tasks = [asyncio.create_task(client.run(stop)) for client in clients(record, site)]
    await asyncio.sleep(0.3)
    try:
        await asyncio.to_thread(work)
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    return record


def check(site: Site, record: Record, *, doubled: bool = False) -> None:
    """Nobody was turned away, and what was acknowledged has arrived (once)."""
    log = site.server.log()
    assert not record.faults, (len(record.faults), record.faults[:5], log[-3000:])
    assert {"kept", "single", "secure"} <= record.sessions.keys(), record.sessions
    arrived = wait_for(lambda: record.acknowledged <= site.delivered().keys(), 40, every=0.5)
    delivered = site.delivered()
    assert arrived, (len(record.acknowledged), len(record.acknowledged - delivered.keys()), log[-3000:])
    assert doubled or set(delivered.values()) == {1}


def test_nobody_is_refused_and_nothing_is_lost_through_fifty_reloads(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:

        def work() -> None:
            for change in itertools.islice(itertools.cycle(changes(it)), RELOADS):
                change()
                it.must_reload()

        record = asyncio.run(under_load(it, work))
        check(it, record)
        assert f"in use as configuration {RELOADS}\n" in it.server.log()
        assert len(record.certificates) > 3, "new sessions never saw a new certificate"
        assert record.sessions["visitor"], "nobody came in by the listeners that come and go"


def greeting(site: Site) -> str:
    """The name in the greeting of a new session."""
    client = Dialogue(site.port)
    client.close()
    return client.greeting.split()[1]


def inode(port: int) -> set[str]:
    """The sockets that listen on a port (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port}


def expect(site: Site, condition: Callable[[], object], seconds: float = 20.0) -> None:
    assert wait_for(condition, seconds, every=0.1), site.server.log()[-3000:]


def test_a_bad_file_changes_nothing_and_says_why_while_clients_are_served(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it, socket.create_server(("127.0.0.1", 0)) as taken:
        taken_port = taken.getsockname()[1]
        good = {path: path.read_bytes() for path in (it.cert, it.key)}
        conf, line = it.server.conf, it.text().count("\n")

        def refused(more: str, *says: str) -> None:
            conf.write_text(it.text() + more)
            result = it.server.ctl("reload")
            assert (result.exit, result.out) == (1, "command failed\n"), result
            assert all(text in result.err for text in says), (result.err, says)
            for path, data in good.items():
                path.write_bytes(data)

        def work() -> None:
            refused("match bogus\nlisten on nowhere\n", f"{conf}:{line + 1}: ", f"{conf}:{line + 2}: ")
            refused(f"listen on 127.0.0.1 port {taken_port}\n", f"port {taken_port}: Address already in use")
            refused("table gone file:/nonexistent\n", f"{conf}:{line + 1}: ", "No such file")
            it.key.write_text("no key\n")
            refused("", "key.pem")
            it.cert.write_text("no certificate\n")
            refused(
                "", f"{conf}:{it.text()[: it.text().index('listen on')].count(chr(10)) + 1}: listen on 127.0.0.1: TLS: "
            )
            refused(f"listen on 127.0.0.1 port {it.port}\n", f"{conf}:{line + 1}: ", "already does")

        before = inode(it.port)
        check(it, asyncio.run(under_load(it, work)))
        assert inode(it.port) == before
        assert inode(taken_port) == {str(os.fstat(taken.fileno()).st_ino)}
        assert it.server.log().count("warn: reload: nothing has changed, configuration 0 stays in use") == 6
        it.name = "new.bench.test"
        it.must_reload()
        assert greeting(it) == "new.bench.test"


def test_a_session_keeps_the_rules_that_it_began_with(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring, domains=("bench.test", "old.example")) as it:
        old = Dialogue(it.port)
        old.say("EHLO client")
        it.domains, it.name = ("bench.test", "new.example"), "new.bench.test"
        it.must_reload()
        new = Dialogue(it.port)
        new.say("EHLO client")
        assert (old.greeting.split()[1], new.greeting.split()[1]) == ("mail.bench.test", "new.bench.test")
        for client, known, unknown in ((old, "old.example", "new.example"), (new, "new.example", "old.example")):
            assert client.message("1.1", f"x@{known}").startswith("250 "), known
            assert client.message("1.2", f"x@{unknown}").startswith("550 "), unknown
        assert "configuration 0 is forgotten" not in it.server.log()
        assert old.say("QUIT").startswith("221 ")
        expect(it, lambda: "configuration 0 is forgotten" in it.server.log())
        assert new.message("1.3", "x@new.example").startswith("250 ")


def test_queued_mail_goes_where_the_action_says_when_it_is_tried(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        assert it.server.ctl("pause", "mda").exit == 0
        client = Dialogue(it.port)
        client.say("EHLO client")
        assert client.message("1.1").startswith("250 ")
        it.box = "B"
        it.must_reload()
        assert it.server.ctl("show", "status").out.startswith("MDA paused\n"), "a reload is no resume"
        assert it.server.ctl("resume", "mda").exit == 0
        expect(it, lambda: list(it.mail.glob("B/new/*")))
        assert not (it.mail / "A").exists()


def test_mail_whose_action_is_gone_waits_for_it_to_come_back(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        assert it.server.ctl("pause", "mda").exit == 0
        client = Dialogue(it.port)
        client.say("EHLO client")
        assert client.message("1.1").startswith("250 ")
        whole = it.server.conf.read_text()
        it.server.conf.write_text(f"listen on 127.0.0.1 port {it.port}\nmatch from any reject\n")
        assert it.server.ctl("reload").exit == 0
        assert it.server.ctl("resume", "mda").exit == 0
        expect(it, lambda: "Unknown action: local" in it.server.queue()[0][13])
        it.server.conf.write_text(whole)
        assert it.server.ctl("reload").exit == 0
        assert it.server.ctl("schedule", "all").exit == 0
        expect(it, lambda: list(it.mail.glob("A/new/*")))


def test_a_listener_that_changes_keeps_its_socket_and_who_waits_there(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        before = inode(it.port)
        assert it.server.ctl("pause", "smtp").exit == 0
        with socket.create_connection(("127.0.0.1", it.port), 10) as waiting:
            it.name = "new.bench.test"
            it.must_reload()
            assert it.server.ctl("show", "status").out.endswith("SMTP paused\n")
            assert it.server.ctl("resume", "smtp").exit == 0
            assert waiting.recv(100).split()[1] == b"new.bench.test"
        assert inode(it.port) == before


def test_a_listener_that_is_removed_serves_who_had_got_in(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring, doors=True) as it:
        assert it.server.ctl("pause", "smtp").exit == 0
        waiting = [socket.create_connection(("127.0.0.1", it.ports[0]), 10) for _ in range(40)]
        it.doors = False
        it.must_reload()
        for client in waiting:
            assert client.recv(100).startswith(b"220 ")
            client.close()
        expect(it, lambda: not inode(it.ports[0]))


def test_reloads_that_are_asked_for_at_once_all_succeed(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        it.name = "new.bench.test"
        it.write()
        assert it.server.process is not None
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(it.server.ctl, "reload") for _ in range(8)]
            it.server.process.send_signal(signal.SIGHUP)
        assert {answer.result().out for answer in answers} == {"command succeeded\n"}
        assert greeting(it) == "new.bench.test"


def test_sighup_reloads_and_a_bad_file_does_not_end_the_server(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        assert it.server.process is not None
        it.name = "new.bench.test"
        it.write()
        it.server.process.send_signal(signal.SIGHUP)
        expect(it, lambda: greeting(it) == "new.bench.test")
        it.server.conf.write_text("nonsense\n")
        it.server.process.send_signal(signal.SIGHUP)
        expect(it, lambda: f"warn: reload: {it.server.conf}:1: " in it.server.log())
        assert greeting(it) == "new.bench.test"


def test_a_server_that_is_stopped_in_the_middle_of_reloads_ends_in_order(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring) as it:
        for _ in range(5):
            with ThreadPoolExecutor(2) as pool:
                answers = [pool.submit(it.server.ctl, "reload") for _ in range(2)]
                time.sleep(random.uniform(0, 0.3))
                assert it.server.stop() == 0, it.server.log()[-3000:]
            for answer in answers:
                assert answer.result().exit in (0, 1)
            it.server.start()
        assert "Traceback" not in it.server.log()


def test_only_root_and_the_owner_may_reload(folder: Path, wiring: Wiring, machine: None) -> None:
    with site(folder, wiring) as it:
        result = it.server.ctl("reload", user="alice")
        assert (result.exit, result.err) == (1, "smtpctl: need root privileges\n")
        assert "reload requested" not in it.server.log()


def test_what_needs_a_restart_is_said(folder: Path, wiring: Wiring) -> None:
    with site(folder, wiring, more="queue compression\n") as it:
        it.more = ""
        result = it.reload()
        assert (result.exit, result.out) == (0, "command succeeded\n")
        assert "warning: queue compression stays as it is until the server is started again\n" in result.err


def test_reloads_leave_nothing_behind(folder: Path, wiring: Wiring) -> None:
    """Descriptors to the last one; memory once the first reloads have warmed it up."""
    with site(folder, wiring) as it:
        assert it.server.process is not None
        root = it.server.process.pid
        steps = itertools.cycle(changes(it))

        def rounds(count: int) -> tuple[int, int]:
            for change in itertools.islice(steps, count):
                change()
                it.must_reload()
            done = f"configuration {it.server.log().count('in use as configuration') - 1} is forgotten"
            expect(it, lambda: done in it.server.log())
            expect(it, lambda: it.doors or not inode(it.ports[0]))
            return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in tree(root)), memory(root)

        rounds(12)
        descriptors, before = rounds(8)
        after_descriptors, after = rounds(56)  # a multiple of eight: with the same listeners as before
        print(f"{after - before} KB")
        assert after_descriptors == descriptors
        assert after - before < 2048, f"{after - before} KB more after 56 reloads"
