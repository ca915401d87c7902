"""What was verified: audit requests with their critical prompts, and the verdicts recomputed from what was regenerated.

Belongs here: whose audit was due, which prompts were critical, what each verdict must say, and the four ways in which a
record may rightly differ. Does not: a reviewer's judgement of a source, which no rule can derive.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from gen404_dagster.competition import audits, paths
from gen404_dagster.competition.duels import critical_prompts
from gen404_dagster.competition.models import (
    AuditOutcome,
    AuditRequest,
    BuildStatus,
    DuelWinner,
    GenerationAudit,
    Hotkey,
    MatchReport,
    Stem,
)
from gen404_dagster.competition.timeline import Reign, audits_to_request, derive_timeline, margins
from gen404_dagster.replay.findings import Cell, Status
from gen404_dagster.replay.record import Recorded

REJUDGED_PROMPTS = 12
"""Judging the same match again changes about one duel in 150: an earlier report had so many wins more or fewer at most."""


MIN_DRAWN = 5
"""An order of fewer prompts could follow from the seed by accident (1 in 120 with five)."""


# --- requests ---


def check_requests(round_: Recorded) -> tuple[Cell, dict[Hotkey, Status]]:
    """Who was asked for, and the critical prompts of each request."""
    cell, state, path = Cell("requests"), round_.state, paths.audit_requests(round_.number)
    statuses: dict[Hotkey, Status] = {}
    due = list(_due(round_))
    for request in state.requests:
        before = len(cell.findings)
        _check_request(round_, cell, request, [reign for reign in due if reign.leader == request.hotkey])
        wrong = [found.status for found in cell.findings[before:] if found.status]
        statuses[request.hotkey] = wrong[0] if wrong else Status.EXACT
    asked = [request.hotkey for request in state.requests]
    for hotkey in {hotkey for hotkey in asked if asked.count(hotkey) > 1}:
        cell.deviate(path, f"{hotkey} was asked for more than once", hotkey)
    if round_.settled:
        for reign in round_.state.standing().timeline.reigns:
            if reign.leader not in asked:
                cell.deviate(path, f"{reign.leader} beat {reign.defeated} and was never asked for", reign.leader)
    return cell, statuses


def _due(round_: Recorded) -> Iterator[Reign]:
    """Everyone who had to be asked for at some moment: local leaders under the verdicts known by then."""
    state, played = round_.state, margins(round_.state.matrix)
    generation = [h for h, a in (state.generation_audits or {}).items() if a.outcome == AuditOutcome.REJECTED]
    source = [audit.hotkey for audit in state.source_audits if audit.verdict == "failed"]
    seen: set[Reign] = set()
    for known in range(len(generation) + 1):
        for reviewed in range(len(source) + 1):
            rejected = {*generation[:known], *source[:reviewed]}
            timeline = derive_timeline(round_.order, played, rejected, state.config.win_margin)
            first = [Reign(h, "leader", played["leader", h]) for h in timeline.qualified[:1]]
            for reign in (*first, *audits_to_request(timeline, round_.order, played, (), state.config.win_margin)):
                if reign not in seen:
                    seen.add(reign)
                    yield reign


def _check_request(round_: Recorded, cell: Cell, request: AuditRequest, reigns: list[Reign]) -> None:
    path, hotkey, state = paths.audit_requests(round_.number), request.hotkey, round_.state
    if hotkey not in round_.order:
        cell.deviate(path, f"{hotkey} has no submission", hotkey)
        return
    strange = [stem for stem in request.critical_prompts if stem not in round_.stem_set]
    if strange:
        cell.deviate(path, f"{hotkey}: {strange[0]} is no prompt of the round", hotkey)
        return
    lists = []
    for reign in reigns:
        report = round_.reports.get((reign.defeated, hotkey))
        if report is not None:
            lists.append(critical_prompts(report, state.config.win_margin, state.seed or 0, round_.limits))
    if request.critical_prompts in lists:
        cell.follows()
        return
    reports = [report for (_, right), report in round_.reports.items() if right == hotkey]
    earlier = next((report for report in reports if drawn_from_earlier(round_, request.critical_prompts, report)), None)
    if earlier is not None:
        cell.explain(
            path,
            f"{hotkey}: critical prompts were drawn with the round's seed from an earlier report of its match with "
            f"{earlier.left}, which was judged again",
            evidence=paths.seed(round_.number),
            hotkey=hotkey,
        )
    elif not reigns and not request.critical_prompts and _was_audited(round_, hotkey):
        cell.explain(
            path,
            f"{hotkey}: no match on record asks for it: typed by hand, or its match was voided; the audit was run",
            evidence=paths.results(round_.number, hotkey, "generated"),
            hotkey=hotkey,
        )
    elif not reigns:
        cell.deviate(path, f"{hotkey} won no match that asks for an audit", hotkey)
    else:
        listed = f"{len(request.critical_prompts)} critical prompts"
        derived = ", ".join(lists[0][:3]) + ", ..." if lists and lists[0] else "none"
        cell.deviate(path, f"{hotkey}: {listed} do not follow from its match and seed.json: {derived} follow", hotkey)


def _was_audited(round_: Recorded, hotkey: Hotkey) -> bool:
    """Whether the audit that nothing asked for was really run, and ends as its results say."""
    recorded = (round_.state.generation_audits or {}).get(hotkey)
    if recorded is None:
        return False
    if round_.results(hotkey, "generated"):
        return derive_audit(round_, hotkey, recorded).status != Status.DEVIATES
    return derive_audit(round_, hotkey, recorded).status == Status.EXPLAINED


def drawn_from_earlier(round_: Recorded, critical: list[Stem], now: MatchReport) -> bool:
    """Whether the list is a draw with the round's seed from a report of this match that was judged slightly otherwise.

    A draw takes positions in the list of prompts that right won, which is in name order: the seed fixes which of the
    drawn names is the first, second and so on, and about where each stands among the prompts won now.
    """
    won = [duel.name for duel in now.duels if duel.winner == DuelWinner.RIGHT]
    k = max(1, math.ceil(len(now.duels) * round_.state.config.win_margin))
    if k < MIN_DRAWN or len(critical) != k or len(set(critical)) < k:
        return False
    ranks = [sum(name < stem for name in won) for stem in critical]
    for count in range(max(k + 1, len(won) - REJUDGED_PROMPTS), len(won) + REJUDGED_PROMPTS + 1):
        places = random.Random(round_.state.seed or 0).sample(range(count), k)
        in_order = [stem for _, stem in sorted(zip(places, critical, strict=True))] == sorted(critical)
        near = all(abs(place - rank) <= REJUDGED_PROMPTS // 2 for place, rank in zip(places, ranks, strict=True))
        if in_order and near and sum(stem in won for stem in critical) >= k - 2:
            return True
    return False


# --- verdicts ---


@dataclass(frozen=True)
class DerivedAudit:
    status: Status
    derived: GenerationAudit | None
    what: str = ""
    evidence: str = ""


def check_audits(round_: Recorded) -> tuple[Cell, dict[Hotkey, DerivedAudit]]:
    """Each verdict recomputed, to the last digit of its median; and nobody crowned without one."""
    cell, path = Cell("generation audits"), paths.generation_audits(round_.number)
    found: dict[Hotkey, DerivedAudit] = {}
    for hotkey, recorded in (round_.state.generation_audits or {}).items():
        if recorded.outcome == AuditOutcome.PENDING:
            if round_.settled:
                cell.note(path, f"{hotkey}: the audit was left without an outcome", hotkey)
            continue
        found[hotkey] = audit = derive_audit(round_, hotkey, recorded)
        if audit.status == Status.EXACT:
            cell.follows()
        elif audit.status == Status.EXPLAINED:
            cell.explain(path, f"{hotkey}: {audit.what}", audit.evidence, hotkey)
        else:
            cell.deviate(path, f"{hotkey}: {audit.what}", hotkey)
    if round_.settled:
        for request in round_.state.requests:
            if request.hotkey not in (round_.state.generation_audits or {}):
                cell.note(path, f"{request.hotkey} was asked for and has no verdict", request.hotkey)
    for source in round_.state.source_audits:
        if source.hotkey not in round_.order:
            cell.deviate(paths.source_audits(round_.number), f"{source.hotkey} has no submission", source.hotkey)
    return cell, found


def derive_audit(round_: Recorded, hotkey: Hotkey, recorded: GenerationAudit) -> DerivedAudit:
    """The verdict that the files give, and how the recorded one relates to it."""
    state, number = round_.state, round_.number
    request = next((request for request in state.requests if request.hotkey == hotkey), None)
    if request is None:
        return DerivedAudit(Status.DEVIATES, None, "nobody asked for this audit in require_audit.json")
    submitted, generated = round_.results(hotkey, "submitted") or {}, round_.results(hotkey, "generated") or {}
    build = (state.builds or {}).get(hotkey)
    if not generated and build is not None and build.status != BuildStatus.SUCCESS:
        failed = audits.build_failed_verdict(hotkey)
        if recorded == failed:
            what = f"the image was not built: {build.status} in builds.json"
            return DerivedAudit(Status.EXPLAINED, failed, what, paths.builds(number))
    if recorded == audits.deploy_failed_verdict(hotkey) and not any(map(audits.succeeded, generated.values())):
        pods = paths.pod_stats(number, hotkey)
        if build is not None and build.status == BuildStatus.SUCCESS:
            evidence = pods if round_.record.files.exists(pods) else paths.builds(number)
            return DerivedAudit(
                Status.EXPLAINED, recorded, "the image was built, but no pod of it generated anything", evidence
            )
    stems, critical, limits = state.stems, request.critical_prompts, round_.limits
    checked = audits.prompts_to_check(stems, submitted)
    derived = audits.verdict(hotkey, stems, submitted, generated, critical, limits)
    if recorded == derived:
        return DerivedAudit(Status.EXACT, derived)
    finished = {stem: generated[stem] for stem in checked if stem in generated}
    if len(finished) < len(checked) and audits.hopeless(finished, critical, limits):
        derived = audits.verdict(hotkey, stems, submitted, finished, critical, limits, stopped_early=True)
        if recorded == derived:
            return DerivedAudit(Status.EXACT, derived)
    by_hand = _stopped_by_hand(round_, hotkey, recorded, critical)
    if by_hand is not None:
        return by_hand
    names = [name for name in GenerationAudit.model_fields if getattr(recorded, name) != getattr(derived, name)]
    told = "; ".join(f"{name} is {getattr(recorded, name)!r}, {getattr(derived, name)!r} follows" for name in names)
    return DerivedAudit(Status.DEVIATES, derived, told)


def _stopped_by_hand(
    round_: Recorded, hotkey: Hotkey, recorded: GenerationAudit, critical: list[Stem]
) -> DerivedAudit | None:
    """A verdict that somebody typed when ending an unfinished audit: counted over what had succeeded by then.

    The time may be rounded to what a screen shows, overtimes may not be counted, and the hotkey may be that of the
    entry above, from which it was copied.
    """
    submitted, generated = round_.results(hotkey, "submitted") or {}, round_.results(hotkey, "generated") or {}
    stems, limits = round_.state.stems, round_.limits
    done = {stem: result for stem, result in generated.items() if audits.succeeded(result)}
    ours = audits.verdict(hotkey, stems, submitted, done, critical, limits, stopped_early=True)
    if len(audits.prompts_to_check(stems, submitted)) <= ours.checked_prompts or ours.generation_time is None:
        return None
    far = [stem for stem in done if done[stem].distance > limits.acceptable_distance]
    too_far = sum(stem not in critical for stem in far)
    keys = list(round_.state.generation_audits or {})
    above = keys[keys.index(hotkey) - 1] if keys.index(hotkey) else None
    reasons = {
        failed: audits.GenerationAudit(
            **ours.model_dump()
            | {
                "failed_prompts": failed,
                "reason": f"Non-critical mismatches ({failed}) exceed tolerance ({limits.max_mismatches})",
            }
        )
        for failed in {ours.failed_prompts, too_far}
        if failed > limits.max_mismatches
    }
    match = reasons.get(recorded.failed_prompts)
    if match is None or recorded.generation_time is None:
        return None
    typed = recorded.model_copy(update={"hotkey": hotkey, "generation_time": match.generation_time})
    rounded = recorded.generation_time in (match.generation_time, round(ours.generation_time, 2))
    if typed != match or not rounded or recorded.hotkey not in (hotkey, above):
        return None
    copied = f"; its hotkey field names the entry above, {above}" if recorded.hotkey != hotkey else ""
    what = f"ended early and typed by hand from the {ours.checked_prompts} prompts regenerated by then{copied}"
    return DerivedAudit(Status.EXPLAINED, ours, what, paths.results(round_.number, hotkey, "generated"))
