"""Failed logins by source."""

import pytest

from pillarbox.errors import TempFail
from pillarbox.routing import failures
from pillarbox.routing.failures import Failures, source


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
        counted.check(address, limit)
    except TempFail as error:
        return str(error)
    return ""


def test_a_source_is_refused_at_its_limit_and_heard_again_with_time(counted, clock):
    for _ in range(3):
        assert not refused(counted, "192.0.2.1")
        counted.begin("192.0.2.1", 3)
    assert refused(counted, "192.0.2.1") == "too many failed logins from 192.0.2.1"
    with pytest.raises(TempFail):
        counted.begin("192.0.2.1", 3)
    assert not refused(counted, "192.0.2.2")
    clock.now += failures.DRAIN
    assert not refused(counted, "192.0.2.1")
    counted.begin("192.0.2.1", 3)
    assert refused(counted, "192.0.2.1")
    clock.now += 3 * failures.DRAIN
    counted.begin("192.0.2.1", 3)
    counted.begin("192.0.2.1", 3)


def test_what_did_not_fail_does_not_count(counted):
    for _ in range(10):
        counted.begin("192.0.2.1", 1)
        counted.forgive("192.0.2.1")
    assert not refused(counted, "192.0.2.1", 1)
    assert not counted._buckets


def test_a_clock_that_goes_back_forgives_nothing_and_harms_nobody(counted, clock):
    counted.begin("192.0.2.1", 1)
    clock.now -= 10_000
    assert refused(counted, "192.0.2.1", 1)
    clock.now += 10_000 + failures.DRAIN
    assert not refused(counted, "192.0.2.1", 1)


def test_memory_is_bounded_and_the_latest_are_kept(counted, monkeypatch):
    monkeypatch.setattr(failures, "SOURCES_MAX", 10)
    for n in range(50):
        counted.begin(f"192.0.2.{n}", 1)
    assert len(counted._buckets) == 10
    assert refused(counted, "192.0.2.49", 1) and not refused(counted, "192.0.2.1", 1)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("local", "local"),
    ],
)
def test_who_is_one_source(address, name):
    assert source(address) == name
