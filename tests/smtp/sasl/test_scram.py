"""SCRAM-SHA-256: the exchange, against the RFC's example and a client of its own."""

import base64

import pytest

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl import verifier
from pillarbox.smtp.sasl.exchange import AskSalt, Challenge, CheckProof, Circumstances, Failure, Success
from pillarbox.smtp.sasl.scram import Scram

from .client import ScramClient, b64

STORED = verifier.make("pencil", salt=base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), iterations=4096)
BINDING = ("tls-server-end-point", b"hash of a certificate")


def exchange(*, plus=False, offered=None, nonce="%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"):
    bindings = {BINDING[0]: BINDING[1]}
    return Scram(Circumstances(nonce=nonce, bindings=bindings, plus=plus if offered is None else offered), plus=plus)


def run(server, client, stored=STORED):
    """The whole exchange; what it came to."""
    step = server.respond(client.first())
    if not isinstance(step, AskSalt):
        return step
    step = server.answer((stored.salt, stored.iterations))
    question = server.respond(client.final(step.text))
    if not isinstance(question, CheckProof):
        return question
    step = server.answer(stored.signature(question.message, question.proof))
    if isinstance(step, Failure):
        return step
    assert client.accepts(step.text)
    return server.respond("")


def test_the_example_of_rfc_7677():
    server = exchange()
    assert server.respond(b64(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")) == AskSalt("user")
    said = server.answer((STORED.salt, STORED.iterations))
    assert base64.b64decode(said.text) == (
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    final = (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    question = server.respond(b64(final))
    assert isinstance(question, CheckProof)
    said = server.answer(STORED.signature(question.message, question.proof))
    assert base64.b64decode(said.text) == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    assert server.respond("") == Success("user")


@pytest.mark.parametrize("last", ["", "="])
def test_success_comes_only_after_the_client_saw_the_servers_signature(last):
    server, client = exchange(), ScramClient("user", "pencil")
    server.respond(client.first())
    final = client.final(server.answer((STORED.salt, 4096)).text)
    question = server.respond(final)
    step = server.answer(STORED.signature(question.message, question.proof))
    assert isinstance(step, Challenge)
    assert server.respond(last) == Success("user")


def test_it_may_be_cancelled_at_each_step():
    for steps in range(4):
        server, client = exchange(), ScramClient("user", "pencil")
        said = server.respond(None)
        if steps > 0:
            server.respond(client.first())
            said = server.answer((STORED.salt, 4096))
        if steps > 1:
            question = server.respond(client.final(said.text))
        if steps > 2:
            server.answer(STORED.signature(question.message, question.proof))
        if steps == 2:
            continue  # the server's turn
        with pytest.raises(BadSyntax):
            server.respond("*")


def test_a_wrong_password_fails():
    assert run(exchange(), ScramClient("user", "pencil!")) == Failure()


def test_names_may_hold_commas_and_equals_signs():
    assert run(exchange(), ScramClient("a,b=c", "pencil")) == Success("a,b=c")


@pytest.mark.parametrize(("authzid", "outcome"), [("user", Success("user")), ("root", Failure())])
def test_nobody_acts_for_somebody_else(authzid, outcome):
    assert run(exchange(), ScramClient("user", "pencil", authzid=authzid)) == outcome


def test_an_empty_authorization_identity_is_none():
    assert exchange().respond(b64(b"n,a=,n=user,r=client")) == AskSalt("user")


def test_channel_binding():
    assert run(exchange(plus=True), ScramClient("user", "pencil", binding=BINDING)) == Success("user")


@pytest.mark.parametrize(
    "client",
    [
        ScramClient("user", "pencil"),  # -PLUS was chosen
        ScramClient("user", "pencil", flag="y"),
        ScramClient("user", "pencil", binding=("tls-exporter", b"x")),
        ScramClient("user", "pencil", binding=(BINDING[0], b"of somebody in between")),
    ],
)
def test_plus_without_the_right_binding_fails(client):
    assert run(exchange(plus=True), client) == Failure()


def test_a_binding_without_plus_fails():
    assert run(exchange(), ScramClient("user", "pencil", binding=BINDING)) == Failure()


def test_a_downgrade_is_noticed():
    assert run(exchange(offered=True), ScramClient("user", "pencil", flag="y")) == Failure()
    assert run(exchange(offered=True), ScramClient("user", "pencil", flag="n")) == Success("user")
    assert run(exchange(offered=False), ScramClient("user", "pencil", flag="y")) == Success("user")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"n,,",
        b"n,,n=user",
        b"n,,r=x,n=user",
        b"x,,n=user,r=x",
        b"p=,,n=user,r=x",
        b"n,user,n=user,r=x",
        b"n,a==,n=user,r=x",
        b"n,,m=x,n=user,r=x",
        b"n,,n=user,r=a b",
        b"n,,n=us=er,r=x",
        b"n,,n=us=2Der,r=x",
        b"n,,n=\xff,r=x",
        b"n,,n=a\0b,r=x",
        b"n,,n=" + b"x" * 5000 + b",r=x",
    ],
)
def test_bad_first_messages(message):
    with pytest.raises(BadSyntax):
        exchange().respond(b64(message))


@pytest.mark.parametrize(
    ("final", "outcome"),
    [
        (b"", BadSyntax),
        (b"c=biws,r={nonce}", BadSyntax),
        (b"c=biws,r={nonce},p=x", BadSyntax),
        (b"c=biws,r={nonce},p=eA==", BadSyntax),
        (b"c=eSws,r={nonce},p=" + b"A" * 43 + b"=", Failure),
        (b"c=biws,r={nonce}x,p=" + b"A" * 43 + b"=", Failure),
        (b"c=biws,r=x,p=" + b"A" * 43 + b"=", Failure),
    ],
)
def test_bad_final_messages(final, outcome):
    server = exchange(nonce="server")
    server.respond(b64(b"n,,n=user,r=client"))
    server.answer((STORED.salt, 4096))
    line = b64(final.replace(b"{nonce}", b"clientserver"))
    if outcome is Failure:
        assert server.respond(line) == Failure()
    else:
        with pytest.raises(outcome):
            server.respond(line)


def test_extensions_that_need_not_be_understood_are_passed_over():
    server = exchange(nonce="server")
    assert server.respond(b64(b"n,,n=user,r=client,x=y")) == AskSalt("user")
