"""The catalogue of replies: every line that the server side says, as a value.

Handlers return these; `server/session` alone writes them. Wording and codes are the reference's; enhanced codes are
RFC 3463's. What has arguments is a function. Nothing that a peer sent is echoed unless it is printable ASCII.
"""

from collections.abc import Sequence

from pillarbox.errors import NoSpace, TempFail


class Reply:
    """A code with its lines (the text behind the code, without CRLF). `closes`: the connection ends after it."""

    __slots__ = ("closes", "code", "lines", "wire")

    def __init__(self, code: int, *lines: str, closes: bool = False, utf8: bool = False) -> None:
        """`utf8`: the client asked for SMTPUTF8, so that it may be answered in it (RFC 6531 §3.7.4.2)."""
        self.code = code
        self.lines = lines = tuple([_visible(line, utf8=utf8) for line in lines])
        self.closes = closes
        last = len(lines) - 1
        text = "".join(f"{code}{' ' if i == last else '-'}{line}\r\n" for i, line in enumerate(lines))
        self.wire = text.encode()

    @property
    def positive(self) -> bool:
        """2yz or 3yz."""
        return self.code < 400

    @property
    def text(self) -> str:
        """The last line as it goes out: what log lines quote."""
        return f"{self.code} {self.lines[-1]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reply) and self.wire == other.wire

    def __hash__(self) -> int:
        return hash(self.wire)

    def __repr__(self) -> str:
        return f"Reply({self.wire!r})"


def _visible(line: str, *, utf8: bool) -> str:
    if line.isprintable() and (utf8 or line.isascii()):
        return line
    return "".join(c if " " <= c <= "~" or (utf8 and c.isprintable()) else "?" for c in line)


# RFC 3463 class.subject.detail with the reference's words for it.
_INVALID_COMMAND = "5.5.1 Invalid command"
_INVALID_ARGUMENTS = "5.5.4 Invalid command arguments"

OK = Reply(250, "2.0.0 Ok")
RESET = Reply(250, "2.0.0 Reset state")
BYE = Reply(221, "2.0.0 Bye", closes=True)
RECIPIENT_OK = Reply(250, "2.1.5 Destination address valid: Recipient ok")
START_BODY = Reply(354, 'Enter mail, end with "." on a line by itself')
READY_FOR_TLS = Reply(220, "2.0.0 Ready to start TLS")
AUTHENTICATED = Reply(235, "2.0.0 Authentication succeeded")
HELP = Reply(
    214,
    "2.0.0 This is Pillarbox",
    "2.0.0 To report bugs in the implementation, please contact bugs@openbsd.org",
    "2.0.0 with full details",
    "2.0.0 End of HELP info",
)

UNRECOGNIZED = Reply(500, f"{_INVALID_COMMAND}: Command unrecognized")
NOT_ALLOWED = Reply(503, f"{_INVALID_COMMAND}: Command not allowed at this point.")
NO_ARGUMENTS = Reply(500, f"{_INVALID_ARGUMENTS}: command does not accept arguments.")
NO_PARAMETERS_ALLOWED = Reply(501, f"{_INVALID_ARGUMENTS}: No parameters allowed")
NO_PARAMETERS_GIVEN = Reply(501, f"{_INVALID_ARGUMENTS}: No parameters given")
NOT_SUPPORTED = Reply(503, f"{_INVALID_COMMAND}: Command not supported")
WIZ = Reply(500, f"{_INVALID_COMMAND}: this feature is not supported yet ;-)")
BAD_CHARACTER = Reply(500, "5.5.2 Syntax error: Invalid character in command")
SYNTAX_ERROR = Reply(501, "5.5.2 Syntax error: Syntax error")

INVALID_DOMAIN = Reply(501, f"{_INVALID_ARGUMENTS}: Invalid domain name")
HELO_WITHOUT_NAME = Reply(501, f"{_INVALID_COMMAND}: HELO requires domain name")
EHLO_WITHOUT_NAME = Reply(501, f"{_INVALID_COMMAND}: EHLO requires domain name")

ALREADY_SECURED = Reply(503, f"{_INVALID_COMMAND}: Channel already secured")
TLS_INJECTION = Reply(503, f"{_INVALID_COMMAND}: No data may follow STARTTLS", closes=True)
TLS_FIRST = Reply(530, f"{_INVALID_COMMAND}: Must issue a STARTTLS command first")
AUTH_FIRST = Reply(530, f"{_INVALID_COMMAND}: Must issue an AUTH command first")
ALREADY_AUTHENTICATED = Reply(503, f"{_INVALID_COMMAND}: Already authenticated")
AUTH_FAILED = Reply(535, "Authentication failed")
TOO_MANY_LOGINS = Reply(421, "4.7.0 Too many failed logins", closes=True)
AUTH_TEMPFAIL = Reply(454, "4.7.0 Temporary authentication failure")  # RFC 4954 §6

BAD_SENDER = Reply(553, "5.1.0 Sender address syntax error")
BAD_RECIPIENT = Reply(501, "5.1.3 Recipient address syntax error")
SENDER_REJECTED = Reply(530, "Sender rejected")
TOO_MANY_MAILS = Reply(452, "4.5.3 Too many recipients: Too many messages sent")
TOO_MANY_RECIPIENTS = Reply(451, "4.5.3 Too many recipients: Too many recipients")
NO_RECIPIENT = Reply(503, f"{_INVALID_ARGUMENTS}: No recipient specified")
BAD_CHUNK = Reply(501, f"{_INVALID_ARGUMENTS}: BDAT size [LAST]", closes=True)  # what follows cannot be told apart
BAD_SIZE = Reply(501, f"{_INVALID_ARGUMENTS}: Invalid SIZE")
DECLARED_TOO_BIG = Reply(552, "5.3.4 Message too big for system")  # RFC 1870 §6.1
NOTIFY_NEVER = Reply(553, "NOTIFY option NEVER cannot be combined with other options")
BAD_ORCPT = Reply(553, "ORCPT address syntax error")

TOO_BIG = Reply(554, "5.3.4 Message too big for system: Transaction failed, message too big")
LOOP = Reply(500, "5.4.6 Routing loop detected: Loop detected")
MALFORMED = Reply(550, "5.7.1 Delivery not authorized, message refused: Message is not RFC 2822 compliant")
HEADER_TOO_BIG = Reply(552, "5.3.4 Message too big for system: Header too big")
BARE_NEWLINE = Reply(550, "5.6.0 Message refused: bare CR or LF in message data (RFC 5321 2.3.8)")

MESSAGE_LINE_TOO_LONG = Reply(550, "5.6.0 Message refused: a line is too long")

LINE_TOO_LONG = Reply(500, "5.0.0 Line too long", closes=True)
COMMAND_TOO_LONG = Reply(500, "5.0.0 Command line too long", closes=True)
BARE_NEWLINE_IN_COMMAND = Reply(500, "5.5.2 Syntax error: bare LF in command, lines end with CRLF", closes=True)

TEMPORARY_FAILURE = Reply(451, "4.3.0 Temporary failure")
NO_SPACE = Reply(452, "4.3.1 Mail system full: try again later")
PERMANENT_FAILURE = Reply(554, "5.3.0 Transaction failed")
INTERNAL_ERROR = Reply(421, "4.3.0 Internal server error", closes=True)
SHUTTING_DOWN = Reply(421, "4.3.2 Service shutting down", closes=True)
TOO_MANY_SESSIONS = Reply(421, "4.3.2 Too many connections, try again later", closes=True)
TOO_MANY_FROM_SOURCE = Reply(421, "4.7.0 Too many connections from your address, try again later", closes=True)
TOO_MANY_ERRORS = Reply(421, "4.7.0 Too many failed commands", closes=True)
TOO_FAST = Reply(450, "4.7.1 Too much mail in a short time, try again later")
TALKED_FIRST = Reply(554, "5.5.1 Protocol error: you spoke before the greeting", closes=True)


def limited_session(limit: str) -> Reply:
    """To a client whom a limit of sessions, or their rate, keeps out."""
    return TOO_MANY_SESSIONS if limit == "max-session" else TOO_MANY_FROM_SOURCE


def banner(name: str) -> Reply:
    """The greeting of a listener."""
    return Reply(220, f"{name} ESMTP Pillarbox")


def hello(name: str, peer: str, address: str, extensions: Sequence[str] = ()) -> Reply:
    """The answer to HELO, or with extensions to EHLO. `address` as it is shown: in brackets."""
    return Reply(250, f"{name} Hello {peer} {address}, pleased to meet you", *extensions)


def names(words: Sequence[str]) -> Reply:
    """The answer to HELP about something of which there are several."""
    return Reply(214, f"2.0.0 {' '.join(words)}")


def accepted(msgid: int) -> Reply:
    """The message is ours."""
    return Reply(250, f"2.0.0 {msgid:08x} Message accepted for delivery")


def chunk_received(size: int) -> Reply:
    """A chunk that is not the last (RFC 3030 §2)."""
    return Reply(250, f"2.0.0 {size} octets received")


def challenge(text: str) -> Reply:
    """The next step of an AUTH exchange; `text` is base64 already (RFC 4954 §4)."""
    return Reply(334, text)


def unsupported_mechanism(name: str) -> Reply:
    """AUTH with a mechanism that is not offered."""
    return Reply(504, f'5.7.4 Security features not supported: AUTH method "{name}" not supported')


def unsupported_mail_option(option: str) -> Reply:
    """An unknown parameter of MAIL."""
    return Reply(503, f"{_INVALID_ARGUMENTS}: Unsupported option {option}")


def mail_option_too_long(option: str) -> Reply:
    """An ENVID beyond what an envelope holds."""
    return Reply(503, f"{_INVALID_ARGUMENTS}: option too large, truncated: {option}")


def unsupported_rcpt_option(option: str) -> Reply:
    """An unknown parameter of RCPT."""
    return Reply(503, f"Unsupported option {option}")


def expansion_refused(code: int, text: str, *, utf8: bool = False) -> Reply:
    """What lookup said about a recipient; a code that is no refusal is none that we could send."""
    return Reply(code, text, utf8=utf8) if 400 <= code <= 599 else TEMPORARY_FAILURE


def temporary(error: TempFail) -> Reply:
    """The reply for a temporary failure: a full disk is worth a code of its own (RFC 3463 §3.4, X.3.1)."""
    return NO_SPACE if isinstance(error, NoSpace) else TEMPORARY_FAILURE
