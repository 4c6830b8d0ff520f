"""SRS: sender rewriting and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pillarbox.mail import srs

NOW = 1_700_000_000.0
DAY = 86400
KEY = "secret"


def decode(address, *, keys=(KEY,), ttl=4 * DAY, now=NOW):
    return srs.decode(address, keys=keys, ttl=ttl, now=now)


def test_a_rewritten_sender_comes_back():
    encoded = srs.encode("user+tag@origin.example", "fwd.example", key=KEY, now=NOW)
    assert encoded.startswith("SRS0=")
    assert encoded.endswith("=origin.example=user+tag@fwd.example")
    assert decode(encoded) == "user+tag@origin.example"


def test_a_second_forwarder_leads_back_to_the_first():
    first = srs.encode("user@origin.example", "first.example", key="theirs", now=NOW)
    second = srs.encode(first, "second.example", key=KEY, now=NOW)
    assert second.startswith("SRS1=")
    assert decode(second) == first
    third = srs.encode(second, "third.example", key="another", now=NOW)
    assert decode(third, keys=("another",)) == first


def test_forged_or_foreign_is_refused():
    encoded = srs.encode("user@origin.example", "fwd.example", key=KEY, now=NOW)
    assert decode(encoded, keys=("other",)) is None
    assert decode(encoded.replace("user", "uses")) is None
    assert decode("user@origin.example") is None


def test_the_key_before_is_accepted_and_an_absent_one_is_not():
    encoded = srs.encode("user@origin.example", "fwd.example", key="old", now=NOW)
    assert decode(encoded, keys=("new", "old")) == "user@origin.example"
    unkeyed = srs.encode("user@origin.example", "fwd.example", key="", now=NOW)
    assert decode(unkeyed, keys=("new", "")) is None


@pytest.mark.parametrize(("days", "fresh"), [(-2, False), (-1, True), (0, True), (4, True), (5, False), (500, False)])
def test_age(days, fresh):
    encoded = srs.encode("user@origin.example", "fwd.example", key=KEY, now=NOW)
    assert (decode(encoded, now=NOW + days * DAY) is not None) is fresh
    twice = srs.encode(encoded, "second.example", key=KEY, now=NOW)
    assert (decode(twice, now=NOW + days * DAY) is not None) is fresh


def test_the_stamp_wraps():
    for day in range(1020, 1030):
        encoded = srs.encode("user@origin.example", "fwd.example", key=KEY, now=day * DAY)
        assert decode(encoded, now=(day + 3) * DAY) == "user@origin.example"


def test_what_cannot_be_rewritten_stays():
    assert srs.encode("", "fwd.example", key=KEY, now=NOW) == ""
    long = "a" * 300 + "@" + "b" * 250
    assert srs.encode(long, "fwd.example", key=KEY, now=NOW) == long
    assert srs.encode("SRS1=x@y", "fwd.example", key=KEY, now=NOW) == "SRS1=x@y"


@given(st.text(max_size=40))
def test_no_text_raises(text):
    srs.decode(text, keys=(KEY, ""), ttl=DAY, now=NOW)
    srs.decode("SRS0=" + text, keys=(KEY,), ttl=DAY, now=NOW)
    srs.encode(text, "fwd.example", key=KEY, now=NOW)


@given(st.text(alphabet="abc=+-@", max_size=20))
def test_any_text_with_a_good_hash_decodes_or_is_refused(text):
    for tag in ("SRS0", "SRS1"):
        signed = f"{tag}={srs._hash(KEY, text)}={text}"
        decode(signed)
