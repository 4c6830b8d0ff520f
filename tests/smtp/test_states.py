"""Which verb is legal when."""

from pillarbox.smtp.commands import Verb
from pillarbox.smtp.states import NEXT, State


def test_every_verb_is_legal_somewhere_and_none_within_a_message():
    assert {verb for table in NEXT.values() for verb in table} == set(Verb)
    assert NEXT[State.BODY] == {}


def test_a_message_needs_a_sender_and_a_sender_an_introduction():
    assert Verb.MAIL not in NEXT[State.CONNECTED]
    assert Verb.RCPT not in NEXT[State.IDENTIFIED]
    assert NEXT[State.TRANSACTION][Verb.DATA] is State.BODY


def test_no_second_transaction_within_one_and_no_change_of_the_channel():
    assert not {Verb.MAIL, Verb.STARTTLS, Verb.AUTH} & NEXT[State.TRANSACTION].keys()


def test_a_hello_resets():
    for state in (State.CONNECTED, State.IDENTIFIED, State.TRANSACTION):
        assert NEXT[state][Verb.EHLO] is NEXT[state][Verb.HELO] is State.IDENTIFIED
