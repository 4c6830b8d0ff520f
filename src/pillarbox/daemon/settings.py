"""What the command line says, and what a role is told when it starts."""

import msgspec

from pillarbox.conf.model import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of smtpd(8) and ours."""

    file: str
    state: str
    macros: dict[str, str] = {}
    foreground: bool = False
    debug: bool = False  # -d: stay in the foreground, log to stderr
    verbose: bool = False
    one_process: bool = False
    dispatchers: int = 1
    paused: tuple[str, ...] = ()  # -P: mda, mta, smtp
    trace: tuple[str, ...] = ()


class KeyPair(msgspec.Struct, frozen=True):
    """PEM of a `pki`: certificate chain and private key, read by the parent."""

    cert: bytes
    key: bytes


class Secrets(msgspec.Struct, frozen=True):
    """What the parent read for the dispatchers: pairs by `pki` name, PEM of authorities by `ca` name."""

    pki: dict[str, KeyPair]
    ca: dict[str, bytes]


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What one role needs; each is sent only what is its own (`for_role` in `parent`)."""

    role: str
    index: int  # which of several dispatchers
    config: Config
    state: str
    verbose: bool = False
    debug: bool = False
    paused: tuple[str, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()  # queue: (source, destination) of routes that are paused
    dispatchers: int = 1
    seal_key: bytes = b""  # lookup and queue
    pki: dict[str, KeyPair] = {}  # dispatchers
    ca: dict[str, bytes] = {}  # dispatchers: PEM
    local_addresses: tuple[str, ...] = ()
    account: tuple[str, int, int] | None = None  # name, uid, gid to become
    restarted: bool = False
