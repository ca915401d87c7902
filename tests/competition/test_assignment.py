"""The order of prompts, the results kept, and what makes a pod bad."""

import itertools
import random
from pathlib import Path

import pytest

from gen404_dagster.competition.assignment import Assignment, PodRecord, better
from gen404_dagster.competition.audits import succeeded
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import POD_STATS, RESULTS, GenerationResult, read_json

LIMITS = Limits()
LEADER_FOLDER = Path(__file__).parents[2].parent / "shared/history/competition-1/rounds/3/leader"
FAILED = GenerationResult()

needs_history = pytest.mark.skipif(not LEADER_FOLDER.is_dir(), reason="../shared/history is not beside the checkout")


def good(seconds: float, distance: float = 0.0, attempts: int = 1) -> GenerationResult:
    return GenerationResult(glb="g", png="p", generation_time=seconds, size=1, attempts=attempts, distance=distance)


def board(*prompts: str, **results: GenerationResult) -> Assignment:
    return Assignment(prompts, LIMITS, results)


def failed(attempts: int = 1) -> GenerationResult:
    return GenerationResult(attempts=attempts)


def record(*times: float | None, fresh: bool = True) -> PodRecord:
    pod = PodRecord("pod")
    for seconds in times:
        pod.add(seconds, None, fresh, LIMITS)
    return pod


def test_classes_go_fresh_failed_hard_overtime_soft_overtime_each_in_round_order() -> None:
    assignment = board(
        "soft", "hard", "bad1", "new1", "bad2", "new2", soft=good(91.0), hard=good(180.0), bad1=failed(), bad2=failed()
    )
    taken = [assignment.take("pod", True, 0.0) for _ in range(7)]
    assert taken == ["new1", "new2", "bad1", "bad2", "hard", "soft", None]


def test_soft_overtimes_are_only_retried_while_the_median_is_over_its_limit() -> None:
    assignment = board("a", "b", "c", a=good(100.0), b=good(50.0), c=good(60.0))
    assert assignment.take("pod", True, 0.0) is None
    assert assignment.open_prompts() == []
    assignment = board("a", "b", "c", a=good(100.0), b=good(50.0), c=good(160.0))
    assert assignment.open_prompts() == ["a", "c"]


def test_a_pod_without_retries_gets_only_fresh_prompts() -> None:
    assignment = board("a", "b", a=failed())
    assert assignment.take("pod", False, 0.0) == "b"
    assert assignment.take("pod", False, 0.0) is None
    assert not assignment.has_work("pod", False)
    assert assignment.has_work("pod", True)


def test_a_prompt_never_goes_to_the_same_pod_twice() -> None:
    assignment = board("a")
    assert assignment.take("pod", True, 0.0) == "a"
    assignment.release("pod", "a")
    assert assignment.take("pod", True, 0.0) is None
    assert assignment.take("other", True, 0.0) == "a"


def test_a_locked_prompt_waits_until_the_lock_expires_or_is_released() -> None:
    assignment = board("a")
    assignment.take("pod", True, 0.0)
    assert assignment.take("other", True, 599.0) is None
    assert assignment.waiting(599.0) == []
    assert assignment.next_expiry(1.0) == 600.0
    assert assignment.renew("pod", "a", 500.0)
    assert assignment.take("other", True, 600.0) is None
    assert assignment.take("other", True, 1100.0) == "a"
    assert not assignment.renew("pod", "a", 1101.0), "the prompt was lost"


def test_a_prompt_is_done_in_time_or_as_mismatch_or_out_of_attempts() -> None:
    assert board("a", a=good(90.0)).is_done("a")
    assert board("a", a=good(300.0, distance=0.11)).is_done("a")
    assert not board("a", a=good(90.5)).is_done("a")
    assert not board("a", a=failed(2)).is_done("a")
    assert board("a", a=failed(3)).is_done("a")


def test_attempts_count_on_after_a_restart() -> None:
    assignment = board("a", a=failed(2))
    assert assignment.take("pod", True, 0.0) == "a"
    standing = assignment.record("pod", "a", FAILED)
    assert standing is not None
    assert standing.attempts == 3
    assert assignment.open_prompts() == []


def test_a_late_result_of_a_finished_prompt_changes_nothing() -> None:
    assignment = board("a")
    assignment.take("slow", True, 0.0)
    assignment.take("fast", True, 700.0)
    assert assignment.record("fast", "a", good(50.0)) is not None
    assert assignment.record("slow", "a", good(10.0)) is None
    assert assignment.results["a"].generation_time == 50.0


def test_any_success_beats_a_failure_then_the_shorter_time() -> None:
    slow, fast, refused = good(200.0), good(100.0), GenerationResult(glb="g", size=1)
    assert better(None, refused) is refused
    assert better(refused, slow) is slow
    assert better(slow, refused) is slow
    assert better(slow, fast) is fast
    assert better(fast, slow) is fast


def test_every_prompt_ends_whatever_pods_do() -> None:
    for seed in range(30):
        chance = random.Random(seed)
        assignment = board(*(f"p{i}" for i in range(20)))
        pods = [PodRecord(f"pod{i}") for i in range(6)]
        for step in itertools.count():
            takers = [pod for pod in pods if assignment.has_work(pod.pod_id, pod.takes_retries())]
            if not takers:
                break
            pod = chance.choice(takers)
            stem = assignment.take(pod.pod_id, pod.takes_retries(), step * 700.0)
            if stem is None:
                continue
            result = chance.choice([FAILED, good(chance.uniform(50, 250)), good(60.0, distance=0.5)])
            before = assignment.results.get(stem)
            after = assignment.record(pod.pod_id, stem, result)
            assert after is not None
            assert after.attempts == (before.attempts if before else 0) + 1 <= 3
            assert succeeded(after) or not (before and succeeded(before))
            assert step < 500
        assert all(result.attempts <= 3 for result in assignment.results.values())
        assert not [stem for stem in assignment.open_prompts() if assignment.results[stem].attempts >= 3]


def test_a_pod_is_bad_after_eight_failures_and_overtimes() -> None:
    assert record(*[None] * 7, 60.0, 60.0).fault(LIMITS) is None
    assert record(*[None] * 4, *[180.0] * 4).fault(LIMITS) == "4 failures + 4 overtimes >= 8"
    assert record(*[60.0] * 50, *[200.0] * 8).fault(LIMITS) == "0 failures + 8 overtimes >= 8"


def test_a_pod_is_bad_while_its_last_eight_fresh_times_are_slow_and_do_not_fall() -> None:
    assert record(*[157.3] * 8).fault(LIMITS) == "rolling median 157.3s > 120.0s"
    assert record(*[157.3] * 7).fault(LIMITS) is None
    assert record(*[170.0] * 4, *[150.0] * 4).fault(LIMITS) is None, "it is warming up"
    assert record(*[157.3] * 20, *[60.0] * 8).fault(LIMITS) is None
    assert record(*[157.3] * 8, fresh=False).fault(LIMITS) is None, "retries are hard prompts"


def test_a_pod_takes_retries_only_while_they_save_time() -> None:
    def retried(successes: int, *retries: tuple[float, float]) -> bool:
        pod = record(*[60.0] * successes)
        for seconds, original in retries:
            pod.add(seconds, original, False, LIMITS)
        return pod.takes_retries()

    assert retried(4, *[(120.0, 100.0)] * 3), "still warming up"
    assert retried(8, *[(120.0, 100.0)] * 2), "too few to tell"
    assert not retried(8, *[(120.0, 100.0)] * 3)
    assert retried(8, (120.0, 100.0), (110.0, 100.0), (70.0, 100.0))


def test_times_are_null_until_something_succeeded() -> None:
    stats = record(None, 200.0).stats("stopped")
    assert (stats.processed, stats.successful, stats.hard_failed, stats.hard_overtime) == (2, 0, 1, 1)
    assert (stats.time_min, stats.time_max, stats.time_avg, stats.time_median) == (None, None, None, None)


@needs_history
@pytest.mark.shared
def test_recorded_pod_statistics_follow_from_their_results() -> None:
    recorded = read_json(POD_STATS, (LEADER_FOLDER / "pod_stats.json").read_bytes())
    for stats in recorded.values():
        assert stats.processed == stats.successful + stats.hard_failed + stats.hard_overtime
        assert stats.time_max is not None
        assert stats.time_max < 180.0, "hard overtimes are not among the times"
    # One pod's four results are all among the round's: its statistics recompute to the last digit.
    smallest = recorded["miner-03-leader-5"]
    results = read_json(RESULTS, (LEADER_FOLDER / "generated.json").read_bytes())
    known = (smallest.time_min, 126.43964609500108, 120.36294208699837, smallest.time_max)
    times = [r.generation_time for r in results.values() if r.generation_time in known]
    ours = record(*times, *[None] * 5).stats(smallest.termination_reason)
    assert ours.model_copy(update={"pod_id": smallest.pod_id}) == smallest
