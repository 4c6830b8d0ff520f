"""From a command line to a running server: the order in which things are done, in either wiring."""

import asyncio
import os
import signal
import socket
import stat
import sys
import types
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from pillarbox import __version__, places
from pillarbox.conf.model import Config
from pillarbox.daemon import activation, interfaces, lock
from pillarbox.daemon.check import log_warnings
from pillarbox.daemon.processes import privileges
from pillarbox.daemon.programs.filters import check_processors
from pillarbox.daemon.reload.generations import read_generation
from pillarbox.daemon.settings import Generation, Settings
from pillarbox.daemon.unserved import refuse_unserved
from pillarbox.errors import PillarboxError
from pillarbox.log import Log

_ENDING = 20  # seconds for threads to end once everything else has: the disk or the name service may hang


@dataclass(frozen=True, slots=True)
class Sockets:
    """What is bound before the roles start: for each address one a dispatcher, and the control socket."""

    listening: dict[str, list[socket.socket]]
    control: socket.socket


def bind_all(
    addresses: Collection[str],
    dispatchers: int,
    ours: Collection[str] = (),
    given: Mapping[str, socket.socket] = types.MappingProxyType({}),
) -> dict[str, list[socket.socket]]:
    """Listening sockets. PillarboxError where somebody else has an address, our own kind included.

    `ours`: addresses that this server listens on already; one of them may contain a new one, or be contained in it.
    `given`: sockets that were bound for us (`activation`).
    """
    ours = [*ours, *given]
    bound: dict[str, list[socket.socket]] = {}
    for address in addresses:
        if not any(address == other or interfaces.overlap(address, other) for other in ours):
            interfaces.wait_free(interfaces.endpoint_at(address))
    try:
        for address in addresses:
            sockets = bound[address] = list[socket.socket]()
            for _ in range(dispatchers):
                # One that was given is shared: dispatchers take from it in turn.
                shared = given.get(address)
                sockets.append(shared.dup() if shared else interfaces.bind(interfaces.endpoint_at(address)))
    except PillarboxError:
        for listening in [s for sockets in bound.values() for s in sockets]:
            listening.close()
        raise
    return bound


def _listen(generation: Generation, dispatchers: int, log: Log) -> dict[str, list[socket.socket]]:
    given = activation.inherited(os.environ, os.getpid(), log)
    try:
        return bind_all(generation.listening, dispatchers, given=given)
    finally:
        for address, bound in given.items():
            if address not in generation.listening:
                log.warn(f"nothing listens on {address.replace(' ', ' port ')}, which was bound for us")
            bound.close()


def make_state(state: str) -> None:
    """Make the state directory. Raises PillarboxError, also for one in which others may put things.

    They could exchange what we trust.
    """
    try:
        os.makedirs(state, mode=0o711, exist_ok=True)
        found = os.stat(state)
    except OSError as error:
        raise PillarboxError(f"state directory {state}: {error.strerror or error}") from error
    me = os.geteuid()
    if found.st_uid not in {0, me}:
        raise PillarboxError(
            f"state directory {state} belongs to uid {found.st_uid}: give it to uid {me}, or name another --state"
        )
    # The groups of users are often their own; root's are not.
    if found.st_mode & (0o022 if me == 0 else 0o002):
        raise PillarboxError(
            f"state directory {state} is writable by others (mode {stat.S_IMODE(found.st_mode):04o}):"
            " chmod go-w it, or name another --state"
        )


def prepare_state(state: str, owner: privileges.Account | None) -> None:
    """Make what belongs into the state directory, and give the spool to its role. To be called with the lock held.

    Raises PillarboxError.
    """
    try:
        if owner is not None:
            os.chmod(state, os.stat(state).st_mode | 0o711)  # noqa: S103 - roles pass through to what is theirs
        queue = os.path.join(state, "queue")
        os.makedirs(queue, mode=0o700, exist_ok=True)
        if owner is not None and os.stat(queue).st_uid != owner.uid:
            _give(queue, owner)
        elif owner is None and os.geteuid() == 0:
            os.chown(queue, 0, 0)  # new files in it will be root's: several processes have to be given it anew
        offline = places.offline_directory(state)
        os.makedirs(offline, exist_ok=True)
        if os.geteuid() == os.stat(offline).st_uid:
            os.chmod(offline, 0o1733)  # noqa: S103 - everybody may leave mail, nobody may look
    except OSError as error:
        raise PillarboxError(f"state directory {state}: {error.strerror or error}") from error


def _give(directory: str, owner: privileges.Account) -> None:
    """Hand a spool that another account had to this one (its owner changed between two starts)."""
    for base, names, files in os.walk(directory):
        for name in (*names, *files):
            os.chown(os.path.join(base, name), owner.uid, owner.gid, follow_symlinks=False)
    os.chown(directory, owner.uid, owner.gid)


def bind_control(state: str) -> socket.socket:
    """The control socket `DIR/smtpd.sock`. Everybody may connect; what each may ask is decided by who they are.

    Raises PillarboxError.
    """
    path = places.control_socket(state)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if os.path.lexists(path) and stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
        # Through a descriptor: a state directory may lie deeper than the 107 bytes of a socket's address.
        directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
        try:
            control.bind(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        finally:
            os.close(directory)
        os.chmod(path, 0o666)  # noqa: S103 - everybody may submit mail
        control.listen(64)
    except OSError as error:
        control.close()
        raise PillarboxError(f"control socket {path}: {error.strerror or error}") from error
    return control


def check_readable(account: privileges.Account, state: str) -> None:
    """Role users must be able to read the interpreter and its packages, queue its spool. PillarboxError: what to do."""
    needed = [sys.executable, __file__, os.__file__, asyncio.__file__]
    spool = os.path.join(state, "queue")
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            privileges.become(account)
            readable = all(os.access(p, os.R_OK) for p in needed)
            status = 1 if not readable else 2 if not os.access(spool, os.R_OK | os.W_OK | os.X_OK) else 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 2:
        raise PillarboxError(
            f"user {account.name} cannot use {spool}: every user must be able to pass through the directories above"
            " (chmod a+x them), or name another --state"
        )
    if status:
        raise PillarboxError(
            f"user {account.name} cannot read {sys.executable} or {os.path.dirname(__file__)}: install Python and"
            " Pillarbox where every user may read them (not below a home directory), or use --one-process"
        )


def daemonize() -> None:
    """Leave the terminal: double fork, new session, / as directory, standard descriptors to /dev/null."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def run_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run to the end on uvloop, or on asyncio where it is absent."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None
    try:
        import uvloop  # noqa: PLC0415 - asyncio where it is absent

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None

    async def run() -> int:
        try:
            return await main
        finally:
            signal.alarm(_ENDING)

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(run())


def handle_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """SIGTERM and SIGINT stop, SIGHUP reads the configuration again."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)


def launch(config: Config, settings: Settings, log: Log) -> int:
    """Bind, prepare, start; returns the exit status when the server has ended. Raises ConfigError, PillarboxError."""
    refuse_unserved(config)
    as_root = os.geteuid() == 0
    check_processors(config, as_root=as_root)
    one_process = settings.one_process or not as_root
    os.umask(0o022)
    privileges.raise_descriptor_limit()
    accounts = {} if one_process else privileges.role_accounts(log)
    make_state(settings.state)
    held = lock.hold(settings.state)
    prepare_state(settings.state, accounts.get("queue"))
    if accounts:
        check_readable(accounts["queue"], settings.state)
    generation = read_generation(config)
    # While there still is somebody to be told that an address is taken.
    listening = _listen(generation, settings.dispatchers if accounts else 1, log)
    sockets = Sockets(listening, bind_control(settings.state))
    if not (settings.debug or settings.foreground):
        daemonize()
    lock.note_holder(held)
    try:
        return run_loop(_serve(generation, settings, accounts, sockets, log=log))
    except Exception as error:  # the last word of a daemon, whose stderr may lead nowhere; it goes on from here
        if not isinstance(error, PillarboxError):
            log.exception("cannot go on", error)  # noqa: PLE1205 - our own Log
        elif not settings.debug:  # who started us may not see our stderr
            log.warn(str(error))
        raise


async def _serve(
    generation: Generation,
    settings: Settings,
    accounts: dict[str, privileges.Account],
    sockets: Sockets,
    *,
    log: Log,
) -> int:
    log.info(f"info: Pillarbox {__version__} starting with {settings.file}")
    log_warnings(generation.config.warnings, log)
    # Imported here: a server in one wiring does not load the other.
    if accounts:
        from pillarbox.daemon import manyprocesses  # noqa: PLC0415

        return await manyprocesses.run(generation, settings, accounts, sockets, log=log)
    from pillarbox.daemon import oneprocess  # noqa: PLC0415

    return await oneprocess.run(generation, settings, sockets, log)
