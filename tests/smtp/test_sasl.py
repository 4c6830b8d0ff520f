"""AUTH exchanges."""

import contextlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl import Challenge, Credentials, Login, Plain


def b64(value: bytes) -> str:
    return b64encode(value).decode()


def test_plain_at_once_and_asked_for():
    assert Plain().respond(b64(b"\0alice\0pw")) == Credentials("alice", "pw")
    exchange = Plain()
    assert exchange.respond(None) == Challenge("")
    assert exchange.respond(b64(b"other\0alice\0pw")) == Credentials("alice", "pw")


@pytest.mark.parametrize(
    "line", ["*", "", "=", b64(b"alice"), b64(b"\0alice\0"), b64(b"\0a\0b\0c"), b64(b"\0a\0\xff"), b64(b"\0a\r\0b")]
)
def test_bad_plain(line):
    with pytest.raises(BadSyntax):
        Plain().respond(line)


def test_login():
    exchange = Login()
    assert exchange.label() == "AUTH LOGIN (username)"
    assert exchange.respond(None) == Challenge("VXNlcm5hbWU6")
    assert exchange.respond(b64(b"alice")) == Challenge("UGFzc3dvcmQ6")
    assert exchange.label() == "AUTH LOGIN (password)"
    assert exchange.respond(b64(b"pw")) == Credentials("alice", "pw")


def test_login_with_the_name_at_once():
    assert Login().respond(b64(b"alice")) == Challenge("UGFzc3dvcmQ6")


@given(st.text(max_size=50))
def test_garbage_ends_the_exchange_and_nothing_else(line):
    for exchange in (Plain(), Login()):
        with contextlib.suppress(BadSyntax):
            exchange.respond(line)
