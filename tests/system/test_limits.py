"""Faults of the machine are normal: a full disk, no descriptors left, signals, a second server."""

import asyncio
import os
import signal
import smtplib
import socket
import subprocess
import time
from pathlib import Path

from tests.system.load import Sender, Tally, read_maildir
from tests.system.server import BIN, Server, Wiring, free_port, tree, wait_for
from tests.system.test_crash import account, make_server

MEGABYTE = 1 << 20


def send(port: int, size: int = 400, rcpt: str = "local@bench.test") -> None:
    """One message; smtplib's errors tell how it was refused."""
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        client.sendmail("sender@bench.test", [rcpt], "Subject: 0.0\r\n\r\n" + ("x" * 70 + "\r\n") * (size // 72))


def test_a_second_server_on_one_state_directory_is_refused_and_names_the_first(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, free_port(), port) as server:
        assert server.process is not None
        other = Server(folder / "other", server.config.replace(f"port {port}", f"port {free_port()}"), wiring)
        other.state = server.state
        other.launch()
        assert other.process is not None
        assert wait_for(lambda: other.process is not None and other.process.poll() is not None, 30), other.log()
        assert other.process.returncode != 0
        assert str(server.process.pid) in other.log(), other.log()
        send(port)


def test_sigterm_in_the_middle_of_a_load_ends_cleanly_and_keeps_all_mail(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    tally = Tally()

    async def load(server: Server) -> int:
        stop = asyncio.Event()
        senders = [Sender(tally, n, port, ("local@bench.test",), size=20_000) for n in range(5)]
        tasks = [asyncio.create_task(sender.run(stop)) for sender in senders]
        while len(tally.acknowledged) < 20:  # noqa: ASYNC110 - a load, not an event
            await asyncio.sleep(0.02)
        status = await asyncio.to_thread(server.stop)
        stop.set()
        await asyncio.gather(*tasks)
        return status

    server = make_server(folder, wiring, free_port(), port)
    server.start()
    assert asyncio.run(load(server)) == 0, server.log()[-3000:]
    server.start()
    try:
        maildir = folder / "mail/Maildir"
        arrived = wait_for(lambda: tally.acknowledged <= set(read_maildir(maildir).arrived), 30, every=0.3)
        assert arrived, server.log()[-3000:]
        assert set(read_maildir(maildir).arrived.values()) == {1}, "delivered twice although it was stopped in order"
    finally:
        server.stop()


def test_an_idle_client_is_told_that_the_server_ends(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    server = make_server(folder, wiring, free_port(), port)
    server.start()
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        lines = client.makefile("rb")
        assert lines.readline().startswith(b"220 ")
        assert server.stop() == 0
        assert lines.readline().startswith(b"421 ")


def test_a_signal_of_no_meaning_does_no_harm(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, free_port(), port) as server:
        assert server.process is not None
        server.process.send_signal(signal.SIGPIPE)
        time.sleep(0.3)
        assert server.process.poll() is None, server.log()[-2000:]
        send(port)


def test_a_full_disk_refuses_mail_for_now_and_loses_none(folder: Path, wiring: Wiring, machine: None) -> None:
    port = free_port()
    server = make_server(folder, wiring, free_port(), port)
    server.args = ("-P", "mda")
    server.state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=711", "tmpfs", str(server.state)], check=True)
    try:
        server.start()
        taken, refused = fill(port)
        assert refused in (452, 451), refused
        assert server.process is not None
        assert server.process.poll() is None, server.log()[-2000:]
        assert len({row[0][:8] for row in server.queue()}) == taken
        subprocess.run(["mount", "-o", "remount,size=64m", str(server.state)], check=True)
        assert wait_for(lambda: _accepts(port), 40, every=0.5), f"still refuses with space\n{server.log()[-2000:]}"
        server.ctl("resume", "mda")
        assert server.wait_empty(30), server.log()[-2000:]
        assert read_maildir(folder / "mail/Maildir").arrived.total() >= taken + 1
    finally:
        server.stop()
        subprocess.run(["umount", "-l", str(server.state)], check=True)


def fill(port: int) -> tuple[int, int]:
    """Send until it is refused: how many were taken, and the code of the refusal."""
    for taken in range(1000):
        try:
            send(port, 300_000)
        except smtplib.SMTPResponseException as refusal:
            return taken, refusal.smtp_code
        except smtplib.SMTPRecipientsRefused as refusal:
            return taken, next(iter(refusal.recipients.values()))[0]
    raise AssertionError("a disk of 12 MB took 300 MB")


def _accepts(port: int) -> bool:
    try:
        send(port)
    except smtplib.SMTPException:
        return False
    return True


def test_too_many_connections_are_told_421_and_room_is_used_again(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    server = make_server(folder, wiring, free_port(), port)
    server.prefix = ("/bin/sh", "-c", 'ulimit -n 120; exec "$@"', "sh")
    with server:
        held = []
        refused = 0
        for _ in range(200):
            client = socket.create_connection(("127.0.0.1", port), 20)
            client.settimeout(10)
            held.append(client)
            try:
                greeting = client.recv(200)
            except OSError:
                greeting = b""
            refused += greeting.startswith(b"421 ") or greeting == b""
            if refused >= 5:
                break
        assert refused, "200 sessions with 120 descriptors"
        for client in held:
            client.close()
        assert server.process is not None
        assert server.process.poll() is None, server.log()[-2000:]
        assert wait_for(lambda: _serves(port), 20, every=0.3), server.log()[-2000:]


def _serves(port: int) -> bool:
    try:
        send(port)
    except (OSError, smtplib.SMTPException):
        return False
    return True


def test_a_large_message_costs_little_memory(folder: Path, wiring: Wiring) -> None:
    """A body is streamed: 30 MB of it costs a few, in all processes together."""
    port = free_port()
    with make_server(folder, wiring, free_port(), port) as server:
        send(port)
        assert server.wait_empty(10)
        assert server.process is not None
        root = server.process.pid
        before = peak = memory(root)
        sender = subprocess.Popen([str(BIN / "python"), "-c", _SEND_LARGE, str(port)])
        while sender.poll() is None:
            peak = max(peak, memory(root))
            time.sleep(0.02)
        assert sender.returncode == 0
        print(f"{(peak - before) / 1024:.1f} MB")
        assert (peak - before) / 1024 < 4, f"{(peak - before) / 1024:.1f} MB more"


_SEND_LARGE = """
import smtplib, sys
with smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=60) as client:
    client.sendmail("s@bench.test", ["local@bench.test"], "Subject: 0.1\\r\\n\\r\\n" + ("x" * 78 + "\\r\\n") * 390_000)
"""


def memory(root: int) -> int:
    """Kilobytes of data of these processes (smaps_rollup). Not their share of mapped files: that changes with whoever
    else has them mapped, such as the servers of tests beside this one."""
    total = 0
    for pid in tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(text.partition(f"\n{kind}:")[2].split()[0]) for kind in ("Pss_Anon", "Pss_Shmem"))
    return total


def test_the_maildir_belongs_to_its_user(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    with make_server(folder, wiring, free_port(), port) as server:
        send(port)
        new = folder / "mail/Maildir/new"
        assert wait_for(lambda: new.exists() and any(new.iterdir()), 10), server.log()[-2000:]
        (file,) = new.iterdir()
        assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (account().pw_uid, 0o600)
        assert os.stat(new.parent).st_uid == account().pw_uid
