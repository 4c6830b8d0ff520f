"""The LMTP client against a small server on loopback."""

import contextlib
import socket
import threading
import time

import pytest

from pillarbox.mail.envelope import Result
from pillarbox.mda.lmtp import deliver_lmtp, split_destination
from pillarbox.mda.message import Failure, Message
from pillarbox.mda.wire import Job

BODY = b"Subject: x\r\n\r\n.\r\n..a\r\nb\r\n"
GOOD = [b"220 hi\r\n", b"250-store\r\n250-PIPELINING\r\n250 SIZE\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"]


class Server:
    """Answers each command with the next reply, the message with `end`; keeps what it was told."""

    def __init__(self, replies: list[bytes], end: bytes = b"250 stored\r\n", path: str = "") -> None:
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(path or ("127.0.0.1", 0))
        self.listener.listen()
        self.destination = path or f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        self._replies, self._end = replies, end
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # a client that breaks off is what some tests are about
            self._talk(self.listener.accept()[0])

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            connection.sendall(self._replies[0])
            for reply in [*self._replies[1:], self._end, b"221 bye\r\n"]:
                in_data = self.heard[-1:] == [b"DATA\r\n"] and reply is self._end
                self.heard.append(lines.readline())
                while in_data and self.heard[-1] not in (b".\r\n", b""):
                    self.heard.append(lines.readline())
                connection.sendall(reply)

    def close(self) -> list[bytes]:
        self.listener.close()
        self._thread.join(5)
        return self.heard


def deliver(
    destination: str, *, rcpt_to: bool = False, addresses: tuple[str, ...] = (), seconds: float = 5,
    sender: str = "s@x", dest: str = "alice+t@b",
) -> None:  # fmt: skip
    job = Job(
        index=0, method="lmtp", sender=sender, rcpt="list@b", dest=dest, user="alice", directory="/", home="/",
        target=destination, addresses=addresses, rcpt_to=rcpt_to, size=len(BODY), body=BODY,
    )  # fmt: skip
    deliver_lmtp(Message(job, lambda at: b""), time.monotonic() + seconds)


@pytest.mark.parametrize("rcpt_to", [False, True])
def test_message_is_handed_over_with_its_dots(rcpt_to):
    server = Server(GOOD)
    deliver(server.destination, rcpt_to=rcpt_to)
    assert server.close() == [
        b"LHLO localhost\r\n",
        b"MAIL FROM:<s@x>\r\n",
        b"RCPT TO:<alice+t@b>\r\n" if rcpt_to else b"RCPT TO:<alice>\r\n",
        b"DATA\r\n",
        b"Return-Path: <s@x>\r\n",
        b"Delivered-To: list@b\r\n",
        b"Subject: x\r\n",
        b"\r\n",
        b"..\r\n",
        b"...a\r\n",
        b"b\r\n",
        b".\r\n",
        b"QUIT\r\n",
    ]


def test_socket_of_the_file_system_is_reached(tmp_path):
    server = Server(GOOD, path=str(tmp_path / "s"))
    deliver(server.destination)
    assert server.close()[-1] == b"QUIT\r\n"


@pytest.mark.parametrize(
    ("replies", "end", "result", "sysexit", "text"),
    [
        ([*GOOD[:3], b"451 4.2.0 busy\r\n"], b"", Result.TEMPFAIL, 75, "LMTP server error: 451 4.2.0 busy"),
        (GOOD, b"552 5.2.2 over quota\r\n", Result.PERMFAIL, 69, "LMTP server error: 552 5.2.2 over quota"),
        ([b"550-a\r\n550 b\r\n"], b"", Result.PERMFAIL, 69, "LMTP server error: 550-a"),
        ([b"hello\r\n"], b"", Result.TEMPFAIL, 75, "LMTP server sent an invalid line"),
        ([b"2" * 9000], b"", Result.TEMPFAIL, 75, "LMTP server sent an invalid line"),
    ],
)
def test_refusal_decides(replies, end, result, sysexit, text):
    server = Server(replies, end)
    with pytest.raises(Failure) as caught:
        deliver(server.destination)
    server.close()
    assert (caught.value.result, caught.value.sysexit) == (result, sysexit)
    assert caught.value.text == f'"mail.lmtp: {text}"'


def test_server_that_says_nothing_is_left_at_the_deadline():
    server = Server([b""])
    with pytest.raises(Failure) as caught:
        deliver(server.destination, seconds=0.2)
    server.listener.close()
    assert caught.value.result is Result.TEMPFAIL


def test_server_that_breaks_off_after_taking_the_message_has_it():
    server = Server(GOOD, b"250 stored\r\n250")
    deliver(server.destination, seconds=1)
    server.listener.close()


def test_nobody_there_is_temporary(tmp_path):
    with pytest.raises(Failure, match=r"mail\.lmtp: connect"):
        deliver("127.0.0.1:1")
    with pytest.raises(Failure, match="connect: No such file or directory"):
        deliver(str(tmp_path / "none"))
    with pytest.raises(Failure, match="Name or service not known"):
        deliver("store.example.org:24")


def test_resolved_addresses_are_tried_in_turn():
    server = Server(GOOD)
    port = server.destination.partition(":")[2]
    deliver(f"store.example.org:{port}", addresses=("127.9.9.9", "127.0.0.1"))
    assert server.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h", ("h", "25")),
        ("h:24", ("h", "24")),
        ("[::1]:24", ("::1", "24")),
        ("[IPv6:::1]", ("::1", "25")),
        ("::1", ("::1", "25")),
    ],
)
def test_destination_is_split(text, expected):
    assert split_destination(text) == expected


UTF8 = [GOOD[0], b"250-store\r\n250-SMTPUTF8\r\n250 SIZE\r\n", *GOOD[2:]]


def test_addresses_in_utf8_are_declared():
    server = Server(UTF8)
    deliver(server.destination, rcpt_to=True, sender="jürgen@x", dest="用户@b")
    assert server.close()[1:3] == ["MAIL FROM:<jürgen@x> SMTPUTF8\r\n".encode(), "RCPT TO:<用户@b>\r\n".encode()]


def test_a_store_without_smtputf8_gets_only_what_ascii_can_write():
    server = Server(GOOD)
    deliver(server.destination, rcpt_to=True, sender="s@bücher.example", dest="a@b")
    assert server.close()[1] == b"MAIL FROM:<s@xn--bcher-kva.example>\r\n"
    server = Server(GOOD)
    with pytest.raises(Failure) as failed:
        deliver(server.destination, sender="jürgen@x")
    assert failed.value.result is Result.PERMFAIL and "5.6.7" in failed.value.text
    assert not any(server.close()[1:])
