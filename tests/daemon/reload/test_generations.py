"""What belongs to a configuration, what each role sees of it, and which of several is in force."""

from pathlib import Path

import pytest

from pillarbox.conf.model import Config, Listener, Pki, QueueOptions, Srs, Table, TableKind
from pillarbox.daemon.reload.generations import LISTEN_MAX, Generations, for_role, read_generation
from pillarbox.daemon.settings import Generation, KeyPair
from pillarbox.errors import ConfigError, PillarboxError


def with_table(entries: str = "old", path: str = "/a") -> Generation:
    table = Table(name="t", kind=TableKind.FILE, config=path, entries=((entries, ""),))
    return Generation(config=Config(hostname="x", tables={"t": table}))


def entries(generation: Generation) -> str:
    return generation.config.tables["t"].entries[0][0]


def test_listeners_are_known_by_their_addresses_in_canonical_form() -> None:
    listeners = (
        Listener(id=1, interface="127.0.0.1", port=25),
        Listener(id=2, interface="0:0:0:0:0:0:0:1", port=465),
        Listener(id=3, socket=True),
    )
    read = read_generation(Config(hostname="x", listeners=listeners))
    assert read.listening == {"127.0.0.1 25": 1, "::1 465": 2}
    assert {"127.0.0.1", "::1"} <= set(read.local_addresses)


def test_two_listeners_at_one_address_are_refused_by_the_line() -> None:
    listeners = [Listener(id=n, line=n, interface="127.0.0.1", port=25) for n in (3, 7)]
    with pytest.raises(ConfigError) as caught:
        read_generation(Config(hostname="x", file="conf", listeners=tuple(listeners)))
    assert str(caught.value) == "conf:7: listen on 127.0.0.1 port 25: line 3 already does"


def test_more_addresses_than_a_dispatcher_can_be_given_are_refused() -> None:
    listeners = tuple(Listener(id=n, line=n, interface="127.0.0.1", port=1000 + n) for n in range(1, LISTEN_MAX + 2))
    read_generation(Config(hostname="x", file="conf", listeners=listeners[1:]))
    with pytest.raises(ConfigError, match=f"conf:{LISTEN_MAX + 1}: {LISTEN_MAX + 1} addresses to listen on: "):
        read_generation(Config(hostname="x", file="conf", listeners=listeners))


def test_a_certificate_that_is_gone_meanwhile_is_said_by_name(tmp_path: Path) -> None:
    pki = Pki(name="p", cert=str(tmp_path / "gone"), key="k")
    with pytest.raises(PillarboxError, match=f"{tmp_path}/gone: No such file"):
        read_generation(Config(hostname="x", pki={"p": pki}))


def test_each_role_sees_what_is_its_own() -> None:
    config = with_table().config
    whole = Generation(
        config=Config(hostname="x", tables=config.tables, srs=Srs(key="s"), queue=QueueOptions(encryption="q")),
        pki={"p": KeyPair(b"c", b"k")},
        ca={"a": b"pem"},
        listening={"127.0.0.1 25": 1},
    )
    seen = {role: for_role(whole, role) for role in ("lookup", "queue", "dispatcher", "control", "parent")}
    assert {role for role, g in seen.items() if g.config.tables["t"].entries} == {"lookup"}
    assert {role for role, g in seen.items() if g.pki or g.ca or g.listening} == {"dispatcher"}
    assert {role for role, g in seen.items() if g.config.srs.key} == {"lookup", "queue"}
    assert {role for role, g in seen.items() if g.config.queue.encryption} == {"queue"}


def test_numbers_are_given_out_once() -> None:
    generations = Generations(with_table())
    generations.propose(with_table("a"))
    generations.abort()
    assert (generations.current.number, generations.older()) == (0, [])
    assert generations.propose(with_table("b")).number == 2
    generations.commit()
    assert (generations.current.number, [g.number for g in generations.older()]) == (2, [0])
    generations.forget(0)
    assert generations.older() == []


def test_a_table_that_is_read_anew_changes_wherever_it_is_the_same_file() -> None:
    generations = Generations(with_table("zero"))
    generations.propose(with_table("one", path="/b"))
    generations.commit()
    generations.propose(with_table("two"))
    generations.commit()
    generations.update_table("t", "/a", (("new", ""),))
    assert [entries(g) for g in (*generations.older(), generations.current)] == ["new", "one", "new"]


def test_a_table_that_is_read_anew_during_a_reload_is_newer_than_what_the_reload_read() -> None:
    generations = Generations(with_table())
    generations.update_table("t", "/a", (("before", ""),))
    generations.expect()
    generations.update_table("t", "/a", (("during", ""),))
    assert entries(generations.propose(with_table("read"))) == "during"
    generations.update_table("t", "/a", (("later", ""),))
    generations.commit()
    assert entries(generations.current) == "later"
    generations.expect()
    assert entries(generations.propose(with_table("read"))) == "read"
