"""A minute of `make soak` in each wiring."""

from pathlib import Path

from tests.soak.soak import ATTACKERS, Plan, soak
from tests.soak.verdict import findings
from tests.system.server import Wiring


def test_honest_mail_is_served_beside_clients_that_misbehave_and_nothing_leaks(folder: Path, wiring: Wiring) -> None:
    outcome = soak(folder, wiring, Plan(rounds=3, quiet=4, attacked=8))
    print(outcome)
    assert outcome.misbehaved.total() > 5 * ATTACKERS
    assert not list(findings(outcome)), str(outcome)
