"""The third sensor: launches the setting of weights when it is due. Thin: when is `competition.weights.due`."""

import dagster as dg

from gen404_dagster.assets.weights import history_of
from gen404_dagster.competition.weights import NotYet, due
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.configured import (
    NO_ROUND,
    WEIGHTS_LANE,
    ChainResource,
    JournalResource,
    LaneResource,
    LimitsResource,
    StateRepositoryResource,
)
from gen404_dagster.resources.round_files import read_round

set_weights = dg.define_asset_job(
    "set_weights", selection=dg.AssetSelection.assets("weights"), description="Set this validator's weights on chain."
)


def make_weights_sensor(running: bool) -> dg.SensorDefinition:
    """`running`: whether it starts by itself. In the embedded world, where weights pay nobody, it is started by hand."""

    @dg.sensor(
        name="weights_sensor",
        job_name="set_weights",
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED,
        description="Sets weights every 30 minutes, not shortly before another leader takes over.",
    )
    def weights_sensor(
        context: dg.SensorEvaluationContext,
        state: StateRepositoryResource,
        chain: ChainResource,
        journal: JournalResource,
        limits: LimitsResource,
        lane: LaneResource,
    ) -> dg.RunRequest | dg.SkipReason:
        if not lane.locks().is_free(NO_ROUND, WEIGHTS_LANE):
            return dg.SkipReason("weights are being set")
        rules = limits.get()
        try:
            attempts = history_of(journal).attempts()
            leaders = read_round(state.get().head()).leaders
            block = chain.get().head().block
        except (Unavailable, OperatorError) as error:
            return dg.SkipReason(str(error))
        last = attempts[-1] if attempts else None
        decision = due(last, leaders, block, rules)
        if isinstance(decision, NotYet):
            return dg.SkipReason(f"{decision.why}: next at block {decision.until}")
        # A run that failed before it could record an attempt is followed by another as after any failure.
        pause = int(rules.weights_retry_most_minutes * 60 // rules.block_seconds) or 1
        return dg.RunRequest(run_key=f"weights/{last.block if last else 'first'}/{block // pause}")

    return weights_sensor
