"""`smtpctl spf walk` against a real name server, as an ordinary user."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.nameserver import MISSING, name_server
from tests.system.server import BIN, Result, run

LONG = " ".join(f"ip4:203.0.113.{n}" for n in range(55))
# A string of a TXT record holds 255 characters: this one takes several.
PARTS = ",".join(LONG[at : at + 200] for at in range(0, len(LONG), 200))
ZONE = [
    "txt-record=a.example,v=spf1 include:b.example a mx/29 exists:%{i}.x.example ptr ~all",
    "host-record=a.example,198.51.100.7,2001:db8::7",
    "mx-host=a.example,mx.a.example,10",
    "host-record=mx.a.example,198.51.100.8",
    "txt-record=b.example,v=spf1 ip6:2001:db8::/32 include:b.example redirect=a.example",
    f"txt-record=long.example,v=spf1 ,{PARTS}",
    "local=/gone.example/",
    "server=/broken.example/127.0.0.1#9",  # where nobody answers
]
MACROS = "smtpctl: lookup_record: %{i}.x.example contains macros and can't be resolved\n"


@pytest.fixture(autouse=True)
def zone(machine: None, folder: Path) -> Iterator[None]:
    if MISSING:
        pytest.skip(MISSING)
    with name_server(folder, ZONE):
        yield


def walk(stdin: str, *options: str) -> Result:
    return run([str(BIN / "smtpctl"), "spf", "walk", *options], stdin=stdin, user="nobody")


def test_a_walk_lists_each_network_once() -> None:
    networks = ["198.51.100.7", "198.51.100.8/29", "2001:db8::/32", "2001:db8::7"]
    assert walk("a.example\n\n  b.example \n") == Result(0, "".join(f"{n}\n" for n in networks), MACROS)


def test_one_family() -> None:
    assert walk("a.example\n", "-4") == Result(0, "198.51.100.7\n198.51.100.8/29\n", MACROS)
    assert walk("a.example\n", "-6") == Result(0, "2001:db8::/32\n2001:db8::7\n", MACROS)
    assert walk("", "-5") == Result(1, "", "smtpctl: invalid ip_family\n")


def test_a_long_record_comes_whole() -> None:
    assert walk("long.example").out.splitlines() == [f"203.0.113.{n}" for n in range(55)]


def test_domains_without_a_record_are_nothing() -> None:
    assert walk("mx.a.example\ngone.example\nrefused.example\n") == Result(0, "", "")


def test_a_list_that_lacks_something_is_told_by_the_exit_status() -> None:
    found = walk("broken.example\nlong.example\n")
    assert (found.exit, len(found.out.splitlines())) == (1, 55)
    assert found.err.startswith("smtpctl: broken.example: ")
