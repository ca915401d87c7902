"""The verdict of a generation audit, proven on recorded audits."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gen404_dagster.competition import audits
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    AUDIT_REQUESTS,
    GENERATION_AUDITS,
    LEADER,
    RESULTS,
    AuditOutcome,
    GenerationAudit,
    GenerationResult,
    Results,
    read_json,
    read_prompts,
    stem_of,
)

HISTORY = Path(__file__).parents[2].parent / "shared/history"
ROUNDS = HISTORY / "competition-1/rounds"
LIMITS = Limits()

needs_history = pytest.mark.skipif(not ROUNDS.is_dir(), reason="../shared/history is not beside the checkout")


def good(seconds: float = 60.0, distance: float = 0.01) -> GenerationResult:
    return GenerationResult(glb="g", png="p", generation_time=seconds, size=1, attempts=1, distance=distance)


def submitted(count: int) -> Results:
    return {f"p{i}": GenerationResult(glb="g", png="p", size=1, attempts=1) for i in range(count)}


def judge(generated: Results, critical: tuple[str, ...] = (), count: int = 128, **extra: bool) -> GenerationAudit:
    known = submitted(count)
    return audits.verdict("5Miner", list(known), known, generated, critical, LIMITS, **extra)


def recorded_audits() -> Iterator[tuple[Path, str, GenerationAudit]]:
    for path in sorted(ROUNDS.glob("*/generation_audits.json")):
        for hotkey, audit in read_json(GENERATION_AUDITS, path.read_bytes()).items():
            yield path.parent, hotkey, audit


@needs_history
@pytest.mark.shared
def test_recorded_audits_recompute_to_the_last_digit() -> None:
    exact, others = [], []
    for folder, hotkey, recorded in recorded_audits():
        if not (folder / hotkey / "generated.json").is_file():
            assert recorded == audits.build_failed_verdict(hotkey)
            exact.append(hotkey)
            continue
        requests = {r.hotkey: r for r in read_json(AUDIT_REQUESTS, (folder / "require_audit.json").read_bytes())}
        ours = audits.verdict(
            hotkey,
            [stem_of(url) for url in read_prompts((folder / "prompts.txt").read_text())],
            read_json(RESULTS, (folder / hotkey / "submitted.json").read_bytes()),
            read_json(RESULTS, (folder / hotkey / "generated.json").read_bytes()),
            requests[hotkey].critical_prompts,
            LIMITS,
        )
        (exact if ours == recorded else others).append(hotkey)
    # The other one was typed by hand when an audit was ended early (repair 04).
    assert len(exact) == 8
    assert others == ["5FP3qpaSyRrmpEcFstA3NbCDFvRB6GErTrwTX93zNPJvwXfr"]


@needs_history
@pytest.mark.shared
def test_the_audit_typed_by_hand_recomputes_from_what_was_finished() -> None:
    folder, hotkey, recorded = next(r for r in recorded_audits() if r[1] != r[2].hotkey)
    generated = read_json(RESULTS, (folder / hotkey / "generated.json").read_bytes())
    known = read_json(RESULTS, (folder / hotkey / "submitted.json").read_bytes())
    finished = {stem: result for stem, result in generated.items() if audits.succeeded(result)}
    ours = audits.verdict(hotkey, list(known), known, finished, (), LIMITS, stopped_early=True)
    assert (ours.checked_prompts, recorded.checked_prompts) == (102, 102)
    # Nine are too far; the tenth took 278.5 s, which whoever typed the record did not count.
    assert (ours.failed_prompts, recorded.failed_prompts) == (10, 9)
    assert ours.generation_time == pytest.approx(recorded.generation_time, abs=0.005)


@needs_history
@pytest.mark.shared
def test_recorded_leaders_are_never_compared() -> None:
    for path in ROUNDS.glob(f"*/{LEADER}/generated.json"):
        assert {result.distance for result in read_json(RESULTS, path.read_bytes()).values()} == {0.0}


def test_reasons_are_joined_in_the_recorded_order_and_words() -> None:
    generated = {f"p{i}": good(92.344, distance=0.5 if i < 45 else 0.0) for i in range(128)}
    audit = judge(generated, critical=("p0", "p1"))
    assert audit.outcome == AuditOutcome.REJECTED
    assert audit.reason == (
        "Trimmed median generation time (92.34s) exceeds limit (90.00s); "
        "Non-critical mismatches (43) exceed tolerance (6); Critical mismatches (2) exceed tolerance (1)"
    )
    assert (audit.checked_prompts, audit.failed_prompts, audit.failed_critical) == (128, 43, 2)


def test_tolerances_are_inclusive() -> None:
    generated = {f"p{i}": good(90.0, distance=0.1) for i in range(128)}
    generated |= {f"p{i}": good(180.0001) for i in range(7)}
    audit = judge(generated, critical=("p0",))
    assert (audit.outcome, audit.failed_prompts, audit.failed_critical) == (AuditOutcome.PASSED, 6, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        GenerationResult(attempts=3),
        GenerationResult(glb="g", size=9),  # the renderer refused it
        good(distance=0.100001),
        good(180.5),
    ],
)
def test_missing_failed_far_and_overtime_are_mismatches(wrong: GenerationResult | None) -> None:
    assert audits.mismatched(wrong, LIMITS)
    assert not audits.mismatched(good(180.0, distance=0.1), LIMITS)


def test_the_worst_prompts_come_first() -> None:
    generated = {
        "near": good(distance=0.01),
        "nearer": good(distance=0.002),
        "far": good(distance=0.3),
        "farther": good(distance=0.7),
        "slow": good(180.5),
        "refused": GenerationResult(glb="g", size=9, attempts=3),
    }
    order = ["near", "nearer", "far", "absent", "farther", "slow", "refused"]
    worst = audits.worst_first(order, generated, LIMITS)
    assert worst == ["absent", "refused", "slow", "farther", "far", "near", "nearer"]
    faults = [audits.fault(generated.get(stem), LIMITS) for stem in worst]
    assert faults == ["not regenerated", "failed", "overtime", "too far", "too far", None, None]


def test_only_prompts_with_a_valid_submission_are_checked() -> None:
    known = submitted(4) | {"p1": GenerationResult(), "p2": GenerationResult(glb="g")}
    audit = audits.verdict("5Miner", ["p3", "p2", "p1", "p0", "p9"], known, {"p0": good(), "p3": good()}, (), LIMITS)
    assert (audit.checked_prompts, audit.failed_prompts) == (2, 0)


def test_after_an_early_stop_only_what_was_finished_is_checked() -> None:
    generated = {f"p{i}": good(distance=0.5) for i in range(12)} | {f"p{i}": good() for i in range(12, 20)}
    assert judge(generated).failed_prompts == 120
    stopped = judge(generated, stopped_early=True)
    assert (stopped.checked_prompts, stopped.failed_prompts) == (20, 12)
    assert stopped.outcome == AuditOutcome.REJECTED


def test_without_any_success_there_is_no_time() -> None:
    audit = judge({f"p{i}": GenerationResult(attempts=3) for i in range(128)})
    assert audit.generation_time is None
    assert audit.reason == "Non-critical mismatches (128) exceed tolerance (6)"


@pytest.mark.parametrize("count", range(1, 30))
def test_small_rounds_trim_less_and_keep_the_median(count: int) -> None:
    times = [float(i * i) for i in range(count)]
    untrimmed = audits.trimmed_median(times, 0)
    assert audits.trimmed_median(times[::-1], 6) == untrimmed
    assert audits.trimmed_median([], 6) is None


def test_an_audit_is_hopeless_at_twice_the_tolerance() -> None:
    wrong = {f"p{i}": good(distance=0.5) for i in range(12)}
    assert audits.hopeless(wrong, (), LIMITS)
    assert not audits.hopeless({stem: wrong[stem] for stem in list(wrong)[:11]}, (), LIMITS)
    assert not audits.hopeless({}, (), LIMITS.model_copy(update={"max_mismatches": 0}))


def test_failures_before_any_prompt_check_nothing() -> None:
    assert audits.build_failed_verdict("5M") == GenerationAudit(
        hotkey="5M", outcome=AuditOutcome.REJECTED, reason="Failed to build a docker image"
    )
    assert audits.deploy_failed_verdict("5M").reason == "Failed to deploy a docker image"
