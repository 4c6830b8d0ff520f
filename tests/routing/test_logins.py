"""Logins through lookup: SCRAM verifiers, tokens, system users by PAM, and sources that guess."""

import asyncio
import base64

import bcrypt
import msgspec
import pytest

from pillarbox.conf.model import AUTH_SYSTEM
from pillarbox.errors import TempFail
from pillarbox.routing import failures
from pillarbox.routing.auth import Passwords
from pillarbox.routing.tokens import hash_token
from pillarbox.smtp.sasl import verifier
from pillarbox.smtp.sasl.exchange import Circumstances
from pillarbox.smtp.sasl.scram import Scram
from tests.routing.support import Parent, configuration, login, make_lookup, table
from tests.routing.test_auth import SHA512
from tests.smtp.sasl.client import ScramClient

ALICE = str(verifier.make("alice-pw", salt=b"salt of alice 16", iterations=5000))
BOB = str(verifier.make("bob-pw", salt=b"salt of bob, 16.", iterations=5000))
SCRAM = table("scram", ("alice", ALICE), ("bob", BOB))


def ask(tables, question, *, parent=None, limit=30):
    """The answer to one question put to a lookup with these tables."""
    config = configuration(tables=tables)
    smtp = msgspec.structs.replace(config.smtp, max_failed_logins_per_source=limit)
    lookup = make_lookup(msgspec.structs.replace(config, smtp=smtp), parent=parent)
    try:
        return asyncio.run(question(lookup))
    finally:
        lookup.close()


async def scram(lookup, name, password, user="alice", address="192.0.2.1"):
    """A whole exchange; did it succeed?"""
    client, server = ScramClient(user, password), Scram(Circumstances(nonce="nonce"), plus=False)
    asked = server.respond(client.first())
    who = login(name, asked.user, address)
    said = server.answer(await lookup.scram_salt(who))
    question = server.respond(client.final(said.text))
    signature = await lookup.scram_signature(who, question.message, question.proof)
    return bool(signature) and client.accepts(server.answer(signature).text)


def test_a_verifier_serves_scram_and_passwords_alike():
    assert ask([SCRAM], lambda lookup: scram(lookup, "scram", "alice-pw"))
    assert ask([SCRAM], lambda lookup: scram(lookup, "scram", "alice-pw", user="ALICE"))
    assert not ask([SCRAM], lambda lookup: scram(lookup, "scram", "bob-pw"))
    assert not ask([SCRAM], lambda lookup: scram(lookup, "scram", "alice-pw", user="ghost"))
    assert ask([SCRAM], lambda lookup: lookup.authenticate(login("scram", "alice"), "alice-pw"))
    assert not ask([SCRAM], lambda lookup: lookup.authenticate(login("scram", "alice"), "bob-pw"))
    assert not ask([SCRAM], lambda lookup: lookup.authenticate(login("scram", "alice"), ALICE))


def test_a_value_may_name_the_user_before_the_verifier():
    named = table("named", ("x", f"alice:{ALICE}"))
    assert ask([named], lambda lookup: lookup.authenticate(login("named", "x"), "alice-pw"))
    assert ask([named], lambda lookup: lookup.offers_scram(0, "named"))


@pytest.mark.parametrize(
    ("entries", "offered"),
    [
        ([("alice", ALICE), ("bob", BOB)], True),
        ([("alice", ALICE), ("bob", SHA512)], False),
        ([("alice", ALICE), ("bob", "x")], False),
        ([("alice", ALICE + "x")], False),
        ([], False),
    ],
)
def test_scram_is_offered_where_every_user_can_do_it(entries, offered):
    assert ask([table("t", *entries)], lambda lookup: lookup.offers_scram(0, "t")) is offered


def test_scram_is_not_offered_for_system_users():
    assert not ask([], lambda lookup: lookup.offers_scram(0, AUTH_SYSTEM))
    assert not ask([], lambda lookup: lookup.offers_scram(0, "<pam:smtp>"))


@pytest.mark.parametrize("user", ["ghost", "carol", "dave"])
def test_nobody_can_tell_who_has_a_verifier(user):
    mixed = table("mixed", ("carol", SHA512), ("alice", ALICE), ("dave", "!"))

    def salt(name):
        return ask([mixed], lambda lookup: lookup.scram_salt(login("mixed", name)))

    made_up, real = salt(user), salt("alice")
    assert made_up == salt(user) == salt(user.upper())
    assert (len(made_up[0]), made_up[1]) == (len(real[0]), real[1])
    assert made_up[0] not in (real[0], salt(user + "x")[0])
    assert not ask([mixed], lambda lookup: scram(lookup, "mixed", "alice-pw", user=user))


def test_a_name_that_the_table_takes_for_another_has_its_salt():
    people = table("people", ("alice@example.com", ALICE))

    def salt(name):
        return ask([people], lambda lookup: lookup.scram_salt(login("people", name)))

    for local in ("alice", "ghost"):
        assert salt(f"{local}@example.com") == salt(f"{local.upper()}@example\u3002com") == salt(f"{local}@EXAMPLE.com")


def test_made_up_salts_look_like_those_of_all_users():
    makes = [(5000, 16)] * 3 + [(60_000, 12)] + [(4096, 100)] * 2
    stored = [
        str(verifier.Verifier(iterations=n, salt=b"s" * size, stored_key=b"k" * 32, server_key=b"k" * 32))
        for n, size in makes
    ]
    people = table("people", *((f"user{n}", value) for n, value in enumerate(stored)))

    async def scenario(lookup):
        return [await lookup.scram_salt(login("people", f"ghost{n}")) for n in range(300)]

    told = ask([people], scenario)
    shapes = [(iterations, len(salt)) for salt, iterations in told]
    assert set(shapes) == set(makes)
    assert shapes.count((5000, 16)) > shapes.count((60_000, 12)) > 20
    assert len({salt for salt, _ in told}) == 300
    assert told == ask([people], scenario)


def hashed_against(monkeypatch, tables, *users):
    """The hashes that these users' passwords were compared with."""
    asked = []
    fits = Passwords.fits
    monkeypatch.setattr(Passwords, "fits", lambda self, pw, stored: asked.append(stored) or fits(self, pw, stored))

    async def scenario(lookup):
        for name, user in users:
            assert not await lookup.authenticate(login(name, user), "wrong")

    ask(tables, scenario, limit=1000)
    return asked


def test_a_user_who_is_locked_or_unknown_takes_the_time_of_another(monkeypatch):
    mixed = table("mixed", ("dave", "!" + SHA512), ("erin", "plain text"), ("alice", ALICE))
    users = [("mixed", user) for user in ("dave", "erin", "ghost", "alice")]
    assert hashed_against(monkeypatch, [mixed], *users) == [ALICE] * 4


def test_the_same_unknown_user_takes_the_same_time_and_not_all_do(monkeypatch):
    mixed = table("mixed", ("alice", ALICE), ("bob", SHA512))
    ghosts = [("mixed", f"ghost{n}") for n in range(40)]
    asked = hashed_against(monkeypatch, [mixed], *ghosts, *ghosts)
    assert set(asked) == {ALICE, SHA512} and asked[:40] == asked[40:]


def test_a_proof_of_any_length_is_refused_and_nothing_more():
    for proof in (b"", b"x", b"x" * 33, b"\0" * 32):
        assert not ask([SCRAM], lambda lookup, p=proof: lookup.scram_signature(login("scram", "alice"), b"m", p))


def test_tokens():
    first, second = "jwt." + "x" * 2000, "opaque"
    tokens = table("tokens", ("Alice", f"{hash_token(first)}, {hash_token(second)}"), ("bob", "opaque"))

    def check(user, token):
        return ask([tokens], lambda lookup: lookup.check_token(login("tokens", user), token))

    assert check("alice", first) and check("ALICE", second)
    assert not check("alice", first[:-1] + "y")  # a hash that looks at the beginning only would take it
    assert not check("alice", hash_token(first))
    assert not check("bob", "opaque")  # never in the clear
    assert not check("ghost", second) and not check("ghost", "")


def test_no_password_hash_is_taken_for_a_token():
    hashed = bcrypt.hashpw(b"token", bcrypt.gensalt(4)).decode()
    assert not ask([table("t", ("alice", hashed))], lambda lookup: lookup.check_token(login("t", "alice"), "token"))


def test_system_users_by_pam():
    parent = Parent(passwords={("mail", "alice"): "pw", "alice": "other"})
    for service, password, right in (("<pam:mail>", "pw", True), ("<pam:mail>", "other", False)):
        who = login(service, "alice")
        assert ask([], lambda lookup, w=who, p=password: lookup.authenticate(w, p), parent=parent) is right


async def guess(lookup, times, address="192.0.2.1", password="wrong"):
    """What became of so many tries."""
    who = login("creds", "alice", address)
    tries = [f"{password} {n}" if password == "wrong" else password for n in range(times)]
    outcomes = await asyncio.gather(*(lookup.authenticate(who, one) for one in tries), return_exceptions=True)
    return [outcome if isinstance(outcome, bool) else str(outcome) for outcome in outcomes]


CREDENTIALS = table("creds", ("alice", bcrypt.hashpw(b"right", bcrypt.gensalt(4)).decode()))
TOO_MANY = "too many failed logins from 192.0.2.1"


def test_a_source_that_guesses_is_no_longer_heard_even_all_at_once():
    assert ask([CREDENTIALS], lambda lookup: guess(lookup, 5), limit=3) == [False] * 3 + [TOO_MANY] * 2


def test_the_right_password_from_there_is_refused_too():
    async def scenario(lookup):
        await guess(lookup, 3)
        return await guess(lookup, 1, password="right"), await guess(lookup, 1, "192.0.2.9", "right")

    assert ask([CREDENTIALS], scenario, limit=3) == ([TOO_MANY], [True])


def test_right_passwords_that_come_at_once_are_all_right():
    assert ask([CREDENTIALS], lambda lookup: guess(lookup, 40, password="right"), limit=3) == [True] * 40


def test_an_old_password_of_one_device_keeps_nobody_out():
    async def scenario(lookup):
        return await guess(lookup, 20, password="old"), await guess(lookup, 1, password="right")

    assert ask([CREDENTIALS], scenario, limit=3) == ([False] * 20, [True])


def test_right_passwords_and_failing_tables_do_not_count():
    broken = table("broken", ("alice", "xy"))

    async def scenario(lookup):
        await guess(lookup, 3, password="right")
        for _ in range(5):
            with pytest.raises(TempFail, match="too short"):
                await lookup.authenticate(login("broken", "alice"), "x")
        return await guess(lookup, 1)

    assert ask([CREDENTIALS, broken], scenario, limit=3) == [False]


def test_this_machine_is_not_counted():
    assert ask([CREDENTIALS], lambda lookup: guess(lookup, 6, "127.0.0.1"), limit=3) == [False] * 6


def test_proofs_and_tokens_count_as_passwords_do(monkeypatch):
    monkeypatch.setattr(failures, "DRAIN", 1e9)

    async def scenario(lookup):
        outcomes = []
        for n, user in enumerate(("alice", "bob")):
            outcomes.append(await scram(lookup, "scram", "wrong", user=user))
            outcomes.append(await lookup.check_token(login("scram", "alice"), f"wrong {n}"))
        with pytest.raises(TempFail, match="too many"):
            await lookup.scram_salt(login("scram", "alice"))
        with pytest.raises(TempFail, match="too many"):
            await lookup.check_token(login("scram", "alice"), "wrong")
        return outcomes

    assert ask([SCRAM], scenario, limit=4) == [False] * 4


def test_an_old_password_of_a_telephone_that_does_scram_keeps_nobody_else_out():
    async def scenario(lookup):
        outcomes = []
        for user in ["alice"] * 20 + ["ghost"] * 20:
            try:
                outcomes.append(await scram(lookup, "scram", "old", user=user))
            except TempFail as refused:
                outcomes.append(str(refused))
        assert outcomes[:20] == outcomes[20:]  # nobody learns who exists
        bob = await scram(lookup, "scram", "bob-pw", user="bob")
        elsewhere = await scram(lookup, "scram", "alice-pw", address="192.0.2.9")
        plain = await lookup.authenticate(login("scram", "alice"), "alice-pw")
        return outcomes[:20], (bob, elsewhere, plain)

    refusals = ["too many failed logins of a user from 192.0.2.1"] * 10
    assert ask([SCRAM], scenario) == ([False] * 10 + refusals, (True, True, True))


def test_proofs_that_were_asked_for_in_time_are_refused_too_late():
    async def scenario(lookup):
        client, server = ScramClient("alice", "alice-pw"), Scram(Circumstances(nonce="nonce"), plus=False)
        asked = server.respond(client.first())
        who = login("scram", asked.user)
        said = server.answer(await lookup.scram_salt(who))
        for _ in range(10):
            assert not await scram(lookup, "scram", "guess")
        question = server.respond(client.final(said.text))
        with pytest.raises(TempFail, match="of a user"):
            await lookup.scram_signature(who, question.message, question.proof)

    ask([SCRAM], scenario)


def test_an_ordinary_scram_login_costs_no_more_than_one_try():
    async def scenario(lookup):
        return [await scram(lookup, "scram", "alice-pw") for _ in range(5)]

    assert ask([SCRAM], scenario, limit=1) == [True] * 5


def test_stored_keys_are_not_what_is_told():
    told = ask([SCRAM], lambda lookup: lookup.scram_salt(login("scram", "alice")))
    assert base64.b64encode(told[0]).decode() in ALICE
    assert isinstance(told, tuple) and len(told) == 2


class FailingParent(Parent):
    """Has lost its state directory."""

    async def login_secret(self):
        raise TempFail("login.secret: No such file or directory")


def test_without_the_secret_nobody_is_told_a_salt_for_a_made_up_one_must_last():
    for user in ("alice", "ghost"):
        with pytest.raises(TempFail, match=r"login\.secret"):
            ask([SCRAM], lambda lookup, u=user: lookup.scram_salt(login("scram", u)), parent=FailingParent())
