"""The lookup role: answers every question that needs a table, the ruleset, a password or the DNS.

Configurations are kept by generation: each question names the one that its session or envelope goes by, so that a
reload never changes the rules under a running session. What a question may wait for (the parent, a name service, a
hash) is waited for with a deadline; all else is answered from memory without suspending.

The tables of a generation live as long as it does: `add_config` makes them, `open` opens them (at once for what is
added later), `drop_config` and `close_tables` close them.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from pillarbox.conf import model
from pillarbox.conf.model import AUTH_SYSTEM, Config, pam_service
from pillarbox.errors import PermFail, PillarboxError, TempFail
from pillarbox.log import Log
from pillarbox.mail.envelope import Envelope, Sealed, encode_envelope
from pillarbox.mail.seal import seal
from pillarbox.roles.explain import Explanation, Question
from pillarbox.roles.lookup import (
    Expansion,
    FilterCase,
    FilterOutcome,
    Login,
    MxHost,
    Recipient,
    ReverseName,
    User,
)
from pillarbox.roles.parent import System, TableFile
from pillarbox.routing.admit import Admission
from pillarbox.routing.aliases import parse_addresses
from pillarbox.routing.expand import TEMPORARY, Expander, refusal_text
from pillarbox.routing.explain import Explainer
from pillarbox.routing.filtering import BuiltinFilters
from pillarbox.routing.includes import Includes
from pillarbox.routing.logins import SYSTEM_DEADLINE, Logins
from pillarbox.routing.planning import Plans
from pillarbox.routing.ruleset import Ruleset
from pillarbox.tables.db import DbTable
from pillarbox.tables.matchers import MailaddrMatcher
from pillarbox.tables.program import Program, ProgramTable, no_program
from pillarbox.tables.services import Service, bracketed, parse_credentials, parse_source
from pillarbox.tables.table import MemoryTable, Table, lookup_user, open_table

GETPWNAM = "<getpwnam>"
NAME_THREADS = 4  # questions to the name service at a time; nothing else has these threads, so nothing else stops it
NO_FORWARD = 1.0  # seconds that a user is believed to have no .forward
NO_FORWARD_MAX = 10_000  # users


class Resolver(Protocol):
    """What lookup needs of `dns/resolver`."""

    async def exchangers(self, domain: str, mx: bool, family: str) -> list[MxHost]:
        """See `roles.lookup.Lookup.exchangers`."""
        ...

    async def reverse_name(self, address: str) -> str:
        """See `roles.lookup.Lookup.reverse_name`."""
        ...

    async def client_name(self, address: str) -> ReverseName:
        """See `roles.lookup.Lookup.client_name`."""
        ...


class _Generation:
    """One configuration, compiled: its tables, ruleset and expander."""

    def __init__(self, *, config: Config, tables: dict[str, Table], expander: Expander) -> None:
        self.config = config
        self.tables = tables
        self.expander = expander
        self.filters = BuiltinFilters(config, tables)
        relays = [action for action in config.actions.values() if isinstance(action, model.Relay)]
        self.credentials = frozenset(relay.auth for relay in relays)
        self.hostnames = frozenset(relay.helo_src for relay in relays) | {x.hostnames for x in config.listeners}


class Lookup:
    """Implements `roles.lookup.Lookup`.

    `local_addresses()`: the addresses of this machine now, without brackets. `libexec`: the folder of
    `mail.mboxfile`, for files named by aliases. `alias_user`: whom commands and files of aliases run as.
    `program_of`: the program that answers for a table, by generation and the table's name. `plans`: for `explain`.
    """

    def __init__(
        self,
        *,
        config: Config,
        system: System,
        resolver: Resolver,
        seal_key: bytes,
        log: Log,
        now: Callable[[], float],
        local_addresses: Callable[[], Set[str]],
        libexec: str,
        alias_user: str = "_smtpd",
        plans: Plans | None = None,
        program_of: Callable[[int, str], Program] = no_program,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plans = plans
        self._system = system
        self._resolver = resolver
        self._seal_key = seal_key
        self._log = log
        self._now = now
        self._local_addresses = local_addresses
        self._libexec = libexec
        self._alias_user = alias_user
        self._program_of = program_of
        self._admission = Admission(now=monotonic)
        self._opened = False
        self._names = ThreadPoolExecutor(max_workers=NAME_THREADS, thread_name_prefix="names")
        self._includes = Includes()
        self._logins = Logins(system=system, now=now, local_addresses=local_addresses)
        self._generations: dict[int, _Generation] = {}
        self._current = config.generation
        self._no_forward: dict[User, float] = {}  # since when we know
        self.add_config(config)

    # -- generations

    def add_config(self, config: Config) -> None:
        """Compile a configuration and answer for its generation from now on; raises ConfigError."""
        tables = {name: self._open_table(config, table) for name, table in config.tables.items()}
        if GETPWNAM not in tables:
            system_users = model.Table(name=GETPWNAM, kind=model.TableKind.GETPWNAM)
            tables[GETPWNAM] = self._open_table(config, system_users)
        self._generations[config.generation] = self._compile(config, tables)
        if self._opened:
            _open_all(tables)

    def open(self) -> None:
        """Open the tables: there is somebody now to start their programs."""
        self._opened = True
        for generation in self._generations.values():
            _open_all(generation.tables)

    async def drop_config(self, generation: int) -> None:
        """Forget a configuration and close its tables; questions about it are TempFails afterwards."""
        dropped = self._generations.pop(generation, None)
        if dropped is not None:
            await asyncio.gather(*(table.close() for table in dropped.tables.values()))

    async def close_tables(self) -> None:
        """Forget all configurations: nothing will be asked any more."""
        await asyncio.gather(*(self.drop_config(generation) for generation in list(self._generations)))

    def use_config(self, generation: int, resolver: Resolver) -> None:
        """This is the one of today: DNS is asked, and files are read anew, as it says."""
        self._current, self._resolver = generation, resolver

    def close(self) -> None:
        """Stop the threads; what waits for them is cancelled."""
        self._names.shutdown(wait=False, cancel_futures=True)
        self._includes.close()
        self._logins.close()

    def _open_table(self, config: Config, table: model.Table) -> Table:
        return open_table(
            table,
            delimiter=config.smtp.sub_addr_delim[:1],
            names=self._names,
            on_bad_regex=lambda pattern, reason: self._bad_regex(table.name, pattern, reason),
            read_by_parent=self._system.read_database,
            program=lambda name: ProgramTable(
                name=name, program=self._program_of(config.generation, name), log=self._log, now=self._now
            ),
        )

    def _compile(self, config: Config, tables: dict[str, Table]) -> _Generation:
        ruleset = Ruleset(
            config=config, tables=tables, local_addresses=self._local_addresses, on_bad_regex=self._bad_regex
        )
        expander = Expander(
            config=config,
            ruleset=ruleset,
            tables=tables,
            find_user=lambda table, name: lookup_user(tables[table], name),
            read_forward=self._read_forward,
            read_include=self._includes.read,
            log=self._log,
            now=self._now,
            libexec=self._libexec,
            alias_user=self._alias_user,
        )
        return _Generation(config=config, tables=tables, expander=expander)

    def _bad_regex(self, table: str, pattern: str, reason: str) -> None:
        self._log.warn(f'table "{table}": regex "{pattern}" never matches: {reason}')

    def _generation(self, number: int) -> _Generation:
        generation = self._generations.get(number)
        if generation is None:
            raise TempFail(f"configuration {number} is gone")
        return generation

    def _table(self, generation: int, name: str) -> Table:
        table = self._generation(generation).tables.get(name)
        if table is None:
            raise TempFail(f'table "{name}" does not exist')
        return table

    # -- recipients

    async def expand(self, recipient: Recipient) -> Expansion:
        """Route and expand one recipient; see `roles.lookup.Lookup`."""
        try:
            outcome = await self._generation(recipient.generation).expander.expand(recipient)
        except TempFail as error:
            self._log.warn(f"expand: {recipient.rcpt}: {error}")
            outcome = TEMPORARY
        if isinstance(outcome, list):
            return Expansion(envelopes=tuple(self._seal(envelope) for envelope in outcome))
        code, words = outcome
        return Expansion(code=code, text=refusal_text(recipient.rcpt, words))

    def _seal(self, envelope: Envelope) -> Sealed:
        data = encode_envelope(envelope)
        return Sealed(data, seal(self._seal_key, data))

    async def _read_forward(self, user: User) -> bytes | None:
        # Most users have none, and each look costs the parent a thread: that there is none holds for a moment.
        if 0 <= self._now() - self._no_forward.get(user, 0.0) < NO_FORWARD:
            return None
        try:
            async with asyncio.timeout(SYSTEM_DEADLINE):
                found = await self._system.read_forward(user.name, user.uid, user.gid, user.home)
        except TimeoutError:
            raise TempFail(f"~/.forward of {user.name} could not be read in time") from None
        if found is None:
            if len(self._no_forward) >= NO_FORWARD_MAX:
                self._no_forward.clear()
            self._no_forward[user] = self._now()
        return found

    async def filter(self, case: FilterCase) -> FilterOutcome:
        """What builtin filters decide; see `roles.lookup.Lookup`."""
        return await self._generation(case.generation).filters.decide(case)

    # -- users

    async def authenticate(self, login: Login, password: str) -> bool:
        """Check a password; see `roles.lookup.Lookup`. User names are compared without regard to case."""
        config = self._generation(login.generation).config
        if login.table == AUTH_SYSTEM or pam_service(login.table):
            return await self._logins.check_system_password(config, login, password)
        return await self._logins.check_password(config, self._login_table(login), login, password)

    async def check_token(self, login: Login, token: str) -> bool:
        """See `roles.lookup.Lookup`."""
        config = self._generation(login.generation).config
        return await self._logins.check_token(config, self._login_table(login), login, token)

    async def offers_scram(self, generation: int, table: str) -> bool:
        """See `roles.lookup.Lookup`."""
        found = self._generation(generation).tables.get(table)
        return found is not None and self._logins.offers_scram(found)

    async def scram_salt(self, login: Login) -> tuple[bytes, int]:
        """See `roles.lookup.Lookup`."""
        config = self._generation(login.generation).config
        return await self._logins.salt(config, self._login_table(login), login)

    async def scram_signature(self, login: Login, message: bytes, proof: bytes) -> bytes:
        """See `roles.lookup.Lookup`."""
        config = self._generation(login.generation).config
        return await self._logins.signature(config, self._login_table(login), login, message, proof)

    def _login_table(self, login: Login) -> Table:
        return self._table(login.generation, login.table)

    async def may_send_as(self, generation: int, table: str, user: str, sender: str) -> bool:
        """Does the senders table allow this user this address? The null sender is allowed to nobody."""
        value = await self._table(generation, table).lookup(Service.MAILADDRMAP, user)
        if value is None:
            return False
        delimiter = self._generation(generation).config.smtp.sub_addr_delim[:1]
        allowed = MailaddrMatcher([(parse_addresses(value), 1)], delimiter=delimiter)
        return allowed.mask(sender or "@") != 0

    async def user(self, generation: int, table: str, name: str) -> User | None:
        """userinfo service."""
        return await lookup_user(self._table(generation, table), name)

    # -- sessions

    async def trusts_proxy(self, generation: int, table: str, address: str) -> bool:
        """netaddr service."""
        return await self._table(generation, table).match(Service.NETADDR, bracketed(address))

    async def admit(self, generation: int, holder: str, ticket: int, address: str) -> str:
        """See `roles.lookup.Lookup`."""
        return self._admission.admit(self._generation(generation).config.smtp, holder, ticket, address)

    async def hold(self, holder: str, sessions: dict[int, str]) -> None:
        """See `roles.lookup.Lookup`."""
        self._admission.hold(holder, sessions)

    async def leave(self, holder: str, ticket: int) -> None:
        """See `roles.lookup.Lookup`."""
        self._admission.leave(holder, ticket)

    async def spend(self, generation: int, what: str, address: str, user: str) -> str:
        """See `roles.lookup.Lookup`."""
        return self._admission.spend(self._generation(generation).config.smtp.rates, what, address, user)

    def release(self, holder: str) -> None:
        """A dispatcher is gone, and its sessions with it."""
        self._admission.release(holder)

    # -- relaying

    async def host_name(self, generation: int, table: str, address: str) -> str:
        """addrname service; only of tables that are there for it: in others a name might have a password."""
        if table not in self._generation(generation).hostnames:
            raise TempFail(f'table "{table}" is not one of host names in this configuration')
        return await self._table(generation, table).lookup(Service.ADDRNAME, bracketed(address)) or ""

    async def credentials(self, generation: int, table: str, label: str) -> tuple[str, str] | None:
        """credentials service; only of tables that relays log in by: a listener's hashes are told to nobody."""
        if table not in self._generation(generation).credentials:
            raise TempFail(f'table "{table}" is not one that this configuration relays by')
        value = await self._table(generation, table).lookup(Service.CREDENTIALS, label)
        return None if value is None else parse_credentials(label, value)

    async def relay_url(self, generation: int, table: str, domain: str) -> str:
        """relayhost service. With the domain "" the table is a list, and each call gets the next (`relay host`)."""
        found = self._table(generation, table)
        if domain:
            return await found.lookup(Service.RELAYHOST, domain) or ""
        return await found.fetch(Service.RELAYHOST) or ""

    async def source_addresses(self, generation: int, table: str) -> list[str]:
        """source service: all addresses of the table, without brackets, in the order of the reference (sorted)."""
        found = self._table(generation, table)
        if isinstance(found, MemoryTable):
            return [parse_source(key) for key in found.all_keys()]
        if isinstance(found, DbTable):
            return [parse_source(key) for key in await found.all_keys()]
        address = await found.fetch(Service.SOURCE)
        return [] if address is None else [parse_source(address)]

    # -- DNS

    async def reverse_name(self, address: str) -> str:
        """The forward-confirmed reverse name of an address."""
        return await self._resolver.reverse_name(address)

    async def client_name(self, address: str) -> ReverseName:
        """What DNS says about a client."""
        return await self._resolver.client_name(address)

    async def exchangers(self, domain: str, mx: bool, family: str) -> list[MxHost]:
        """Where mail for a domain goes."""
        return await self._resolver.exchangers(domain, mx, family)

    # -- control

    async def log_level(self, verbose: bool) -> None:
        """`smtpctl log verbose|brief`."""
        self._log.verbose = verbose

    async def explain(self, question: Question) -> Explanation:
        """What would become of a recipient of a session that begins now; see `roles.lookup.Lookup`."""
        if self._plans is None:
            raise PermFail("this server was built without what explains")
        generation = self._generations[self._current]
        return await Explainer(
            config=generation.config,
            tables=generation.tables,
            expander=generation.expander,
            lookup=self,
            plans=self._plans,
            local_addresses=self._local_addresses,
            served=self._opened,
        ).explain(question)

    async def update_table(self, name: str) -> bool:
        """Have a table read again; what cannot be read leaves the old content.

        Told of is the current configuration. Older ones that have it get the new content as well, as far as they mean
        the same by its name, or can get it themselves.
        """
        current = self._generations[self._current]
        if name not in current.config.tables:
            self._log.warn(f'Lookup table not found: "{name}"')
            return False
        older = [g for g in self._generations.values() if g is not current and name in g.config.tables]
        try:
            if current.config.tables[name].kind is model.TableKind.FILE:
                read = await self._system.read_table(name)
                for number in list(self._generations):
                    self._replace_entries(number, name, read)
            await asyncio.gather(current.tables[name].update(), *(_update_if_possible(g.tables[name]) for g in older))
        except PillarboxError as error:
            self._log.info(f'info: Failed to update table "{name}"')
            self._log.warn(f"table {name}: {error}")
            return False
        self._log.info(f'info: Table "{name}" successfully updated')
        return True

    def _replace_entries(self, number: int, name: str, read: TableFile) -> None:
        """In the configurations that have this file under this name; another may mean another file by it."""
        generation = self._generations[number]
        table = generation.config.tables.get(name)
        if table is None or (table.kind, table.config) != (model.TableKind.FILE, read.path):
            return
        opened = self._open_table(generation.config, _with_entries(table, read.entries))
        self._generations[number] = self._compile(generation.config, generation.tables | {name: opened})


def _open_all(tables: dict[str, Table]) -> None:
    for table in tables.values():
        table.open()


async def _update_if_possible(table: Table) -> None:
    with contextlib.suppress(PillarboxError):  # its questions will tell
        await table.update()


def _with_entries(table: model.Table, entries: tuple[tuple[str, str], ...]) -> model.Table:
    return model.Table(
        name=table.name,
        kind=table.kind,
        config=table.config,
        backend=table.backend,
        mapping=table.mapping,
        entries=entries,
    )
