"""The one sensor: looks at git and chain, launches what is due on each lane, adopts what Dagster does not know.

Thin: the decisions are `competition.stages.next_step` and `sensors.decision.decide`.
https://docs.dagster.io/guides/automate/sensors
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter

from gen404_dagster.competition.stages import Do, Lane, RoundState, next_step
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.jobs import jobs
from gen404_dagster.partitions import miner_key, round_miners, rounds
from gen404_dagster.resources.configured import (
    BACKFILL_LANE,
    LANE_TAG,
    TOKEN_TAG,
    ChainResource,
    LaneResource,
    StateRepositoryResource,
    lane_of_run,
)
from gen404_dagster.resources.lanes import LaneLocks
from gen404_dagster.sensors.adoption import missing_partitions, passed_since, unknown_to_dagster
from gen404_dagster.sensors.decision import Hold, Launch, PastRun, decide

ACTIVE = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
FORGIVEN_TAG = "gen404/forgiven"
STARTED = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
FINISHED = [DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED]


@dataclass(frozen=True)
class Look:
    """What the sensor saw and decided."""

    round: RoundState
    block: int
    answers: Sequence[Launch | Hold]

    def words(self) -> str:
        parts = [
            f"{a.lane}: launch {a.step.job} ({a.step.why})" if isinstance(a, Launch) else f"{a.lane}: {a.why}"
            for a in self.answers
        ]
        return f"round {self.round.number}, {self.round.state.stage}, block {self.block}. " + "; ".join(parts)


def look(instance: dg.DagsterInstance, round_: RoundState, block: int) -> Look:
    """Decide for the current round, from git, chain and Dagster's record of runs."""
    due = next_step(round_, block)
    active = instance.get_runs(RunsFilter(statuses=ACTIVE))
    busy = {
        Lane(lane): run.run_id
        for run in active
        for number, lane in [lane_of_run(run)]
        if lane and lane != BACKFILL_LANE and number == round_.number
    }
    past = {
        lane: _past_runs(instance, work_of(round_.number, step)) for lane, step in due.items() if isinstance(step, Do)
    }
    return Look(round_, block, decide(due, busy, past, time.time()))


def work_of(number: int, step: Do) -> str:
    """Identity of a piece of work, as a run's tag."""
    return f"{number}/{step.job}/{step.token}"


def _past_runs(instance: dg.DagsterInstance, work: str) -> list[PastRun]:
    records = instance.get_run_records(RunsFilter(tags={TOKEN_TAG: work}, statuses=FINISHED))
    return [
        PastRun(
            r.dagster_run.status == DagsterRunStatus.SUCCESS,
            0.0 if FORGIVEN_TAG in r.dagster_run.tags else r.end_time or r.update_timestamp.timestamp(),
        )
        for r in records
    ]


def bury_dead_runs(
    instance: dg.DagsterInstance,
    locks: LaneLocks,
    grace_seconds: float,
    statuses: Sequence[DagsterRunStatus] = STARTED,
    *,
    forgive: bool = False,
) -> list[str]:
    """Report active runs whose lane lock is free as failed, and free their pool slots. Returns their ids.

    A run takes its lock when it starts and keeps it until its process ends: a free lock after `grace_seconds` is a
    death certificate. With `forgive` their work is launched again without a pause.
    """
    dead = []
    for record in instance.get_run_records(RunsFilter(statuses=list(statuses))):
        run = record.dagster_run
        number, lane = lane_of_run(run)
        age = time.time() - (record.start_time or record.create_timestamp.timestamp())
        if number is not None and lane is not None and age >= grace_seconds and locks.is_free(number, lane):
            if forgive:
                instance.add_run_tags(run.run_id, {FORGIVEN_TAG: "killed"})
            instance.report_run_failed(run, "the run's process has died: its lane lock is free; it is started again")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            dead.append(run.run_id)
    return dead


def run_request(number: int, launch: Launch) -> dg.RunRequest:
    step = launch.step
    work = work_of(number, step)
    tags = {LANE_TAG: f"{number}/{launch.lane}", TOKEN_TAG: work, "gen404/why": step.why[:200]}
    if step.hotkeys:
        first, last = step.hotkeys[0], step.hotkeys[-1]
        tags["dagster/asset_partition_range_start"] = miner_key(number, first)
        tags["dagster/asset_partition_range_end"] = miner_key(number, last)
        return dg.RunRequest(run_key=f"{work}/{launch.attempt}", job_name=step.job, tags=tags)
    return dg.RunRequest(run_key=f"{work}/{launch.attempt}", job_name=step.job, partition_key=str(number), tags=tags)


def make_round_sensor(dead_run_grace_seconds: float) -> dg.SensorDefinition:
    @dg.sensor(
        name="round_sensor",
        jobs=jobs,
        minimum_interval_seconds=5,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Tracks the chain's finalized block and the state repository, and launches what is due per lane.",
    )
    def round_sensor(
        context: dg.SensorEvaluationContext,
        state: StateRepositoryResource,
        chain: ChainResource,
        lane: LaneResource,
    ) -> dg.SensorResult | dg.SkipReason:
        from gen404_dagster.resources.round_files import read_round

        instance = context.instance
        buried = bury_dead_runs(instance, lane.locks(), dead_run_grace_seconds)
        try:
            repository = state.get()
            snapshot = repository.head()
            round_ = read_round(snapshot)
        except (Unavailable, OperatorError) as error:
            return dg.SkipReason(str(error))
        for run_id in buried:
            context.log.warning(f"run {run_id} had died: reported as failed")
        try:
            seen = look(instance, round_, chain.get().head().block)
        except (Unavailable, OperatorError) as error:  # what is recorded can be shown without a chain
            seen, without = Look(round_, 0, ()), str(error)
            busy = set(Lane)
        else:
            without = ""
            busy = {answer.lane for answer in seen.answers if isinstance(answer, Hold) and answer.busy}
        keys = missing_partitions(instance, snapshot, round_.number)
        requests = [
            partitions.build_add_request(keys[partitions.name or ""])
            for partitions in (rounds, round_miners)
            if keys[partitions.name or ""]
        ]
        launches = [run_request(round_.number, answer) for answer in seen.answers if isinstance(answer, Launch)]
        # New keys must be known before events name them: adoption follows at the next look.
        events = [] if requests else list(unknown_to_dagster(instance, repository, snapshot, round_.number, busy))
        events += passed_since(instance, repository, snapshot)
        return dg.SensorResult(
            run_requests=launches,
            dynamic_partitions_requests=requests,
            asset_events=events,
            skip_reason=None if launches else dg.SkipReason(without or seen.words()),
            cursor=f"{snapshot.commit}@{seen.block}",
        )

    return round_sensor
