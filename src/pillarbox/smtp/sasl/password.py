"""PLAIN and LOGIN: the client says the password itself."""

from pillarbox.smtp.commands import BadSyntax
from pillarbox.smtp.sasl.exchange import (
    SECRET_MAX,
    USER_MAX,
    Answer,
    Challenge,
    CheckPassword,
    Circumstances,
    Failure,
    Step,
    Success,
    decode,
    text,
)


class Plain:
    """PLAIN (RFC 4616). The authorization identity is ignored, as the reference does."""

    def __init__(self, circumstances: Circumstances) -> None:
        self._user = ""

    def respond(self, line: str | None) -> Step:
        """One message: authzid NUL user NUL password."""
        if line is None:
            return Challenge("")
        message = decode(line)
        if len(message) > SECRET_MAX or message.count(b"\0") != 2:
            raise BadSyntax("PLAIN message")
        _, user, password = message.split(b"\0")
        if not password:
            raise BadSyntax("PLAIN message")
        self._user = text(user, limit=USER_MAX)
        return CheckPassword(self._user, text(password))

    def answer(self, answer: Answer) -> Step:
        """Whether the password is right."""
        return Success(self._user) if answer else Failure()

    def label(self) -> str:
        """The one step."""
        return "AUTH PLAIN (...)"


class Login:
    """LOGIN: user and password, each asked for. Never specified, still wanted by mail clients."""

    def __init__(self, circumstances: Circumstances) -> None:
        self._user: str | None = None

    def respond(self, line: str | None) -> Step:
        """The name, perhaps at once, then the password."""
        if self._user is None:
            if line is None:
                return Challenge("VXNlcm5hbWU6")  # "Username:"
            self._user = text(decode(line), limit=USER_MAX)
            return Challenge("UGFzc3dvcmQ6")  # "Password:"
        return CheckPassword(self._user, text(decode(line or "")))

    def answer(self, answer: Answer) -> Step:
        """Whether the password is right."""
        return Success(self._user or "") if answer else Failure()

    def label(self) -> str:
        """Which of the two steps."""
        return "AUTH LOGIN (username)" if self._user is None else "AUTH LOGIN (password)"
