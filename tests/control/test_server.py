"""The control socket against real connections: strangers, floods, frames that are none, clients that do nothing."""

import contextlib
import os
import socket
import time
from collections.abc import Callable

import pytest

from pillarbox.control import wire
from pillarbox.control.server import Limits
from tests.control.memory import Server, envelope, serving

STRANGER = 64999  # nobody's


def connect(server: Server) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(server.socket)
    return connection


def receive(connection: socket.socket) -> wire.Answer:
    length = wire.body_length(exactly(connection, wire.HEADER), wire.ANSWER_MAX)
    return wire.decode_answer(exactly(connection, length))


def exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        assert part, "the connection ended"
        data += part
    return data


def ask(connection: socket.socket, request: wire.Request) -> wire.Answer:
    connection.sendall(wire.frame(request))
    return receive(connection)


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def as_stranger():  # type: ignore[no-untyped-def]
    """What connects meanwhile does so as another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to connect as another user")
    os.seteuid(STRANGER)
    try:
        yield
    finally:
        os.seteuid(0)


def test_requests_follow_one_another_on_a_connection() -> None:
    with serving() as server, connect(server) as connection:
        server.queue.add(envelope(1 << 32 | 1))
        assert ask(connection, wire.ShowStatus()) == wire.Lines([])
        assert ask(connection, wire.Pause("mda", True)) == wire.Done()
        assert ask(connection, wire.Pause("mda", True)) == wire.Failed()
        assert ask(connection, wire.Change("remove", 0)) == wire.Count(1)
        assert "mda paused" in server.output.getvalue()


def test_a_stranger_may_only_submit() -> None:
    with serving() as server:
        with as_stranger():
            asking, submitting = connect(server), connect(server)
        with asking, submitting:
            assert ask(asking, wire.ShowStats()) == wire.Denied()
            assert ask(asking, wire.Stop()) == wire.Denied()
            assert not server.system.stopped
            assert not isinstance(ask(submitting, wire.Submit()), wire.Denied)


def test_the_owner_may_do_everything_where_the_server_is_not_roots() -> None:
    with serving(owner=STRANGER) as server:
        with as_stranger():
            connection = connect(server)
        with connection:
            assert ask(connection, wire.Stop()) == wire.Done()
            assert server.system.stopped


def test_a_user_has_so_many_connections_and_one_line_in_the_log() -> None:
    with serving(limits=Limits(per_user=3)) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(server)) for _ in range(3)]
        for connection in held:
            ask(connection, wire.ShowStatus())
        for _ in range(20):
            assert ended(stack.enter_context(connect(server)))
        assert server.output.getvalue().count("too many connections to control socket from user with uid") == 1
        held[0].close()
        eventually(lambda: server.control.sessions() == 2)
        assert ask(stack.enter_context(connect(server)), wire.ShowStatus()) == wire.Lines([])


def test_strangers_together_leave_room_for_the_operator() -> None:
    with serving(limits=Limits(strangers=2)) as server, contextlib.ExitStack() as stack:
        with as_stranger():
            for _ in range(2):
                ask(stack.enter_context(connect(server)), wire.ShowStatus())
            assert ended(stack.enter_context(connect(server)))
        assert ask(stack.enter_context(connect(server)), wire.ShowStatus()) == wire.Lines([])


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"PBC\x01\xff\xff\xff\xff",
        b"PBC\x01\x00\x00\x00\x03\x91\xa1x",
        b"PBC\x01\x00\x00\x00\x01\xc1",
        b"PBC\x07\x00\x00\x00\x01\xc0",
    ],
)
def test_what_is_no_frame_ends_the_connection_and_nothing_else(data: bytes) -> None:
    with serving() as server, connect(server) as bad, connect(server) as good:
        bad.sendall(data)
        assert isinstance(receive(bad), wire.Failed)
        assert ended(bad)
        assert ask(good, wire.ShowStatus()) == wire.Lines([])


def test_a_frame_that_never_ends_is_not_waited_for() -> None:
    with serving(limits=Limits(request=0.2)) as server, connect(server) as slow, connect(server) as silent:
        slow.sendall(b"PBC\x01\x00\x00\x00\x09\x91")
        assert ended(slow)
        assert ended(silent)


def test_a_client_that_never_reads_is_dropped() -> None:
    with serving(limits=Limits(answer=0.2)) as server, connect(server) as connection:
        assert ask(connection, wire.ShowStatus()) == wire.Lines([])  # it is served
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        server.queue.add(*(envelope(1 << 32 | n, errorline="x" * 800) for n in range(1, 1000)))
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(50):
                connection.sendall(wire.frame(wire.ShowQueue()))
        eventually(lambda: server.control.sessions() == 0)


def test_a_page_is_bounded_by_rows_and_by_bytes() -> None:
    with serving() as server, connect(server) as connection:
        server.queue.add(*(envelope(1 << 32 | n) for n in range(1, 1500)))
        rows = ask(connection, wire.ShowQueue())
        assert isinstance(rows, wire.Rows)
        assert len(rows.rows) == wire.PAGE_ROWS
        server.queue.add(*(envelope(1 << 32 | n, errorline="x" * 10_000) for n in range(1, 1500)))
        rows = ask(connection, wire.ShowQueue())
        assert isinstance(rows, wire.Rows)
        assert 1 <= len(rows.rows) <= wire.PAGE_BYTES // 10_000


def test_a_configuration_is_shown_from_one_generation_alone() -> None:
    with serving() as server, connect(server) as connection:
        assert ask(connection, wire.ShowConfig()) == wire.Text(0, "match from")
        server.system.generation = 1
        assert isinstance(ask(connection, wire.ShowConfig(0, 10)), wire.Failed)
        assert ask(connection, wire.ShowConfig(-1, 10)) == wire.Text(1, " local for")
        assert ask(connection, wire.ShowConfig(1, 1000)) == wire.Text(1, "")


def test_a_role_that_is_restarted_fails_the_request_only() -> None:
    with serving() as server, connect(server) as connection:
        server.queue.broken = True
        assert ask(connection, wire.ShowQueue()) == wire.Failed("queue is being restarted")
        assert ask(connection, wire.ShowStatus()) == wire.Lines([])


def test_every_role_hears_of_the_log_level_and_tracing_raises_it() -> None:
    with serving() as server, connect(server) as connection:
        ask(connection, wire.LogLevel(True))
        ask(connection, wire.LogLevel(False))
        ask(connection, wire.Trace("smtp", True))
        ask(connection, wire.Trace("all", False))
        for role in (server.queue, *server.dispatchers):
            assert role.levels == [True, False, True, False]


def test_a_submission_is_relayed_and_closed() -> None:
    with serving() as server, connect(server) as connection:
        assert ask(connection, wire.Submit()) == wire.Done()
        file = connection.makefile("rwb")
        assert file.readline().startswith(b"220")
        file.write(b"MAIL FROM:<a@b>\r\nQUIT\r\n")
        file.flush()
        assert file.read() == b"250 2.0.0 Ok\r\n221 2.0.0 Bye\r\n"
        eventually(lambda: server.control.sessions() == 0)
        (dispatcher,) = (d for d in server.dispatchers if d.sessions)
        assert dispatcher.closed == [1]
        assert dispatcher.sessions[1].uid == os.getuid()


def test_a_submitting_client_that_goes_away_closes_its_session() -> None:
    with serving() as server:
        with connect(server) as connection:
            ask(connection, wire.Submit())
        eventually(lambda: any(d.closed for d in server.dispatchers))


def test_a_submission_goes_to_a_dispatcher_that_takes_it() -> None:
    with serving() as server:
        server.dispatchers[0].restarting = True
        for _ in range(2):
            with connect(server) as connection:
                assert ask(connection, wire.Submit()) == wire.Done()
        server.dispatchers[1].restarting = True
        with connect(server) as connection:
            assert ask(connection, wire.Submit()) == wire.Failed(wire.TOO_BUSY)


def test_closing_ends_connections_at_once() -> None:
    with serving() as server, connect(server) as idle, connect(server) as submitting:
        ask(idle, wire.ShowStatus())
        ask(submitting, wire.Submit())
        started = time.monotonic()
        server.call(server.control.close()).result(10)
        assert time.monotonic() - started < 5
        assert ended(idle)
