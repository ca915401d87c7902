"""From what is due and what has run to what is launched now. Pure: no Dagster instance, no clock, no I/O.

Belongs here: one run per lane, attempts, pauses after failures. Does not: what is due (`competition.stages`), asking
Dagster for its runs (`round_sensor`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gen404_dagster.competition.models import Block
from gen404_dagster.competition.stages import Decision, Do, Lane

MOST_FRUITLESS_RUNS = 3
"""Runs that end well without progress before a lane waits for an operator."""
FIRST_PAUSE_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 1800.0


@dataclass(frozen=True)
class PastRun:
    """A run of the same piece of work. `ended`: seconds since the epoch."""

    succeeded: bool
    ended: float


@dataclass(frozen=True)
class Launch:
    """Launch `job` on `lane`; `attempt` counts earlier runs of the same work and makes the run's key unique."""

    lane: Lane
    step: Do
    attempt: int


@dataclass(frozen=True)
class Hold:
    """Launch nothing on `lane`: why, and the block that changes it. `retry_in`: seconds until the next try."""

    lane: Lane
    why: str
    until: Block | None = None
    busy: bool = False
    retry_in: float | None = None


def decide(
    due: Mapping[Lane, Decision], busy: Mapping[Lane, str], past: Mapping[Lane, Sequence[PastRun]], now: float
) -> list[Launch | Hold]:
    """One answer per lane. `busy` names the active run of a lane; `past` are finished runs of exactly the due work."""
    return [_lane(lane, decision, busy.get(lane), past.get(lane, ()), now) for lane, decision in due.items()]


def _lane(lane: Lane, due: Decision, busy: str | None, past: Sequence[PastRun], now: float) -> Launch | Hold:
    if busy is not None:
        return Hold(lane, f"run {busy[:8]} is at work", busy=True)
    if not isinstance(due, Do):
        return Hold(lane, due.why, due.until)
    fruitless = sum(run.succeeded for run in past)
    if fruitless >= MOST_FRUITLESS_RUNS:
        why = (
            f"{due.job} ended {fruitless} times without progress ({due.why}): look at its runs, then launch it by hand"
        )
        return Hold(lane, why)
    failures = [run.ended for run in past if not run.succeeded]
    if failures:
        left = max(failures) + pause_after(len(failures)) - now
        if left > 0:
            return Hold(lane, f"{due.job} failed {len(failures)} times, next try in {left:.0f} s", retry_in=left)
    return Launch(lane, due, attempt=len(past))


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures: 15, 30, 60 ... up to half an hour. There is no last try."""
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 20))
