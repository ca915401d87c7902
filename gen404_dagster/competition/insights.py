"""What many rounds tell together: counts and rates over recorded rounds, as rows of tables.

Belongs here: computations over rounds, reports and results that were read. Does not: reading them, tables as files,
plots (`assets.insights`). A row is a flat record; its keys are the table's columns.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from gen404_dagster.competition import timeline
from gen404_dagster.competition.duels import NOT_JUDGED, is_close
from gen404_dagster.competition.judging import MatchJudging, Row, facts, summed
from gen404_dagster.competition.models import (
    LEADER,
    AuditOutcome,
    Duel,
    DuelWinner,
    Hotkey,
    MatchReport,
    Results,
    Stem,
)
from gen404_dagster.competition.stages import RoundState

UNJUDGED = ("No preview", "Generation time exceeded", "No valid answer", "Internal error", NOT_JUDGED)
"""How the words of a duel begin that no judge has decided."""


@dataclass(frozen=True)
class PlayedRound:
    """A round with the files that its matches and miners left."""

    state: RoundState
    reports: Sequence[MatchReport] = ()
    submitted: Mapping[Hotkey, Results] = field(default_factory=dict)
    generated: Mapping[Hotkey, Results] = field(default_factory=dict)
    judging: Sequence[MatchJudging] = ()

    @property
    def number(self) -> int:
        return self.state.number

    @property
    def against_leader(self) -> dict[Hotkey, float]:
        """Each miner's margin against the leader."""
        played = timeline.margins(self.state.matrix)
        return {right: margin for (left, right), margin in played.items() if left == LEADER}

    def is_usable(self, hotkey: Hotkey) -> bool:
        """Whether a miner has at least one preview: something to compare."""
        return any(result.png for result in self.submitted.get(hotkey, {}).values())

    def is_qualified(self, hotkey: Hotkey) -> bool:
        """Beat the leader by the margin, whatever an audit said later."""
        return self.against_leader.get(hotkey, -math.inf) >= self.state.config.win_margin

    def name_of(self, side: Hotkey) -> Hotkey:
        """The hotkey that plays on a side: the leader's own where the match says `leader`."""
        leader = self.state.leader
        return leader.hotkey if side == LEADER and leader else side


def is_judged(duel: Duel) -> bool:
    """Whether pictures decided this duel: both previews are there and nothing else had settled it."""
    return bool(duel.left_png and duel.right_png) and not duel.issues.startswith(UNJUDGED)


def funnel(rounds: Iterable[PlayedRound]) -> list[Row]:
    """Per round: how many submitted, had a usable preview, beat the leader, were audited, passed, and who won."""
    rows: list[Row] = []
    for one in rounds:
        order = list(one.state.submissions or {})
        audits = (one.state.generation_audits or {}).values()
        winner = one.state.winner.winner_hotkey if one.state.winner else None
        rows.append(
            {
                "round": one.number,
                "submitted": len(order),
                "usable": sum(one.is_usable(hotkey) for hotkey in order),
                "qualified": sum(one.is_qualified(hotkey) for hotkey in order),
                "audited": sum(audit.outcome != AuditOutcome.PENDING for audit in audits),
                "passed": sum(audit.outcome == AuditOutcome.PASSED for audit in audits),
                "new_leader": int(winner not in (None, LEADER)),
                "winner": winner,
            }
        )
    return rows


def match_margins(rounds: Iterable[PlayedRound]) -> list[Row]:
    """Every recorded match, in order of play. `won`: by the margin of its day."""
    return [
        {
            "round": one.number,
            "left": row.left,
            "right": row.right,
            "margin": row.margin,
            "won": row.margin >= one.state.config.win_margin,
            "against_leader": row.left == LEADER,
        }
        for one in rounds
        for row in one.state.matrix
    ]


def histogram(values: Iterable[float], edges: Sequence[float]) -> list[int]:
    """Counts per bin [edge, next edge); what lies outside counts in the first and last bin."""
    counts = [0] * (len(edges) - 1)
    for value in values:
        position = sum(value >= edge for edge in edges) - 1
        counts[min(max(position, 0), len(counts) - 1)] += 1
    return counts


def generation_times(rounds: Iterable[PlayedRound]) -> list[Row]:
    """Per image that was run (the leader's, audited miners'): seconds a prompt took where a file came out."""
    rows: list[Row] = []
    for one in rounds:
        for hotkey, results in one.generated.items():
            seconds = sorted(r.generation_time for r in results.values() if r.glb and r.generation_time > 0)
            if seconds:
                rows.append(
                    {
                        "round": one.number,
                        "hotkey": hotkey,
                        "prompts": len(results),
                        "generated": len(seconds),
                        "retried": sum(r.attempts > 1 for r in results.values()),
                        "fastest": seconds[0],
                        "median": quantile(seconds, 0.5),
                        "slowest_tenth": quantile(seconds, 0.9),
                        "slowest": seconds[-1],
                    }
                )
    return rows


def quantile(ordered: Sequence[float], share: float) -> float:
    """Linear between neighbours, of values in order."""
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def prompt_draws(rounds: Iterable[PlayedRound]) -> list[Row]:
    """Per prompt of a round: outcomes of the duels that pictures decided; the most drawn prompts first."""
    rows: list[Row] = []
    for one in rounds:
        outcomes: dict[Stem, Counter[DuelWinner]] = defaultdict(Counter)
        for duel in (duel for report in one.reports for duel in report.duels if is_judged(duel)):
            outcomes[duel.name][duel.winner] += 1
        for stem, counts in outcomes.items():
            rows.append({"round": one.number, "prompt": stem, **_outcome_counts(counts)})
    return sorted(rows, key=lambda row: (-float(row["draw_rate"] or 0), -int(row["judged"] or 0), str(row["prompt"])))


def hotkeys(rounds: Sequence[PlayedRound]) -> list[Row]:
    """Per hotkey and round in which it took part: how far it came. Those with the most rounds first."""
    rows: list[Row] = []
    for one in rounds:
        known = timeline.verdicts(one.state.generation_audits or {}, one.state.source_audits)
        winner = one.state.winner.winner_hotkey if one.state.winner else None
        leader = one.state.leader
        for hotkey, entry in (one.state.submissions or {}).items():
            if hotkey == winner:
                came = "won"
            elif hotkey in known.rejected:
                came = "rejected"
            elif one.is_qualified(hotkey):
                came = "qualified"
            else:
                came = "usable" if one.is_usable(hotkey) else "unusable"
            rows.append(
                {
                    "hotkey": hotkey,
                    "round": one.number,
                    "outcome": came,
                    "margin": one.against_leader.get(hotkey),
                    "led_before": leader is not None and leader.hotkey == hotkey,
                    "repo": entry.repo,
                    "commit": entry.commit,
                }
            )
    times = Counter(str(row["hotkey"]) for row in rows)
    return sorted(rows, key=lambda row: (-times[str(row["hotkey"])], str(row["hotkey"]), int(row["round"] or 0)))


def position_bias(rounds: Iterable[PlayedRound]) -> list[Row]:
    """Per round, matches against the leader apart from those between challengers: how often left and right won.

    The left side defends, so it should win more where it is better. Between challengers nobody defends a title: there
    `p_value` (a two-sided sign test of left against right) asks whether the side alone decides.
    """
    rows: list[Row] = []
    for one in rounds:
        for name, chosen in (
            ("against the leader", [report for report in one.reports if report.left == LEADER]),
            ("between challengers", [report for report in one.reports if report.left != LEADER]),
        ):
            counts = Counter(duel.winner for report in chosen for duel in report.duels if is_judged(duel))
            left, right = counts[DuelWinner.LEFT], counts[DuelWinner.RIGHT]
            if counts.total():
                rows.append(
                    {"round": one.number, "matches": name, **_outcome_counts(counts), "p_value": sign_test(left, right)}
                )
    return rows


def _outcome_counts(counts: Mapping[DuelWinner, int]) -> Row:
    judged = sum(counts.values())
    left, right, draws = (counts.get(w, 0) for w in (DuelWinner.LEFT, DuelWinner.RIGHT, DuelWinner.DRAW))
    shares = {
        f"{n}_rate": v / judged if judged else None for n, v in (("left", left), ("right", right), ("draw", draws))
    }
    return {"judged": judged, "left": left, "right": right, "draws": draws, **shares}


def sign_test(first: int, second: int) -> float:
    """Two-sided p-value of as uneven a split, were both equally likely: exact up to 1,000, then normal."""
    total, least = first + second, min(first, second)
    if not total or first == second:
        return 1.0
    if total <= 1000:
        return min(1.0, 2 * sum(math.comb(total, k) for k in range(least + 1)) / 2**total)
    return math.erfc((abs(first - second) - 1) / math.sqrt(2 * total))


def judging(rounds: Iterable[PlayedRound]) -> list[Row]:
    """Per round that this pipeline judged: calls, tokens, latency, draws, disagreement of the two orders, close matches."""
    return [
        {
            "round": one.number,
            "matches": len(one.judging),
            **facts(summed(one.judging)),
            "close": sum(is_close(report, one.state.config.win_margin) for report in one.reports),
        }
        for one in rounds
        if one.judging
    ]


def repeated_prompts(rounds: Sequence[PlayedRound]) -> list[Row]:
    """The same two miners on the same prompt in two rounds: whether both rounds agree on who was better.

    Their submissions may have changed in between: a different verdict is not yet a judge's mistake.
    """
    seen: dict[tuple[Stem, Hotkey, Hotkey], list[tuple[int, Hotkey]]] = defaultdict(list)
    for one in rounds:
        for report in one.reports:
            left, right = one.name_of(report.left), one.name_of(report.right)
            if left == right:
                continue
            first, second = sorted((left, right))
            for duel in filter(is_judged, report.duels):
                better = {DuelWinner.LEFT: left, DuelWinner.RIGHT: right}.get(duel.winner, "draw")
                seen[duel.name, first, second].append((one.number, better))
    rows: list[Row] = []
    for (stem, first, second), verdicts in seen.items():
        for (earlier, before), (later, after) in pairwise(verdicts):
            if earlier != later:
                rows.append(
                    {
                        "prompt": stem,
                        "first": first,
                        "second": second,
                        "earlier_round": earlier,
                        "later_round": later,
                        "earlier_verdict": before,
                        "later_verdict": after,
                        "same": before == after,
                    }
                )
    return rows


def carried_prompts(rounds: Sequence[PlayedRound]) -> list[Row]:
    """Per pair of rounds that share prompts: how many."""
    stems = {one.number: set(one.state.stems) for one in rounds}
    return [
        {"earlier_round": a, "later_round": b, "prompts": len(stems[a] & stems[b])}
        for a in sorted(stems)
        for b in sorted(stems)
        if a < b and stems[a] & stems[b]
    ]
