"""The configurations that the server goes by: the current one, and those that something under way still needs.

The parent alone decides which is current; a role that starts again is told all of them. What is read together with a
configuration (certificates, the machine's addresses, where listeners are) belongs to it.
"""

import msgspec

from pillarbox.conf.model import Config, TableKind, pam_service
from pillarbox.daemon import interfaces
from pillarbox.daemon.settings import Generation, KeyPair
from pillarbox.daemon.wiring import DISPATCHER, LOOKUP, QUEUE
from pillarbox.errors import ConfigError, PillarboxError, Problem

LISTEN_MAX = 240  # addresses: a dispatcher gets its sockets in one message with what else it needs at its start

Entries = tuple[tuple[str, str], ...]


def read_generation(config: Config) -> Generation:
    """The configuration with what is read from the machine along with it. Raises PillarboxError, ConfigError."""
    return Generation(
        config=config,
        pki={p.name: KeyPair(_read(p.cert), _read(p.key)) for p in config.pki.values() if p.cert and p.key},
        ca={name: _read(path) for name, path in config.ca.items()},
        local_addresses=tuple(sorted(interfaces.local_addresses())),
        listening=_listening(config),
    )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise PillarboxError(f"{path}: {error.strerror}") from error


def _listening(config: Config) -> dict[str, int]:
    """Listener ids by the address of each socket."""
    found: dict[str, int] = {}
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    for listener in config.listeners:
        if listener.socket:
            continue
        for address in {interfaces.address_of(endpoint): None for endpoint in interfaces.endpoints(listener)}:
            if address in found:
                shown = address.replace(" ", " port ")
                problem = f"listen on {shown}: line {lines[address]} already does"
                problems.append(Problem(problem, config.file, listener.line))
            found.setdefault(address, listener.id)
            lines.setdefault(address, listener.line)
    if len(found) > LISTEN_MAX:
        problem = f"{len(found)} addresses to listen on: {LISTEN_MAX} at most (one address of 0.0.0.0 or :: takes all)"
        problems.append(Problem(problem, config.file, max(lines.values())))
    if problems:
        raise ConfigError(problems)
    return found


def for_role(generation: Generation, role: str) -> Generation:
    """Without what is not this role's: table contents are lookup's, certificates dispatchers', keys not everybody's."""
    config = _config_for(generation.config, role)
    if role == DISPATCHER:
        return msgspec.structs.replace(generation, config=config)
    return msgspec.structs.replace(generation, config=config, pki={}, ca={}, listening={})


def _config_for(config: Config, role: str) -> Config:
    if role == LOOKUP:
        return msgspec.structs.replace(config, queue=msgspec.structs.replace(config.queue, encryption=""))
    tables = {n: msgspec.structs.replace(t, entries=()) for n, t in config.tables.items()}
    config = msgspec.structs.replace(config, tables=tables)
    if role != QUEUE:
        config = msgspec.structs.replace(
            config,
            srs=msgspec.structs.replace(config.srs, key="", backup_key=""),
            queue=msgspec.structs.replace(config.queue, encryption=""),
        )
    return config


class Generations:
    """`current`, and by number all that live. Numbers are given out once, whatever becomes of a reload."""

    def __init__(self, first: Generation) -> None:
        self.current = first
        self._next: Generation | None = None
        self._live = {first.number: first}
        self._last = first.number
        self._updated: dict[tuple[str, str], Entries] = {}  # tables that were read anew, by name and path

    def expect(self) -> None:
        """A file is about to be read: tables that are updated from now on are newer than what it brings."""
        self._updated.clear()

    def propose(self, generation: Generation) -> Generation:
        """What was read, with its number: the next one if it is committed."""
        self._last += 1
        self._next = msgspec.structs.replace(
            generation, config=msgspec.structs.replace(generation.config, generation=self._last)
        )
        for (name, path), entries in self._updated.items():
            self._next = _updated(self._next, name, path, entries)
        return self._next

    def commit(self) -> None:
        """What was proposed is the current one from now on, for every role that starts."""
        assert self._next is not None
        self.current = self._live[self._next.number] = self._next
        self._next = None

    def abort(self) -> None:
        """What was proposed is not used."""
        self._next = None

    def older(self) -> list[Generation]:
        """Those that live beside the current one, oldest first."""
        return [g for g in self._live.values() if g.number != self.current.number]

    def find(self, number: int) -> Config | None:
        """The configuration of this number, also when it is only proposed; None where there is none."""
        known = (g for g in self._all() if g.number == number)
        return next((generation.config for generation in known), None)

    def reads_database(self, path: str) -> bool:
        """Does any of them have a `db:` table in this file?"""
        tables = (table for generation in self._all() for table in generation.config.tables.values())
        return any(table.kind is TableKind.DB and table.config == path for table in tables)

    def has_processors(self) -> bool:
        """Has any of them filters, or reports, that are programs?"""
        return any(generation.config.procs for generation in self._all())

    def asks_pam(self, service: str) -> bool:
        """Does any of them ask this PAM service?"""
        listeners = (listener for generation in self._all() for listener in generation.config.listeners)
        return any(pam_service(listener.auth) == service for listener in listeners)

    def _all(self) -> list[Generation]:
        return [*self._live.values(), *([self._next] if self._next is not None else [])]

    def forget(self, number: int) -> None:
        """Nothing goes by it any more."""
        del self._live[number]

    def update_table(self, name: str, path: str, entries: Entries) -> None:
        """A file was read anew: its content in every configuration that has it under this name."""
        self._updated[name, path] = entries
        self._live = {number: _updated(g, name, path, entries) for number, g in self._live.items()}
        self.current = self._live[self.current.number]
        if self._next is not None:
            self._next = _updated(self._next, name, path, entries)


def _updated(generation: Generation, name: str, path: str, entries: Entries) -> Generation:
    config = generation.config
    table = config.tables.get(name)
    if table is None or (table.kind, table.config) != (TableKind.FILE, path):
        return generation
    table = msgspec.structs.replace(table, entries=entries)
    return msgspec.structs.replace(
        generation, config=msgspec.structs.replace(config, tables=config.tables | {name: table})
    )
