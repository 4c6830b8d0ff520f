"""Tests of filters without a server: each step of a session goes through the protocol's lines and back.

    filter = load("filter-hello")
    session = Harness(filter).session().ehlo("client.example").mail("a@example.org").rcpt("b@example.org")
    session.message(b"Subject: hello\\n\\nHello.\\n")
    assert session.accepted and b"X-Seen: yes" in session.delivered

Answers that no server could take are AssertionErrors, and so does an exception of a handler come out.
"""

import asyncio
import itertools
import os
import runpy
import sys
import weakref
from collections.abc import Coroutine, Mapping
from typing import Any, Generic, NoReturn

from pillarbox.sdk.filter.client import Client
from pillarbox.sdk.filter.filter import Filter
from pillarbox.sdk.filter.protocol import SMTP_IN, VERSION
from pillarbox.sdk.filter.registry import FilterError
from pillarbox.sdk.filter.session import S, Session

__all__ = ["Client", "Harness", "load"]


class _Running(BaseException):
    """A program runs its filter: nothing of the author's should catch it."""


def load(path: str | os.PathLike[str], *arguments: str) -> Filter[Any]:
    """The filter that a program runs when it is started with these arguments. Raises FilterError where it runs none."""
    running: list[Filter[Any]] = []

    def run(filter: Filter[Any]) -> NoReturn:
        running.append(filter)
        raise _Running

    program = os.fspath(path)
    was = Filter.run, sys.argv
    Filter.run, sys.argv = run, [program, *arguments]  # type: ignore[assignment,method-assign]
    try:
        runpy.run_path(program, run_name="__main__")
    except _Running:
        return running[0]
    finally:
        Filter.run, sys.argv = was  # type: ignore[method-assign]
    raise FilterError(f"{program} runs no filter")


class Harness(Generic[S]):
    """Plays the server for one filter, in this process. Not for use inside a running event loop.

    `config` replaces or adds lines of the handshake; `version`: of the protocol, 0.4 to 0.7. With `strict=False` what
    handlers raise is not raised here: the filter answers as it would a server, and `failures` has the exceptions.
    """

    def __init__(
        self,
        filter: Filter[S],
        *,
        config: Mapping[str, str] | None = None,
        version: str = VERSION,
        strict: bool = True,
    ) -> None:
        self.version = version
        self.failures: list[Exception] = []
        self._strict = strict
        self._ids = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        weakref.finalize(self, self._loop.close)  # for a harness that nobody closes
        self._tasks: set[asyncio.Task[None]] = set()
        self._conversation = filter.conversation(spawn=self._spawn, wake=lambda: None, failed=self._failed)
        handshake = {"smtpd-version": "7.8.0", "protocol": version, "smtp-session-timeout": "300", "subsystem": SMTP_IN}
        handshake |= {"accepts": "report"} if version == VERSION else {}
        try:
            lines = self.exchange(
                *(f"config|{key}|{value}" for key, value in {**handshake, **(config or {})}.items()), "config|ready"
            )
        except BaseException:
            self.close()
            raise
        assert lines and lines[-1] == "register|ready", lines
        self.registered = [line.removeprefix("register|") for line in lines[:-1]]

    def __enter__(self) -> "Harness[S]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the conversation."""
        self._conversation.close()
        self._loop.close()

    @property
    def sessions(self) -> list[Session[S]]:
        """What the filter knows of the sessions that are not over."""
        return self._conversation.sessions

    def session(
        self,
        *,
        address: str = "192.0.2.1",
        rdns: str = "client.example.net",
        fcrdns: str = "pass",
        hostname: str = "mail.example.org",
    ) -> Client:
        """A client connects. `address` without brackets; `local`: over a socket in the file system."""
        client = Client(self, f"{next(self._ids):016x}", hostname)
        return client.connect(address, rdns, fcrdns)

    def exchange(self, *lines: str) -> list[str]:
        """What the filter writes when these lines come, once it has done all that it has to do about them."""
        data = "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")
        self._loop.run_until_complete(self._exchange(data))
        written = self._conversation.take().decode(errors="surrogateescape").split("\n")
        if self._strict and self.failures:
            raise self.failures.pop()
        return written[:-1]

    async def _exchange(self, data: bytes) -> None:
        self._conversation.feed(data)
        while self._tasks:
            done, self._tasks = self._tasks, set()
            await asyncio.gather(*done)

    def wants(self, stream: str, name: str) -> bool:
        """Has the filter registered this event or phase of smtp-in? `stream`: report or filter."""
        start = f"{stream}|{SMTP_IN}|"
        return f"{start}{name}" in self.registered or (stream == "report" and f"{start}*" in self.registered)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(coroutine))

    def _failed(self, where: str, error: Exception) -> None:
        error.add_note(f"in {where}")
        self.failures.append(error)
