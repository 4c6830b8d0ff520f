"""PLAIN and LOGIN."""

from base64 import b64encode

import pytest

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl.exchange import Challenge, CheckPassword, Circumstances, Failure, Success
from pillarbox.smtp.sasl.password import Login, Plain

HERE = Circumstances(nonce="nonce")


def b64(value: bytes) -> str:
    return b64encode(value).decode()


def test_plain_at_once_and_asked_for():
    assert Plain(HERE).respond(b64(b"\0alice\0pw")) == CheckPassword("alice", "pw")
    exchange = Plain(HERE)
    assert exchange.respond(None) == Challenge("")
    assert exchange.respond(b64(b"other\0alice\0pw")) == CheckPassword("alice", "pw")
    assert exchange.answer(True) == Success("alice")
    assert exchange.answer(False) == Failure()


@pytest.mark.parametrize(
    "line", ["*", "", "=", b64(b"alice"), b64(b"\0alice\0"), b64(b"\0a\0b\0c"), b64(b"\0a\0\xff"), b64(b"\0a\r\0b")]
)
def test_bad_plain(line):
    with pytest.raises(BadSyntax):
        Plain(HERE).respond(line)


def test_login():
    exchange = Login(HERE)
    assert exchange.label() == "AUTH LOGIN (username)"
    assert exchange.respond(None) == Challenge("VXNlcm5hbWU6")
    assert exchange.respond(b64(b"alice")) == Challenge("UGFzc3dvcmQ6")
    assert exchange.label() == "AUTH LOGIN (password)"
    assert exchange.respond(b64(b"pw")) == CheckPassword("alice", "pw")
    assert exchange.answer(True) == Success("alice")


def test_login_with_the_name_at_once():
    assert Login(HERE).respond(b64(b"alice")) == Challenge("UGFzc3dvcmQ6")
