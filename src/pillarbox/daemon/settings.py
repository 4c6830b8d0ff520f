"""What the command line says, and what a role is told when it starts."""

import msgspec

from pillarbox.conf.model import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The options of smtpd(8) and ours."""

    file: str
    state: str
    directory: str = "/"  # where it was started: what relative names in the configuration are relative to
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


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration, and what was read together with it. A role is sent only what is its own (`generations`)."""

    config: Config
    pki: dict[str, KeyPair] = {}  # dispatchers: PEM by name
    ca: dict[str, bytes] = {}  # dispatchers: PEM by name
    local_addresses: tuple[str, ...] = ()
    listening: dict[str, int] = {}  # dispatchers: socket address → listener id

    @property
    def number(self) -> int:
        """Its place among those that the server has used."""
        return self.config.generation


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """What one role needs when it starts. `older`: configurations that something under way still goes by."""

    role: str
    index: int  # which of several dispatchers
    generation: Generation
    older: tuple[Generation, ...] = ()
    state: str
    verbose: bool = False
    debug: bool = False
    paused: tuple[str, ...] = ()
    blocked: tuple[tuple[str, str], ...] = ()  # queue: (source, destination) of routes that are paused
    dispatchers: int = 1
    seal_key: bytes = b""  # lookup and queue
    account: tuple[str, int, int] | None = None  # name, uid, gid to become
    restarted: bool = False
