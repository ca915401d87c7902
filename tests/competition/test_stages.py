"""What happens next is a function of state and block, for each lane."""

import os
import subprocess
import sys
from datetime import date, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen404_dagster.competition.models import (
    LEADER,
    AuditOutcome,
    AuditRequest,
    Build,
    BuildStatus,
    CompetitionConfig,
    CompetitionStage,
    GenerationAudit,
    GenerationResult,
    LeaderTransition,
    MatchRow,
    Schedule,
    SourceAudit,
    Stage,
    Submission,
    Winner,
)
from gen404_dagster.competition.stages import (
    LANE_OF_JOB,
    Decision,
    Do,
    Lane,
    RoundState,
    Wait,
    builds_settled,
    next_step,
    token,
)

CONFIG = CompetitionConfig(
    name="mesh",
    first_evaluation_date=date(2026, 2, 2),
    last_competition_date=date(2026, 2, 28),
    round_start_time=time(8),
    generation_stage_minutes=120,
    prompts_per_round=2,
    carryover_prompts=1,
)
SCHEDULE = Schedule(earliest_reveal_block=0, latest_reveal_block=1000, generation_deadline_block=1600)
FIRST = LeaderTransition(hotkey="5L", repo="o/l", commit="c" * 40, docker="image", weight=1.0, effective_block=500)
PROMPTS = ("https://prompts.example/p0.png", "https://prompts.example/p1.png")
BASELINE = {"p0": GenerationResult(png="x"), "p1": GenerationResult()}
WINNER = Winner(winner_hotkey=LEADER, repo="o/l", commit="c" * 40, docker_image="image")


def submission(commit: str) -> Submission:
    return Submission(repo="o/n", commit=commit * 40, cdn_url="https://c", revealed_at_block=900, round="mesh-7")


def build(hotkey: str, status: BuildStatus = BuildStatus.SUCCESS) -> Build:
    return Build(repo="o/n", commit=hotkey.lower() * 40, revealed_at_block=900, tag="t", status=status)


SUBMISSIONS = {"A": submission("a"), "B": submission("b")}


def make(stage: str, **changes: object) -> RoundState:
    """A round with two miners, ready for anything in its stage; `changes` spoil it."""
    facts: dict[str, object] = {
        "number": 7,
        "config": CONFIG,
        "state": CompetitionStage(current_round=7, stage=Stage(stage)),
        "leaders": (FIRST,),
        "schedule": SCHEDULE,
    }
    if stage != "open":
        facts |= {"seed": 7, "prompts": PROMPTS, "submissions": SUBMISSIONS, "baseline": BASELINE}
    if stage == "duels":
        facts |= {"submitted": frozenset("AB"), "builds": {h: build(h) for h in SUBMISSIONS}}
    if stage == "finalizing":
        facts |= {"winner": WINNER}
    return RoundState(**(facts | changes))  # type: ignore[arg-type]


def played(*margins: tuple[str, str, float]) -> tuple[MatchRow, ...]:
    return tuple(MatchRow(left=left, right=right, margin=margin) for left, right, margin in margins)


ALL_PLAYED = played((LEADER, "A", 0.1), (LEADER, "B", 0.1), ("A", "B", 0.0))
A_REQUESTED = (AuditRequest(hotkey="A"),)
A_PASSED = {"A": GenerationAudit(hotkey="A", outcome=AuditOutcome.PASSED)}
A_REVIEWED = (SourceAudit(hotkey="A", verdict="passed"),)
VERIFIED = {
    "matrix": ALL_PLAYED,
    "requests": A_REQUESTED,
    "generation_audits": A_PASSED,
    "source_audits": A_REVIEWED,
}


def jobs(round_: RoundState, block: int = 10_000) -> tuple[str | None, str | None, str | None]:
    """Jobs due on main, duels and pods; None: the lane waits."""
    decisions = next_step(round_, block)
    assert list(decisions) == list(Lane)
    for lane, decision in decisions.items():
        assert decision.why.isprintable()
        if isinstance(decision, Do):
            assert LANE_OF_JOB[decision.job] == lane
    main, duels, pods = (d.job if isinstance(d, Do) else None for d in decisions.values())
    return main, duels, pods


def main_of(round_: RoundState, block: int = 10_000) -> Decision:
    return next_step(round_, block)[Lane.MAIN]


# --- stages that a block ends ---


@pytest.mark.parametrize(
    ("stage", "block", "job", "until"),
    [
        ("open", 0, None, 1000),
        ("open", 999, None, 1000),
        ("open", 1000, "open_round", None),
        ("open", 1001, "open_round", None),
        ("miner_generation", 1000, None, 1600),
        ("miner_generation", 1599, None, 1600),
        ("miner_generation", 1600, "advance", None),
        ("miner_generation", 1601, "advance", None),
    ],
)
def test_a_window_closes_at_its_block_and_not_before(
    stage: str, block: int, job: str | None, until: int | None
) -> None:
    assert jobs(make(stage), block) == (job, None, None)
    decision = main_of(make(stage), block)
    if isinstance(decision, Wait):
        assert decision.until == until


@pytest.mark.parametrize("block", [999, 1000, 1001, 1599, 1600, 1601, 10**9])
@pytest.mark.parametrize("stage", ["paused", "finished"])
def test_a_paused_or_finished_competition_does_nothing_on_any_lane(stage: str, block: int) -> None:
    assert jobs(make(stage), block) == (None, None, None)
    assert all(d.until is None for d in next_step(make(stage), block).values() if isinstance(d, Wait))


def test_pausing_says_how_to_go_on() -> None:
    assert "state.json" in main_of(make("paused")).why


@pytest.mark.parametrize("stage", ["downloading", "duels", "finalizing"])
def test_no_block_changes_what_a_stage_of_work_does(stage: str) -> None:
    assert next_step(make(stage), 0) == next_step(make(stage), 10**9)


# --- the operator's part is missing ---


@pytest.mark.parametrize("stage", ["open", "miner_generation", "downloading", "duels", "finalizing"])
def test_without_a_schedule_the_round_waits_and_names_the_file(stage: str) -> None:
    decision = main_of(make(stage, schedule=None))
    assert isinstance(decision, Wait)
    assert "rounds/7/schedule.json" in decision.why


@pytest.mark.parametrize("stage", ["miner_generation", "downloading", "duels"])
@pytest.mark.parametrize("file", ["seed", "prompts", "submissions"])
def test_a_lost_file_of_the_opening_stops_the_round_and_is_named(stage: str, file: str) -> None:
    decision = main_of(make(stage, **{file: None}))
    assert isinstance(decision, Wait)
    assert f"rounds/7/{file}." in decision.why


def test_lost_submissions_never_crown_the_leader() -> None:
    assert jobs(make("duels", submissions=None)) == (None, None, None)


def test_finalizing_without_a_winner_waits_and_names_the_file() -> None:
    decision = main_of(make("finalizing", winner=None))
    assert isinstance(decision, Wait)
    assert "rounds/7/winner.json" in decision.why


# --- downloading and the baseline ---


def test_downloading_goes_on_until_every_submission_is_processed() -> None:
    decision = main_of(make("downloading", submitted=frozenset("B")))
    assert isinstance(decision, Do)
    assert (decision.job, decision.hotkeys) == ("download", ("A",))
    assert jobs(make("downloading", submitted=frozenset("AB"))) == ("advance", None, None)
    assert jobs(make("downloading", submissions={})) == ("advance", None, None)


@pytest.mark.parametrize("stage", ["miner_generation", "downloading", "duels"])
@pytest.mark.parametrize("baseline", [None, {}, {"p0": GenerationResult()}])
def test_the_leaders_image_regenerates_from_miner_generation_on(stage: str, baseline: object) -> None:
    _, duels, pods = jobs(make(stage, baseline=baseline), 1000)
    assert (duels, pods) == (None, "baseline")


@pytest.mark.parametrize("stage", ["open", "finalizing", "paused", "finished"])
def test_no_image_runs_in_other_stages(stage: str) -> None:
    assert jobs(make(stage, baseline=None))[2] is None


def test_a_failed_result_of_the_baseline_is_final() -> None:
    assert make("duels", baseline={"p0": GenerationResult(), "p1": GenerationResult()}).baseline_missing == ()


def test_a_prompt_that_was_drawn_twice_is_regenerated_once() -> None:
    assert make("duels", prompts=PROMPTS + PROMPTS[:1], baseline={}).baseline_missing == ("p0", "p1")


def test_nobody_leading_needs_no_baseline() -> None:
    assert jobs(make("duels", leaders=(), baseline=None))[1] == "judge"
    later = FIRST.model_copy(update={"effective_block": 1001})
    assert make("duels", leaders=(later,)).leader is None


def test_the_round_is_defended_by_who_leads_when_its_window_closes() -> None:
    second = FIRST.model_copy(update={"weight": 0.8, "effective_block": 1000})
    third = FIRST.model_copy(update={"weight": 0.6, "effective_block": 1001})
    assert make("duels", leaders=(FIRST, second, third)).leader == second


# --- duels ---


def test_matches_are_played_while_an_audit_runs_and_a_reviewer_thinks() -> None:
    round_ = make("duels", matrix=ALL_PLAYED[:2], requests=A_REQUESTED)
    assert jobs(round_) == (None, "judge", "verify")
    assert main_of(round_).why == "waits for matches (now due: 1); generation audits of A"


def test_an_audit_that_is_due_is_requested_even_when_no_match_is() -> None:
    assert jobs(make("duels", matrix=ALL_PLAYED)) == (None, "judge", None)


@pytest.mark.parametrize("outcome", [None, AuditOutcome.PENDING])
def test_a_requested_audit_runs_until_its_verdict(outcome: AuditOutcome | None) -> None:
    audits = {"A": GenerationAudit(hotkey="A", outcome=outcome)} if outcome else None
    round_ = make("duels", matrix=ALL_PLAYED, requests=A_REQUESTED, generation_audits=audits)
    assert jobs(round_) == (None, None, "verify")


def test_a_missing_review_is_waited_for_and_the_miner_named() -> None:
    round_ = make("duels", **(VERIFIED | {"source_audits": ()}))
    assert jobs(round_) == (None, None, None)
    assert main_of(round_).why == "waits for a reviewer's verdict in rounds/7/source_audit.json on A"


def test_a_rejected_leader_reopens_the_duels_lane_for_its_successor() -> None:
    rejected = {"A": GenerationAudit(hotkey="A", outcome=AuditOutcome.REJECTED)}
    assert jobs(make("duels", **(VERIFIED | {"generation_audits": rejected}))) == (None, "judge", None)


def test_a_verified_timeline_with_every_pair_played_is_crowned() -> None:
    assert jobs(make("duels", **VERIFIED)) == ("crown", None, None)
    assert jobs(make("duels", **(VERIFIED | {"matrix": ALL_PLAYED[:2]}))) == (None, "judge", None)


def test_no_winner_is_crowned_while_the_leaders_results_are_regenerated() -> None:
    assert jobs(make("duels", **VERIFIED, baseline={})) == (None, None, "baseline")
    assert main_of(make("duels", **VERIFIED, baseline={})).why == "waits for the leader's baseline (prompts missing: 2)"


def test_a_round_in_which_nobody_qualifies_is_crowned_without_an_audit() -> None:
    nobody = played((LEADER, "A", 0.0), (LEADER, "B", -1.0))
    assert jobs(make("duels", matrix=nobody)) == ("crown", None, None)


def test_a_round_without_submissions_is_crowned_and_asks_for_nothing() -> None:
    assert jobs(make("duels", submissions={}, builds=None)) == ("crown", None, None)


def test_builds_are_looked_up_once_duels_begin() -> None:
    assert jobs(make("duels", builds=None)) == (None, "judge", "verify")


def test_unfinished_builds_are_looked_up_again_although_no_audit_waits() -> None:
    going = {"A": build("A"), "B": build("B", BuildStatus.IN_PROGRESS)}
    assert jobs(make("duels", builds=going))[2] == "verify"


def test_a_winner_is_finalized() -> None:
    assert jobs(make("finalizing")) == ("finalize", None, None)


@pytest.mark.parametrize("status", list(BuildStatus))
def test_a_build_is_settled_when_it_cannot_change_any_more(status: BuildStatus) -> None:
    final = status not in {BuildStatus.PENDING, BuildStatus.IN_PROGRESS}
    assert builds_settled(make("duels", builds={"A": build("A"), "B": build("B", status)})) == final
    assert not builds_settled(make("duels", builds={"A": build("A")}))


# --- tokens ---


def test_a_stage_that_an_operator_goes_back_to_is_new_work() -> None:
    first, again = (token_of(Lane.MAIN, make("downloading", submitted=frozenset("AB"), stage_entered=c)) for c in "xy")
    assert first != again


def token_of(lane: Lane, round_: RoundState) -> str:
    decision = next_step(round_, 10_000)[lane]
    assert isinstance(decision, Do)
    return decision.token


def test_every_time_the_same_work_has_the_same_token() -> None:
    assert token_of(Lane.MAIN, make("duels", **VERIFIED)) == token_of(Lane.MAIN, make("duels", **VERIFIED))


IN_BUILD = {"A": build("A", BuildStatus.IN_PROGRESS)}


@pytest.mark.parametrize(
    ("lane", "stage", "before", "after"),
    [
        (Lane.MAIN, "downloading", {}, {"submitted": frozenset("A")}),
        (Lane.MAIN, "duels", VERIFIED, VERIFIED | {"matrix": (*ALL_PLAYED, *played((LEADER, "B", 0.2)))}),
        (Lane.MAIN, "finalizing", {}, {"winner": WINNER.model_copy(update={"winner_hotkey": "A"})}),
        (Lane.MAIN, "finalizing", {}, {"number": 8}),
        (Lane.DUELS, "duels", {}, {"matrix": ALL_PLAYED[:1]}),
        (Lane.DUELS, "duels", {"matrix": ALL_PLAYED[:2]}, {"matrix": ALL_PLAYED[:2], "requests": A_REQUESTED}),
        (Lane.PODS, "miner_generation", {"baseline": None}, {"baseline": {"p0": GenerationResult()}}),
        (Lane.PODS, "duels", {"builds": None}, {"builds": None, "requests": A_REQUESTED}),
        (Lane.PODS, "duels", {"requests": A_REQUESTED}, {"requests": A_REQUESTED, "builds": IN_BUILD}),
    ],
)
def test_progress_changes_the_token(
    lane: Lane, stage: str, before: dict[str, object], after: dict[str, object]
) -> None:
    assert token_of(lane, make(stage, **before)) != token_of(lane, make(stage, **after))


TOKENS_SCRIPT = """
from gen404_dagster.competition.models import AuditOutcome, GenerationAudit, MatchRow, Schedule, Stage
from gen404_dagster.competition.stages import token
from gen404_dagster.competition.timeline import Reign
schedule = Schedule(earliest_reveal_block=0, latest_reveal_block=1000, generation_deadline_block=1600)
row = MatchRow(left="leader", right="A", margin=0.0546875)
audit = GenerationAudit(hotkey="A", outcome=AuditOutcome.PASSED)
print(token(7, schedule, None, Stage.OPEN, ("B", "A"), (row, row), (("A", audit),), (Reign("A", "leader", 0.1),)))
"""


def test_a_token_is_equal_in_every_process() -> None:
    def run(hash_seed: str) -> str:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", TOKENS_SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert {run("1"), run("2")} == {"078220ba1890cc23"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 2), (12,)),
        (("a", "b"), ("ab",)),
        ((("a",), ("b",)), (("a", "b"), ())),
        ((None,), ("null",)),
        ((None,), ((),)),
        ((1,), ("1",)),
        ((("A", "B"),), (("B", "A"),)),
        ((SCHEDULE,), (SCHEDULE.model_copy(update={"latest_reveal_block": 1001}),)),
        ((1.0,), (1.0000000000000002,)),
    ],
)
def test_different_input_has_a_different_token(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert token(*one) != token(*other)
    assert len(token(*one)) == 16


@pytest.mark.parametrize("unordered", [{"a"}, frozenset("a")])
def test_a_set_has_no_token_because_its_order_differs_between_processes(unordered: object) -> None:
    with pytest.raises(TypeError, match="order"):
        token(7, unordered)


# --- facts that hold in every state ---

PARTS: dict[str, st.SearchStrategy[object]] = {
    "schedule": st.sampled_from([SCHEDULE, None]),
    "leaders": st.sampled_from([(), (FIRST,)]),
    "seed": st.sampled_from([7, None]),
    "prompts": st.sampled_from([PROMPTS, (), None]),
    "submissions": st.sampled_from([SUBMISSIONS, {}, None]),
    "builds": st.sampled_from([None, {}, {"A": build("A")}]),
    "requests": st.sampled_from([(), A_REQUESTED]),
    "generation_audits": st.sampled_from([None, A_PASSED]),
    "source_audits": st.sampled_from([(), A_REVIEWED]),
    "matrix": st.sampled_from([ALL_PLAYED[:n] for n in range(4)]),
    "winner": st.sampled_from([None, WINNER]),
    "submitted": st.sampled_from([frozenset(part) for part in ("", "A", "AB")]),
    "baseline": st.sampled_from([None, BASELINE]),
}


@given(st.sampled_from(list(Stage)), st.fixed_dictionaries(PARTS), st.sampled_from([0, 999, 1000, 1600, 10**9]))
def test_every_state_has_a_decision_for_every_lane_with_a_reason(
    stage: Stage, parts: dict[str, object], block: int
) -> None:
    round_ = make(stage.value, **parts)
    main, duels, _ = jobs(round_, block)
    assert not (duels and round_.baseline_missing)
    assert not (main == "crown" and (duels or not round_.standing().complete))
    for decision in next_step(round_, block).values():
        assert decision.why
        if isinstance(decision, Wait) and decision.until is not None:
            assert decision.until > block
