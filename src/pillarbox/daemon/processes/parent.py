"""The parent: starts the roles as processes under their users, joins them, and starts again what died.

It binds the sockets, keeps them, reads no network. What it does itself is what needs its rights: `System` for lookup,
`Agent` for local deliveries. Its end ends everything: each role exits at the end of file of its channel.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

import msgspec

from pillarbox.daemon import activation
from pillarbox.daemon.assembly.parent import ParentServices
from pillarbox.daemon.peers import Peers, kind
from pillarbox.daemon.processes import watchdog
from pillarbox.daemon.processes.channel import Channel, Message, sealed_memory
from pillarbox.daemon.processes.child import Child
from pillarbox.daemon.processes.collector import spare_what_is_built
from pillarbox.daemon.processes.privileges import Account
from pillarbox.daemon.reload.generations import Generations, for_role
from pillarbox.daemon.reload.members import LocalRole, Member, RemoteRole
from pillarbox.daemon.settings import Boot, Settings
from pillarbox.daemon.wiring import CONTROL, DISPATCHER, FILTER, LOOKUP, PARENT, QUEUE, neighbours
from pillarbox.errors import PillarboxError, TempFail
from pillarbox.log import Log
from pillarbox.mail.seal import KEY_SIZE
from pillarbox.roles.deadlines import GATHERING

START_DEADLINE = 30.0  # seconds until every role must be ready
DRAIN_DEADLINE = 32.0  # seconds for transactions and deliveries under way at the end; a dispatcher says 421 at 30
STOP_DEADLINE = 10.0
_STEADY = 60.0  # a role that lived this long starts again at once
_BACKOFF_MAX = 30.0
_BACKOFF_STEPS = 16  # it is long enough then

# Each joins those before it; the others are joined as they start.
_ORDER = (LOOKUP, QUEUE, FILTER, CONTROL, DISPATCHER)


class Parent:
    """Runs until `stopping` is set; `run` returns the exit status."""

    def __init__(
        self,
        *,
        generations: Generations,
        settings: Settings,
        services: ParentServices,
        peers: Peers,
        listening: dict[str, list[socket.socket]],
        control: socket.socket,
        accounts: dict[str, Account],
        stopping: asyncio.Event,
        log: Log,
    ) -> None:
        self._generations = generations
        self._settings = settings
        self._services = services
        self._peers = peers
        self._listening = listening
        self._control = control
        self._log = log
        self._seal_key = os.urandom(KEY_SIZE)
        peers.on_faulty = self._end_faulty
        services.programs.hand = partial(self._hand_program, LOOKUP)
        services.filter_programs.hand = partial(self._hand_program, FILTER)
        self._accounts = accounts
        # Filter takes memory, and does nothing where there are no processors: it starts with the first of them.
        roles = [role for role in _ORDER if role != FILTER or generations.has_processors()]
        self._names = [n for role in roles for n in _processes(role, settings.dispatchers)]
        self._children: dict[str, Child] = {}
        self._failures: dict[str, int] = {}
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stop_requested = stopping

    async def run(self) -> int:
        """Start everything, wait for the order to stop, stop everything."""
        try:
            for name in self._names:
                await self._start(name, restarted=False)
            await self._all_ready()
        except (PillarboxError, OSError) as error:
            self._log.warn(str(error))
            self._stopping = True
            await self._stop_children()
            return 1
        await self._services.start()
        spare_what_is_built()
        self._log.info("info: ready")
        activation.notify(os.environ, "READY=1")
        await self._stop_requested.wait()
        self._log.info("info: exiting")
        activation.notify(os.environ, "STOPPING=1")
        self._stopping = True
        await self._drain()
        await self._stop_children()
        await self._services.stop()
        return 0

    # -- starting

    async def _start(self, name: str, *, restarted: bool) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = subprocess.Popen(  # noqa: ASYNC220 - fork and exec of ourselves, at start and after a death
                    [sys.executable, "-m", "pillarbox.daemon.process", kind(name), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    start_new_session=True,  # a terminal's Ctrl-C is for the parent, and no role can type into it
                )
            except OSError:
                ours.close()
                raise
        child = Child(name, process, Channel(ours))
        self._children[name] = child
        child.channel.start(lambda m, fds: self._receive(child, m, fds), lambda: None)
        try:
            self._watch(child)
            await self._boot(child, restarted=restarted)
        except BaseException:
            process.kill()  # it would wait for ever for what it was not told
            raise

    async def _boot(self, child: Child, *, restarted: bool) -> None:
        """Tell a new process what it is, and join it to the peers that run."""
        boot = sealed_memory("boot", msgspec.msgpack.encode(self._boot_values(child.name, restarted=restarted)))
        descriptors = {"boot": boot}
        pairs: list[tuple[str, socket.socket, socket.socket]] = []
        for role in neighbours(kind(child.name)):
            for peer in [PARENT] if role == PARENT else [n for n in self._children if kind(n) == role]:
                mine, yours = socket.socketpair()
                pairs.append((peer, mine, yours))
                descriptors[f"peer {peer}"] = yours.fileno()
        if kind(child.name) == DISPATCHER:
            index = int(child.name.partition(".")[2])
            for address in self._generations.current.listening:
                descriptors[f"listen {address}"] = self._listening[address][index].fileno()
        if child.name == CONTROL:
            descriptors["listen control"] = self._control.fileno()
        child.channel.send("boot", descriptors)
        os.close(boot)
        for peer, mine, yours in pairs:
            yours.close()
            if peer != PARENT:
                self._children[peer].channel.send("peer", {f"peer {child.name}": mine.fileno()})
                mine.close()
        # At last, for it waits: meanwhile a peer may die, which then joins this child when it starts.
        for _, mine, _ in (pair for pair in pairs if pair[0] == PARENT):
            await self._peers.attach(child.name, mine, self._services.services)

    def _boot_values(self, name: str, *, restarted: bool) -> Boot:
        role = kind(name)
        account = self._accounts[role]
        return Boot(
            role=role,
            index=int(name.partition(".")[2] or 0),
            generation=for_role(self._generations.current, role),
            older=tuple(for_role(g, role) for g in self._generations.older()),
            state=self._settings.state,
            verbose=self._log.verbose,
            debug=self._settings.debug,
            paused=tuple(self._services.system.paused),
            blocked=tuple(self._services.system.blocked) if role == QUEUE else (),
            dispatchers=self._settings.dispatchers,
            seal_key=self._seal_key if role in (LOOKUP, QUEUE) else b"",
            account=(account.name, account.uid, account.gid),
            restarted=restarted,
        )

    # -- for reloads

    def expected(self) -> int:
        """How many members there are when none is being restarted: the roles, and what the parent does itself."""
        return len(self._names) + 1

    def members(self) -> list[Member]:
        """Those that are there; what one that is starting is told, it hears when it has started."""
        own = LocalRole(PARENT, self._services, self._log)
        return [own, *(RemoteRole(child) for child in self._children.values() if not child.ended.is_set())]

    async def all_members(self) -> list[Member]:
        """All of them, and whoever a proposed configuration needs, when they are ready; TempFail: it takes too long."""
        if self._generations.has_processors() and FILTER not in self._names:
            await self._start(FILTER, restarted=False)
            self._names.append(FILTER)
            self._spawn(self._expect_ready(self._children[FILTER]))
        for _ in range(int(GATHERING / 0.1)):
            if self._stopping:
                raise TempFail("the server is ending")
            missing = [name for name in self._names if not self._is_ready(name)]
            if not missing:
                return self.members()
            await asyncio.sleep(0.1)
        raise TempFail(f"{', '.join(missing)}: being restarted")

    def _is_ready(self, name: str) -> bool:
        child = self._children.get(name)
        return child is not None and child.ready.is_set() and not child.ended.is_set()

    async def _all_ready(self) -> None:
        try:
            async with asyncio.timeout(START_DEADLINE):
                for child in list(self._children.values()):
                    if not await child.ready_or_ended():
                        raise PillarboxError(f"{child.name} could not start (see above)")
        except TimeoutError:
            late = ", ".join(c.name for c in self._children.values() if not c.ready.is_set())
            raise PillarboxError(f"not ready after {START_DEADLINE:.0f} seconds: {late}") from None

    def _hand_program(self, role: str, token: int, connection: socket.socket) -> None:
        child = self._children.get(role)
        if child is not None:
            child.channel.send("program", {str(token): connection.fileno()})

    # -- watching

    def _receive(self, child: Child, message: Message, descriptors: list[int]) -> None:
        for fd in descriptors:
            os.close(fd)
        if message.op == "ready":
            child.ready.set()
        elif message.op == "drained":
            child.drained.set()
        elif message.op.startswith("answer "):
            child.answered(message)
        elif message.op.startswith("faulty "):
            peer = message.op.removeprefix("faulty ")
            self._end_faulty(child.name if peer == PARENT else peer)

    def _end_faulty(self, name: str) -> None:
        """It has broken the protocol with a peer, and the link between them is gone: let it start afresh."""
        child = self._children.get(name)
        if child is not None and not child.ended.is_set():
            self._log.warn(f"{name} has to start again")
            child.process.kill()

    def _watch(self, child: Child) -> None:
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(child.process.pid)

        def died() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            status = child.process.wait()
            child.has_ended()
            if not self._stopping and child.ready.is_set():
                self._spawn(self._restart(child, status))

        loop.add_reader(pidfd, died)
        self._spawn(watchdog.watch(child, self._log))

    async def _restart(self, child: Child, status: int) -> None:
        """Start a role again whose process has ended; try on, ever more slowly, where it cannot be started."""
        name = child.name
        what = f"{name} killed by {signal.Signals(-status).name}" if status < 0 else f"{name} exited with {status}"
        if time.monotonic() - child.started > _STEADY:
            self._failures[name] = 0
        while True:
            failures = self._failures[name] = self._failures.get(name, 0) + 1
            delay = 0.0 if failures == 1 else min(0.1 * 2.0 ** min(failures, _BACKOFF_STEPS), _BACKOFF_MAX)
            self._log.warn(f"{what}; starting it again" + (f" in {delay:.1f} s" if delay else ""))
            self._children.pop(name, None)
            await self._services.stop_programs(name)  # nobody talks to them any more
            await asyncio.sleep(delay)
            if self._stopping:
                return
            try:
                await self._start(name, restarted=True)
            except (OSError, PillarboxError) as error:
                what = f"{name} cannot be started: {error}"
            else:
                break
        self._spawn(self._expect_ready(self._children[name]))

    async def _expect_ready(self, child: Child) -> None:
        """A restarted role that does not get ready is killed, and so started again; one that ended before is too."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_DEADLINE):
                await child.ready_or_ended()
        if child.ready.is_set() or self._stopping:
            return
        if not child.ended.is_set():
            child.process.kill()
            await child.ended.wait()
        await self._restart(child, child.process.returncode)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # a role that nobody starts again: better none at all
            self._services.fatal(error)

    # -- ending

    async def _drain(self) -> None:
        """Queue hands out nothing more, dispatchers end sessions after their transactions, deliveries end."""
        children = list(self._children.values())
        for child in children:
            child.channel.send("drain")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_DEADLINE):
                for child in children:
                    await child.drained.wait()
                await self._services.drain()

    async def _stop_children(self) -> None:
        for name in (CONTROL, DISPATCHER, QUEUE, FILTER, LOOKUP):
            group = [c for c in self._children.values() if kind(c.name) == name]
            for child in group:
                child.channel.send("stop")
            try:
                async with asyncio.timeout(STOP_DEADLINE):
                    for child in group:
                        await child.ended.wait()
            except TimeoutError:
                for child in group:
                    if not child.ended.is_set():
                        self._log.warn(f"{child.name} did not end; killed")
                        child.process.kill()


def _processes(role: str, dispatchers: int) -> list[str]:
    """The names of a role's processes."""
    return [f"{role}.{i}" for i in range(dispatchers)] if role == DISPATCHER else [role]
