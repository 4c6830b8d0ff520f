"""Which verb is legal when: a table. A missing key is the refusal (`replies.NOT_ALLOWED`).

The state advances only on a positive reply, to what the table says.
"""

from enum import Enum, auto

from pillarbox.smtp.commands import Verb


class State(Enum):
    """Where a session stands."""

    CONNECTED = auto()  # nobody introduced themselves yet, or TLS made us forget it (RFC 3207 §4.2)
    IDENTIFIED = auto()
    TRANSACTION = auto()  # after MAIL
    BODY = auto()  # after DATA, until the message ended
    CHUNKS = auto()  # between the chunks of a message


_ANYWHERE = (Verb.NOOP, Verb.HELP, Verb.WIZ, Verb.QUIT)


def _stays(state: State) -> dict[Verb, State]:
    return dict.fromkeys(_ANYWHERE, state)


NEXT: dict[State, dict[Verb, State]] = {
    State.CONNECTED: {
        **_stays(State.CONNECTED),
        Verb.HELO: State.IDENTIFIED,
        Verb.EHLO: State.IDENTIFIED,
    },
    State.IDENTIFIED: {
        **_stays(State.IDENTIFIED),
        # RFC 5321 §4.1.4: a second EHLO resets, like RSET.
        Verb.HELO: State.IDENTIFIED,
        Verb.EHLO: State.IDENTIFIED,
        Verb.RSET: State.IDENTIFIED,
        Verb.STARTTLS: State.CONNECTED,
        Verb.AUTH: State.IDENTIFIED,
        Verb.MAIL: State.TRANSACTION,
    },
    State.TRANSACTION: {
        **_stays(State.TRANSACTION),
        Verb.HELO: State.IDENTIFIED,
        Verb.EHLO: State.IDENTIFIED,
        Verb.RSET: State.IDENTIFIED,
        Verb.RCPT: State.TRANSACTION,
        Verb.DATA: State.BODY,
        Verb.BDAT: State.CHUNKS,
    },
    State.BODY: {},
    # RFC 3030 §2: DATA and BDAT do not mix, and there are no further recipients.
    State.CHUNKS: {
        **_stays(State.CHUNKS),
        Verb.HELO: State.IDENTIFIED,
        Verb.EHLO: State.IDENTIFIED,
        Verb.RSET: State.IDENTIFIED,
        Verb.BDAT: State.CHUNKS,
    },
}
