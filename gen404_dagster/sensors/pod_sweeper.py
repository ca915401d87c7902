"""The second sensor: looks for rented pods that nobody works with, and launches their deletion.

Thin: what is left over is `resources.pods.leftovers`. Every regeneration deletes its own pods, at its end and before it
starts again; this is for those whose process was killed for good, or whose provider did not answer at the end.
"""

import asyncio

import dagster as dg

from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.configured import LaneResource, PodsResource
from gen404_dagster.resources.pods.leftovers import leftovers, sweep_leftovers

LOOK_SECONDS = 45.0
"""Longest look; Dagster ends a sensor after a minute."""


@dg.op(description="Delete this pipeline's pods whose regeneration is not running.")
def delete_leftover_pods(context: dg.OpExecutionContext, pods: PodsResource, lane: LaneResource) -> list[str]:
    deleted = asyncio.run(sweep_leftovers(pods.get(), pods.instance, lane.locks()))
    context.log.info(f"deleted {len(deleted)} leftover pods: {', '.join(deleted) or 'none'}")
    return deleted


@dg.job(description="Delete rented pods that outlived their work; found by this pipeline's prefix alone.")
def sweep_pods() -> None:
    delete_leftover_pods()


@dg.sensor(
    job_name="sweep_pods",
    minimum_interval_seconds=600,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks every ten minutes for pods of this pipeline whose regeneration is not running.",
)
def pod_sweeper(
    context: dg.SensorEvaluationContext, pods: PodsResource, lane: LaneResource
) -> dg.RunRequest | dg.SkipReason:
    async def look() -> list[tuple[int, str]]:
        async with asyncio.timeout(LOOK_SECONDS):
            return await leftovers(pods.get(), pods.instance, lane.locks())

    try:
        left = asyncio.run(look())
    except (Unavailable, OperatorError, TimeoutError) as error:
        return dg.SkipReason(str(error) or f"providers did not answer within {LOOK_SECONDS:g} s")
    if not left:
        return dg.SkipReason("no pod is left over")
    return dg.RunRequest(tags={"gen404/why": f"pods left over: {', '.join(prefix for _, prefix in left)}"[:200]})
