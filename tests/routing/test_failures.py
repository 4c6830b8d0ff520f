"""Failed logins by source."""

import pytest

from pillarbox.errors import TempFail
from pillarbox.routing import failures
from pillarbox.routing.failures import OF_USER, SITE, Failures, scopes


class Clock:
    def __init__(self):
        self.now = 1000.0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def counted(clock):
    return Failures(now=lambda: clock.now)


def refused(counted, address, limit=3):
    try:
        counted.left(address, limit)
    except TempFail as error:
        return str(error)
    return ""


def fail(counted, address, times=1):
    for _ in range(times):
        counted.count(address, user="alice")


def test_a_source_is_refused_at_its_limit_and_heard_again_with_time(counted, clock):
    for left in (3, 2, 1):
        assert counted.left("192.0.2.1", 3) == [left]
        fail(counted, "192.0.2.1")
    assert refused(counted, "192.0.2.1") == "too many failed logins from 192.0.2.1"
    assert not refused(counted, "192.0.2.2")
    clock.now += failures.DRAIN
    assert not refused(counted, "192.0.2.1")
    fail(counted, "192.0.2.1")
    assert refused(counted, "192.0.2.1")
    clock.now += 3 * failures.DRAIN
    assert counted.left("192.0.2.1", 3) == [3]


def test_a_forgotten_telephone_counts_once_and_guesses_do_not(counted):
    for _ in range(10):
        counted.count("192.0.2.1", user="alice", secret="of last year")
        counted.count("192.0.2.1", user="ALICE", secret="of last year")
    assert counted.left("192.0.2.1", 9) == [8]
    counted.count("192.0.2.1", user="alice", secret="of last yea")
    counted.count("192.0.2.1", user="bob", secret="of last year")
    counted.count("192.0.2.2", user="alice", secret="of last year")
    assert counted.left("192.0.2.1", 9) == [6]
    assert counted.left("192.0.2.2", 9) == [8]


def refused_user(counted, user, address="192.0.2.1", limit=30):
    try:
        counted.check_user(address, user, limit)
    except TempFail as error:
        return str(error)
    return ""


def test_a_user_whose_secrets_cannot_be_told_apart_has_a_part_of_the_limit(counted, clock):
    for _ in range(30 // OF_USER):
        assert not refused_user(counted, "alice")
        fail(counted, "192.0.2.1")
    assert refused_user(counted, "ALICE") == "too many failed logins of a user from 192.0.2.1"
    assert not refused_user(counted, "bob") and not refused_user(counted, "alice", "192.0.2.2")
    assert counted.left("192.0.2.1", 30) == [30 - 30 // OF_USER]
    clock.now += failures.DRAIN * (OF_USER - 1)
    assert refused_user(counted, "alice")
    clock.now += failures.DRAIN
    assert not refused_user(counted, "alice")


def test_with_a_small_limit_a_user_has_one_failure(counted):
    assert not refused_user(counted, "alice", limit=1)
    fail(counted, "192.0.2.1")
    assert refused_user(counted, "alice", limit=1)


def test_old_passwords_of_some_telephones_never_fill_the_limit_of_their_source(counted, clock):
    for _ in range(1000):
        clock.now += 2.0
        for number in range(OF_USER):
            if not refused_user(counted, f"user{number}"):
                counted.count("192.0.2.1", user=f"user{number}")
        assert not refused(counted, "192.0.2.1", 31)


def test_wrong_passwords_are_no_wrong_proofs(counted):
    for number in range(20):
        counted.count("192.0.2.1", user="alice", secret=f"{number}")
    assert not refused_user(counted, "alice")


def test_where_the_user_ends_and_the_secret_begins_is_plain(counted):
    counted.count("192.0.2.1", user="a", secret="bc")
    counted.count("192.0.2.1", user="ab", secret="c")
    assert counted.left("192.0.2.1", 9) == [7]


def test_a_site_with_many_networks_is_refused_in_the_end(counted, clock):
    for n in range(3 * SITE):
        assert not refused(counted, f"2001:db8:1:{n:x}::1")
        fail(counted, f"2001:db8:1:{n:x}::1")
    assert refused(counted, "2001:db8:1:ffff::1") == "too many failed logins from 2001:db8:1::/48"
    assert not refused(counted, "2001:db8:2::1")
    clock.now += failures.DRAIN
    assert counted.left("2001:db8:1:ffff::1", 3) == [3, SITE]


def test_a_clock_that_goes_back_forgives_nothing_and_harms_nobody(counted, clock):
    fail(counted, "192.0.2.1")
    clock.now -= 10_000
    assert refused(counted, "192.0.2.1", 1)
    clock.now += 10_000 + failures.DRAIN
    assert not refused(counted, "192.0.2.1", 1)


def test_memory_is_bounded_and_the_latest_are_kept(counted, monkeypatch):
    monkeypatch.setattr(failures, "SOURCES_MAX", 10)
    monkeypatch.setattr(failures, "REPEATED_MAX", 10)
    monkeypatch.setattr(failures, "USERS_MAX", 10)
    for n in range(50):
        counted.count(f"192.0.2.{n}", user="alice", secret="wrong")
        counted.count("192.0.2.99", user=f"user{n}")
    assert len(counted._buckets) == len(counted._failed) == len(counted._users) == 10
    assert refused(counted, "192.0.2.49", 1) and not refused(counted, "192.0.2.1", 1)


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("192.0.2.1", ["192.0.2.1"]),
        ("::ffff:192.0.2.1", ["192.0.2.1"]),
        ("2001:db8:1:2:3:4:5:6", ["2001:db8:1:2::/64", "2001:db8:1::/48"]),
        ("fe80::1%eth0", ["fe80::/64", "fe80::/48"]),
        ("local", ["local"]),
    ],
)
def test_who_is_one_source(address, names):
    assert [scope.name for scope in scopes(address)] == names
