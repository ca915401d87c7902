"""What would have been decided under other limits, as far as the record can tell.

Belongs here: `--set`, the decisions of a round under given limits, and the first that differs. Does not: guessing: a
match that was not played, a verdict of the judge or an audit that was not run is named as unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from gen404_dagster.competition import audits
from gen404_dagster.competition.duels import critical_prompts, margin_bound, overtime_losses
from gen404_dagster.competition.leadership import active_leader, name_winner, transition
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    LEADER,
    AuditOutcome,
    CompetitionConfig,
    DuelWinner,
    GenerationAudit,
    Hotkey,
    LeaderTransition,
    Margins,
    Stem,
)
from gen404_dagster.competition.timeline import Reign, Timeline, derive_timeline, margins
from gen404_dagster.errors import OperatorError
from gen404_dagster.replay.findings import Status
from gen404_dagster.replay.matches import lost_by_time
from gen404_dagster.replay.record import Record, Recorded, read_recorded
from gen404_dagster.replay.verification import derive_audit

DECIDING = frozenset(
    {
        "win_margin", "weight_decay", "weight_floor", "critical_margin",
        "duel_overtime_seconds", "overtime_allowance",
        "acceptable_distance", "generation_median_seconds", "generation_overtime_seconds",
        "median_trim", "max_mismatches", "max_critical_mismatches",
    }
)  # fmt: skip
"""Limits that enter decisions whose inputs are on record."""

_WITHOUT_EFFECT = {
    "name": "only a name",
    "description": "only a name",
    **dict.fromkeys(
        (
            "leader_change_wait_minutes", "weights_interval_minutes", "weights_retry_least_minutes",
            "weights_retry_most_minutes", "weights_confirm_blocks",
        ),
        "it delays weights on chain, no round depends on it",
    ),
}  # fmt: skip
_UNANSWERED = {
    "draw_difference": "reports hold no penalties, only who won",
    "prompts_per_round": "other prompts would have been drawn",
    "carryover_prompts": "other prompts would have been drawn",
}
_OTHER_WINDOWS = "the windows would have been others: what miners would have revealed in them is not on record"
_OTHER_RUNS = "what would have been fetched, built or generated under it is not on record"


@dataclass(frozen=True)
class Change:
    """Limits of the rules and of the competition, with which fields were set."""

    limits: Limits
    config: Mapping[str, Any]
    names: tuple[str, ...]

    def configured(self, config: CompetitionConfig) -> CompetitionConfig:
        return CompetitionConfig.model_validate({**config.model_dump(), **self.config})


@dataclass(frozen=True)
class Decision:
    """Something a round decided: `subject` is the same under all limits, `decided` may differ, `why` is for people."""

    subject: str
    decided: str
    why: str = ""

    @property
    def told(self) -> str:
        return f"{self.decided} ({self.why})" if self.why else self.decided


@dataclass(frozen=True)
class Ending:
    """How one round would have ended: `same`, `differs` (winner or weight) or `unknown`, and the first decision that
    differs on the way there. `assumes`: an earlier round might have crowned somebody else, the recorded leader is taken.
    """

    number: int
    outcome: str
    recorded: Hotkey | None
    derived: Hotkey | None
    subject: str = ""
    before: str = ""
    after: str = ""
    unknown: tuple[str, ...] = ()
    assumes: str = ""


def parse_changes(assignments: Sequence[str], limits: Limits, config: CompetitionConfig) -> Change:
    """`LIMIT=VALUE` each, a field of Limits or of the competition's config.json. Raises OperatorError naming the known."""
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals or not value:
            raise OperatorError(f"--set {assignment}: write LIMIT=VALUE, for instance win_margin=0.03")
        if name in Limits.model_fields:
            ours[name] = value
        elif name in CompetitionConfig.model_fields:
            theirs[name] = value
        else:
            known = ", ".join(sorted({*Limits.model_fields, *CompetitionConfig.model_fields}))
            raise OperatorError(f"--set {name}: there is no such limit; known are {known}")
    try:
        changed = Limits.model_validate({**limits.model_dump(), **ours})
        CompetitionConfig.model_validate({**config.model_dump(), **theirs})
    except ValidationError as error:
        fault = error.errors()[0]
        raise OperatorError(f"--set {fault['loc'][0]}={fault['input']}: {fault['msg']}") from error
    return Change(changed, theirs, tuple(dict.fromkeys((*ours, *theirs))))


def what_if(record: Record, limits: Limits, change: Change, numbers: Sequence[int]) -> list[Ending]:
    """Each played round under the changed limits, with the leaders that would have followed from the rounds before."""
    endings: list[Ending] = []
    chain: list[LeaderTransition] | None = None
    assumes = ""
    for number in numbers:
        round_ = read_recorded(record, number, limits)
        if round_.state.winner is not None and round_.state.submissions is not None:
            if chain is None or assumes:
                chain = _leaders_before(round_)
            ending, chain = _end(round_, change, chain, assumes)
            endings.append(ending)
            if not assumes and ending.derived != ending.recorded:
                who = f"would have crowned {ending.derived}" if ending.derived else "might have crowned somebody else"
                assumes = f"round {number} {who}: this takes the recorded leader as the one who defends"
        record.forget()
    return endings


def _leaders_before(round_: Recorded) -> list[LeaderTransition]:
    """Who had led until this round's window closed."""
    schedule = round_.state.schedule
    return [e for e in round_.state.leaders if schedule is None or e.effective_block <= schedule.latest_reveal_block]


def _end(
    round_: Recorded, change: Change, chain: list[LeaderTransition], assumes: str
) -> tuple[Ending, list[LeaderTransition]]:
    recorded = round_.state.winner.winner_hotkey if round_.state.winner else None
    unanswered = tuple(f"{name}: {why}" for name in change.names if (why := _unanswered(round_, change, name)))
    if unanswered:
        return Ending(round_.number, "unknown", recorded, None, unknown=unanswered, assumes=assumes), chain
    config = change.configured(round_.state.config)
    changed = replace(round_, state=replace(round_.state, config=config), limits=change.limits)
    before, _ = decide(round_, round_, frozenset(), _leaders_before(round_))
    after, unknown = decide(changed, round_, frozenset(change.names), chain)
    subject, was, would = _first_difference(before, after) or ("", "", "")
    ends_alike = [decision.decided for decision in before[-2:]] == [decision.decided for decision in after[-2:]]
    winner = None if unknown else after[-2].decided
    ending = Ending(
        number=round_.number,
        outcome="unknown" if unknown else "same" if ends_alike else "differs",
        recorded=recorded,
        derived=winner,
        subject=subject,
        before=was,
        after=would,
        unknown=tuple(unknown),
        assumes=assumes,
    )
    return ending, _chain_after(changed, winner, chain)


def _unanswered(round_: Recorded, change: Change, name: str) -> str:
    """Why the record cannot tell what this setting would have changed, "" when it can."""
    old = getattr(round_.limits, name, None) if name in Limits.model_fields else getattr(round_.state.config, name)
    new = (
        getattr(change.limits, name)
        if name in Limits.model_fields
        else getattr(change.configured(round_.state.config), name)
    )
    if name in DECIDING or name in _WITHOUT_EFFECT or old == new:
        return ""
    if name in _UNANSWERED:
        return _UNANSWERED[name]
    return _OTHER_WINDOWS if name in CompetitionConfig.model_fields or name == "block_seconds" else _OTHER_RUNS


def _first_difference(before: Sequence[Decision], after: Sequence[Decision]) -> tuple[str, str, str] | None:
    old = {decision.subject: decision for decision in before}
    new = {decision.subject: decision for decision in after}
    for decision in (*after, *before):
        was, would = old.get(decision.subject), new.get(decision.subject)
        if (was and was.decided) != (would and would.decided):
            return decision.subject, was.told if was else "not asked", would.told if would else "not asked"
    return None


def decide(
    round_: Recorded, recorded: Recorded, changed: frozenset[str], leaders: list[LeaderTransition]
) -> tuple[list[Decision], list[str]]:
    """Decisions of a round in the order they are made, the last two always winner and weight; and what is unknown."""
    unknown: list[str] = []
    played = _margins(round_, changed, unknown)
    win_margin = round_.state.config.win_margin
    outcomes: dict[Hotkey, AuditOutcome] = {}
    rejected = {audit.hotkey for audit in round_.state.source_audits if audit.verdict == "failed"}
    critical: dict[Hotkey, list[Stem]] = {}
    verdicts: list[Decision] = []
    # Verdicts depend on critical prompts, these on who beat whom, and that on verdicts: until nothing changes.
    while True:
        timeline = derive_timeline(round_.order, played, rejected, win_margin)
        fresh = [reign for reign in _asked_for(timeline, played) if reign.leader not in outcomes]
        if not fresh:
            break
        for reign in fresh:
            critical[reign.leader] = _critical(round_, reign)
            outcome, why = _verdict(round_, recorded, reign, critical[reign.leader], changed)
            outcomes[reign.leader] = outcome
            verdicts.append(Decision(f"generation audit of {reign.leader}", why))
            if outcome == AuditOutcome.REJECTED:
                rejected.add(reign.leader)
    decisions = _timeline_decisions(round_, played, timeline)
    for hotkey, stems in critical.items():
        decisions.append(Decision(f"critical prompts of {hotkey}", ", ".join(stems) or "none"))
    decisions += verdicts
    passed = {audit.hotkey for audit in round_.state.source_audits if audit.verdict == "passed"}
    for left, right in timeline.missing:
        unknown.append(f"match {left},{right} would have been needed and is not on record")
    for reign in timeline.reigns:
        if outcomes.get(reign.leader) == AuditOutcome.PENDING:
            unknown.append(f"{reign.leader} would have led: its generation audit is not on record")
        elif reign.leader not in passed:
            unknown.append(f"{reign.leader} would have led: no verdict on its source is on record")
    winner = timeline.leader
    decisions.append(Decision("winner", winner))
    decisions.append(Decision("the leader's next weight", _weight(round_, winner, leaders)))
    return decisions, unknown


def _margins(round_: Recorded, changed: frozenset[str], unknown: list[str]) -> Margins:
    """Recorded margins; with other overtime rules, those of the matches against the leader counted again."""
    played = margins(round_.state.matrix)
    for (left, right), report in round_.reports.items():
        bound = margin_bound(report)
        if bound is not None and report.margin < round_.state.config.win_margin <= bound:
            unknown.append(f"{left},{right} was left early: its margin could be from {report.margin:+} to {bound:+}")
    if not changed & {"duel_overtime_seconds", "overtime_allowance"}:
        return played
    leader = round_.played_by(LEADER) or {}
    late = overtime_losses(round_.state.stems, leader, round_.limits)
    value = {DuelWinner.LEFT: -1, DuelWinner.RIGHT: 1}
    for (left, right), report in round_.reports.items():
        if left != LEADER or not report.duels:
            continue
        both = [duel for duel in report.duels if duel.left_png and duel.right_png]
        gained = sum(1 - value.get(duel.winner, 0) for duel in both if duel.name in late)
        open_ = [d.name for d in both if lost_by_time(d) and d.name not in late]
        if gained:
            played[left, right] = (report.score + gained) / len(report.duels)
        lowest = (report.score + gained - 2 * len(open_)) / len(report.duels)
        win_margin = round_.state.config.win_margin
        stale = any(d.left_png != (leader[d.name].png if d.name in leader else None) for d in report.duels)
        if stale and (played[left, right] >= win_margin) != (report.margin >= win_margin):
            unknown.append(f"leader,{right} was judged on results that were regenerated: their times are not on record")
        if open_ and (lowest >= win_margin) != (played[left, right] >= win_margin):
            unknown.append(
                f"{len(open_)} duels of leader,{right} were lost by time: the judge was never asked about them"
            )
    return played


def _asked_for(timeline: Timeline, played: Margins) -> list[Reign]:
    """Everyone whose audit decides: the first qualifier, and every local leader."""
    first = [Reign(h, LEADER, played[LEADER, h]) for h in timeline.qualified[:1]]
    return first + [reign for reign in timeline.reigns if reign.leader not in timeline.qualified[:1]]


def _critical(round_: Recorded, reign: Reign) -> list[Stem]:
    report = round_.reports.get((reign.defeated, reign.leader))
    if report is None:
        return []
    return critical_prompts(report, round_.state.config.win_margin, round_.state.seed or 0, round_.limits)


def _verdict(
    round_: Recorded, recorded: Recorded, reign: Reign, critical: list[Stem], changed: frozenset[str]
) -> tuple[AuditOutcome, str]:
    """Outcome of a local leader's audit under these limits, pending when the record cannot tell."""
    hotkey = reign.leader
    known: GenerationAudit | None = (round_.state.generation_audits or {}).get(hotkey)
    if known is None:
        return AuditOutcome.PENDING, "not on record"
    generated = round_.results(hotkey, "generated") or {}
    if not changed or not generated or derive_audit(recorded, hotkey, known).status == Status.DEVIATES:
        return known.outcome, _worded(known)
    submitted = round_.results(hotkey, "submitted") or {}
    stems = round_.state.stems
    whole = len(audits.prompts_to_check(stems, submitted)) == known.checked_prompts
    done = generated if whole else {s: r for s, r in generated.items() if audits.succeeded(r)}
    again = audits.verdict(hotkey, stems, submitted, done, critical, round_.limits, stopped_early=not whole)
    if not whole and again.outcome != known.outcome:
        return AuditOutcome.PENDING, f"unknown: it was ended after {known.checked_prompts} prompts"
    if not whole:
        return known.outcome, _worded(known)
    return again.outcome, _worded(again)


def _worded(audit: GenerationAudit) -> str:
    return f"{audit.outcome}{': ' + audit.reason if audit.reason else ''}"


def _timeline_decisions(round_: Recorded, played: Margins, timeline: Timeline) -> list[Decision]:
    """Margins against the leader and who qualifies by them, then who takes the lead, in order of submission."""
    found = []
    win_margin = round_.state.config.win_margin
    for hotkey in round_.order:
        margin = played.get((LEADER, hotkey))
        if margin is not None:
            found.append(Decision(f"margin of {hotkey} against leader", f"{margin:+.4f}"))
            found.append(
                Decision(
                    f"qualification of {hotkey}",
                    "yes" if margin >= win_margin else "no",
                    f"{margin:+.4f} {'reaches' if margin >= win_margin else 'is below'} {win_margin:g}",
                )
            )
    for reign in timeline.reigns:
        found.append(Decision(f"lead of {reign.leader} over {reign.defeated}", "taken", f"{reign.margin:+.4f}"))
    return found


def _weight(round_: Recorded, winner: Hotkey, leaders: list[LeaderTransition]) -> str:
    appended = _transition(round_, winner, leaders)
    return "unchanged" if appended is None else repr(appended.weight)


def _transition(round_: Recorded, winner: Hotkey, leaders: list[LeaderTransition]) -> LeaderTransition | None:
    state, following = round_.state, round_.next_schedule
    schedule = state.schedule
    leader = active_leader(leaders, schedule.latest_reveal_block) if schedule else None
    submissions = state.submissions or {}
    named = name_winner(winner, submissions.get(winner), (state.builds or {}).get(winner), leader)
    return transition(named, leader, state.config, following.latest_reveal_block if following else 0)


def _chain_after(round_: Recorded, winner: Hotkey | None, leaders: list[LeaderTransition]) -> list[LeaderTransition]:
    appended = _transition(round_, winner, leaders) if winner is not None and round_.next_schedule else None
    return [*leaders, appended] if appended else leaders


def as_json(change: Change, endings: Sequence[Ending], limits: Limits, config: CompetitionConfig) -> dict[str, Any]:
    changed = change.configured(config)
    return {
        "set": {
            name: {"from": _value(limits, config, name), "to": _value(change.limits, changed, name)}
            for name in change.names
        },
        "rounds": {
            str(ending.number): {
                "outcome": ending.outcome,
                "winner": {"recorded": ending.recorded, "derived": ending.derived},
                "first_difference": {"decision": ending.subject, "recorded": ending.before, "derived": ending.after}
                if ending.subject
                else None,
                "unknown": list(ending.unknown),
                "assumes": ending.assumes or None,
            }
            for ending in endings
        },
    }


def _value(limits: Limits, config: CompetitionConfig, name: str) -> Any:
    source = limits if name in Limits.model_fields else config
    return source.model_dump(mode="json")[name]
