"""Which prompt a pod generates next, which result of a prompt is kept, and when a pod is bad.

Belongs here: the order of work of one regeneration and the statistics of its pods; time is an argument. Does not: pods
themselves, HTTP, waiting (`resources.pods.fleet`), the verdict on the results (`audits`).
Rules: spec section 4, "Prompt assignment"; recorded statistics: tests/competition/test_assignment.py.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from gen404_dagster.competition.audits import succeeded, successful_times, trimmed_median
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import GenerationResult, PodStats, Results, Stem

SAMPLES = 8
"""Results that a pod is judged by: its warm-up, and the window of its rolling median."""
USEFUL_RETRIES = 3
"""Retries after which a pod takes more only while they save time."""

NO_WORK = "no work available"
STOPPED = "stopped"
MISMATCH_LIMIT = "mismatch limit"


class Priority(IntEnum):
    """Classes of open prompts in the order in which they are given out."""

    FRESH = 0
    FAILED = 1
    HARD_OVERTIME = 2
    SOFT_OVERTIME = 3


def is_done(result: GenerationResult | None, limits: Limits) -> bool:
    """In time, a mismatch (never tried again), or out of attempts."""
    if result is None:
        return False
    if result.attempts >= limits.prompt_attempts:
        return True
    return succeeded(result) and (
        result.generation_time <= limits.generation_median_seconds or result.distance > limits.acceptable_distance
    )


def classify(result: GenerationResult | None, limits: Limits) -> Priority | None:
    """Priority of an open prompt by its best result; None when it is done."""
    if result is None:
        return Priority.FRESH
    if is_done(result, limits):
        return None
    if not succeeded(result):
        return Priority.FAILED
    if result.generation_time >= limits.generation_overtime_seconds:
        return Priority.HARD_OVERTIME
    return Priority.SOFT_OVERTIME


def better(old: GenerationResult | None, new: GenerationResult) -> GenerationResult:
    """Any success beats a failure, then the shorter time; the older one when they are equal."""
    if old is None or (succeeded(new) and not succeeded(old)):
        return new
    if succeeded(old) and succeeded(new) and new.generation_time < old.generation_time:
        return new
    return old


@dataclass(frozen=True)
class Lock:
    pod: str
    until: float


@dataclass
class PodRecord:
    """What one pod has done so far: is it bad, does it help to give it retries."""

    pod_id: str
    failures: int = 0
    overtimes: int = 0
    times: list[float] = field(default_factory=list)  # successes below the hard limit, retries too
    fresh_times: list[float] = field(default_factory=list)  # of these, first attempts of a prompt
    retry_delta: float = 0.0
    retry_deltas: int = 0

    def add(self, seconds: float | None, original: float | None, fresh: bool, limits: Limits) -> None:
        """Count one result: `seconds` None is a failure, `original` the time of the prompt's best success before."""
        if seconds is None:
            self.failures += 1
            return
        if seconds >= limits.generation_overtime_seconds:
            self.overtimes += 1
            return
        self.times.append(seconds)
        if fresh:
            self.fresh_times.append(seconds)
        elif original is not None:
            self.retry_delta += seconds - original
            self.retry_deltas += 1

    def fault(self, limits: Limits) -> str | None:
        """Why the pod is bad, in the recorded words; None while it is good."""
        limit = limits.bad_pod_failures
        processed = len(self.times) + self.failures + self.overtimes
        if processed >= SAMPLES and self.failures + self.overtimes >= limit:
            return f"{self.failures} failures + {self.overtimes} overtimes >= {limit}"
        window = self.fresh_times[-SAMPLES:]
        if len(window) < SAMPLES:
            return None
        half = SAMPLES // 2
        falling = statistics.median(window[half:]) < statistics.median(window[:half])
        median = statistics.median(window)
        if median > limits.bad_pod_median_seconds and not falling:
            return f"rolling median {median:.1f}s > {limits.bad_pod_median_seconds}s"
        return None

    def takes_retries(self) -> bool:
        """A pod past its warm-up takes retries only while they save time in sum."""
        return len(self.times) < SAMPLES or self.retry_deltas < USEFUL_RETRIES or self.retry_delta <= 0

    def stats(self, reason: str | None = None, marked_bad: bool = False) -> PodStats:
        """Times are null until something succeeded; failures and hard overtimes have no part in them."""
        times = self.times
        return PodStats(
            pod_id=self.pod_id,
            processed=len(times) + self.failures + self.overtimes,
            successful=len(times),
            hard_failed=self.failures,
            hard_overtime=self.overtimes,
            time_min=min(times) if times else None,
            time_max=max(times) if times else None,
            time_avg=statistics.fmean(times) if times else None,
            time_median=statistics.median(times) if times else None,
            marked_bad=marked_bad,
            retry_cumulative_delta=self.retry_delta,
            retry_delta_count=self.retry_deltas,
            termination_reason=reason,
        )


class Assignment:
    """The prompts of one regeneration: what is open, who works on it, what came of it.

    A pod takes a prompt (a lock), and records a result or releases it. A pod never gets a prompt twice, even when it
    gave no result.
    """

    def __init__(self, prompts: Sequence[Stem], limits: Limits, resumed: Mapping[Stem, GenerationResult]) -> None:
        """`prompts` in the round's order; `resumed`: best results of an earlier run, with the attempts they took."""
        self.prompts = tuple(prompts)
        self.limits = limits
        self.results: Results = {stem: resumed[stem] for stem in self.prompts if stem in resumed}
        self._tried: dict[Stem, set[str]] = {stem: set() for stem in self.prompts}
        self._locks: dict[Stem, Lock] = {}

    def take(self, pod: str, retries: bool, now: float) -> Stem | None:
        """Lock the next prompt for a pod: the first of the most urgent class that it may take now."""
        stem = self._first(pod, retries, (stem for stem in self.prompts if not self._locked(stem, now)))
        if stem is not None:
            self._tried[stem].add(pod)
            self._locks[stem] = Lock(pod, now + self.limits.prompt_lock_seconds)
        return stem

    def renew(self, pod: str, stem: Stem, now: float) -> bool:
        """Lock again from now on, when the generation really starts. False: the prompt was lost to another pod."""
        lock = self._locks.get(stem)
        if self.is_done(stem) or lock is None or lock.pod != pod:
            return False
        self._locks[stem] = Lock(pod, now + self.limits.prompt_lock_seconds)
        return True

    def release(self, pod: str, stem: Stem) -> None:
        """Give a prompt back without a result. It costs no attempt."""
        lock = self._locks.get(stem)
        if lock is not None and lock.pod == pod:
            del self._locks[stem]

    def record(self, pod: str, stem: Stem, result: GenerationResult) -> GenerationResult | None:
        """Count an attempt and keep the better result. None: the prompt was done already, nothing changed."""
        self.release(pod, stem)
        old = self.results.get(stem)
        if is_done(old, self.limits):
            return None
        attempts = (old.attempts if old else 0) + 1
        self.results[stem] = better(old, result).model_copy(update={"attempts": attempts})
        return self.results[stem]

    def is_done(self, stem: Stem) -> bool:
        return is_done(self.results.get(stem), self.limits)

    @property
    def final(self) -> Results:
        """Results that nothing can improve any more, in the round's order."""
        return {stem: self.results[stem] for stem in self.prompts if self.is_done(stem)}

    def open_prompts(self) -> list[Stem]:
        """Prompts that still want a generation, locked or not: what nobody will retry is not among them."""
        soft = self._soft_overtimes_wanted()
        return [stem for stem in self.prompts if self._priority(stem, soft) is not None]

    def waiting(self, now: float) -> list[Stem]:
        """Open prompts that no pod works on."""
        return [stem for stem in self.open_prompts() if not self._locked(stem, now)]

    def may_take(self, pod: str, retries: bool, stem: Stem) -> bool:
        """Whether a pod could ever take an open prompt, locks aside."""
        return pod not in self._tried[stem] and (retries or stem not in self.results)

    def has_work(self, pod: str, retries: bool) -> bool:
        """Whether anything is left, or may be left by the pods at work, that this pod could take."""
        return any(self.may_take(pod, retries, stem) for stem in self.open_prompts())

    def next_expiry(self, now: float) -> float | None:
        """When the next lock expires, if nobody records or releases before."""
        return min((lock.until for lock in self._locks.values() if lock.until > now), default=None)

    def _locked(self, stem: Stem, now: float) -> bool:
        lock = self._locks.get(stem)
        return lock is not None and now < lock.until

    def _priority(self, stem: Stem, soft_overtimes: bool) -> Priority | None:
        found = classify(self.results.get(stem), self.limits)
        return None if found is Priority.SOFT_OVERTIME and not soft_overtimes else found

    def _soft_overtimes_wanted(self) -> bool:
        """Only while the verdict's own median is over its limit: then a retry can save the miner."""
        median = trimmed_median(successful_times(self.prompts, self.results), self.limits.median_trim)
        return median is not None and median > self.limits.generation_median_seconds

    def _first(self, pod: str, retries: bool, candidates: Iterable[Stem]) -> Stem | None:
        soft = self._soft_overtimes_wanted()
        best: tuple[Priority, Stem] | None = None
        for stem in candidates:
            found = self._priority(stem, soft)
            if found is None or not self.may_take(pod, retries, stem):
                continue
            if best is None or found < best[0]:
                best = found, stem
        return best[1] if best else None
