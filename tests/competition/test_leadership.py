"""From a winner to the next leader, its weight and the next round's window."""

from datetime import UTC, date, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.competition.leadership import active_leader, name_winner, next_round, transition, weights
from gen404_dagster.competition.models import (
    LEADER,
    Build,
    BuildStatus,
    CompetitionConfig,
    LeaderTransition,
    Schedule,
    Submission,
    Winner,
)

CONFIG = CompetitionConfig(
    name="mesh",
    first_evaluation_date=date(2026, 2, 2),
    last_competition_date=date(2026, 2, 28),
    round_start_time=time(8),
    generation_stage_minutes=120,
    finalization_buffer_hours=1,
    weight_decay=0.2,
    weight_floor=0.2,
    prompts_per_round=128,
    carryover_prompts=32,
    round_duration_days=3,
)
PREVIOUS = Schedule(earliest_reveal_block=0, latest_reveal_block=10_000, generation_deadline_block=10_600)
CLOSED = datetime(2026, 2, 5, 8, tzinfo=UTC)  # when block 10,000 was made


def at(block: int) -> datetime:
    return CLOSED + timedelta(seconds=12 * (block - 10_000))


def leader(weight: float = 1.0, block: int = 0) -> LeaderTransition:
    return LeaderTransition(
        hotkey="5L", repo="o/leader", commit="c" * 40, docker="image", weight=weight, effective_block=block
    )


DEFENDED = Winner(winner_hotkey=LEADER, repo="o/leader", commit="c" * 40, docker_image="image")


def config(**changes: object) -> CompetitionConfig:
    return CONFIG.model_copy(update=changes)


# --- next round ---


def test_the_next_window_starts_after_the_last_and_closes_a_rounds_length_after_it() -> None:
    following = next_round(CONFIG, PREVIOUS, 15_000, at(15_000))
    assert following.start == datetime(2026, 2, 8, 8, tzinfo=UTC)
    assert following.schedule == Schedule(
        earliest_reveal_block=10_001, latest_reveal_block=31_600, generation_deadline_block=32_200
    )
    assert not following.finished


@pytest.mark.parametrize(
    ("now", "day"),
    [
        (datetime(2026, 2, 8, 7, 0, 0, tzinfo=UTC), 8),
        (datetime(2026, 2, 8, 7, 0, 1, tzinfo=UTC), 9),
        (datetime(2026, 2, 9, 7, 30, tzinfo=UTC), 10),
        (datetime(2026, 2, 20, 9, tzinfo=UTC), 21),
    ],
)
def test_a_late_finalization_moves_the_start_by_whole_days_until_the_buffer_is_kept(now: datetime, day: int) -> None:
    block = 10_000 + int((now - CLOSED).total_seconds() // 12)
    assert next_round(CONFIG, PREVIOUS, block, now).start == datetime(2026, 2, day, 8, tzinfo=UTC)


@pytest.mark.parametrize("drift_hours", [-11, -1, 0, 1, 11])
def test_a_window_that_closed_early_or_late_counts_as_that_days_start(drift_hours: int) -> None:
    now = at(15_000) + timedelta(hours=drift_hours)
    assert next_round(CONFIG, PREVIOUS, 15_000, now).start == datetime(2026, 2, 8, 8, tzinfo=UTC)


def test_a_start_at_midnight_belongs_to_the_day_that_it_opens_even_when_blocks_came_early() -> None:
    at_midnight = config(round_start_time=time(0), round_duration_days=1)
    closed = datetime(2026, 2, 4, 23, 58, tzinfo=UTC)
    following = next_round(at_midnight, PREVIOUS, 10_300, closed + timedelta(hours=1))
    assert following.start == datetime(2026, 2, 6, tzinfo=UTC)


def test_no_round_starts_before_the_first_evaluation_date() -> None:
    following = next_round(config(first_evaluation_date=date(2026, 2, 20)), PREVIOUS, 15_000, at(15_000))
    assert following.start == datetime(2026, 2, 20, 8, tzinfo=UTC)


@pytest.mark.parametrize(("last", "finished"), [(date(2026, 2, 7), True), (date(2026, 2, 8), False)])
def test_the_last_competition_date_is_still_played(last: date, finished: bool) -> None:
    following = next_round(config(last_competition_date=last), PREVIOUS, 15_000, at(15_000))
    assert following.finished == finished
    assert following.schedule.latest_reveal_block == 31_600  # the last leader's weight still takes effect then


@given(
    block=st.integers(10_600, 200_000),
    seconds=st.integers(0, 11),
    duration=st.integers(1, 10),
    buffer=st.floats(0, 30),
    start_hour=st.integers(0, 23),
)
def test_the_next_start_keeps_time_of_day_and_buffer_and_is_the_first_that_does(
    block: int, seconds: int, duration: int, buffer: float, start_hour: int
) -> None:
    now = at(block) + timedelta(seconds=seconds)
    chosen = config(
        round_duration_days=duration, finalization_buffer_hours=buffer, round_start_time=time(start_hour, 30)
    )
    following = next_round(chosen, PREVIOUS, block, now)
    assert following.start.timetz() == time(start_hour, 30, tzinfo=UTC)
    assert following.start - now >= timedelta(hours=buffer)
    day_before = following.start - timedelta(days=1)
    assert day_before - now < timedelta(hours=buffer) or day_before.date() < (CLOSED + timedelta(days=duration)).date()
    schedule = following.schedule
    assert schedule.earliest_reveal_block == 10_001
    assert schedule.generation_deadline_block - schedule.latest_reveal_block == 600
    assert timedelta() <= following.start - now - timedelta(seconds=12 * (schedule.latest_reveal_block - block))
    assert following.start - now < timedelta(seconds=12 * (schedule.latest_reveal_block - block + 1))


# --- leader ---


@pytest.mark.parametrize(("block", "weight"), [(99, None), (100, 1.0), (199, 1.0), (200, 0.8), (10**9, 0.8)])
def test_the_active_leader_is_the_last_whose_block_has_come(block: int, weight: float | None) -> None:
    found = active_leader([leader(1.0, 100), leader(0.8, 200)], block)
    assert (found and found.weight) == weight


def test_nobody_leads_an_empty_list() -> None:
    assert active_leader([], 10**9) is None


def test_a_defending_leader_decays_to_the_floor_as_recorded_and_then_changes_no_more() -> None:
    now, seen = leader(), []
    for block in range(10):
        following = transition(DEFENDED, now, CONFIG, block)
        if following is None:
            break
        assert following == now.model_copy(update={"weight": following.weight, "effective_block": block})
        seen.append(following.weight)
        now = following
    assert seen == [0.8, 0.6000000000000001, 0.4000000000000001, 0.20000000000000007, 0.2]
    assert transition(DEFENDED, now, CONFIG, 99) is None


@pytest.mark.parametrize("weight", [0.2, 0.1, 0.0])
def test_a_leader_at_or_below_the_floor_is_left_alone(weight: float) -> None:
    assert transition(DEFENDED, leader(weight), CONFIG, 99) is None


CHALLENGER = Winner(winner_hotkey="5A", repo="o/new", commit="d" * 40, docker_image="image-a")


@pytest.mark.parametrize(
    "winner",
    [
        CHALLENGER,
        CHALLENGER.model_copy(update={"repo": "o/leader"}),
        CHALLENGER.model_copy(update={"commit": "c" * 40}),
        CHALLENGER.model_copy(update={"winner_hotkey": "5L"}),
    ],
)
def test_a_winner_with_another_repository_or_commit_leads_with_full_weight(winner: Winner) -> None:
    for current in (leader(0.2), leader(1.0), None):
        assert transition(winner, current, CONFIG, 99) == LeaderTransition(
            hotkey=winner.winner_hotkey,
            repo=winner.repo or "",
            commit=winner.commit or "",
            docker="image-a",
            weight=1.0,
            effective_block=99,
        )


def test_a_challenger_with_the_leaders_own_repository_and_commit_does_not_refresh_the_weight() -> None:
    copy = Winner(winner_hotkey="5A", repo="o/leader", commit="c" * 40, docker_image="image-a")
    following = transition(copy, leader(0.8), CONFIG, 99)
    assert following == leader(0.6000000000000001, 99)
    assert transition(copy, leader(0.2), CONFIG, 99) is None


def test_nobody_defends_when_nobody_leads() -> None:
    nobody = Winner(winner_hotkey=LEADER, repo=None, commit=None, docker_image=None)
    assert name_winner(LEADER, None, None, None) == nobody
    assert transition(nobody, None, CONFIG, 99) is None


SUBMISSION = Submission(repo="o/new", commit="d" * 40, cdn_url="https://c", revealed_at_block=1, round="mesh-1")


def test_a_challengers_winner_file_names_its_submission_and_built_image() -> None:
    build = Build(
        repo="o/new",
        commit="d" * 40,
        revealed_at_block=1,
        tag="ddddddd-mesh-1",
        status=BuildStatus.SUCCESS,
        docker_image="image-a",
    )
    assert name_winner("5A", SUBMISSION, build, leader()) == CHALLENGER
    assert name_winner("5A", SUBMISSION, None, leader()).docker_image is None


def test_a_defending_leaders_winner_file_names_the_leaders_image() -> None:
    assert name_winner(LEADER, None, None, leader()) == DEFENDED


def test_a_challenger_without_a_submission_is_never_mistaken_for_the_leader() -> None:
    with pytest.raises(ValueError, match="5A"):
        name_winner("5A", None, None, leader())


# --- weights on chain ---


def test_the_leader_gets_its_weight_and_the_owner_the_rest() -> None:
    assert weights(leader(0.8), 7, 0) == {7: 0.8, 0: pytest.approx(0.2)}


@pytest.mark.parametrize(("current", "uid"), [(None, None), (None, 7), (leader(), None), (leader(0.8), 0)])
def test_the_owner_gets_everything_when_no_other_leader_is_known(
    current: LeaderTransition | None, uid: int | None
) -> None:
    assert weights(current, uid, 0) == {0: 1.0}


@given(st.floats(0, 1))
def test_weights_are_never_negative_and_sum_to_one(weight: float) -> None:
    given_out = weights(leader(weight), 7, 0)
    assert min(given_out.values()) >= 0
    assert sum(given_out.values()) == pytest.approx(1.0)
