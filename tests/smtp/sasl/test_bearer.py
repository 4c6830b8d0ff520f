"""XOAUTH2 and OAUTHBEARER."""

import base64
import json

import pytest

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl.bearer import oauthbearer, xoauth2
from pillarbox.smtp.sasl.exchange import Challenge, CheckToken, Circumstances, Failure, Success

HERE = Circumstances(nonce="nonce")
XOAUTH = b"user=alice@example.org\x01auth=Bearer ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg\x01\x01"
# RFC 7628 §4.1
OAUTH = (
    b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
    b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
)


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def test_xoauth2():
    exchange = xoauth2(HERE)
    assert exchange.respond(None) == Challenge("")
    token = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"
    assert exchange.respond(b64(XOAUTH)) == CheckToken("alice@example.org", token)
    assert exchange.answer(True) == Success("alice@example.org")
    assert exchange.label() == "AUTH XOAUTH2 (...)"


def test_oauthbearer():
    exchange = oauthbearer(HERE)
    token = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
    assert exchange.respond(b64(OAUTH)) == CheckToken("user@example.com", token)
    assert exchange.answer(True) == Success("user@example.com")


@pytest.mark.parametrize(
    ("mechanism", "message", "status"),
    [(xoauth2, XOAUTH, ("status", "401")), (oauthbearer, OAUTH, ("status", "invalid_token"))],
)
@pytest.mark.parametrize("dummy", ["AQ==", "", "*", "anything"])
def test_a_refusal_is_told_in_json_and_then_it_is_over(mechanism, message, status, dummy):
    exchange = mechanism(HERE)
    exchange.respond(b64(message))
    told = json.loads(base64.b64decode(exchange.answer(False).text))
    assert told[status[0]] == status[1]
    assert exchange.respond(dummy) == Failure()


@pytest.mark.parametrize("mechanism", [xoauth2, oauthbearer])
@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x01\x01",
        b"user=a\x01auth=Bearer\x01\x01",
        b"user=a\x01auth=Basic eDp5\x01\x01",
        b"user=a\x01auth=Bearer t\x01",
        b"user=\x01auth=Bearer t\x01\x01",
        b"user=a\x01user=b\x01auth=Bearer t\x01\x01",
        b"user=a\x01auth=Bearer t t\x01\x01",
        b"user=a\x00b\x01auth=Bearer t\x01\x01",
        b"user=\xff\x01auth=Bearer t\x01\x01",
        b"n,,\x01auth=Bearer t\x01\x01",
        b"n,a=,\x01auth=Bearer t\x01\x01",
        b"p=tls-unique,a=user,\x01auth=Bearer t\x01\x01",
        b"n,a=us=er,\x01auth=Bearer t\x01\x01",
        b"n,a=user,\x01auth=Bearer t\x01=x\x01\x01",
        b"n,a=user,",
        b"n,a=user,\x01auth=Bearer " + b"t" * 9000 + b"\x01\x01",
    ],
)
def test_bad_messages(mechanism, message):
    with pytest.raises(BadSyntax):
        mechanism(HERE).respond(b64(message))


def test_a_name_may_hold_a_comma():
    assert oauthbearer(HERE).respond(b64(b"y,a=a=2Cb,\x01auth=bearer t\x01\x01")) == CheckToken("a,b", "t")
