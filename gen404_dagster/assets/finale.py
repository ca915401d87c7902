"""Finale: from a settled timeline to the winner, the next leader and the next round's schedule."""

import dagster as dg

from gen404_dagster.assets import checks
from gen404_dagster.assets.common import adopted, commit, described, is_adopted, round_number, round_spec
from gen404_dagster.assets.describe import recorded
from gen404_dagster.competition import leadership, models, paths
from gen404_dagster.competition.models import LEADER, CompetitionStage, Stage, write_json
from gen404_dagster.competition.stages import Do, Lane, next_step, token
from gen404_dagster.resources.chain import Head
from gen404_dagster.resources.configured import (
    ChainResource,
    LaneResource,
    LimitsResource,
    StateRepositoryResource,
)
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.state_repo import Change, Snapshot, Step

GROUP = "finale"


@dg.multi_asset(
    name="winner",
    specs=[
        round_spec(
            "winner",
            GROUP,
            "The last local leader of the verified timeline, or `leader` when nobody beat the defender by the margin. "
            "Committed together with the stage.",
            kinds={"git"},
            deps=["match_matrix", "audit_requests", "generation_audits", "source_audits"],
        )
    ],
    check_specs=checks.specs_of("winner"),
    pool="git",
)
def winner(context: dg.AssetExecutionContext, state: StateRepositoryResource, lane: LaneResource):  # type: ignore[no-untyped-def]
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(repository, number, "winner")
        return

    def crown(snapshot: Snapshot) -> Change | None:
        round_ = read_round(snapshot, number)
        due = next_step(round_, 0)[Lane.MAIN]
        if round_.state.current_round != number or not isinstance(due, Do) or due.job != "crown":
            return None
        hotkey = round_.standing().timeline.leader
        won = leadership.name_winner(
            hotkey, (round_.submissions or {}).get(hotkey), (round_.builds or {}).get(hotkey), round_.leader
        )
        files: dict[str, str | None] = {
            paths.winner(number): write_json(models.WINNER, won),
            paths.STATE: write_json(models.STATE, CompetitionStage(current_round=number, stage=Stage.FINALIZING)),
        }
        who = "The leader defends" if hotkey == LEADER else f"{hotkey[:10]} wins"
        return Change(files, f"{who} round {number}")

    now = read_round(repository.head(), number)
    audits = tuple((now.generation_audits or {}).values())
    commit(context, repository, Step(number, "crown", token(now.matrix, audits, now.source_audits)), crown)
    yield described("winner", repository, number)


@dg.multi_asset(
    name="finalization",
    specs=[
        round_spec(
            "leader",
            GROUP,
            "Who leads next and with which weight: a new winner starts at 1.0, a defender's weight decays to the floor. "
            "Effective from the block at which the next window closes.",
            kinds={"git"},
            deps=["winner"],
        ),
        round_spec(
            "next_schedule",
            GROUP,
            "The next round's window: it closes at the round's start time, `round_duration_days` later.",
            kinds={"git"},
            deps=["winner"],
        ),
    ],
    check_specs=checks.specs_of("leader"),
    pool="git",
)
def finalization(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    chain: ChainResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    """One commit: leader, next schedule and state; after the last competition date, leader and state."""
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(repository, number, "leader", "next_schedule")
        return
    head = chain.get().head()

    def finalize(snapshot: Snapshot) -> Change | None:
        round_ = read_round(snapshot)
        if round_.number != number or round_.state.stage != Stage.FINALIZING:
            return None
        if round_.winner is None:
            raise dg.Failure(f"{paths.winner(number)} is missing: set the stage back to duels to have it made")
        return _finalization(snapshot, number, head, limits.get().block_seconds)

    now = read_round(repository.head(), number)
    commit(context, repository, Step(number, "finalize", token(now.winner, now.leaders)), finalize)
    at = recorded(repository, number, fetch=False)
    if not at.round.over:
        raise dg.Failure(f"round {number} is not to be finalized: its stage is {at.round.state.stage}")
    yield from adopted(repository, number, "leader", "next_schedule")


def _finalization(snapshot: Snapshot, number: int, head: Head, block_seconds: int) -> Change:
    round_ = read_round(snapshot, number)
    assert round_.schedule is not None
    assert round_.winner is not None
    following = leadership.next_round(round_.config, round_.schedule, head.block, head.time, block_seconds)
    change = leadership.transition(round_.winner, round_.leader, round_.config, following.schedule.latest_reveal_block)
    files: dict[str, str | None] = {}
    if change is not None:
        files[paths.LEADERS] = write_json(models.LEADERS, [*round_.leaders, change])
    if following.finished:
        stage = CompetitionStage(current_round=number, stage=Stage.FINISHED)
        subject = f"Finish the competition after round {number}"
    else:
        files[paths.schedule(number + 1)] = write_json(models.SCHEDULE, following.schedule)
        stage = CompetitionStage(current_round=number + 1, stage=Stage.OPEN, next_stage_eta=following.start)
        subject = f"Schedule round {number + 1} to close at block {following.schedule.latest_reveal_block}"
    files[paths.STATE] = write_json(models.STATE, stage)
    weight = f"{change.hotkey[:10]} leads with weight {change.weight}." if change else "The leader's weight stays."
    return Change(files, subject, weight)
