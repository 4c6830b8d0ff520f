"""Passwords against stored hashes."""

import asyncio

import argon2
import bcrypt
import pytest

from pillarbox.errors import TempFail
from pillarbox.routing import auth, crypt
from pillarbox.routing.auth import Passwords

# crypt(3) of "alice-pw", made with openssl passwd.
SHA512 = "$6$corpussalt$.pxaP5fL0pGQ8cyB09QHcgXQYpNmLAuiqCeM00xvQyt7bxc5PCtRmNFzamSTI9FjIB7ZiI12HhHReqOGdVAUT1"


@pytest.fixture
def passwords():
    made = Passwords()
    yield made
    made.close()


def check(passwords, password, stored):
    return asyncio.run(passwords.check(password, stored))


def hashes():
    yield SHA512
    yield bcrypt.hashpw(b"alice-pw", bcrypt.gensalt(4)).decode()
    yield bcrypt.hashpw(b"alice-pw", bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
    yield argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("alice-pw")


@pytest.mark.parametrize("stored", list(hashes()), ids=["sha512", "bcrypt 2b", "bcrypt 2y", "argon2"])
def test_the_right_password_fits_and_a_wrong_one_does_not(passwords, stored):
    assert check(passwords, "alice-pw", stored)
    for wrong in ("alice-px", "", "Alice-pw", "alice-pw\0", "alice-pw" * 200):
        assert not check(passwords, wrong, stored)


@pytest.mark.parametrize(
    "stored", ["alice-pw", "*", "!", "*0", "!" + SHA512, "$2b$broken", "$argon2id$broken", "x" * 13, "$6$", "§"]
)
def test_plain_text_locked_and_broken_ones_never_fit(passwords, stored):
    assert not check(passwords, "alice-pw", stored)
    assert not check(passwords, stored, stored)


@pytest.mark.parametrize("prefix", ["$y$", "$gy$", "$7$", "$2b$", "$6$", "$5$", "$1$", "$md5", "$sha1", "_", ""])
def test_every_hash_that_crypt_makes_is_known(passwords, prefix):
    library = crypt.load()
    setting = library.salt(prefix.encode(), 4 if prefix == "$2b$" else 0)
    if setting is None:
        pytest.skip(f"crypt(3) does not know {prefix!r} here")
    stored = library.hash(b"alice-pw", setting).decode()
    assert stored.startswith(prefix) and stored[0] != "*"
    assert check(passwords, "alice-pw", stored)
    assert not check(passwords, "Alice-pw", stored)
    assert not check(passwords, stored, stored)


def test_an_unknown_user_costs_a_hash(passwords, monkeypatch):
    asked = []
    monkeypatch.setattr(passwords, "fits", lambda password, stored: asked.append(stored) or True)
    assert not asyncio.run(passwords.check("x", None, decoy=SHA512))
    assert not asyncio.run(passwords.check("x", None))
    assert asked[0] == SHA512
    assert asked[1].startswith("$6$")


def test_long_passwords_of_bcrypt_are_cut_as_everywhere(passwords):
    stored = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert check(passwords, "x" * 80, stored)


def test_guessers_do_not_pile_up(passwords, monkeypatch):
    monkeypatch.setattr(auth, "MAX_WAITING", 3)

    async def main():
        answers = await asyncio.gather(*(passwords.check("x", SHA512) for _ in range(6)), return_exceptions=True)
        assert sum(isinstance(answer, TempFail) for answer in answers) == 3
        assert not await passwords.check("x", SHA512)

    asyncio.run(main())
