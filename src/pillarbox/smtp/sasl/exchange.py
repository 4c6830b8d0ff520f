"""What every exchange is made of: steps to send, questions to have answered, and how lines are read.

An exchange takes the client's lines and says what comes next: a challenge to send, a question that somebody else
answers (`server/commands/auth` asks lookup), or the end. It knows no passwords but what the client sends, and no I/O.
"""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Protocol, TypeAlias

import msgspec

from pillarbox.smtp.commands import BadSyntax

USER_MAX = 255  # bytes
SECRET_MAX = 1023  # bytes


class Challenge(msgspec.Struct, frozen=True):
    """Say this (base64) and wait for the next line."""

    text: str


class CheckPassword(msgspec.Struct, frozen=True):
    """Is this the user's password? Answered by a bool."""

    user: str
    password: str


class CheckToken(msgspec.Struct, frozen=True):
    """Is this a bearer token of the user's? Answered by a bool."""

    user: str
    token: str


class AskSalt(msgspec.Struct, frozen=True):
    """How is the user's password salted? Answered by (salt, iterations), whether or not there is such a user."""

    user: str


class CheckProof(msgspec.Struct, frozen=True):
    """Does the proof fit what is stored of the user (RFC 5802 §3)? Answered by the server's signature, or b""."""

    user: str
    message: bytes  # the AuthMessage
    proof: bytes


class Success(msgspec.Struct, frozen=True):
    """It is this user."""

    user: str


class Failure(msgspec.Struct, frozen=True):
    """It is nobody we know."""


Question: TypeAlias = CheckPassword | CheckToken | AskSalt | CheckProof
Answer: TypeAlias = bool | bytes | tuple[bytes, int]
Step: TypeAlias = Challenge | Question | Success | Failure


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What an exchange must know of its connection.

    `nonce`: printable, without commas, never used before. `bindings`: channel bindings by type (RFC 5056).
    `plus`: a mechanism that uses one was offered.
    """

    nonce: str
    bindings: Mapping[str, bytes] = {}
    plus: bool = False


class Exchange(Protocol):
    """One run of a mechanism."""

    def respond(self, line: str | None) -> Step:
        """Take the initial response (None: there was none) or the next line. Raises `BadSyntax`, which ends it."""
        ...

    def answer(self, answer: Answer) -> Step:
        """Take the answer to the question that `respond` came to."""
        ...

    def label(self) -> str:
        """How the log names the step, without what was said: `AUTH PLAIN (...)`."""
        ...


def decode(line: str) -> bytes:
    """The bytes of a line in base64; `=` alone is nothing (RFC 4954 §4). Raises `BadSyntax`, for `*` as well."""
    if line == "=":
        return b""
    try:
        return b64decode("".join(line.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadSyntax("base64") from None


def challenge(message: str) -> Challenge:
    """A challenge of this text."""
    return Challenge(b64encode(message.encode()).decode())


def text(value: bytes, *, limit: int = SECRET_MAX) -> str:
    """A name or password: UTF-8 without control characters that end things. Raises `BadSyntax`."""
    if len(value) > limit or any(c in value for c in (b"\0", b"\r", b"\n")):
        raise BadSyntax("control character or too long")
    try:
        return value.decode()  # RFC 4616 §2: UTF-8
    except UnicodeDecodeError:
        raise BadSyntax("not UTF-8") from None


def saslname(value: bytes) -> str:
    """A name as SCRAM and GS2 write it (RFC 5801 §4): `=2C` is a comma, `=3D` an equals sign."""
    name = text(value, limit=USER_MAX * 3)
    if "=" in name.replace("=2C", "").replace("=3D", ""):
        raise BadSyntax("saslname")
    name = name.replace("=2C", ",").replace("=3D", "=")
    return text(name.encode(), limit=USER_MAX)
