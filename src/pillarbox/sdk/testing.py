"""Tests of table programs without a server: every question goes through the protocol's lines and back.

with Harness(table) as harness:
    assert harness.lookup(Service.ALIAS, "root") == "alice, bob"
"""

import asyncio
import itertools
from collections.abc import Mapping
from types import TracebackType

from pillarbox.sdk.table import Service, Table, TableError
from pillarbox.sdk.wire import VERSION, parse_request

CONFIG = {"smtpd-version": "7.8.0", "protocol": VERSION, "tablename": "test"}


class Harness:
    """Plays the server for one table, in this process. Not for use inside a running event loop.

    `config` replaces or adds lines of the handshake. Raises TableError where the table's start does.
    """

    def __init__(self, table: Table, *, config: Mapping[str, str] | None = None) -> None:
        self._session = table.session()
        self._runner = asyncio.Runner()
        self._ids = itertools.count(1)
        self.registered: list[str] = []
        try:
            for key, value in {**CONFIG, **(config or {})}.items():
                self._runner.run(self._session.configure(f"config|{key}|{value}"))
            lines = self._runner.run(self._session.configure("config|ready"))
        except BaseException:
            self._runner.close()
            raise
        self.registered = [line.partition("|")[2] for line in lines[:-1]]

    def __enter__(self) -> "Harness":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation."""
        self._runner.close()

    def lookup(self, service: Service, key: str) -> str | None:
        """The value as the server would get it; None: not found. Raises TableError for the answer "error"."""
        return self._value("lookup", service, key)

    def check(self, service: Service, key: str) -> bool:
        """Whether the table has it. Raises TableError for the answer "error"."""
        return self._value("check", service, key) is not None

    def fetch(self, service: Service) -> str | None:
        """The next value; None: the table is empty. Raises TableError for the answer "error"."""
        return self._value("fetch", service)

    def update(self) -> None:
        """`smtpctl update table`. Raises TableError for the answer "error"."""
        self._value("update")

    def ask(self, line: str) -> str:
        """The answer to one line of the protocol. Raises ProtocolError on what is none."""
        return self._runner.run(self._session.answer(parse_request(line)))

    def _value(self, operation: str, service: str = "", key: str | None = None) -> str | None:
        request = f"{next(self._ids):08x}"
        fields = ["table", VERSION, "0.000000", "test", operation, service, request]
        answer = self.ask("|".join([*filter(None, fields), *([] if key is None else [key])]))
        start = f"{operation}-result|{request}|"
        assert answer.startswith(start), answer
        result, _, value = answer.removeprefix(start).partition("|")
        if result == "error":
            raise TableError(value)
        return None if result == "not-found" else value
