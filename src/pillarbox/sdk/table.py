"""Write a table for the mail server: a program that it asks about aliases, users, domains, and so on.

    from pillarbox.sdk.table import Service, Table

    table = Table()

    @table.lookup(Service.ALIAS)
    def alias(key: str) -> str | None:
        return {"root": "alice, bob"}.get(key)

    table.run()

Installed as `table-NAME` where the server finds it, it is used by `table x NAME:/its/configuration`. It speaks
smtpd-tables(7), protocol 0.1, and so runs under OpenSMTPD 7.6 and newer too. docs/tables.md says more;
`pillarbox.sdk.testing` drives a table in a test.
"""

import logging
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NoReturn, TypeVar

from pillarbox.sdk import program
from pillarbox.sdk.session import CheckHandler, FetchHandler, Handlers, Hook, LookupHandler, Session
from pillarbox.sdk.stdio import Stdio
from pillarbox.sdk.wire import ProtocolError, Service, TableError, Value

__all__ = ["Service", "Table", "TableError", "Value"]

_Lookup = TypeVar("_Lookup", bound=LookupHandler)
_Check = TypeVar("_Check", bound=CheckHandler)
_Fetch = TypeVar("_Fetch", bound=FetchHandler)
_Hook = TypeVar("_Hook", bound=Hook)

_log = logging.getLogger("pillarbox.sdk.table")


class Table:
    """A table made of functions, each for one service; decorators can be stacked to use a function for several.

    A plain function is called while nothing else runs. An `async` one is awaited while others are: up to `concurrency`
    questions are under way at a time, answered in the order in which they get ready, each within `deadline` seconds.
    Less than 15: a server that hears nothing for so long ends the program, and every other question with it.

    A function that raises `TableError` has its text sent as the answer; any other exception is logged, and the answer
    is an error as well. The server treats an error as temporary: mail waits. "Not found" is for what does not exist.
    """

    def __init__(self, *, concurrency: int = 64, deadline: float = 10.0) -> None:
        self._handlers = Handlers()
        self._config: dict[str, str] = {}
        self._concurrency = concurrency
        self._deadline = deadline

    @property
    def config(self) -> Mapping[str, str]:
        """What the server said of itself: `smtpd-version`, `protocol`, `tablename`. Empty until `start` is called."""
        return MappingProxyType(self._config)

    @property
    def name(self) -> str:
        """The name of this table in the server's configuration."""
        return self._config.get("tablename", "")

    def lookup(self, service: Service) -> Callable[[_Lookup], _Lookup]:
        """The decorated function gets a key and returns its value, or None where there is none.

        A value is text as table(5) has it. Several aliases or addresses (alias, mailaddrmap) can be a list of them,
        credentials a `(user, hash)`, a user (userinfo) a `(uid, gid, home)`.
        """

        def keep(function: _Lookup) -> _Lookup:
            self._handlers.lookup[service] = function
            return function

        return keep

    def check(self, service: Service) -> Callable[[_Check], _Check]:
        """The decorated function says whether there is such a key. Without one, the lookup's function is asked."""

        def keep(function: _Check) -> _Check:
            self._handlers.check[service] = function
            return function

        return keep

    def fetch(self, service: Service) -> Callable[[_Fetch], _Fetch]:
        """The decorated function returns the next value (`source`, `relayhost`), or a list: then each in its turn."""

        def keep(function: _Fetch) -> _Fetch:
            self._handlers.fetch[service] = function
            return function

        return keep

    def update(self, function: _Hook) -> _Hook:
        """The decorated function reads anew whatever the table is made of: `smtpctl update table NAME`."""
        self._handlers.update = function
        return function

    def start(self, function: _Hook) -> _Hook:
        """The decorated function is called once, when `config` is known and before the services are registered."""
        self._handlers.start = function
        return function

    def session(self) -> Session:
        """A new conversation; `run` holds the one with the server that started this program."""
        return Session(
            handlers=self._handlers, config=self._config, concurrency=self._concurrency, deadline=self._deadline
        )

    def run(self) -> NoReturn:
        """Answer on standard input and output until the server closes them, then exit: 0, or 1 with the reason logged.

        Standard error goes to the server's log, and so do `logging` and `print`.
        """
        program.log_to_server()
        stdio = Stdio()
        conversation = self.session().run(stdio.lines(), stdio.write)
        program.run(conversation, log=_log, refusals=(ProtocolError, TableError))
