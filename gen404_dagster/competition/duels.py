"""From two previews and two answers to an outcome, from outcomes to a match.

Belongs here: who wins a duel, what a match's report, score and margin are, which prompts were decisive.
Does not: asking the judge (`resources.judge`), which matches are played (`timeline`).
Source: spec section 3; margins proven on 208 recorded matches.
"""

import math
import random
from collections.abc import Mapping, Sequence

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
