"""Mail goes on to real servers: Postfix, OpenSMTPD and smtp-sink; failures are tried again, and become bounces."""

import smtplib
import subprocess
from pathlib import Path

import pytest

from bench.servers import LOCAL, PORT, OpenSMTPD, Postfix
from tests.corpus.runner.sink import Sink
from tests.peers.programs import opensmtpd, program
from tests.peers.test_deliver import mail_in, message, server_with
from tests.system.server import Wiring, bound_ports, free_port, wait_for

pytestmark = pytest.mark.usefixtures("machine", "homes")


@pytest.mark.parametrize("scheme", ["smtp", "smtp+tls"])
@pytest.mark.parametrize("peer", [Postfix, OpenSMTPD], ids=lambda peer: peer.name)
def test_another_server_takes_what_is_relayed(
    folder: Path, wiring: Wiring, peer: type[Postfix | OpenSMTPD], scheme: str
) -> None:
    program("postfix") if peer is Postfix else opensmtpd()
    port, secured = free_port(), scheme == "smtp+tls"
    other = peer(folder / "peer", deliver=True, tls=secured)
    way = f"{scheme}://127.0.0.1:{PORT}{' tls no-verify' if secured else ''}"
    rules = f'action "out" relay host {way}\nmatch from any for any action "out"\n'
    other.start()
    try:
        with server_with(folder, wiring, port, rules) as server:
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                for number in range(10):
                    client.send_message(message(f"number {number}"), to_addrs=[LOCAL])
            assert wait_for(lambda: other.delivered() == 10, 30), server.log()[-3000:] + other.log()
            assert server.wait_empty(5)
            texts = [file.read_text() for file in (other.maildir / "new").iterdir()]
            assert sorted(t.partition("\nSubject: ")[2].split("\n")[0] for t in texts) == [
                f"number {n}" for n in range(10)
            ]
            assert all("\n.\nThe last line\n" in text for text in texts)
            assert (" mta tls ciphers=TLSv1.3:" in server.log()) is secured
    finally:
        other.stop()


@pytest.mark.parametrize("peer", [Postfix, OpenSMTPD], ids=lambda peer: peer.name)
def test_another_server_relays_to_us(folder: Path, wiring: Wiring, peer: type[Postfix | OpenSMTPD]) -> None:
    program("postfix") if peer is Postfix else opensmtpd()
    other = peer(folder / "peer", deliver=True)
    rules = 'action "a" maildir user alice\nmatch from any for any action "a"\n'
    other.start()
    try:
        # It relays to the port of the benchmark's sink: that is us here.
        with server_with(folder, wiring, 20126, rules) as server:
            with smtplib.SMTP("127.0.0.1", PORT, timeout=20) as client:
                for number in range(10):
                    client.send_message(message(f"number {number}"), to_addrs=["alice@elsewhere.example"])
            assert wait_for(lambda: len(mail_in("/home/alice")) == 10, 30), server.log()[-3000:] + other.log()
    finally:
        other.stop()


def test_smtp_sink_takes_a_load(folder: Path, wiring: Wiring) -> None:
    source, sink, port, sink_port = program("smtp-source"), program("smtp-sink"), free_port(), free_port()
    receiver = subprocess.Popen([sink, "-u", "nobody", "-M", "300", f"127.0.0.1:{sink_port}", "100"])
    try:
        assert wait_for(lambda: sink_port in bound_ports(), 5)
        rules = f'action "out" relay host smtp://127.0.0.1:{sink_port}\nmatch from any for any action "out"\n'
        with server_with(folder, wiring, port, f"smtp limit max-mails 1000\n{rules}") as server:
            argv = ["-d", "-s", "10", "-m", "300", "-l", "3000", "-t", "someone@far.example"]
            subprocess.run([source, *argv, f"127.0.0.1:{port}"], timeout=60, check=True)
            assert wait_for(lambda: receiver.poll() is not None, 60), server.log()[-2000:]
    finally:
        receiver.kill()
        receiver.wait()


def test_a_temporary_refusal_is_tried_again(folder: Path, wiring: Wiring) -> None:
    port, sink_port = free_port(), free_port()
    sink = Sink(sink_port, {"replies": [{"cmd": "^RCPT", "nth": 1, "session": 1, "reply": "451 4.7.1 greylisted"}]})
    rules = f'action "out" relay host smtp://127.0.0.1:{sink_port}\nmatch from any for any action "out"\n'
    try:
        with server_with(folder, wiring, port, rules) as server:
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                client.send_message(message(), to_addrs=["x@far.example"])
            assert wait_for(lambda: "|451 4.7.1 greylisted" in server.ctl("show", "queue").out, 15), server.log()
            (row,) = server.queue()
            assert int(row[10]) == 1  # tried once
            assert int(row[12]) > 300  # the next try is 400 s after it came
            assert server.ctl("schedule", row[0]).out == "1 envelope scheduled\n"
            assert server.wait_empty(30), server.log()
            assert any("C: ." in session for session in sink.sessions)
    finally:
        sink.close()


def test_a_permanent_refusal_becomes_one_bounce_to_the_sender(folder: Path, wiring: Wiring) -> None:
    port, sink_port = free_port(), free_port()
    sink = Sink(sink_port, {"replies": [{"cmd": "<no@", "reply": "550 5.1.1 no such user"}]})
    rules = f"""\
action "in" maildir
action "out" relay host smtp://127.0.0.1:{sink_port}
match from any for domain "example.org" action "in"
match from any for any action "out"
"""
    try:
        with server_with(folder, wiring, port, rules) as server:
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                client.send_message(
                    message(), from_addr="alice@example.org", to_addrs=["yes@far.example", "no@far.example"]
                )
            assert wait_for(lambda: mail_in("/home/alice"), 30), server.log()
            assert server.wait_empty(10), server.log()
            (bounce,) = mail_in("/home/alice")
            assert bounce.startswith("Delivered-To: alice@example.org\n") or bounce.startswith("Return-Path: <>\n")
            assert "multipart/report" in bounce
            assert "Final-Recipient: rfc822; no@far.example\nAction: failed\nStatus: 5.0.0\n" in bounce
            assert (
                "yes@far.example" not in bounce.partition("Content-Type: message/delivery-status")[2].partition("--")[0]
            )
    finally:
        sink.close()


def test_an_expired_message_becomes_a_bounce(folder: Path, wiring: Wiring) -> None:
    port = free_port()
    rules = f"""\
action "in" maildir
action "out" relay host smtp://127.0.0.1:{free_port()} ttl 1s
match from any for domain "example.org" action "in"
match from any for any action "out"
"""
    with server_with(folder, wiring, port, rules) as server:
        with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
            client.send_message(message(), from_addr="alice@example.org", to_addrs=["x@far.example"])

        def bounced() -> bool:
            server.ctl("schedule", "all")
            return bool(mail_in("/home/alice"))

        assert wait_for(bounced, 30, every=1), server.log()
        assert "Status: 5.4.7" in mail_in("/home/alice")[0]


def test_names_are_asked_of_the_resolver_that_is_configured(folder: Path, wiring: Wiring) -> None:
    """MX records come from `dns resolver`: a real unbound on loopback, which knows one domain."""
    unbound, port, dns, sink_port = program("unbound"), free_port(), free_port(), 25
    conf = folder / "unbound.conf"
    conf.write_text(f"""\
server:
  interface: 127.0.0.1
  port: {dns}
  do-daemonize: no
  chroot: ""
  username: ""
  directory: "{folder}"
  pidfile: "{folder}/unbound.pid"
  use-syslog: no
  access-control: 127.0.0.0/8 allow
  local-zone: "." static
  local-data: "far.example. MX 10 mx.far.example."
  local-data: "mx.far.example. A 198.51.100.1"
remote-control:
  control-enable: no
""")
    resolver = subprocess.Popen([unbound, "-d", "-c", str(conf)], stderr=subprocess.DEVNULL)
    sink = Sink(sink_port, {}, address="198.51.100.1")
    rules = f'dns resolver 127.0.0.1 port {dns}\naction "out" relay\nmatch from any for any action "out"\n'
    try:
        assert wait_for(lambda: dns in bound_ports(), 10)
        with server_with(folder, wiring, port, rules) as server:
            with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
                client.send_message(message(), from_addr="", to_addrs=["x@far.example"])
                client.send_message(message(), from_addr="", to_addrs=["x@nowhere.example"])
            assert wait_for(lambda: any("C: ." in session for session in sink.sessions), 30), server.log()
            assert server.wait_empty(30), server.log()  # a domain that does not exist is a permanent failure
    finally:
        sink.close()
        resolver.terminate()
        resolver.wait()
