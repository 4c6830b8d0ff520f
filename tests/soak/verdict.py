"""What a soak must not find."""

from collections.abc import Iterator

from tests.soak.soak import Outcome

SLOWER = 3.0  # times the quiet p99
_NOTICEABLE = 0.1  # seconds: less is never too slow, and is what a busy machine does by itself
_MEGABYTES = 12.0  # that memory may grow: allocators keep what they once had


def findings(outcome: Outcome) -> Iterator[str]:
    """Each thing that is wrong, in words."""
    before, after, tally = outcome.before, outcome.after, outcome.tally
    if outcome.problems:
        yield f"honest clients were not served: {len(outcome.problems)} times, e.g. {outcome.problems[:3]}"
    if wrong := {number for number in tally.acknowledged if outcome.arrived[number] != 1}:
        yield f"{len(wrong)} messages did not arrive once: {sorted(wrong)[:5]}"
    if unasked := set(outcome.arrived) - tally.acknowledged:
        yield f"{len(unasked)} messages arrived that were never taken: {sorted(unasked)[:5]}"
    if after.processes > before.processes:
        yield f"{after.processes - before.processes} more processes"
    if more := after.descriptors - before.descriptors:
        yield f"more descriptors: {dict(more)}"
    if after.tasks > before.tasks:
        yield f"{after.tasks - before.tasks} more tasks"
    if (grown := (after.kilobytes - before.kilobytes) / 1024) > _MEGABYTES:
        yield f"{grown:.1f} MB more"
    quiet, attacked = outcome.p99(attacked=False), outcome.p99(attacked=True)
    if attacked > max(SLOWER * quiet, _NOTICEABLE):
        yield f"p99 {attacked * 1000:.0f} ms beside those who misbehave, {quiet * 1000:.0f} ms without"
