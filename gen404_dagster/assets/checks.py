"""What must hold of a round's files, as asset checks.

Belongs here: pure checks of recorded state, each with its words. They run with the asset that wrote the file and again
when a recorded round is adopted. Does not: deciding (the rules), repairing (operator jobs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import dagster as dg

from gen404_dagster.assets import replayed
from gen404_dagster.assets.describe import Recorded
from gen404_dagster.competition import duels, timeline
from gen404_dagster.competition.models import AuditOutcome, stem_of
from gen404_dagster.errors import StateFileError
from gen404_dagster.resources.round_files import read_match


@dataclass(frozen=True)
class Check:
    """A named property of one asset. `test` returns whether it holds and a sentence that says so."""

    asset: str
    name: str
    description: str
    test: Callable[[Recorded], tuple[bool, str]]
    blocking: bool = False
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR

    @property
    def spec(self) -> dg.AssetCheckSpec:
        return dg.AssetCheckSpec(self.name, asset=self.asset, description=self.description, blocking=self.blocking)

    def evaluate(self, at: Recorded) -> dg.AssetCheckResult:
        try:
            passed, words = self.test(at)
        except StateFileError as error:
            passed, words = False, str(error)
        return dg.AssetCheckResult(
            passed=passed,
            asset_key=dg.AssetKey(self.asset),
            check_name=self.name,
            # A round that is over has nothing left to block: its record is shown, with what is wrong in it.
            severity=dg.AssetCheckSeverity.WARN if self.blocking and at.round.over else self.severity,
            description=words,
            metadata={"round": at.number},
        )


def _window(at: Recorded) -> tuple[bool, str]:
    plan = at.round.schedule
    assert plan is not None
    ordered = plan.earliest_reveal_block <= plan.latest_reveal_block <= plan.generation_deadline_block
    return ordered, f"{plan.earliest_reveal_block} <= {plan.latest_reveal_block} <= {plan.generation_deadline_block}"


def _prompt_count(at: Recorded) -> tuple[bool, str]:
    count, wanted = len(at.round.prompts or ()), at.round.config.prompts_per_round
    return count == wanted, f"{count} prompts, the configuration asks for {wanted}"


def _no_repeats(at: Recorded) -> tuple[bool, str]:
    prompts = at.round.prompts or ()
    repeated = len(prompts) - len(set(prompts))
    return repeated == 0, f"{repeated} prompts occur twice"


def _in_order(at: Recorded) -> tuple[bool, str]:
    blocks = [entry.revealed_at_block for entry in (at.round.submissions or {}).values()]
    plan = at.round.schedule
    inside = plan is None or all(plan.earliest_reveal_block <= b <= plan.latest_reveal_block for b in blocks)
    return blocks == sorted(blocks) and inside, f"{len(blocks)} submissions by block of reveal, all inside the window"


def _distinct(at: Recorded) -> tuple[bool, str]:
    """Anyone can reveal what another has committed to, in the very same block."""
    who: dict[tuple[str, str, str], list[str]] = {}
    for hotkey, entry in (at.round.submissions or {}).items():
        who.setdefault((entry.repo, entry.commit, entry.cdn_url), []).append(hotkey[:10])
    shared = [" and ".join(hotkeys) for hotkeys in who.values() if len(hotkeys) > 1]
    return not shared, f"{len(shared)} payloads are shared" + (f": {'; '.join(shared[:5])}" if shared else "")


def _margins_follow(at: Recorded) -> tuple[bool, str]:
    wrong = []
    for row in at.round.matrix:
        report = read_match(at.snapshot, at.number, row.left, row.right)
        if report is None:
            if abs(row.margin) not in (0.0, 100.0):
                wrong.append(f"{row.right[:10]} against {row.left[:10]} has no report")
        elif duels.match_report(row.left, row.right, report.duels).margin != row.margin:
            wrong.append(f"{row.right[:10]} against {row.left[:10]}")
    return (
        not wrong,
        f"{len(at.round.matrix) - len(wrong)} of {len(at.round.matrix)} margins follow from their reports"
        + (f"; not: {', '.join(wrong[:5])}" if wrong else ""),
    )


def _timeline_settled(at: Recorded) -> tuple[bool, str]:
    return at.standing.settled, "settled" if at.standing.settled else "matches or verdicts are still missing"


def _known_prompts(at: Recorded) -> tuple[bool, str]:
    stems = {stem_of(url) for url in at.round.prompts or ()}
    unknown = [r.hotkey[:10] for r in at.round.requests if not set(r.critical_prompts) <= stems]
    twice = len(at.round.requests) - len({r.hotkey for r in at.round.requests})
    return not unknown and not twice, f"critical prompts are the round's own, {twice} hotkeys are asked for twice"


def _verdicts_consistent(at: Recorded) -> tuple[bool, str]:
    entries = at.round.generation_audits or {}
    asked = {request.hotkey for request in at.round.requests}
    wrong = [h[:10] for h, audit in entries.items() if audit.hotkey != h or h not in asked]
    wrong += [h[:10] for h, a in entries.items() if a.outcome == AuditOutcome.REJECTED and not a.reason]
    return not wrong, "each verdict belongs to a request and says why" + (f"; not: {', '.join(wrong)}" if wrong else "")


def _baseline_complete(at: Recorded) -> tuple[bool, str]:
    missing = len(at.round.baseline_missing)
    return missing == 0, f"{missing} prompts lack a regenerated result"


def _winner_follows(at: Recorded) -> tuple[bool, str]:
    recorded = at.round.winner.winner_hotkey if at.round.winner else None
    derived = at.standing.timeline.leader
    return recorded == derived, f"recorded {recorded}, derived from matches and audits {derived}"


def _close_matches(at: Recorded) -> tuple[bool, str]:
    """Of the matches that chance in the prompts could have turned, those that would have turned the round."""
    order, win_margin = list(at.round.submissions or {}), at.round.config.win_margin
    rejected = timeline.verdicts(at.round.generation_audits or {}, at.round.source_audits).rejected
    played = timeline.margins(at.round.matrix)
    found = []
    for (left, right), margin in played.items():
        report = read_match(at.snapshot, at.number, left, right)
        interval = duels.margin_interval(report) if report else None
        if report is None or interval is None or not duels.is_close(report, win_margin):
            continue
        if timeline.decides((left, right), order, played, rejected, win_margin):
            found.append(f"{right[:10]} against {left[:10]}: {margin:+.4f} in {interval[0]:+.4f} to {interval[1]:+.4f}")
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    told = f"{len(found)} close match{'es' * (len(found) > 1)} decided the round: {'; '.join(found[:5])}{more}"
    return not found, told if found else f"no match whose interval holds {win_margin:g} decided the round"


def _weight_floor(at: Recorded) -> tuple[bool, str]:
    later = at.round.leaders[1:]  # the first one is written by hand
    low = [t for t in later if t.weight < at.round.config.weight_floor]
    rising = all(
        a.effective_block < b.effective_block for a, b in zip(at.round.leaders, at.round.leaders[1:], strict=False)
    )
    return not low and rising, f"{len(later)} transitions, none below {at.round.config.weight_floor}, blocks increase"


CHECKS = (
    Check("schedule", "window_is_ordered", "The window opens before it closes, before the deadline.", _window),
    Check("prompts", "count_is_configured", "As many prompts as the configuration asks for.", _prompt_count,
          severity=dg.AssetCheckSeverity.WARN),
    Check("prompts", "no_repeats", "No prompt is drawn twice.", _no_repeats, severity=dg.AssetCheckSeverity.WARN),
    Check("submissions", "order_and_window", "Submissions stand in order of reveal, inside the window.", _in_order),
    Check("submissions", "payloads_are_distinct", "No two hotkeys have the same repo, commit and CDN.", _distinct,
          severity=dg.AssetCheckSeverity.WARN),
    Check("leader_baseline", "is_complete", "The leader has a result for each prompt.", _baseline_complete),
    Check("match_matrix", "margins_follow_from_reports", "Each margin recomputes from its report.", _margins_follow,
          blocking=True),
    Check("match_matrix", "timeline_settled", "Every local leader is verified.", _timeline_settled,
          severity=dg.AssetCheckSeverity.WARN),
    Check("audit_requests", "critical_prompts_known", "Requests name the round's prompts, each hotkey once.", _known_prompts),
    Check("generation_audits", "verdicts_are_consistent", "Each verdict has its request and its reason.", _verdicts_consistent),
    Check("winner", "follows_from_record", "The winner is what matches and audits say.", _winner_follows, blocking=True),
    Check("winner", "no_close_match_decided", "No match that decided the round was close: the margin's interval over "
          "prompts does not hold win_margin. A warning tells which to judge again (`gen404 ops rejudge`).",
          _close_matches, severity=dg.AssetCheckSeverity.WARN),
    Check("leader", "weight_floor", "Weights stay at or above the floor.", _weight_floor),
    *(
        Check(asset, "replays", "What is recorded follows from what it was made of, or a file explains why not.",
              partial(replayed.follows, asset), severity=dg.AssetCheckSeverity.WARN)
        for asset in replayed.CELLS
    ),
)  # fmt: skip


def specs_of(*assets: str) -> list[dg.AssetCheckSpec]:
    return [check.spec for check in CHECKS if check.asset in assets]


def evaluate(asset: str, at: Recorded) -> list[dg.AssetCheckResult]:
    return [check.evaluate(at) for check in CHECKS if check.asset == asset]
