"""Who wins a duel, what a match is worth, and which prompts decided it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.competition.duels import (
    average_penalties,
    critical_prompts,
    decide_by_penalties,
    decide_unjudged,
    is_close,
    left_out,
    margin_bound,
    margin_interval,
    margin_without_results,
    match_report,
    orders_disagree,
    out_of_reach,
    overtime_losses,
    unjudged_duels,
)
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import Duel, DuelWinner, GenerationResult, MatchReport

LIMITS = Limits()
LEFT, RIGHT, DRAW, SKIPPED = DuelWinner.LEFT, DuelWinner.RIGHT, DuelWinner.DRAW, DuelWinner.SKIPPED


def duel(name: str, winner: DuelWinner) -> Duel:
    return Duel(name=name, prompt=f"https://prompts.example/{name}.png", winner=winner)


def report(right: int, left: int, draws: int) -> MatchReport:
    winners = [RIGHT] * right + [LEFT] * left + [DRAW] * draws
    return match_report("leader", "5A", [duel(f"{n:03}", winner) for n, winner in enumerate(winners)])


@pytest.mark.parametrize(
    ("left_png", "right_png", "left_late", "right_late", "outcome"),
    [
        (None, None, False, False, (DRAW, "No previews for p")),
        (None, None, True, True, (DRAW, "No previews for p")),
        ("", "", False, False, (DRAW, "No previews for p")),
        (None, "r", False, False, (RIGHT, "No preview for p from left")),
        (None, "r", False, True, (RIGHT, "No preview for p from left")),
        ("l", None, True, False, (LEFT, "No preview for p from right")),
        ("l", "r", True, True, (DRAW, "Generation time exceeded for both")),
        ("l", "r", True, False, (RIGHT, "Generation time exceeded for left")),
        ("l", "r", False, True, (LEFT, "Generation time exceeded for right")),
        ("l", "r", False, False, None),
    ],
)
def test_a_missing_preview_decides_before_time_and_time_before_the_judge(
    left_png: str | None,
    right_png: str | None,
    left_late: bool,
    right_late: bool,
    outcome: tuple[DuelWinner, str] | None,
) -> None:
    assert decide_unjudged("p", left_png, right_png, left_late, right_late) == outcome


@pytest.mark.parametrize(
    ("left", "right", "winner"),
    [(0, 0, DRAW), (5, 6, DRAW), (6, 5, DRAW), (5, 6.5, LEFT), (6.5, 5, RIGHT), (0, 10, LEFT), (10, 0, RIGHT)],
)
def test_the_smaller_penalty_wins_unless_they_differ_by_at_most_one(
    left: float, right: float, winner: DuelWinner
) -> None:
    assert decide_by_penalties(left, right, LIMITS) == winner


def times(values: list[float]) -> dict[str, GenerationResult]:
    return {f"p{n}": GenerationResult(png="x", generation_time=seconds) for n, seconds in enumerate(values)}


def test_the_first_overtimes_in_round_order_are_free_and_each_later_one_loses() -> None:
    prompts = [f"p{n}" for n in range(128)]
    late = times([181.0] * 9 + [90.0] * 119)
    assert overtime_losses(prompts, late, LIMITS) == {"p6", "p7", "p8"}
    assert overtime_losses(prompts[::-1], late, LIMITS) == {"p0", "p1", "p2"}
    assert overtime_losses(prompts, late, LIMITS.model_copy(update={"overtime_allowance": 0.1})) == set()


@pytest.mark.parametrize(("seconds", "lost"), [(179.999, 0), (180.0, 0), (180.001, 19)])
def test_only_more_than_the_limit_is_overtime(seconds: float, lost: int) -> None:
    assert len(overtime_losses([f"p{n}" for n in range(20)], times([seconds] * 20), LIMITS)) == lost


@pytest.mark.parametrize(("prompts", "free"), [(0, 0), (1, 0), (19, 0), (20, 1), (39, 1), (40, 2), (128, 6)])
def test_the_allowance_is_rounded_down(prompts: int, free: int) -> None:
    names = [f"p{n}" for n in range(prompts)]
    assert len(overtime_losses(names, times([500.0] * prompts), LIMITS)) == prompts - free


def test_a_prompt_without_a_result_is_not_overtime() -> None:
    assert overtime_losses(["p0", "p1"], {}, LIMITS) == set()


def test_unjudged_duels_carry_both_sides_in_round_order_and_leave_the_rest_to_the_judge() -> None:
    prompts = ["https://prompts.example/b.png", "https://prompts.example/a.png", "https://prompts.example/c.png"]
    left = {stem: GenerationResult(glb=f"l/{stem}.glb", png=f"l/{stem}.png") for stem in "ab"}
    right = {stem: GenerationResult(glb=f"r/{stem}.glb", png=f"r/{stem}.png") for stem in "b"}
    decided, to_judge = unjudged_duels(prompts, left, right, LIMITS)
    assert {position: (found.name, found.winner) for position, found in decided.items()} == {
        1: ("a", LEFT),
        2: ("c", DRAW),
    }
    assert to_judge == {
        0: Duel(
            name="b",
            prompt=prompts[0],
            left_glb="l/b.glb",
            left_png="l/b.png",
            right_glb="r/b.glb",
            right_png="r/b.png",
            winner=SKIPPED,
        )
    }


def test_only_the_slow_side_loses_by_time() -> None:
    prompts = [f"https://prompts.example/p{n}.png" for n in range(20)]
    slow, fast = times([200.0] * 3 + [10.0] * 17), times([0.0] * 20)
    decided, to_judge = unjudged_duels(prompts, slow, fast, LIMITS)
    assert [(position, found.winner) for position, found in decided.items()] == [(1, RIGHT), (2, RIGHT)]
    assert len(to_judge) == 18
    assert [found.winner for found in unjudged_duels(prompts, fast, slow, LIMITS)[0].values()] == [LEFT, LEFT]


def test_a_match_is_wins_of_right_minus_wins_of_left_over_all_duels() -> None:
    match = match_report("leader", "5A", [duel("b", RIGHT), duel("c", RIGHT), duel("d", SKIPPED), duel("a", LEFT)])
    assert (match.score, match.margin) == (1, 0.25)
    assert [found.name for found in match.duels] == ["a", "b", "c", "d"]


def test_a_match_of_0_prompts_is_a_tie() -> None:
    match = match_report("leader", "5A", [])
    assert (match.score, match.margin, match.duels) == (0, 0.0, [])
    assert critical_prompts(match, -1.0, 7, LIMITS) == []


RESULTS = {"p": GenerationResult()}


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_side_without_any_results_loses_the_whole_match_and_both_tie(
    nothing: dict[str, GenerationResult] | None,
) -> None:
    assert margin_without_results(nothing, RESULTS) == 100.0
    assert margin_without_results(RESULTS, nothing) == -100.0
    assert margin_without_results(nothing, nothing) == 0.0


def test_entries_without_a_preview_are_played_as_duels() -> None:
    assert margin_without_results(RESULTS, RESULTS) is None
    decided, _ = unjudged_duels(["p.png"], {"p": GenerationResult(png="l")}, RESULTS, LIMITS)
    assert match_report("leader", "5A", list(decided.values())).margin == -1.0


def test_a_clear_win_has_no_critical_prompts() -> None:
    assert critical_prompts(report(right=10, left=0, draws=90), 0.05, 7, LIMITS) == []


def test_few_wins_are_all_critical() -> None:
    assert critical_prompts(report(right=5, left=0, draws=95), 0.05, 7, LIMITS) == ["000", "001", "002", "003", "004"]


def test_many_wins_of_a_close_match_are_drawn_with_the_seed_of_the_round() -> None:
    close = report(right=30, left=23, draws=75)
    won = [found.name for found in close.duels if found.winner == RIGHT]
    assert critical_prompts(close, 0.05, 7, LIMITS) == random.Random(7).sample(won, 7)


def test_at_least_one_prompt_is_critical() -> None:
    assert len(critical_prompts(report(right=3, left=3, draws=0), 0.0, 7, LIMITS)) == 1


PNG = st.sampled_from([None, "x"])
SECONDS = st.sampled_from([0.0, 180.0, 180.5, 1000.0])
RESULT = st.builds(GenerationResult, png=PNG, generation_time=SECONDS)
MIRROR = {LEFT: RIGHT, RIGHT: LEFT, DRAW: DRAW, SKIPPED: SKIPPED}


@given(st.lists(st.tuples(RESULT, RESULT), max_size=30))
def test_swapping_the_sides_mirrors_every_outcome_and_negates_the_margin(
    pairs: list[tuple[GenerationResult, GenerationResult]],
) -> None:
    prompts = [f"https://prompts.example/p{n}.png" for n in range(len(pairs))]
    a = {f"p{n}": left for n, (left, _) in enumerate(pairs)}
    b = {f"p{n}": right for n, (_, right) in enumerate(pairs)}
    decided, to_judge = unjudged_duels(prompts, a, b, LIMITS)
    mirrored, to_judge_mirrored = unjudged_duels(prompts, b, a, LIMITS)
    assert decided.keys() | to_judge.keys() == set(range(len(prompts)))
    assert to_judge.keys() == to_judge_mirrored.keys()
    assert {n: MIRROR[found.winner] for n, found in decided.items()} == {n: d.winner for n, d in mirrored.items()}
    one = match_report("a", "b", [*decided.values(), *to_judge.values()])
    assert one.margin == -match_report("b", "a", [*mirrored.values(), *to_judge_mirrored.values()]).margin
    assert -1 <= one.margin <= 1


@given(
    st.lists(st.sampled_from([LEFT, RIGHT, DRAW]), min_size=1, max_size=60),
    st.floats(0, 0.5),
    st.integers(0, 2**32 - 1),
)
def test_critical_prompts_are_distinct_wins_of_right_within_their_number(
    winners: list[DuelWinner], win_margin: float, seed: int
) -> None:
    match = match_report("a", "b", [duel(f"{n:03}", winner) for n, winner in enumerate(winners)])
    critical = critical_prompts(match, win_margin, seed, LIMITS)
    won = {found.name for found in match.duels if found.winner == RIGHT}
    assert set(critical) <= won
    assert len(critical) == len(set(critical)) <= max(1, len(winners) * win_margin + 1)


# --- repeats ---


def test_penalties_are_medians_of_the_repeats_averaged_over_both_orders() -> None:
    assert average_penalties([(1, 7)], [(6, 2)]) == (1.5, 6.5)
    assert average_penalties([(1, 7), (9, 0), (1, 7)], [(6, 2), (6, 2), (0, 9)]) == (1.5, 6.5)
    assert average_penalties([(1, 7), (3, 7)], [(7, 2)]) == (2.0, 7.0)


@pytest.mark.parametrize(
    ("straight", "swapped", "disagree"),
    [([(1, 7)], [(7, 1)], False), ([(1, 7)], [(1, 7)], True), ([(4, 4)], [(1, 7)], False), ([(1, 7)], [(4, 4)], False)],
)
def test_orders_disagree_when_each_prefers_what_it_shows_first(
    straight: list[tuple[int, int]], swapped: list[tuple[int, int]], disagree: bool
) -> None:
    assert orders_disagree(straight, swapped) is disagree


# --- how sure a margin is ---


def drawn_interval(scores: list[int], resamples: int) -> tuple[float, float]:
    """The slow twin: resamples of the prompts, drawn."""
    dice = random.Random(5)
    margins = sorted(sum(dice.choices(scores, k=len(scores))) / len(scores) for _ in range(resamples))
    return margins[int(0.025 * resamples)], margins[int(0.975 * resamples)]


@pytest.mark.parametrize(("right", "left", "draws"), [(30, 24, 74), (64, 64, 0), (5, 0, 123), (100, 20, 8), (3, 2, 7)])
def test_the_interval_is_that_of_many_resamples(right: int, left: int, draws: int) -> None:
    exact = margin_interval(report(right, left, draws))
    assert exact
    drawn = drawn_interval([1] * right + [-1] * left + [0] * draws, 2000)
    step = 1 / (right + left + draws)
    assert exact == pytest.approx(drawn, abs=2.5 * step)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_an_interval_holds_its_margin_and_turns_with_the_sides(right: int, left: int, draws: int) -> None:
    played = report(right, left, draws)
    interval = margin_interval(played)
    if right + left + draws == 0:
        assert interval is None
        return
    assert interval
    assert -1.0 <= interval[0] <= played.margin <= interval[1] <= 1.0
    turned = margin_interval(report(left, right, draws))
    assert turned == pytest.approx((-interval[1], -interval[0]), abs=1.01 / (right + left + draws))


def test_a_match_is_close_when_its_interval_holds_the_limit() -> None:
    assert is_close(report(30, 24, 74), 0.05)
    assert not is_close(report(100, 20, 8), 0.05)
    assert not is_close(report(0, 0, 128), 0.05)
    low, high = margin_interval(report(30, 24, 74)) or (0.0, 0.0)
    assert is_close(report(30, 24, 74), low)
    assert is_close(report(30, 24, 74), high)
    assert not is_close(report(30, 24, 74), high + 0.001)


# --- early exit ---


def test_a_match_is_out_of_reach_when_winning_all_that_is_left_does_not_suffice() -> None:
    assert not out_of_reach([], 20, 0.05)
    assert not out_of_reach([LEFT] * 9, 20, 0.05)  # (11 - 9) / 20 = 0.1
    assert out_of_reach([LEFT] * 9 + [DRAW] * 2, 20, 0.05)  # (9 - 9) / 20
    assert not out_of_reach([LEFT] * 9 + [DRAW], 20, 0.05)  # (10 - 9) / 20 reaches it exactly


@given(st.lists(st.sampled_from([LEFT, RIGHT, DRAW]), min_size=1, max_size=40), st.sampled_from([0.0, 0.03, 0.05, 0.5]))
def test_leaving_early_never_changes_whether_a_match_is_won(winners: list[DuelWinner], win_margin: float) -> None:
    whole = match_report("leader", "5A", [duel(f"{n:03}", winner) for n, winner in enumerate(winners)])
    known = 0
    while known < len(winners) and not out_of_reach(winners[:known], len(winners), win_margin):
        known += 1
    left = [left_out(each, win_margin) if n >= known else each for n, each in enumerate(whole.duels)]
    early = match_report("leader", "5A", left)
    assert (early.margin >= win_margin) == (whole.margin >= win_margin)
    if whole.margin >= win_margin:
        assert early == whole
        assert margin_bound(early) is None
    elif early != whole:
        bound = margin_bound(early)
        assert bound is not None
        assert whole.margin <= bound < win_margin
        assert margin_interval(early) is None
