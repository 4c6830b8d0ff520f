"""Whom users who are not there resemble, in tables that are not looked through."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from pillarbox.routing.auth import takes_time
from pillarbox.routing.decoys import Decoys, Shape
from pillarbox.smtp.sasl import verifier
from pillarbox.tables.passwd import PasswdTable
from tests.routing.test_auth import SHA512

POINT = bytes(8)
FIRST = str(verifier.make("pw", salt=b"12 bytes are", iterations=5000))
SECOND = str(verifier.make("pw", salt=b"salt of bob, 16.", iterations=4096))


@pytest.fixture
def asked():
    """A table that tells of one user at a time."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield PasswdTable(name="asked", executor=executor)


def test_it_is_the_last_whose_hash_was_seen(asked):
    decoys = Decoys()
    assert asyncio.run(decoys.hash_for(asked, "ghost")) == ""
    for stored in (SHA512, None, "!" + SHA512, "plain text"):
        decoys.note(asked, stored)
        assert asyncio.run(decoys.hash_for(asked, "ghost")) == SHA512
    decoys.note(asked, FIRST)
    assert asyncio.run(decoys.hash_for(asked, "ghost")) == FIRST


def test_a_made_up_salt_stays_as_long_as_it_is(asked):
    decoys = Decoys()
    usual = Shape(iterations=verifier.ITERATIONS, salt_size=verifier.SALT_SIZE)
    assert asyncio.run(decoys.shape_for(asked, POINT)) == usual
    decoys.note(asked, SHA512)
    assert asyncio.run(decoys.shape_for(asked, POINT)) == usual
    for stored in (FIRST, SECOND):
        decoys.note(asked, stored)
        assert asyncio.run(decoys.shape_for(asked, POINT)) == Shape(iterations=5000, salt_size=12)


@pytest.mark.parametrize("stored", [SHA512, FIRST, "$3$$8846f7eaee8fb117ad06bdd830b7586c", "ab" * 6 + "c", "ab" * 12])
def test_what_is_a_hash(stored):
    assert takes_time(stored)
    assert not takes_time("!" + stored) and not takes_time("*" + stored)


@pytest.mark.parametrize("stored", ["", "x", "!", "*", "alice-pw", "a long password", "$6$", "SCRAM-SHA-256$"])
def test_what_is_none(stored):
    assert not takes_time(stored)
