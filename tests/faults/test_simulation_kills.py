"""kill -9 of a whole simulation at ten random moments: the same command goes on, and nothing tells the difference."""

import random
from pathlib import Path

import pytest

from tests.simulations import FULL, Fell, Played, Simulation, draw_moments, play_side_by_side

KILLS = 10
TRIES = 3
"""A kill that was meant for one place may fall in another: then another simulation is killed."""


def fell_everywhere(kills: list[Fell]) -> bool:
    """At least one kill each in download, judging, verification, and between a push and Dagster's event."""
    return {"download", "judge", "verify"} <= {fell.job for fell in kills} and any(fell.unrecorded for fell in kills)


def assert_kills_change_nothing(folder: Path, undisturbed: Played, dice: random.Random) -> None:
    for attempt in range(TRIES):
        simulation = Simulation(folder / f"killed-{attempt}", *undisturbed.simulation.options)
        moments = draw_moments(undisturbed, dice, KILLS)
        kills = [fell for moment in moments if (fell := simulation.kill_at(moment))]
        assert simulation.finish() == undisturbed.result
        simulation.assert_whole()
        simulation.assert_equals(undisturbed.simulation)
        simulation.assert_buried(kills)
        if len(kills) == KILLS and fell_everywhere(kills):
            return
    raise AssertionError(f"{TRIES} simulations were not killed where they should be; the last one: {kills}")


def test_a_simulation_killed_ten_times_ends_as_an_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[Played, Played]
) -> None:
    assert_kills_change_nothing(tmp_path, undisturbed[0], random.Random(404))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_full_cast_killed_ten_times_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    (full,) = play_side_by_side(Simulation(tmp_path / "full", *FULL))
    assert_kills_change_nothing(tmp_path, full, random.Random(405))
