"""Logins: passwords, SCRAM proofs and bearer tokens, against tables, programs and system users.

Whoever asks learns whether it fits, never what is stored. Of a user who is not there, or has nothing that serves, is
told what would be told of one whose password is wrong (`decoys` says of whom); the salt of such a user is made up, the
same each time (RFC 5802 §9: "the server should not reveal whether the user exists").
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Set
from typing import TypeVar

from pillarbox.conf.model import AUTH_SYSTEM, Config, pam_service
from pillarbox.errors import TempFail
from pillarbox.mail.idn import fold_address
from pillarbox.roles.lookup import Login
from pillarbox.roles.parent import System
from pillarbox.routing.auth import Passwords
from pillarbox.routing.decoys import Decoys, parse_stored, parse_verifier
from pillarbox.routing.failures import Failures
from pillarbox.routing.tokens import fits_token
from pillarbox.routing.turns import Turns
from pillarbox.smtp.sasl import verifier
from pillarbox.smtp.sasl.verifier import Verifier
from pillarbox.tables.program import ProgramTable
from pillarbox.tables.services import Service, parse_credentials
from pillarbox.tables.table import Table

SYSTEM_DEADLINE = 60.0  # seconds; the parent has deadlines of its own below this

_T = TypeVar("_T")


class Logins:
    """Answers for `routing/lookup`. `local_addresses()`: of this machine; they are not counted against."""

    def __init__(self, *, system: System, now: Callable[[], float], local_addresses: Callable[[], Set[str]]) -> None:
        self._system = system
        self._local_addresses = local_addresses
        self._passwords = Passwords()
        self._failures = Failures(now=now)
        self._turns = Turns(self._failures)
        self._secret = b""
        self._decoys = Decoys()

    def close(self) -> None:
        """Forget what is waiting."""
        self._passwords.close()

    def offers_scram(self, table: Table) -> bool:
        """Is every password of the table a SCRAM verifier? Only then can every user do it, and nobody is told apart."""
        return self._decoys.all_verifiers(table)

    async def check_password(self, config: Config, table: Table, login: Login, password: str) -> bool:
        """Does the password fit? See `roles.lookup.Lookup.authenticate`."""
        return await self._counted(config, login, lambda: self._fits(table, login.user, password), secret=password)

    async def check_system_password(self, config: Config, login: Login, password: str) -> bool:
        """The same of a system user, who is asked for through the parent."""
        return await self._counted(config, login, lambda: self._fits_system(login, password), secret=password)

    async def check_token(self, config: Config, table: Table, login: Login, token: str) -> bool:
        """Is it a token of the user's? See `roles.lookup.Lookup.check_token`."""
        return await self._counted(config, login, lambda: _fits_token(table, login.user, token), secret=token)

    async def salt(self, config: Config, table: Table, login: Login) -> tuple[bytes, int]:
        """See `roles.lookup.Lookup.scram_salt`."""
        limit = config.smtp.max_failed_logins_per_source
        if self._counts(login):
            self._failures.left(login.address, limit)
            self._failures.check_user(login.address, login.user, limit)
        # All of it is done, whoever it is; names that the table takes for one are one here as well.
        name = f"{login.table}\0{fold_address(login.user)}".encode("utf-8", "surrogateescape")
        seed = hmac.digest(await self._own_secret(), name, "sha512")
        shape = await self._decoys.shape_for(table, seed)
        made_up = hashlib.shake_256(seed).digest(shape.salt_size)
        found = await self._stored_verifier(table, login.user)
        return (made_up, shape.iterations) if found is None else (found.salt, found.iterations)

    async def signature(self, config: Config, table: Table, login: Login, message: bytes, proof: bytes) -> bytes:
        """See `roles.lookup.Lookup.scram_signature`."""

        async def signature() -> bytes:
            if self._counts(login):
                limit = config.smtp.max_failed_logins_per_source
                self._failures.check_user(login.address, login.user, limit)
            found = await self._stored_verifier(table, login.user)
            if len(proof) != verifier.DIGEST_SIZE:
                return b""
            signed = (found or _NOBODY).signature(message, proof)
            return signed if found is not None else b""

        return await self._counted(config, login, signature)

    async def _fits(self, table: Table, user: str, password: str) -> bool:
        if isinstance(table, ProgramTable) and await table.registers(Service.AUTH):
            return await _program_says(table, user, password)
        value = await table.lookup(Service.CREDENTIALS, user)
        stored = None if value is None else parse_credentials(user, value)[1]
        self._decoys.note(table, stored)
        return await self._passwords.check(password, stored, decoy=await self._decoys.hash_for(table, user))

    async def _fits_system(self, login: Login, password: str) -> bool:
        service = "" if login.table == AUTH_SYSTEM else pam_service(login.table)
        try:
            async with asyncio.timeout(SYSTEM_DEADLINE):
                return await self._system.check_password(login.user, password, service, login.address)
        except TimeoutError:
            raise TempFail(f"the password of {login.user} was not checked in time") from None

    async def _counted(
        self, config: Config, login: Login, check: Callable[[], Awaitable[_T]], *, secret: str | None = None
    ) -> _T:
        """The outcome of a check, unless its source has failed too often; what is falsy counts as failed.

        Of a `secret` it can be told whether it was tried before; what comes without one has a limit for each user, too.
        """
        if not self._counts(login):
            return await check()
        async with self._turns.turn(login.address, config.smtp.max_failed_logins_per_source):
            outcome = await check()
            if not outcome:
                self._failures.count(login.address, user=login.user, secret=secret)
            return outcome

    async def _stored_verifier(self, table: Table, user: str) -> Verifier | None:
        value = await table.lookup(Service.CREDENTIALS, user)
        stored = "" if value is None else parse_stored(user, value)
        self._decoys.note(table, stored)
        return parse_verifier(stored)

    def _counts(self, login: Login) -> bool:
        return login.address not in self._local_addresses()

    async def _own_secret(self) -> bytes:
        if not self._secret:
            self._secret = await self._system.login_secret()
        return self._secret


async def _program_says(table: ProgramTable, user: str, secret: str) -> bool:
    # The program takes what is before the first colon for the user: nobody shall be somebody else to it.
    return ":" not in user and await table.match(Service.AUTH, f"{user.lower()}:{secret}")


async def _fits_token(table: Table, user: str, token: str) -> bool:
    if isinstance(table, ProgramTable) and await table.registers(Service.AUTH):
        return await _program_says(table, user, token)
    return fits_token(token, await table.lookup(Service.CREDENTIALS, user) or "")


# What the proof of a user who is not there is compared with.
_NOBODY = Verifier(
    iterations=verifier.ITERATIONS,
    salt=bytes(verifier.SALT_SIZE),
    stored_key=bytes(verifier.DIGEST_SIZE),
    server_key=bytes(verifier.DIGEST_SIZE),
)
