"""From a winner to the next leader and the next round's schedule.

Source: spec section 5; weights and blocks proven on recorded rounds by tests/competition/test_history.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gen404_dagster.competition.models import (
    LEADER,
    Block,
    Build,
    CompetitionConfig,
    Hotkey,
    LeaderTransition,
    Schedule,
    Submission,
    Winner,
)


@dataclass(frozen=True)
class NextRound:
    """When the next round's window closes, and its schedule. `finished`: the competition ends instead."""

    start: datetime
    schedule: Schedule
    finished: bool


def active_leader(leaders: Sequence[LeaderTransition], block: Block) -> LeaderTransition | None:
    """The last transition with effective_block <= block."""
    return next((leader for leader in reversed(leaders) if leader.effective_block <= block), None)


def name_winner(
    winner: Hotkey, submission: Submission | None, build: Build | None, leader: LeaderTransition | None
) -> Winner:
    """`winner.json` of a challenger (submission and build given) or of the defending leader."""
    if winner != LEADER:
        if submission is None:
            raise ValueError(f"{winner} cannot win: it has no submission")
        image = build.docker_image if build else None
        return Winner(winner_hotkey=winner, repo=submission.repo, commit=submission.commit, docker_image=image)
    if leader is None:
        return Winner(winner_hotkey=LEADER, repo=None, commit=None, docker_image=None)
    return Winner(winner_hotkey=LEADER, repo=leader.repo, commit=leader.commit, docker_image=leader.docker)


def next_round(
    config: CompetitionConfig, previous: Schedule, block: Block, now: datetime, block_seconds: int = 12
) -> NextRound:
    """Schedule of the next round. `now` is the timestamp (UTC) of `block`.

    The previous start is the day whose round_start_time is nearest to the time at which its window closed; the next
    is round_duration_days later, moved on by whole days while it is nearer than the finalization buffer, and not
    before first_evaluation_date.
    """
    at_time = config.round_start_time
    closed = now - timedelta(seconds=(block - previous.latest_reveal_block) * block_seconds)
    day = min(
        (closed.date() + timedelta(days=offset) for offset in (-1, 0, 1)),
        key=lambda date: abs(datetime.combine(date, at_time, UTC) - closed),
    )
    start = datetime.combine(day + timedelta(days=config.round_duration_days), at_time, UTC)
    start = max(start, datetime.combine(config.first_evaluation_date, at_time, UTC))
    while start - now < timedelta(hours=config.finalization_buffer_hours):
        start += timedelta(days=1)
    latest = block + int((start - now).total_seconds() // block_seconds)
    schedule = Schedule(
        earliest_reveal_block=previous.latest_reveal_block + 1,
        latest_reveal_block=latest,
        generation_deadline_block=latest + generation_blocks(config, block_seconds),
    )
    return NextRound(start, schedule, finished=start.date() > config.last_competition_date)


def generation_blocks(config: CompetitionConfig, block_seconds: int = 12) -> int:
    """Blocks that miners have to generate."""
    return config.generation_stage_minutes * 60 // block_seconds


def transition(
    winner: Winner, leader: LeaderTransition | None, config: CompetitionConfig, effective_block: Block
) -> LeaderTransition | None:
    """What is appended to `leader.json`, None when nothing changes.

    A winner with another repository or commit than the leader's starts with weight 1.0. Who defended, or won with the
    leader's very own repository and commit, keeps the lead with a weight that decays to the floor; a weight that is
    below it already (the first leader's, written by hand) is not raised.
    """
    same = leader is not None and (winner.repo, winner.commit) == (leader.repo, leader.commit)
    if winner.winner_hotkey != LEADER and not same:
        return LeaderTransition(
            hotkey=winner.winner_hotkey,
            repo=winner.repo or "",
            commit=winner.commit or "",
            docker=winner.docker_image or "",
            weight=1.0,
            effective_block=effective_block,
        )
    if leader is None or leader.weight <= config.weight_floor:
        return None
    weight = max(config.weight_floor, leader.weight - config.weight_decay)
    return leader.model_copy(update={"weight": weight, "effective_block": effective_block})


def weights(leader: LeaderTransition | None, leader_uid: int | None, owner_uid: int) -> dict[int, float]:
    """Weights to set on chain: the leader's uid its weight, the subnet owner's uid the rest; unknown leader: owner 1.0."""
    if leader is None or leader_uid is None or leader_uid == owner_uid:
        return {owner_uid: 1.0}
    return {leader_uid: leader.weight, owner_uid: 1.0 - leader.weight}
