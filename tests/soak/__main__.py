"""`python -m tests.soak [--minutes 30] [--wiring one|many]`: a soak and its figures; 1 where it found a fault."""

import argparse
import sys
import tempfile
from pathlib import Path

from tests import sandbox
from tests.soak.soak import Plan, soak
from tests.soak.verdict import findings
from tests.system.server import Wiring

_ROUND = 80.0  # seconds: 20 quiet, 60 attacked
_VANISHING = 10.0  # from so many minutes on there are clients that vanish


def main() -> int:
    """Run it and print."""
    parser = argparse.ArgumentParser(prog="soak", description="Honest mail beside 200 clients that misbehave.")
    parser.add_argument("--minutes", type=float, default=30.0, help="in all, both wirings together")
    parser.add_argument("--wiring", choices=["one", "many"], help="default: half of the time each")
    options = parser.parse_args()
    try:
        sandbox.enter()
    except sandbox.Refused as refused:
        print(f"soak: {refused}", file=sys.stderr)
        return 2
    wirings = [Wiring.ONE if options.wiring == "one" else Wiring.MANY] if options.wiring else list(Wiring)
    minutes = options.minutes / len(wirings)
    long = minutes >= _VANISHING
    rounds = max(1, round(minutes * 60 / _ROUND))
    plan = Plan(rounds, _ROUND / 4, _ROUND * 3 / 4, vanishing=long, settle=400.0 if long else 40.0)
    found = 0
    for wiring in wirings:
        folder = Path(tempfile.mkdtemp(prefix="soak-", dir=sandbox.WORK))
        print(f"{wiring}: {rounds} rounds of {_ROUND:.0f} s", flush=True)
        outcome = soak(folder, wiring, plan)
        print(outcome)
        for finding in findings(outcome):
            print(f"{wiring}: {finding}")
            found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
