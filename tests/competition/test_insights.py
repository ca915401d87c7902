"""What many rounds tell together, on small rounds whose answers are known."""

import math
from dataclasses import replace

import pytest

from gen404_dagster.competition import insights
from gen404_dagster.competition.duels import left_out, match_report
from gen404_dagster.competition.insights import PlayedRound
from gen404_dagster.competition.judging import MatchJudging
from gen404_dagster.competition.models import (
    LEADER,
    AuditOutcome,
    CompetitionConfig,
    CompetitionStage,
    Duel,
    DuelWinner,
    GenerationAudit,
    GenerationResult,
    LeaderTransition,
    MatchReport,
    MatchRow,
    Schedule,
    Stage,
    Submission,
    Winner,
)
from gen404_dagster.competition.stages import RoundState

A, B, C, D = ("5" + letter * 9 for letter in "ABCD")
CONFIG = CompetitionConfig.model_validate(
    {
        "name": "c",
        "first_evaluation_date": "2026-01-01",
        "last_competition_date": "2027-01-01",
        "round_start_time": "08:00:00",
        "generation_stage_minutes": 1,
        "prompts_per_round": 2,
        "carryover_prompts": 1,
        "win_margin": 0.05,
    }
)
MADE = GenerationResult(glb="https://x.org/a.glb", png="https://x.org/a.png", generation_time=4.0)
WINNERS = {"l": DuelWinner.LEFT, "r": DuelWinner.RIGHT, "d": DuelWinner.DRAW, "s": DuelWinner.SKIPPED}


def report(left: str, right: str, **outcomes: str) -> MatchReport:
    """A match; outcomes by prompt: l, r, d, s; a capital letter was not judged."""
    duels = [
        Duel(
            name=stem,
            prompt=f"https://x.org/{stem}.png",
            left_png="l.png",
            right_png="r.png",
            winner=WINNERS[how.lower()],
            issues=f"No preview for {stem} from left" if how.isupper() else "",
        )
        for stem, how in outcomes.items()
    ]
    return MatchReport(left=left, right=right, score=0, margin=0, duels=duels)


def played(number: int, rows: dict[tuple[str, str], float], *reports: MatchReport, winner: str = LEADER) -> PlayedRound:
    """A finished round of A, B, C, in which C has no preview, B was rejected and D leads."""
    entries = {
        h: Submission(repo="r", commit="c", cdn_url="https://x.org", revealed_at_block=1, round=f"c-{number}")
        for h in (A, B, C)
    }
    audits = {
        A: GenerationAudit(hotkey=A, outcome=AuditOutcome.PASSED),
        B: GenerationAudit(hotkey=B, outcome=AuditOutcome.REJECTED, reason="too many differ"),
    }
    state = RoundState(
        number=number,
        config=CONFIG,
        state=CompetitionStage(current_round=9, stage=Stage.OPEN),
        leaders=(LeaderTransition(hotkey=D, weight=1.0, effective_block=0),),
        schedule=Schedule(earliest_reveal_block=0, latest_reveal_block=9, generation_deadline_block=9),
        prompts=(f"https://x.org/p{number}.png", "https://x.org/shared.png"),
        submissions=entries,
        generation_audits=audits,
        matrix=tuple(MatchRow(left=left, right=right, margin=margin) for (left, right), margin in rows.items()),
        winner=Winner(winner_hotkey=winner, repo=None, commit=None, docker_image=None),
    )
    times = [GenerationResult(glb="g", generation_time=t, attempts=1 + (t > 3)) for t in (1.0, 2.0, 3.0, 4.0)]
    return PlayedRound(
        state,
        reports,
        submitted={A: {"p": MADE}, B: {"p": MADE}, C: {"p": GenerationResult(glb="g")}},
        generated={LEADER: dict(zip("wxyz", times, strict=True)), A: {"p": GenerationResult()}},
    )


ROWS = {(LEADER, A): 0.5, (LEADER, B): 0.05, (LEADER, C): -1.0, (A, B): 0.0}


def test_the_funnel_narrows_from_submissions_to_a_new_leader() -> None:
    (row,) = insights.funnel([played(0, ROWS, winner=A)])
    assert row == {
        "round": 0, "submitted": 3, "usable": 2, "qualified": 2, "audited": 2, "passed": 1, "new_leader": 1, "winner": A,
    }  # fmt: skip
    assert insights.funnel([played(0, {})])[0]["new_leader"] == 0


def test_margins_keep_the_order_of_play_and_know_who_won() -> None:
    rows = insights.match_margins([played(0, ROWS)])
    assert [row["won"] for row in rows] == [True, True, False, False]
    assert [row["against_leader"] for row in rows] == [True, True, True, False]


def test_a_histogram_loses_no_value() -> None:
    assert insights.histogram([-100.0, -1.0, 0.0, 0.49, 0.5, 1.0, 100.0], [-1.0, 0.0, 0.5, 1.0]) == [2, 2, 3]


def test_generation_times_are_of_images_that_made_files() -> None:
    (row,) = insights.generation_times([played(0, ROWS)])
    assert (row["hotkey"], row["prompts"], row["generated"], row["retried"]) == (LEADER, 4, 4, 1)
    assert (row["fastest"], row["median"], row["slowest"]) == (1.0, 2.5, 4.0)
    assert row["slowest_tenth"] == pytest.approx(3.7)


def test_draws_are_counted_among_judged_duels_only() -> None:
    rows = insights.prompt_draws(
        [played(0, ROWS, report(LEADER, A, p="d", shared="l"), report(LEADER, B, p="d", shared="R"))]
    )
    assert [(row["prompt"], row["judged"], row["draw_rate"]) for row in rows] == [("p", 2, 1.0), ("shared", 1, 0.0)]


def test_a_hotkey_has_a_line_for_each_round_it_took_part_in() -> None:
    rows = insights.hotkeys([played(0, ROWS, winner=A), played(1, {(LEADER, A): 0.0})])
    came = {(row["hotkey"], row["round"]): row["outcome"] for row in rows}
    assert came == {
        (A, 0): "won", (B, 0): "rejected", (C, 0): "unusable", (A, 1): "usable", (B, 1): "rejected", (C, 1): "unusable",
    }  # fmt: skip


def test_position_bias_keeps_challengers_apart_from_the_leader() -> None:
    leader, others = insights.position_bias(
        [played(0, ROWS, report(LEADER, A, p="l", q="l", s="L"), report(A, B, p="r", q="d"))]
    )
    assert (leader["matches"], leader["judged"], leader["left_rate"], leader["draw_rate"]) == (
        "against the leader",
        2,
        1,
        0,
    )
    assert (others["matches"], others["right"], others["draws"], others["p_value"]) == (
        "between challengers",
        1,
        1,
        1.0,
    )


def test_a_sign_test_is_exact_for_few_and_agrees_for_many() -> None:
    assert insights.sign_test(0, 0) == insights.sign_test(7, 7) == 1.0
    assert insights.sign_test(0, 5) == insights.sign_test(5, 0) == pytest.approx(2 / 32)
    exact = 2 * sum(math.comb(2000, k) for k in range(951)) / 2**2000
    assert insights.sign_test(950, 1050) == pytest.approx(exact, rel=0.02)


def test_a_pair_that_meets_again_on_a_prompt_is_compared_whoever_defends() -> None:
    """In round 0 D leads and meets A as `leader`; in round 1 the sides are the same people."""
    rounds = [
        played(0, ROWS, report(LEADER, A, shared="r", p0="l"), report(A, B, shared="d")),
        played(1, ROWS, report(LEADER, A, shared="l"), report(B, A, shared="D")),
        played(2, ROWS, report(LEADER, A, shared="l"), report(B, A, shared="d")),
    ]
    rows = insights.repeated_prompts(rounds)
    found = {(row["first"], row["second"], row["earlier_round"], row["later_round"]): row["same"] for row in rows}
    assert found == {(A, D, 0, 1): False, (A, D, 1, 2): True, (A, B, 0, 2): True}
    assert {row["prompt"] for row in rows} == {"shared"}
    assert [(row["earlier_round"], row["later_round"], row["prompts"]) for row in insights.carried_prompts(rounds)] == [
        (0, 1, 1), (0, 2, 1), (1, 2, 1),
    ]  # fmt: skip


def test_nothing_played_tells_nothing() -> None:
    empty = PlayedRound(played(0, {}).state)
    for compute in (insights.match_margins, insights.generation_times, insights.prompt_draws, insights.position_bias):
        assert compute([empty]) == []
    assert insights.repeated_prompts([empty]) == []
    assert insights.funnel([]) == []


def test_judging_is_told_by_round_and_only_of_rounds_judged_here() -> None:
    close = match_report(
        LEADER, A, [duel for n in range(6) for duel in report(LEADER, A, **{f"p{n}": "rld"[n % 3]}).duels]
    )
    here = replace(
        played(1, {(LEADER, A): 0.0}, close),
        judging=(MatchJudging(duels=6, draws=2, disagreed=1, questions=12, calls=13, seconds=(1.0, 3.0)),),
    )
    (row,) = insights.judging([played(0, {}), here])
    assert (row["round"], row["matches"], row["questions"], row["calls"], row["close"]) == (1, 1, 12, 13, 1)
    assert row["draw_rate"] == pytest.approx(1 / 3)
    assert row["disagreement"] == pytest.approx(1 / 6)
    assert (row["seconds_p50"], row["seconds_p99"]) == (1.0, 3.0)


def test_a_duel_that_was_left_out_is_not_judged() -> None:
    assert not insights.is_judged(left_out(report(LEADER, A, p="d").duels[0], 0.05))
