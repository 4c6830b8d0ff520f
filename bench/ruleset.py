"""How long routing takes: `python bench/ruleset.py`.

A ruleset of 1,000 matches over tables of 100,000 entries (the requirement: under 100 µs median a decision), and whole
expansions of a local and of a relayed recipient (under 60 µs of CPU each).
"""

import asyncio
import io
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

from pillarbox.conf.model import Config, Criterion, Local, Relay, Rule, Table, TableKind
from pillarbox.log import Log
from pillarbox.roles.lookup import Client, MxHost, Recipient, ReverseName
from pillarbox.routing.lookup import Lookup
from pillarbox.routing.ruleset import Ruleset, Subject
from pillarbox.tables.table import MemoryTable

RULES = 1000
ENTRIES = 100_000
ROUNDS = 2000


def list_table(name: str, keys: list[str]) -> Table:
    return Table(name=name, kind=TableKind.STATIC, entries=tuple((key, "") for key in keys))


def large_tables(count: int) -> dict[str, Table]:
    """Tables of each kind a match can name: half of the domains and addresses are patterns or tagged."""
    tables: dict[str, Table] = {}
    for n in range(count):
        domains = [f"d{i}.t{n}.example" if i % 2 else f"*.w{i}.t{n}.example" for i in range(ENTRIES)]
        addresses = [f"u{i}@d{i}.t{n}.example" if i % 2 else f"@a{i}.t{n}.example" for i in range(ENTRIES)]
        networks = [f"{10 + n}.{i >> 8 & 255}.{i & 255}.0/{24 if i % 2 else 26}" for i in range(ENTRIES)]
        tables[f"domain{n}"] = list_table(f"domain{n}", domains)
        tables[f"address{n}"] = list_table(f"address{n}", addresses)
        tables[f"network{n}"] = list_table(f"network{n}", networks)
    return tables


def rules(count: int) -> tuple[tuple[Rule, ...], dict[str, Table]]:
    """A thousand rules: each names large tables, literals of its own, and every tenth a regex."""
    made: list[Rule] = []
    literals: dict[str, Table] = {}
    for i in range(RULES):
        literals[f"<helo{i}>"] = list_table(f"<helo{i}>", [f"mx{i}.client.example"])
        literals[f"<re{i}>"] = list_table(f"<re{i}>", [f"^bulk{i}-.*@"])
        table = i % count
        last = i == RULES - 1
        made.append(
            Rule(
                line=i,
                action="relay",
                source=Criterion(kind="any") if i % 3 else Criterion(kind="src", table=f"network{table}"),
                dest=Criterion(kind="domain", table=f"domain{table}", negated=i % 7 == 0 and not last),
                helo=None if last else Criterion(kind="helo", table=f"<helo{i}>"),
                mail_from=Criterion(kind="mail-from", table=f"<re{i}>", regex=True) if i % 10 == 0 else None,
                rcpt_to=Criterion(kind="rcpt-to", table=f"address{table}") if i % 2 and not last else None,
            )
        )
    return tuple(made), literals


def measure(what: str, run: Callable[[int], object]) -> None:
    for i in range(50):
        run(i)
    took = []
    for i in range(ROUNDS):
        begun = time.perf_counter_ns()
        run(i)
        took.append((time.perf_counter_ns() - begun) / 1000)
    took.sort()
    print(f"{what:<52} median {statistics.median(took):7.1f} µs   p99 {took[len(took) * 99 // 100]:7.1f} µs")


def decide(ruleset: Ruleset, subject: Subject) -> Rule | None:
    """A decision by tables in memory, which never suspends."""
    try:
        ruleset.decide(subject).send(None)
    except StopIteration as done:
        return cast("Rule | None", done.value)
    raise AssertionError("suspended")


def bench_ruleset() -> None:
    count = 4
    made, literals = rules(count)
    config = Config(hostname="mx.example.org", tables=large_tables(count) | literals, rules=made)
    tables = {
        name: MemoryTable(name=name, entries=table.entries, delimiter="+", on_bad_regex=lambda pattern, why: None)
        for name, table in config.tables.items()
    }
    begun = time.perf_counter()
    ruleset = Ruleset(
        config=config,
        tables=dict(tables),
        local_addresses=lambda: frozenset({"127.0.0.1"}),
        on_bad_regex=lambda name, pattern, why: None,
    )
    print(f"{RULES} rules, {3 * count} tables of {ENTRIES} entries: compiled in {time.perf_counter() - begun:.2f} s")
    chosen = random.Random(1)
    subjects = [
        Subject(
            sender=f"bulk{chosen.randrange(2000)}-x@s{i}.example" if i % 2 else f"u{i}@s{i}.example",
            dest=f"u{n}@d{n}.t{(RULES - 1) % count}.example",
            address=f"{10 + (RULES - 1) % count}.{chosen.randrange(256)}.{chosen.randrange(256)}.7",
            helo=f"mx{chosen.randrange(2000)}.client.example",
        )
        for i in range(ROUNDS)
        for n in [chosen.randrange(ENTRIES) | 1]
    ]
    assert all(decide(ruleset, subject) is made[-1] for subject in subjects[:10])
    measure("decide, by the last of the rules", lambda i: decide(ruleset, subjects[i % ROUNDS]))


class Parent:
    """No ~/.forward, at once."""

    async def read_forward(self, user: str, uid: int, gid: int, home: str) -> bytes | None:
        return None

    async def check_password(self, user: str, password: str) -> bool:
        return False

    async def read_table(self, name: str) -> tuple[tuple[str, str], ...]:
        return ()

    async def stop(self) -> None:
        return None

    async def log_level(self, verbose: bool) -> None:
        return None


class NoResolver:
    """Nobody asks."""

    async def exchangers(self, domain: str, mx: bool, family: str) -> list[MxHost]:
        return []

    async def reverse_name(self, address: str) -> str:
        return ""

    async def client_name(self, address: str) -> ReverseName:
        return ReverseName()


def bench_expand() -> None:
    users = Table(
        name="users",
        kind=TableKind.STATIC,
        mapping=True,
        entries=tuple((f"user{i}", f"{i}:{i}:/home/user{i}") for i in range(ENTRIES)),
    )
    aliases = Table(
        name="aliases",
        kind=TableKind.STATIC,
        mapping=True,
        entries=tuple((f"alias{i}", f"user{i}") for i in range(ENTRIES)),
    )
    config = Config(
        hostname="mx.example.org",
        tables={"users": users, "aliases": aliases, "ours": list_table("ours", ["example.org"])},
        actions={
            "local": Local(name="local", method="maildir", userbase="users", alias="aliases"),
            "relay": Relay(name="relay"),
        },
        rules=(
            Rule(line=1, source=Criterion(kind="any"), dest=Criterion(kind="domain", table="ours"), action="local"),
            Rule(line=2, source=Criterion(kind="local"), dest=Criterion(kind="any"), action="relay"),
        ),
    )
    lookup = Lookup(
        config=config,
        system=cast(Any, Parent()),  # only what routing asks of it
        resolver=NoResolver(),
        seal_key=b"k" * 32,
        log=Log(io.StringIO()),
        now=time.time,
        local_addresses=lambda: frozenset({"127.0.0.1"}),
        libexec="/libexec",
    )
    client = Client(listener=0, smtpname="mx.example.org", address="127.0.0.1", local=True, helo="client.example")
    loop = asyncio.new_event_loop()

    def expand(rcpt: str) -> None:
        async def some() -> None:
            # Of one call, without the cost of starting a task: ten in one.
            for _ in range(10):
                recipient = Recipient(generation=0, client=client, msgid=7, sender="s@client.example", rcpt=rcpt)
                answer = await lookup.expand(recipient)
                assert answer.code == 250, answer

        loop.run_until_complete(some())

    measure("10 x expand, local user", lambda i: expand(f"user{i}@example.org"))
    measure("10 x expand, alias of a local user", lambda i: expand(f"alias{i}@example.org"))
    measure("10 x expand, relay", lambda i: expand(f"x{i}@elsewhere.example"))
    lookup.close()
    loop.close()


if __name__ == "__main__":
    bench_ruleset()
    bench_expand()
