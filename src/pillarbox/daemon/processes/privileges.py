"""Giving up rights: the users of the roles, and what every process renounces before it meets a peer."""

import ctypes
import os
import pwd
import resource

import msgspec

from pillarbox.errors import PillarboxError
from pillarbox.log import Log

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38

# The account of each role, and the ids it runs under where the machine has no such account. They lie in the range that
# system managers use for transient users (61184-65519), so that they belong to nobody.
ROLE_USERS = {
    "dispatcher": ("_smtpn", 65101),
    "lookup": ("_smtpl", 65102),
    "queue": ("_smtpq", 65103),
    "control": ("_smtpc", 65104),
    "filter": ("_smtpf", 65106),
}
# Whom programs that are not ours run as: those of tables, and filters that name no user.
PROGRAM_USER = ("_smtpd", 65105)


class Account(msgspec.Struct, frozen=True):
    """Ids to run under."""

    name: str
    uid: int
    gid: int


def role_accounts(log: Log) -> dict[str, Account]:
    """The account of each role: the machine's `_smtpX`, else ids of its own that nobody has (said in the log)."""
    accounts = {role: _account(*user) for role, user in ROLE_USERS.items()}
    missing = [f"{a.name} ({a.uid})" for a in accounts.values() if not _exists(a.name)]
    if missing:
        log.info(f"info: no such users, their roles run under spare ids: {', '.join(missing)}")
    return accounts


def program_account(log: Log) -> Account:
    """Whom programs that are not ours run as: `_smtpd`, else a spare id of its own (said in the log).

    Raises PillarboxError where that id is somebody's. It may ask a name service.
    """
    account = _account(*PROGRAM_USER)
    if not _exists(account.name):
        log.info(f"info: no user {account.name}: programs of tables and filters run under the spare id {account.uid}")
    return account


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _account(name: str, spare: int) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        try:
            taken = pwd.getpwuid(spare).pw_name
        except KeyError:
            return Account(name, spare, spare)
        raise PillarboxError(f"no user {name}, and uid {spare} is {taken}'s: create the system user {name}") from None
    if entry.pw_uid == 0:
        raise PillarboxError(f"user {name} has uid 0: give it an id of its own")
    return Account(name, entry.pw_uid, entry.pw_gid)


def become(account: Account) -> None:
    """Irrevocably become the account, without supplementary groups; raises PillarboxError if that did not hold."""
    os.setgroups([])
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    if os.getresuid() != (account.uid,) * 3 or os.getresgid() != (account.gid,) * 3 or os.getgroups():
        raise PillarboxError(f"could not become {account.name}")


def renounce() -> None:
    """What no role needs: new privileges by exec, being traced or dumped, core files. Raises PillarboxError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise PillarboxError(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_descriptor_limit() -> int:
    """RLIMIT_NOFILE to its hard limit; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A hard limit of "infinity" makes closing all descriptors endless; 1 Mi is more than a machine has sockets.
    wanted = min(hard, 1 << 20) if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
