"""Git is the truth: Dagster's directory may be lost in the middle of a round."""

import shutil
from pathlib import Path

import dagster as dg

from tests.simulations import Moment, Played, Simulation


def test_deleting_the_dagster_directory_in_the_middle_loses_nothing(
    tmp_path: Path, undisturbed: tuple[Played, Played]
) -> None:
    whole = undisturbed[0]
    simulation = Simulation(tmp_path / "lost", *whole.simulation.options)
    fell = simulation.kill_at(Moment(0, 0, at_push=("audit",)))
    assert fell is not None
    recorded = len(simulation.commits())
    assert 0 < recorded < len(whole.simulation.commits())

    shutil.rmtree(simulation.dagster)
    assert simulation.finish() == whole.result
    simulation.assert_whole()
    simulation.assert_equals(whole.simulation)
    adopted = adopted_assets(simulation)
    assert {"schedule", "seed", "prompts", "submissions", "leader_baseline", "downloads", "renders"} <= adopted
    assert not adopted & {"winner", "leader"}, "what was made after the loss has runs of its own"


def adopted_assets(simulation: Simulation) -> set[str]:
    """Assets whose materialization was made from git, without a run."""
    with dg.DagsterInstance.from_config(str(simulation.dagster)) as instance:
        records = [
            record
            for name in simulation.materialized()
            for record in instance.fetch_materializations(dg.AssetKey(name), limit=100).records
        ]
        found = [record.asset_materialization for record in records]
        return {one.asset_key.path[-1] for one in found if one is not None and one.description == "adopted from git"}
