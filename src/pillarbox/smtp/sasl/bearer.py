"""XOAUTH2 and OAUTHBEARER (RFC 7628): a token instead of a password. A token that does not fit is told in JSON."""

import re
from collections.abc import Callable

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl.exchange import (
    USER_MAX,
    Answer,
    Challenge,
    CheckToken,
    Circumstances,
    Failure,
    Step,
    Success,
    challenge,
    decode,
    saslname,
    text,
)

TOKEN_MAX = 8192  # bytes
_BEARER = re.compile(rb"bearer +([A-Za-z0-9\-._~+/]+=*) *", re.IGNORECASE)  # RFC 6750 §2.1
_GS2 = re.compile(rb"[ny],(?:a=([^,]*))?,")  # RFC 7628 §3.1: no channel binding
_KEY = re.compile(rb"[A-Za-z]+")


class Bearer:
    """What both have in common: a message that `read` takes apart into user and token, raising `BadSyntax`.

    `refusal`: what a client is told of a token that does not fit.
    """

    def __init__(self, *, name: str, refusal: str, read: Callable[[bytes], tuple[str, str]]) -> None:
        self._name = name
        self._refusal = refusal
        self._read = read
        self._user = ""
        self._refused = False

    def respond(self, line: str | None) -> Step:
        """One message; after a refusal, anything."""
        if self._refused:
            return Failure()  # RFC 7628 §3.2.3: the client sent its dummy
        if line is None:
            return Challenge("")
        self._user, token = self._read(decode(line))
        return CheckToken(self._user, token)

    def answer(self, answer: Answer) -> Step:
        """Whether the token fits."""
        if answer:
            return Success(self._user)
        self._refused = True
        return challenge(self._refusal)

    def label(self) -> str:
        """The one step."""
        return f"AUTH {self._name} (...)"


def xoauth2(_circumstances: Circumstances) -> Bearer:
    """XOAUTH2, as Google and Microsoft describe it."""
    refusal = '{"status":"401","schemes":"bearer","scope":"mail"}'
    return Bearer(name="XOAUTH2", refusal=refusal, read=_read_xoauth2)


def oauthbearer(_circumstances: Circumstances) -> Bearer:
    """OAUTHBEARER (RFC 7628)."""
    refusal = '{"status":"invalid_token","scope":"mail"}'
    return Bearer(name="OAUTHBEARER", refusal=refusal, read=_read_oauthbearer)


def _read_xoauth2(message: bytes) -> tuple[str, str]:
    """`user=NAME ^A auth=Bearer TOKEN ^A ^A`."""
    fields = _fields(message)
    user = text(fields.get(b"user", b""), limit=USER_MAX)
    if not user:
        raise BadSyntax("XOAUTH2 message without a user")
    return user, _token(fields)


def _read_oauthbearer(message: bytes) -> tuple[str, str]:
    """A GS2 header that names the user, then `^A auth=Bearer TOKEN ^A ^A`.

    A token alone says nothing of whose it is: without a name it is refused.
    """
    header, separator, rest = message.partition(b"\x01")
    found = _GS2.fullmatch(header)
    if not separator or found is None or not found[1]:
        raise BadSyntax("OAUTHBEARER message without a user")
    return saslname(found[1]), _token(_fields(rest))


def _fields(message: bytes) -> dict[bytes, bytes]:
    """`key=value ^A …, ^A` (RFC 7628 §3.1)."""
    if len(message) > TOKEN_MAX or not message.endswith(b"\x01\x01"):
        raise BadSyntax("bearer message")
    fields: dict[bytes, bytes] = {}
    for pair in message[:-2].split(b"\x01"):
        key, equals, value = pair.partition(b"=")
        if not equals or not _KEY.fullmatch(key) or key.lower() in fields:
            raise BadSyntax("bearer message")
        fields[key.lower()] = value
    return fields


def _token(fields: dict[bytes, bytes]) -> str:
    found = _BEARER.fullmatch(fields.get(b"auth", b""))
    if found is None:
        raise BadSyntax("bearer message without a token")
    return found[1].decode("ascii")
