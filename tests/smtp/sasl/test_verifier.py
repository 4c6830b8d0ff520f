"""Stored SCRAM verifiers, and the preparation of names and passwords."""

import base64

import pytest

from pillarbox.smtp.sasl import verifier

# RFC 7677 §3: user "user", password "pencil".
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
STORED = (
    "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:"
    "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
)


def test_it_is_stored_as_postgresql_does():
    assert str(verifier.make("pencil", salt=SALT, iterations=4096)) == STORED
    assert str(verifier.parse(STORED)) == STORED
    assert verifier.parse(STORED).fits("pencil")
    assert not verifier.parse(STORED).fits("Pencil")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pencil",
        "SCRAM-SHA-256$",
        STORED.replace("4096", "4095"),
        STORED.replace("4096", "0"),
        STORED.replace("4096", "99999999"),
        STORED.replace("SHA-256", "SHA-1"),
        STORED[:-1],
        STORED + "x",
        STORED + "\n",
        STORED.replace("W22", "§22"),
    ],
)
def test_what_is_no_verifier_is_refused(text):
    with pytest.raises(ValueError):
        verifier.parse(text)


@pytest.mark.parametrize(
    ("given", "prepared"),
    [  # RFC 4013 §3
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("e\u0301", "\u00e9"),
        # What it forbids stays as it is: a password that was given must go on working.
        ("\u0007\u00e9", "\u0007\u00e9"),
        ("\u0627\u0031", "\u0627\u0031"),
    ],
)
def test_saslprep(given, prepared):
    assert verifier.prepare(given) == prepared


def test_a_password_is_the_same_however_it_was_typed():
    assert verifier.make("caf\u00e9", salt=SALT, iterations=4096).fits("cafe\u0301")
