"""Reload: the configuration is read again, prepared in all roles, and used in all of them or in none.

    1. A child process reads and checks the file, and all that is read with it: any problem ends it here.
    2. New addresses are bound.
    3. Every role prepares (`Role.prepare`). One that refuses, does not answer or dies: abort in all.
    4. The decision: `Generations.commit`, in the parent alone and without waiting for anything. A role that starts
       from here on starts with the new configuration; until here it starts with the old one.
    5. Every role commits, which cannot fail. One that dies comes back with the new configuration; one that does not
       answer is killed, and so comes back too.
    6. The parent lets go of addresses that are no longer listened on.

What was prepared answers questions at once, so it does not matter which role commits first. `retirement` sees
to what is replaced.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from pillarbox.conf.model import Config
from pillarbox.daemon import check, launch
from pillarbox.daemon.hanging import Hanging
from pillarbox.daemon.programs.filters import check_processors
from pillarbox.daemon.reload.generations import Generations, read_generation
from pillarbox.daemon.reload.members import Bound, Member
from pillarbox.daemon.reload.retirement import Retirement
from pillarbox.daemon.settings import Generation, Settings
from pillarbox.daemon.unserved import refuse_unserved
from pillarbox.errors import ConfigError, PillarboxError, Problem, TempFail
from pillarbox.log import Log
from pillarbox.roles.deadlines import BINDING, COMMITTING, PREPARING, READING
from pillarbox.roles.parent import Reloaded

Members = Callable[[], Awaitable[list[Member]]]


class _Read(msgspec.Struct, frozen=True):
    """What the child says: the configuration, or what is wrong with it."""

    generation: Generation | None = None
    problems: tuple[str, ...] = ()


class Reloader:
    """Does reloads, one at a time. `members()`: every role, all of them ready; TempFail where that is not so.

    `listening`: the parent's sockets by address, `dispatchers` each. `fatal`: a role is in no known state any more.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        generations: Generations,
        listening: dict[str, list[socket.socket]],
        dispatchers: int,
        members: Members,
        retirement: Retirement,
        fatal: Callable[[BaseException], None],
        log: Log,
    ) -> None:
        self._settings = settings
        self._generations = generations
        self._listening = listening
        self._dispatchers = dispatchers
        self._members = members
        self._retirement = retirement
        self._fatal = fatal
        self._log = log
        self._hanging = Hanging(log)
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[Reloaded] | None = None
        self._tasks: set[asyncio.Task[Reloaded]] = set()
        self._closed = False

    def request(self) -> None:
        """SIGHUP."""
        if not self._closed:
            self._begin()

    async def reload(self) -> Reloaded:
        """Reload, after one that is under way; it is finished also when the caller goes away.

        Raises TempFail when the server is ending; what is wrong otherwise is in the answer.
        """
        if self._closed:
            raise TempFail("the server is ending")
        return await asyncio.shield(self._begin())

    def close(self) -> None:
        """The server ends: begin none, and leave off."""
        self._closed = True
        for task in self._tasks:
            task.cancel()

    def _begin(self) -> "asyncio.Task[Reloaded]":
        """The next reload: all who want one before it begins share it."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._when_free())
            self._tasks.add(self._next)
            self._next.add_done_callback(self._done)
        return self._next

    def _done(self, task: "asyncio.Task[Reloaded]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fatal(error)

    async def _when_free(self) -> Reloaded:
        async with self._turn:
            self._next = None  # who asks from now on wants the file as it is then
            try:
                notes = await self._reload()
            except ConfigError as error:
                return self._failed([str(problem) for problem in error.problems])
            except PillarboxError as error:
                return self._failed([str(error)])
            self._log.info(f"info: {self._settings.file} read again, in use as configuration {self._current}")
            check.log_warnings(notes, self._log)
            return Reloaded(notes=tuple(notes))

    @property
    def _current(self) -> int:
        return self._generations.current.number

    def _failed(self, problems: list[str]) -> Reloaded:
        for problem in problems:
            self._log.warn(f"reload: {problem.partition(chr(10))[0]}")
        self._log.warn(f"reload: nothing has changed, configuration {self._current} stays in use")
        return Reloaded(problems=tuple(problems))

    async def _reload(self) -> list[str]:
        """What to know although it was done; raises ConfigError or PillarboxError where nothing has changed."""
        running = self._generations.current.config
        self._generations.expect()
        read = await self._read()
        generation = self._generations.propose(_as_started(running, read))
        fresh: dict[str, list[socket.socket]] = {}
        decided = False
        try:
            fresh = await self._bind(generation)
            members = await self._prepare(generation, fresh)
            decided = True
        except OSError as error:
            raise PillarboxError(f"{running.file}: what it needs cannot be opened: {error.strerror}") from error
        finally:
            if not decided:
                self._generations.abort()
                _close(fresh)
        self._generations.commit()
        self._listening.update(fresh)
        await self._commit(members, generation)
        _close({a: self._listening.pop(a) for a in self._listening.keys() - generation.listening.keys()})
        self._retirement.replaced()
        return [*read.config.warnings, *_for_the_next_start(running, read.config)]

    async def _read(self) -> Generation:
        """In a child: reading may hang, and a large file takes its time."""
        settings = self._settings
        data = await self._hanging.in_child(lambda: _read(settings), "configuration", settings.file, READING)
        try:
            read = msgspec.msgpack.decode(data, type=_Read)
        except msgspec.MsgspecError as error:
            raise PillarboxError(f"{settings.file}: what was read of it makes no sense: {error}") from error
        if read.generation is None:
            raise ConfigError([Problem(text) for text in read.problems])
        return read.generation

    async def _bind(self, generation: Generation) -> dict[str, list[socket.socket]]:
        new = [a for a in generation.listening if a not in self._listening]
        if not new:
            return {}
        # In a thread: it waits for somebody who is just leaving an address, ourselves after the last reload included.
        dispatchers, ours = self._dispatchers, list(self._listening)
        return await self._hanging.in_thread(
            lambda: launch.bind_all(new, dispatchers, ours), "addresses", "listening", BINDING, late=_close
        )

    async def _prepare(self, generation: Generation, fresh: Bound) -> list[Member]:
        """All members, prepared; or none of them is, and PillarboxError says why."""
        members = await self._members()
        answers = [asyncio.ensure_future(member.prepare(generation, fresh)) for member in members]
        deaths: list[asyncio.Future[Any]] = [asyncio.ensure_future(member.wait_gone()) for member in members]
        everyone: asyncio.Future[Any] = asyncio.gather(*answers)
        prepared = False
        try:
            # A death ends it at once, also that of one that has answered.
            await asyncio.wait({everyone, *deaths}, timeout=PREPARING, return_when=asyncio.FIRST_COMPLETED)
            await _leave_off(deaths)
            # Nothing is waited for from here to the decision: who died in between would start with the old one.
            _judge(members, answers)
            prepared = True
        finally:
            if not prepared:
                await _leave_off([everyone, *answers, *deaths])
                for member in members:
                    await member.abort(generation.number)
        return members

    async def _commit(self, members: list[Member], generation: Generation) -> None:
        async def commit(member: Member) -> None:
            try:
                async with asyncio.timeout(COMMITTING):
                    await member.commit(generation.number)
            except TimeoutError:
                self._log.warn(f"{member.name} did not take over configuration {generation.number}")
                member.end()
            except TempFail:
                pass  # its process ended: another one starts with this configuration

        await asyncio.gather(*(commit(member) for member in members))


def _read(settings: Settings) -> bytes:
    """In the child: a `_Read`."""
    with contextlib.suppress(OSError):  # it is gone: names that are not relative are still good
        os.chdir(settings.directory)
    try:
        config = check.read_config(settings.file, settings.macros)
        refuse_unserved(config)
        check_processors(config, as_root=os.geteuid() == 0)
        answer = _Read(generation=read_generation(config))
    except ConfigError as error:
        answer = _Read(problems=tuple(str(problem) for problem in error.problems))
    except PillarboxError as error:
        answer = _Read(problems=(str(error),))
    except Exception as error:  # noqa: BLE001 - the end of this process: whoever asked should hear why
        answer = _Read(problems=(f"{settings.file}: internal error: {type(error).__name__}: {error}",))
    return msgspec.msgpack.encode(answer)


_STORED = {"compression": "queue compression", "encryption": "queue encryption", "encryption_ask": "queue encryption"}


def _for_the_next_start(old: Config, new: Config) -> list[str]:
    """What changes only when the server starts: how the queue is stored."""
    changed = {_STORED[name]: None for name in _STORED if getattr(old.queue, name) != getattr(new.queue, name)}
    return [f"{new.file}: warning: {what} stays as it is until the server is started again" for what in changed]


def _as_started(old: Config, new: Generation) -> Generation:
    stored = {name: getattr(old.queue, name) for name in _STORED}
    config = msgspec.structs.replace(new.config, queue=msgspec.structs.replace(new.config.queue, **stored))
    return msgspec.structs.replace(new, config=config)


def _judge(members: list[Member], answers: "Sequence[asyncio.Future[str]]") -> None:
    """Raise PillarboxError unless all are there and prepared."""
    dead = [member.name for member in members if member.gone]
    if dead:
        raise TempFail(f"{', '.join(dead)} died")
    problems = {text: None for answer in answers if answer.done() and (text := answer.result())}
    if problems:
        raise PillarboxError("\n".join(problems))
    late = [member.name for member, answer in zip(members, answers, strict=True) if not answer.done()]
    if late:
        raise TempFail(f"{', '.join(late)}: not prepared within {PREPARING:.0f} seconds")


async def _leave_off(tasks: "Sequence[asyncio.Future[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _close(bound: Bound) -> None:
    for listening in [s for sockets in bound.values() for s in sockets]:
        listening.close()
