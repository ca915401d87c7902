"""When weights are due, and what the chain must show before they count as set."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.competition.leadership import active_leader
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import LeaderTransition
from gen404_dagster.competition.weights import (
    Attempt,
    Due,
    NotYet,
    OnChain,
    Outcome,
    due,
    retry_block,
    same_weights,
    settle,
)

LIMITS = Limits()
SENT = {3: 0.8, 0: 0.2}


def attempt(outcome: Outcome, block: int = 1000, retry: int | None = None) -> Attempt:
    return Attempt(
        block=block,
        time=datetime(2026, 2, 1, tzinfo=UTC),
        leader="5L",
        leader_uid=3,
        weights=SENT,
        outcome=outcome,
        retry_block=retry,
        seen_block=block,
    )


def leader(effective: int) -> LeaderTransition:
    return LeaderTransition(hotkey="5L", repo="a/b", weight=0.8, effective_block=effective)


def shown(last_update: int | None, weights: dict[int, float] | None = None, *, pending: bool = False) -> OnChain:
    return OnChain(1010, last_update, weights or {}, pending)


# --- when ---


def test_the_first_weights_are_due_at_once() -> None:
    assert due(None, [leader(5)], 1000, LIMITS) == Due()


@pytest.mark.parametrize("outcome", [Outcome.PLANNED, Outcome.CONFIRMED, Outcome.COMMITTED, Outcome.DIFFERS])
@pytest.mark.parametrize(("block", "is_due"), [(1149, False), (1150, True)])
def test_weights_are_due_again_after_30_minutes_of_blocks(outcome: Outcome, block: int, is_due: bool) -> None:
    answer = due(attempt(outcome), [leader(5)], block, LIMITS)
    assert isinstance(answer, Due) == is_due
    assert is_due or (isinstance(answer, NotYet) and answer.until == 1150)


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.SENT])
def test_a_failure_is_tried_again_at_its_own_block(outcome: Outcome) -> None:
    assert isinstance(due(attempt(outcome, retry=1024), [leader(5)], 1023, LIMITS), NotYet)
    assert due(attempt(outcome, retry=1024), [leader(5)], 1024, LIMITS) == Due()


@given(st.floats(0, 1, exclude_max=True))
def test_a_failure_is_tried_again_within_4_to_6_minutes(chance: float) -> None:
    assert 20 <= retry_block(1000, chance, LIMITS) - 1000 <= 30


@pytest.mark.parametrize(("change", "is_due"), [(1001, False), (1125, False), (1126, True), (1000, True), (999, True)])
def test_weights_wait_for_a_leader_that_takes_over_within_25_minutes(change: int, is_due: bool) -> None:
    answer = due(None, [leader(5), leader(change)], 1000, LIMITS)
    assert isinstance(answer, Due) == is_due
    assert is_due or answer == NotYet("the next leader takes over soon", change)


def test_a_retry_too_waits_for_the_next_leader() -> None:
    assert isinstance(due(attempt(Outcome.FAILED, retry=1020), [leader(1030)], 1025, LIMITS), NotYet)


@given(st.lists(st.integers(1, 3000), unique=True, max_size=5), st.integers(0, 3000))
def test_weights_that_are_set_stay_those_of_the_leader_for_25_minutes(changes: list[int], block: int) -> None:
    leaders = [leader(change) for change in sorted(changes)]
    if due(None, leaders, block, LIMITS) == Due():
        assert all(active_leader(leaders, block + later) is active_leader(leaders, block) for later in range(126))


# --- whether ---


def test_an_update_and_equal_weights_confirm() -> None:
    (told,) = settle([attempt(Outcome.SENT)], shown(1001, {3: 52428 / 65535, 0: 13107 / 65535}))
    assert (told.outcome, told.seen_block) == (Outcome.CONFIRMED, 1010)


@pytest.mark.parametrize("last_update", [None, 0, 999])
@pytest.mark.parametrize("outcome", [Outcome.SENT, Outcome.FAILED, Outcome.COMMITTED])
def test_equal_weights_from_before_confirm_nothing(outcome: Outcome, last_update: int | None) -> None:
    assert settle([attempt(outcome)], shown(last_update, SENT)) == []


def test_under_commit_reveal_the_commit_counts_first_and_the_weights_later() -> None:
    (committed,) = settle([attempt(Outcome.SENT)], shown(1001, {0: 1.0}, pending=True))
    assert committed.outcome == Outcome.COMMITTED
    assert settle([committed], shown(1001, {0: 1.0}, pending=True)) == []
    later = attempt(Outcome.COMMITTED, 1150)
    (revealed,) = settle([committed, later], OnChain(1400, 1001, SENT, False))
    assert (revealed.block, revealed.outcome) == (1000, Outcome.CONFIRMED)


def test_other_weights_than_were_sent_are_told() -> None:
    (told,) = settle([attempt(Outcome.SENT)], shown(1001, {0: 1.0}))
    assert told.outcome == Outcome.DIFFERS
    assert "the chain shows 0: 1.0000" in told.note


def test_a_lost_answer_is_corrected_by_the_chain() -> None:
    (told,) = settle([attempt(Outcome.FAILED, retry=1024)], shown(1003, SENT))
    assert (told.outcome, told.retry_block) == (Outcome.CONFIRMED, None)


def test_an_earlier_failure_is_not_corrected_by_a_later_success() -> None:
    attempts = [attempt(Outcome.FAILED, 1000), attempt(Outcome.CONFIRMED, 1030)]
    assert settle(attempts, OnChain(1040, 1031, SENT, False)) == []


def test_a_dry_run_stays_one() -> None:
    assert settle([attempt(Outcome.PLANNED)], shown(1001, SENT)) == []


@given(st.dictionaries(st.integers(0, 255), st.floats(1e-4, 1), min_size=1, max_size=3))
def test_weights_are_recognised_after_the_chains_rounding(weights: dict[int, float]) -> None:
    top = max(weights.values())
    kept = {uid: round(share / top * 65535) for uid, share in weights.items()}
    assert same_weights(weights, {uid: value / sum(kept.values()) for uid, value in kept.items() if value})


def test_a_share_of_zero_is_not_kept_and_not_missed() -> None:
    assert same_weights({3: 1.0, 0: 0.0}, {3: 1.0})
    assert not same_weights({3: 1.0}, {3: 0.99, 0: 0.01})
    assert not same_weights({}, {})
