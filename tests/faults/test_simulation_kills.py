"""kill -9 of a whole simulation at ten random moments: the same command goes on, and nothing tells the difference."""

import os
import random
import time
from pathlib import Path

import dagster as dg
import pytest

from gen404_dagster.resources.configured import LANE_TAG
from gen404_dagster.resources.lanes import LaneLocks
from gen404_dagster.sensors.round_sensor import ACTIVE, bury_dead_runs
from gen404_dagster.simulation.remote import DEAD_LOCK_SECONDS, wait_out_dead_locks
from tests.simulations import FULL, Fell, Played, Simulation, draw_moments, play_side_by_side

KILLS = 10
TRIES = 6
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


@pytest.mark.timeout(1800)
def test_a_simulation_killed_ten_times_ends_as_an_undisturbed_one(
    tmp_path: Path, undisturbed: tuple[Played, Played]
) -> None:
    assert_kills_change_nothing(tmp_path, undisturbed[0], random.Random(404))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_full_cast_killed_ten_times_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    (full,) = play_side_by_side(Simulation(tmp_path / "full", *FULL))
    assert_kills_change_nothing(tmp_path, full, random.Random(405))


def test_a_run_killed_before_its_first_event_is_buried_unless_its_lane_is_held(tmp_path: Path) -> None:
    locks = LaneLocks(tmp_path)
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(dg.GraphDefinition("judge").to_job(), tags={LANE_TAG: "0/duels"})
        with locks.hold(0, "duels"):
            assert bury_dead_runs(instance, locks, 0.0, ACTIVE) == []
        assert bury_dead_runs(instance, locks, 0.0) == [], "the daemon has yet to start it"
        assert bury_dead_runs(instance, locks, 0.0, ACTIVE) == [run.run_id]
        buried = instance.get_run_by_id(run.run_id)
        assert buried is not None
        assert buried.status == dg.DagsterRunStatus.FAILURE


def test_locks_left_by_a_killed_push_are_waited_out_and_removed(tmp_path: Path) -> None:
    heads = tmp_path / "refs" / "heads"
    heads.mkdir(parents=True)
    old, young = heads / "main.lock", tmp_path / "HEAD.lock"
    for lock, age in ((old, 3600), (young, DEAD_LOCK_SECONDS / 2)):
        lock.touch()
        os.utime(lock, (time.time() - age,) * 2)
    wait_out_dead_locks(tmp_path)
    assert not old.exists()
    assert not young.exists()
