"""Tables as their authors write them, driven by the harness that they would use."""

import asyncio
import inspect
from typing import Any

import pytest

from pillarbox.sdk.table import Service, Table, TableError
from pillarbox.sdk.testing import Harness
from pillarbox.tables.link import Patience


def test_ten_lines_are_a_table() -> None:
    table = Table()

    @table.lookup(Service.ALIAS)
    def alias(key: str) -> str | None:
        return {"root": "alice, bob"}.get(key)

    with Harness(table) as harness:
        assert harness.registered == ["alias"]
        assert harness.lookup(Service.ALIAS, "root") == "alice, bob"
        assert harness.lookup(Service.ALIAS, "nobody") is None
        assert harness.check(Service.ALIAS, "root")
        assert not harness.check(Service.ALIAS, "nobody")


def test_a_function_can_serve_several_services_and_be_async() -> None:
    table = Table()

    @table.lookup(Service.STRING)
    @table.lookup(Service.DOMAIN)
    async def listed(key: str) -> str | None:
        await asyncio.sleep(0)
        return key if key == "example.org" else None

    with Harness(table) as harness:
        assert sorted(harness.registered) == ["domain", "string"]
        assert harness.check(Service.DOMAIN, "example.org")
        assert not harness.check(Service.STRING, "example.net")


def test_a_check_is_asked_before_the_lookup() -> None:
    table = Table()
    table.lookup(Service.DOMAIN)(lambda key: "value")
    table.check(Service.DOMAIN)(lambda key: key == "a|b")
    with Harness(table) as harness:
        assert harness.check(Service.DOMAIN, "a|b")
        assert not harness.check(Service.DOMAIN, "other")


def test_passwords_are_checked_whole() -> None:
    table = Table()

    @table.check(Service.AUTH)
    def auth(key: str) -> bool:
        user, _, password = key.partition(":")
        return (user, password) == ("alice", "a|:b c")

    with Harness(table) as harness:
        assert harness.check(Service.AUTH, "alice:a|:b c")
        assert not harness.check(Service.AUTH, "alice:a")
        with pytest.raises(TableError, match="offers no lookup of auth"):
            harness.lookup(Service.AUTH, "alice")


def test_a_list_is_fetched_in_turn() -> None:
    table = Table()
    sources = ["192.0.2.1", "192.0.2.2"]
    table.fetch(Service.SOURCE)(lambda: sources)
    table.fetch(Service.RELAYHOST)(lambda: "smtp://relay.example.org")
    with Harness(table) as harness:
        assert [harness.fetch(Service.SOURCE) for _ in range(3)] == ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
        assert [harness.fetch(Service.RELAYHOST) for _ in range(2)] == ["smtp://relay.example.org"] * 2
        sources.clear()
        assert harness.fetch(Service.SOURCE) is None


def test_an_update_calls_the_function_and_says_when_it_failed() -> None:
    table = Table()
    table.lookup(Service.ALIAS)(lambda key: None)
    with Harness(table) as harness:
        harness.update()  # nothing to do is well done

        @table.update
        def update() -> None:
            raise TableError("no such file: /etc/mail/x")

        with pytest.raises(TableError, match="no such file: /etc/mail/x"):
            harness.update()


def test_errors_are_answers_and_never_not_found(caplog: pytest.LogCaptureFixture) -> None:
    table = Table()

    @table.lookup(Service.ALIAS)
    def alias(key: str) -> str:
        if key == "down":
            raise TableError("the database is down")
        return {"there": "alice"}[key]

    with Harness(table) as harness:
        with pytest.raises(TableError, match=r"^the database is down$"):
            harness.lookup(Service.ALIAS, "down")
        with pytest.raises(TableError, match=r"^KeyError in the table program$"):
            harness.check(Service.ALIAS, "missing")
        assert "Traceback" in caplog.text  # the whole of it is in the log
        assert harness.lookup(Service.ALIAS, "there") == "alice"
        with pytest.raises(TableError, match="offers no fetch of source"):
            harness.fetch(Service.SOURCE)
        assert harness.ask("table|0.1|1|t|lookup|newer|7|k") == "lookup-result|7|error|unknown service 'newer'"


@pytest.mark.parametrize(
    ("service", "value", "said"),
    [
        (Service.ALIAS, b"alice", "TypeError"),  # would be "97, 108, …"
        (Service.ALIAS, ["alice", None], "TypeError"),  # would be mail for None
        (Service.ALIAS, [b"alice"], "TypeError"),
        (Service.CREDENTIALS, ("alice", None), "TypeError"),
        (Service.USERINFO, (1, 1, None), "TypeError"),
        (Service.USERINFO, 7, "TypeError"),
        (Service.ALIAS, "\ud800", "surrogate"),
    ],
)
def test_what_is_no_value_is_an_error_and_not_another_value(service: Service, value: Any, said: str) -> None:
    table = Table()
    table.lookup(service)(lambda key: value)
    with Harness(table) as harness, pytest.raises(TableError, match=said):
        harness.lookup(service, "x")


@pytest.mark.parametrize("value", [b"192.0.2.1", [None], [b"192.0.2.1"]])
def test_what_is_no_value_is_not_fetched(value: Any) -> None:
    table = Table()
    table.fetch(Service.SOURCE)(lambda: value)
    with Harness(table) as harness, pytest.raises(TableError, match="TypeError"):
        harness.fetch(Service.SOURCE)


def test_text_that_is_no_text_and_what_is_cancelled_end_no_other_answer() -> None:
    table = Table()

    @table.lookup(Service.ALIAS)
    async def alias(key: str) -> str:
        if key == "error":
            raise TableError("\ud800")
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        return str(await lost)

    with Harness(table) as harness:
        with pytest.raises(TableError, match=r"\?"):
            harness.lookup(Service.ALIAS, "error")
        with pytest.raises(TableError, match="cancelled in the table program"):
            harness.lookup(Service.ALIAS, "x")


def test_an_answer_that_does_not_come_is_an_error() -> None:
    table = Table(deadline=0.05)

    @table.lookup(Service.ALIAS)
    async def alias(key: str) -> str:
        await asyncio.Event().wait()
        return ""

    with Harness(table) as harness, pytest.raises(TableError, match=r"no answer within 0\.05 s"):
        harness.lookup(Service.ALIAS, "root")


def test_one_slow_answer_is_an_error_before_the_server_ends_the_program() -> None:
    assert inspect.signature(Table).parameters["deadline"].default < Patience().answer


def test_start_knows_the_server_and_can_still_register_or_refuse() -> None:
    table = Table()

    @table.start
    def start() -> None:
        if table.name == "wrong":
            raise TableError("not for that table")
        table.lookup(Service.ALIAS)(lambda key: f"{table.name} {table.config['smtpd-version']}")

    with pytest.raises(TableError, match="not for that table"):
        Harness(table, config={"tablename": "wrong"})
    with Harness(table, config={"tablename": "users"}) as harness:
        assert harness.lookup(Service.ALIAS, "x") == "users 7.8.0"


def test_a_table_without_a_service_says_so() -> None:
    with pytest.raises(TableError, match="no service is registered"):
        Harness(Table())
