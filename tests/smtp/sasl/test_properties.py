"""Whatever is said, an exchange gives a step or raises `BadSyntax`, and succeeds only by its answers."""

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl.exchange import (
    AskSalt,
    Challenge,
    CheckPassword,
    CheckProof,
    CheckToken,
    Circumstances,
    Failure,
    Success,
)
from pillarbox.smtp.sasl.mechanisms import MECHANISMS
from pillarbox.smtp.sasl.verifier import PREFIX, parse, prepare

HERE = Circumstances(nonce="nonce", bindings={"tls-unique": b"x"}, plus=True)
_GS2 = [b"n,", b"y,", b"p=tls-unique,", b",", b"a=alice,", b"n=alice", b"r=client", b"r=clientnonce", b"c=biws"]
_OTHER = [b"\0", b"\x01", b"user=alice", b"auth=Bearer t", b"alice", b"=2C", b"=", b"\xff", b"\xc3\xa9"]
FRAGMENTS = st.sampled_from([*_GS2, *_OTHER, b"p=AAAA", b"p=" + b"A" * 43 + b"="])
MESSAGES = st.lists(FRAGMENTS | st.binary(max_size=5), max_size=8).map(b"".join)
LINES = st.none() | st.text(max_size=40) | MESSAGES.map(lambda m: b64encode(m).decode())


@pytest.mark.parametrize("name", MECHANISMS)
@given(lines=st.lists(LINES, max_size=6), right=st.booleans())
def test_any_lines_give_steps_or_bad_syntax(name, lines, right):
    exchange = MECHANISMS[name](HERE)
    answered = False
    for line in lines:
        assert exchange.label().startswith(f"AUTH {name} (")
        try:
            step = exchange.respond(line)
        except BadSyntax:
            return
        if isinstance(step, AskSalt):
            step = exchange.answer((b"salt", 4096))
        elif isinstance(step, CheckProof):
            answered, step = right, exchange.answer(b"signature" if right else b"")
        elif isinstance(step, CheckPassword | CheckToken):
            answered, step = right, exchange.answer(right)
        if isinstance(step, Success | Failure):
            assert isinstance(step, Failure) or answered
            return
        assert isinstance(step, Challenge)
        assert step.text.isascii() and "\n" not in step.text


@given(st.text(max_size=30))
def test_preparing_twice_is_preparing_once(text):
    assert prepare(prepare(text)) == prepare(text)


@given(st.text(max_size=100) | st.text(max_size=100).map(lambda t: PREFIX + t))
def test_any_text_is_a_verifier_or_a_value_error(text):
    try:
        assert str(parse(text)) == text
    except ValueError:
        return
