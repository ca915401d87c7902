"""A round's prompts follow from its seed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.competition.prompts import draw_prompts

POOL = [f"https://prompts.example/{n}.png" for n in range(500)]


def test_carry_over_comes_first_and_both_parts_are_drawn_from_one_generator() -> None:
    rng = random.Random(7)
    expected = rng.sample(POOL[:128], 32) + rng.sample(POOL, 96)
    assert draw_prompts(7, POOL[:128], POOL, 128, 32) == expected


def test_round_0_has_no_carry_over() -> None:
    assert draw_prompts(7, None, POOL, 128, 32) == random.Random(7).sample(POOL, 128)


@pytest.mark.parametrize("count", [31, 32])
def test_a_previous_round_with_no_more_than_the_carry_over_is_taken_whole_in_order_without_drawing(count: int) -> None:
    drawn = draw_prompts(7, POOL[:count], POOL, 128, 32)
    assert drawn == POOL[:count] + random.Random(7).sample(POOL, 128 - count)


def test_a_pool_with_no_more_than_is_wanted_is_taken_whole_in_order() -> None:
    assert draw_prompts(7, None, POOL[:100], 128, 32) == POOL[:100]


def test_a_carried_prompt_may_be_drawn_again() -> None:
    assert draw_prompts(7, ["a"], ["a"], 2, 1) == ["a", "a"]


@pytest.mark.parametrize(("per_round", "carry_over"), [(0, 0), (0, 32)])
def test_a_round_of_0_prompts_has_none(per_round: int, carry_over: int) -> None:
    assert draw_prompts(7, POOL[:128], POOL, per_round, carry_over) == []


def test_an_empty_pool_leaves_the_carry_over_alone() -> None:
    assert draw_prompts(7, POOL[:10], [], 128, 32) == POOL[:10]


@given(
    seed=st.integers(0, 2**32 - 1),
    previous=st.none() | st.lists(st.sampled_from(POOL), unique=True, max_size=40),
    pool=st.lists(st.sampled_from(POOL), unique=True, max_size=60),
    per_round=st.integers(0, 40),
    carry_over=st.integers(0, 40),
)
def test_a_round_never_has_more_prompts_than_configured_and_is_the_same_each_time(
    seed: int, previous: list[str] | None, pool: list[str], per_round: int, carry_over: int
) -> None:
    drawn = draw_prompts(seed, previous, pool, per_round, carry_over)
    carried = min(len(previous or ()), carry_over, per_round)
    assert len(drawn) == carried + min(len(pool), per_round - carried)
    assert set(drawn[:carried]) <= set(previous or ())
    assert set(drawn[carried:]) <= set(pool)
    assert drawn == draw_prompts(seed, previous, pool, per_round, carry_over)
