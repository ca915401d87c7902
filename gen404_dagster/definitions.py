"""The code location: a table of contents."""

from collections.abc import Mapping

import dagster as dg

from gen404_dagster.assets import duels, finale, insights, intake, outputs, verification, weights
from gen404_dagster.jobs import jobs
from gen404_dagster.resources.configured import build_resources
from gen404_dagster.sensors.notifications import failed_runs, notifications
from gen404_dagster.sensors.pod_sweeper import pod_sweeper, sweep_pods
from gen404_dagster.sensors.round_sensor import make_round_sensor
from gen404_dagster.sensors.weights_sensor import make_weights_sensor, set_weights
from gen404_dagster.settings import Settings, settings

ASSETS = [
    # intake
    intake.schedule,
    intake.opening,
    intake.stage,
    # outputs
    verification.leader_baseline,
    outputs.downloads,
    outputs.renders,
    # duels
    duels.match_matrix,
    duels.audit_requests,
    # verification
    intake.source_audits,
    verification.builds,
    verification.generation_audits,
    # finale
    finale.winner,
    finale.finalization,
    weights.weights,
    *insights.ASSETS,
]


def build_defs(
    chosen: Settings | None = None, resource_overrides: Mapping[str, dg.ConfigurableResource] | None = None
) -> dg.Definitions:
    """The whole pipeline; tests replace part by part."""
    chosen = chosen or settings()
    return dg.Definitions(
        assets=ASSETS,
        jobs=[*jobs, sweep_pods, set_weights],
        sensors=[
            make_round_sensor(chosen.dead_run_grace_seconds),
            pod_sweeper,
            make_weights_sensor(running=chosen.chain != "simulated"),
            *([notifications, failed_runs] if chosen.notify.get_secret_value() else []),
        ],
        resources={**build_resources(chosen, resource_overrides)},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    return build_defs()
