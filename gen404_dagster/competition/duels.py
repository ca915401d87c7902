"""From two previews and two answers to an outcome, from outcomes to a match.

Belongs here: who wins a duel, what a match's report, score and margin are and how sure, which prompts were decisive.
Does not: asking the judge (`resources.judge`), which matches are played (`timeline`).
Source: spec section 3; margins proven on 208 recorded matches.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import median

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    Duel,
    DuelWinner,
    GenerationResult,
    Hotkey,
    MatchReport,
    Results,
    Stem,
    stem_of,
)

_SCORE = {DuelWinner.LEFT: -1, DuelWinner.RIGHT: 1, DuelWinner.DRAW: 0, DuelWinner.SKIPPED: 0}
_NOTHING = GenerationResult()


def overtime_losses(prompts: Sequence[Stem], results: Mapping[Stem, GenerationResult], limits: Limits) -> set[Stem]:
    """Prompts that a side loses by time: strictly over the limit, in round order, after the free allowance is used."""
    over = [p for p in prompts if results.get(p, _NOTHING).generation_time > limits.duel_overtime_seconds]
    return set(over[int(limits.overtime_allowance * len(prompts)) :])


def decide_unjudged(
    prompt: Stem, left_png: str | None, right_png: str | None, left_late: bool, right_late: bool
) -> tuple[DuelWinner, str] | None:
    """Outcome and issues of a duel that needs no judge, None when it needs one."""
    if not left_png and not right_png:
        return DuelWinner.DRAW, f"No previews for {prompt}"
    if not left_png:
        return DuelWinner.RIGHT, f"No preview for {prompt} from left"
    if not right_png:
        return DuelWinner.LEFT, f"No preview for {prompt} from right"
    if left_late and right_late:
        return DuelWinner.DRAW, "Generation time exceeded for both"
    if left_late:
        return DuelWinner.RIGHT, "Generation time exceeded for left"
    if right_late:
        return DuelWinner.LEFT, "Generation time exceeded for right"
    return None


def decide_by_penalties(left_penalty: float, right_penalty: float, limits: Limits) -> DuelWinner:
    """The smaller penalty wins; a difference of at most `draw_difference` is a draw. Penalties are averages per side."""
    if abs(left_penalty - right_penalty) <= limits.draw_difference:
        return DuelWinner.DRAW
    return DuelWinner.LEFT if left_penalty < right_penalty else DuelWinner.RIGHT


def average_penalties(straight: Sequence[tuple[int, int]], swapped: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Penalties of left and right: of each order the median over its repeats, then the mean of both orders.

    `straight`: (left, right) of each repeat with left shown first; `swapped`: (right, left), with right shown first.
    """
    left = median(answer[0] for answer in straight) + median(answer[1] for answer in swapped)
    right = median(answer[1] for answer in straight) + median(answer[0] for answer in swapped)
    return left / 2, right / 2


def orders_disagree(straight: Sequence[tuple[int, int]], swapped: Sequence[tuple[int, int]]) -> bool:
    """Whether the two orders name different sides as better. Arguments as of `average_penalties`."""
    first = median(answer[0] for answer in straight) - median(answer[1] for answer in straight)
    second = median(answer[1] for answer in swapped) - median(answer[0] for answer in swapped)
    return first * second < 0


def unjudged_duels(
    prompts: Sequence[str], left: Results, right: Results, limits: Limits
) -> tuple[dict[int, Duel], dict[int, Duel]]:
    """Duels of a match by the prompt's position: those already decided, and those that need the judge (as skipped).

    `prompts` are the round's prompt URLs, in round order.
    """
    stems = [stem_of(url) for url in prompts]
    left_late, right_late = overtime_losses(stems, left, limits), overtime_losses(stems, right, limits)
    decided: dict[int, Duel] = {}
    open_duels: dict[int, Duel] = {}
    for position, (url, stem) in enumerate(zip(prompts, stems, strict=True)):
        a, b = left.get(stem, _NOTHING), right.get(stem, _NOTHING)
        outcome = decide_unjudged(stem, a.png, b.png, stem in left_late, stem in right_late)
        winner, issues = outcome or (DuelWinner.SKIPPED, "")
        duel = Duel(
            name=stem,
            prompt=url,
            left_glb=a.glb,
            left_png=a.png,
            right_glb=b.glb,
            right_png=b.png,
            winner=winner,
            issues=issues,
        )
        (decided if outcome else open_duels)[position] = duel
    return decided, open_duels


def match_report(left: Hotkey, right: Hotkey, duels: Sequence[Duel]) -> MatchReport:
    """score = prompts right won - prompts left won; margin = score / number of duels; duels sorted by name."""
    score = sum(_SCORE[duel.winner] for duel in duels)
    margin = score / len(duels) if duels else 0.0
    return MatchReport(
        left=left, right=right, score=score, margin=margin, duels=sorted(duels, key=lambda duel: duel.name)
    )


NOT_JUDGED = "Not judged"
"""How the words of a duel begin that was left out, because its match could not be won any more."""


def margin_bound(report: MatchReport) -> float | None:
    """The most that the margin could be had all duels been judged; None when all were."""
    skipped = sum(duel.winner == DuelWinner.SKIPPED for duel in report.duels)
    return (report.score + skipped) / len(report.duels) if skipped else None


def out_of_reach(winners: Iterable[DuelWinner], total: int, win_margin: float) -> bool:
    """Whether a match of `total` duels stays below win_margin even if right wins all that are not among `winners`."""
    known = [_SCORE[winner] for winner in winners]
    return (sum(known) + total - len(known)) / total < win_margin


def left_out(duel: Duel, win_margin: float) -> Duel:
    """A duel that is not judged, because its match is `out_of_reach`."""
    issues = f"{NOT_JUDGED}: win_margin {win_margin:g} was out of reach"
    return duel.model_copy(update={"winner": DuelWinner.SKIPPED, "issues": issues})


CONFIDENCE = 0.95


def margin_interval(report: MatchReport) -> tuple[float, float] | None:
    """Bootstrap interval (percentile, 95 %) of the margin over prompts: what other prompts of the kind would have given.

    Not drawn but exact: a resample of n duels with outcomes -1, 0, 1 has a score that is a sum of n independent draws,
    whose distribution is computed (the ideal bootstrap; Efron and Tibshirani 1993, section 6.4). None for a match
    without duels, or with some that were not judged.
    """
    scores = [_SCORE[duel.winner] for duel in report.duels]
    if not scores or any(duel.winner == DuelWinner.SKIPPED for duel in report.duels):
        return None
    low, high = _score_interval(scores.count(-1), scores.count(0), scores.count(1))
    return low / len(scores), high / len(scores)


@lru_cache(maxsize=4096)
def _score_interval(left: int, draws: int, right: int) -> tuple[int, int]:
    """Quantiles of the sum of n = left + draws + right draws from the outcomes themselves."""
    n = left + draws + right
    chances = (left / n, draws / n, right / n)
    distribution = [1.0]  # of the sum of k draws, from -k to k
    for _ in range(n):
        grown = [0.0] * (len(distribution) + 2)
        for position, chance in enumerate(distribution):
            if chance > 1e-18:
                for step, weight in enumerate(chances):
                    grown[position + step] += chance * weight
        distribution = grown
    tail = (1 - CONFIDENCE) / 2
    return _quantile(distribution, tail) - n, _quantile(distribution, 1 - tail) - n


def _quantile(distribution: Sequence[float], share: float) -> int:
    """The first position up to which at least this share lies."""
    reached = 0.0
    for position, chance in enumerate(distribution):
        reached += chance
        if reached >= share - 1e-12:
            return position
    return len(distribution) - 1


def is_close(report: MatchReport, win_margin: float) -> bool:
    """Whether chance in the prompts alone could have decided: the margin's interval holds win_margin."""
    interval = margin_interval(report)
    return interval is not None and interval[0] <= win_margin <= interval[1]


def margin_without_results(left: Results | None, right: Results | None) -> float | None:
    """Margin of a match in which a side has no results file at all, None when both have one (then duels decide).

    No report is written for such a match.
    """
    if left and right:
        return None
    return 0.0 if not left and not right else (100.0 if not left else -100.0)


def critical_prompts(report: MatchReport, win_margin: float, seed: int, limits: Limits) -> list[Stem]:
    """Prompts that decided a win: what an audit looks at most strictly.

    None when the margin reaches `critical_margin + win_margin`; else the prompts that right won, in the report's order,
    at most k = max(1, ceil(number of duels x win_margin)) of them, drawn with the round's seed.
    """
    if report.margin >= limits.critical_margin + win_margin:
        return []
    won = [duel.name for duel in report.duels if duel.winner == DuelWinner.RIGHT]
    k = max(1, math.ceil(len(report.duels) * win_margin))
    return won if len(won) <= k else random.Random(seed).sample(won, k)
