"""AUTH exchanges (RFC 4954): what the client says, step by step, until there are credentials to check.

An exchange knows nothing of who checks them. A further mechanism is a class here and a line in `MECHANISMS`.
"""

import binascii
from base64 import b64decode
from typing import Protocol

import msgspec

from pillarbox.smtp.commands import BadSyntax

_USER_MAX = 255
_PLAIN_MAX = 1023


class Challenge(msgspec.Struct, frozen=True):
    """Say this (base64) and wait for the next line."""

    text: str


class Credentials(msgspec.Struct, frozen=True):
    """What is to be checked."""

    user: str
    password: str


class Exchange(Protocol):
    """One run of a mechanism."""

    def respond(self, line: str | None) -> Challenge | Credentials:
        """Take the initial response (None: there was none) or the next line. Raises `BadSyntax`, which ends it."""
        ...

    def label(self) -> str:
        """How the log names the step, without what was said: `AUTH PLAIN (...)`."""
        ...


def _decode(line: str) -> bytes:
    try:
        return b64decode("".join(line.split()), validate=True)
    except (binascii.Error, ValueError):
        raise BadSyntax("base64") from None


def _text(value: bytes, *, limit: int = _PLAIN_MAX) -> str:
    if len(value) > limit or any(c in value for c in (b"\0", b"\r", b"\n")):
        raise BadSyntax("control character or too long")
    try:
        return value.decode()  # RFC 4616 §2: UTF-8
    except UnicodeDecodeError:
        raise BadSyntax("not UTF-8") from None


class Plain:
    """PLAIN (RFC 4616). The authorization identity is ignored, as the reference does."""

    def respond(self, line: str | None) -> Challenge | Credentials:
        """One message: authzid NUL user NUL password."""
        if line is None:
            return Challenge("")
        message = _decode(line)
        if len(message) > _PLAIN_MAX or message.count(b"\0") != 2:
            raise BadSyntax("PLAIN message")
        _, user, password = message.split(b"\0")
        if not password:
            raise BadSyntax("PLAIN message")
        return Credentials(_text(user, limit=_USER_MAX), _text(password))

    def label(self) -> str:
        """The one step."""
        return "AUTH PLAIN (...)"


class Login:
    """LOGIN: user and password, each asked for. Never specified, still wanted by mail clients."""

    def __init__(self) -> None:
        self._user: str | None = None

    def respond(self, line: str | None) -> Challenge | Credentials:
        """The name, perhaps at once, then the password."""
        if not line:
            if self._user is None and line is None:
                return Challenge("VXNlcm5hbWU6")  # "Username:"
            line = ""
        value = _decode(line)
        if self._user is None:
            self._user = _text(value, limit=_USER_MAX)
            return Challenge("UGFzc3dvcmQ6")  # "Password:"
        return Credentials(self._user, _text(value))

    def label(self) -> str:
        """Which of the two steps."""
        return "AUTH LOGIN (username)" if self._user is None else "AUTH LOGIN (password)"


MECHANISMS: dict[str, type[Plain] | type[Login]] = {"PLAIN": Plain, "LOGIN": Login}
