"""What regenerated results say about a miner: the verdict of a generation audit.

Belongs here: which prompts are compared, what a mismatch is, the verdict with its recorded words, and when going on is
pointless. Does not: generating (`resources.pods`), which prompt a pod gets next (`assignment`), measuring distances.
Rules: spec section 4, "Verdict"; proven on recorded rounds by tests/competition/test_audits.py.
"""

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    AuditOutcome,
    GenerationAudit,
    GenerationResult,
    Hotkey,
    Results,
    Stem,
)

EARLY_STOP_FACTOR = 2
"""An audit stops early when its mismatches reach so many times the tolerance."""

BUILD_FAILED = "Failed to build a docker image"
DEPLOY_FAILED = "Failed to deploy a docker image"


class Fault(StrEnum):
    """Why a prompt is a mismatch, the plainest reason first."""

    MISSING = "not regenerated"
    FAILED = "failed"
    OVERTIME = "overtime"
    FAR = "too far"


@dataclass(frozen=True)
class Mismatches:
    """Prompts that were not reproduced, in the order they were checked."""

    non_critical: tuple[Stem, ...]
    critical: tuple[Stem, ...]

    def __len__(self) -> int:
        return len(self.non_critical) + len(self.critical)


def succeeded(result: GenerationResult | None) -> bool:
    """A 3D file that could be rendered."""
    return result is not None and result.glb is not None and result.png is not None


def prompts_to_check(prompts: Sequence[Stem], submitted: Results) -> list[Stem]:
    """Prompts with a valid submission, in the round's order: nothing else can be compared."""
    return [stem for stem in prompts if succeeded(submitted.get(stem))]


def fault(result: GenerationResult | None, limits: Limits) -> Fault | None:
    """Why a prompt is a mismatch; None when it was reproduced."""
    if result is None:
        return Fault.MISSING
    if not succeeded(result):
        return Fault.FAILED
    if result.generation_time > limits.generation_overtime_seconds:
        return Fault.OVERTIME
    return Fault.FAR if result.distance > limits.acceptable_distance else None


def mismatched(result: GenerationResult | None, limits: Limits) -> bool:
    """Missing, failed, overtime or too far from the submission."""
    return fault(result, limits) is not None


def mismatches(checked: Sequence[Stem], generated: Results, critical: Collection[Stem], limits: Limits) -> Mismatches:
    wrong = [stem for stem in checked if mismatched(generated.get(stem), limits)]
    return Mismatches(
        non_critical=tuple(stem for stem in wrong if stem not in critical),
        critical=tuple(stem for stem in wrong if stem in critical),
    )


def worst_first(checked: Sequence[Stem], generated: Results, limits: Limits) -> list[Stem]:
    """What a person looks at first: mismatches by reason, then whatever differs most."""
    order: list[Fault | None] = [*Fault, None]

    def badness(stem: Stem) -> tuple[int, float]:
        result = generated.get(stem)
        return order.index(fault(result, limits)), -result.distance if result else 0.0

    return sorted(checked, key=badness)


def trimmed_median(times: Sequence[float], trim: int) -> float | None:
    """Median after cutting `trim` times from each end, or as many as leave one; None without times.

    Cutting both ends alike does not move a median: small rounds may cut less, or nothing, with the same result.
    """
    if not times:
        return None
    cut = min(trim, (len(times) - 1) // 2)
    return statistics.median(sorted(times)[cut : len(times) - cut])


def successful_times(checked: Sequence[Stem], generated: Results) -> list[float]:
    return [generated[stem].generation_time for stem in checked if succeeded(generated.get(stem))]


def verdict(
    hotkey: Hotkey,
    prompts: Sequence[Stem],
    submitted: Results,
    generated: Results,
    critical: Collection[Stem],
    limits: Limits,
    *,
    stopped_early: bool = False,
) -> GenerationAudit:
    """Judge regenerated results; `prompts` are the round's, in order.

    A prompt without result is a mismatch, unless the audit stopped early: then only what was finished is checked.
    """
    checked = [stem for stem in prompts_to_check(prompts, submitted) if stem in generated or not stopped_early]
    wrong = mismatches(checked, generated, critical, limits)
    median = trimmed_median(successful_times(checked, generated), limits.median_trim)
    reasons = []
    if median is not None and median > limits.generation_median_seconds:
        limit = limits.generation_median_seconds
        reasons.append(f"Trimmed median generation time ({median:.2f}s) exceeds limit ({limit:.2f}s)")
    if len(wrong.non_critical) > limits.max_mismatches:
        reasons.append(
            f"Non-critical mismatches ({len(wrong.non_critical)}) exceed tolerance ({limits.max_mismatches})"
        )
    if len(wrong.critical) > limits.max_critical_mismatches:
        reasons.append(
            f"Critical mismatches ({len(wrong.critical)}) exceed tolerance ({limits.max_critical_mismatches})"
        )
    return GenerationAudit(
        hotkey=hotkey,
        outcome=AuditOutcome.REJECTED if reasons else AuditOutcome.PASSED,
        checked_prompts=len(checked),
        failed_prompts=len(wrong.non_critical),
        failed_critical=len(wrong.critical),
        generation_time=median,
        reason="; ".join(reasons),
    )


def build_failed_verdict(hotkey: Hotkey) -> GenerationAudit:
    """The miner's repository gave no docker image: nothing to check."""
    return GenerationAudit(hotkey=hotkey, outcome=AuditOutcome.REJECTED, reason=BUILD_FAILED)


def deploy_failed_verdict(hotkey: Hotkey) -> GenerationAudit:
    """No pod of the image ever became healthy: nothing to check."""
    return GenerationAudit(hotkey=hotkey, outcome=AuditOutcome.REJECTED, reason=DEPLOY_FAILED)


def hopeless(final: Results, critical: Collection[Stem], limits: Limits) -> bool:
    """Whether to stop early, by the results that nothing can improve any more: rejection must be certain as well."""
    wrong = mismatches(list(final), final, critical, limits)
    certain = len(wrong.non_critical) > limits.max_mismatches or len(wrong.critical) > limits.max_critical_mismatches
    return certain and len(wrong) >= EARLY_STOP_FACTOR * limits.max_mismatches
