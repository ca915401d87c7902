"""Who leads, and what is missing to know it.

Belongs here: rules that turn submissions, a match matrix and audits into a chain of leaders, the matches and audits
that are still missing, and whether the round is settled. Does not: reading any of these (resources), playing a match
or running an audit (assets), when to look (stages). The timeline is derived every time and never stored.
Source: spec section 3; proven on recorded rounds by tests/competition/test_history.py.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from gen404_dagster.competition.models import (
    LEADER,
    AuditOutcome,
    AuditRequest,
    GenerationAudit,
    Hotkey,
    Margins,
    MatchRow,
    SourceAudit,
)

Pair = tuple[Hotkey, Hotkey]


@dataclass(frozen=True)
class Reign:
    """`leader` took the lead by winning `margin` against `defeated`."""

    leader: Hotkey
    defeated: Hotkey
    margin: float


@dataclass(frozen=True)
class Timeline:
    """The chain of local leaders as far as the played matches tell.

    qualified: in order of submission. reigns: local leaders in order. missing: matches without which it cannot go on
    (all missing qualifications, or the one next match); empty when the timeline is finished.
    """

    qualified: tuple[Hotkey, ...]
    reigns: tuple[Reign, ...]
    missing: tuple[Pair, ...]

    @property
    def finished(self) -> bool:
        return not self.missing

    @property
    def leader(self) -> Hotkey:
        return self.reigns[-1].leader if self.reigns else LEADER


@dataclass(frozen=True)
class Verdicts:
    """Who is out and who is approved, from both audits."""

    rejected: frozenset[Hotkey]
    generation_passed: frozenset[Hotkey]
    source_passed: frozenset[Hotkey]

    @property
    def approved(self) -> frozenset[Hotkey]:
        return (self.generation_passed & self.source_passed) - self.rejected


def verdicts(generation: Mapping[Hotkey, GenerationAudit], source: Iterable[SourceAudit]) -> Verdicts:
    """Rejected by either audit is out; approved needs both. Of several source audits of a hotkey the last counts."""
    last = {audit.hotkey: audit.verdict for audit in source}
    return Verdicts(
        rejected=frozenset(
            {h for h, audit in generation.items() if audit.outcome == AuditOutcome.REJECTED}
            | {h for h, verdict in last.items() if verdict == "failed"}
        ),
        generation_passed=frozenset(h for h, audit in generation.items() if audit.outcome == AuditOutcome.PASSED),
        source_passed=frozenset(h for h, verdict in last.items() if verdict == "passed"),
    )


def margins(rows: Iterable[MatchRow]) -> Margins:
    """Margin by (left, right). Of a match that was played again the last counts."""
    return {(row.left, row.right): row.margin for row in rows}


def derive_timeline(order: Sequence[Hotkey], played: Margins, rejected: Set[Hotkey], win_margin: float) -> Timeline:
    """Chain of local leaders in order of submission.

    A rejected miner is as if it had never been played: whoever beat it is judged against its predecessor.
    """
    standing = [hotkey for hotkey in order if hotkey not in rejected]
    qualified = tuple(h for h in standing if played.get((LEADER, h), float("-inf")) >= win_margin)
    unqualified_yet = tuple((LEADER, h) for h in standing if (LEADER, h) not in played)
    if unqualified_yet:
        return Timeline(qualified, (), unqualified_yet)
    reigns: list[Reign] = []
    leader = LEADER
    for hotkey in qualified:
        margin = played.get((leader, hotkey))
        if margin is None:
            return Timeline(qualified, tuple(reigns), ((leader, hotkey),))
        if margin >= win_margin:
            reigns.append(Reign(hotkey, leader, margin))
            leader = hotkey
    return Timeline(qualified, tuple(reigns), ())


def decides(pair: Pair, order: Sequence[Hotkey], played: Margins, rejected: Set[Hotkey], win_margin: float) -> bool:
    """Whether the round hangs on one match: with its other outcome another miner leads, or nobody can tell who."""
    known = derive_timeline(order, played, rejected, win_margin)
    other = float("-inf") if played[pair] >= win_margin else win_margin
    turned = derive_timeline(order, {**played, pair: other}, rejected, win_margin)
    return not turned.finished or turned.leader != known.leader


def exploratory_pairs(qualified: Sequence[Hotkey], played: Margins) -> list[Pair]:
    """Missing pairs of qualified miners, the earlier submission on the left, left-major: played while audits run,
    so that a timeline without a rejected miner needs no new match."""
    return [
        (left, right)
        for position, left in enumerate(qualified)
        for right in qualified[position + 1 :]
        if (left, right) not in played
    ]


def next_matches(timeline: Timeline, played: Margins) -> list[Pair]:
    """Matches to play now, in canonical order: qualification, then the timeline's next, then exploratory."""
    return list(timeline.missing) or exploratory_pairs(timeline.qualified, played)


def audits_to_request(
    timeline: Timeline, order: Sequence[Hotkey], played: Margins, requests: Sequence[AuditRequest], win_margin: float
) -> list[Reign]:
    """Local leaders whose outputs nobody has asked to verify yet, each with the match that made it one.

    The first qualifier is asked for at once, before the others are qualified, so that its audit of hours starts early.
    """
    asked = {request.hotkey for request in requests}
    wanted = [reign for reign in timeline.reigns if reign.leader not in asked]
    if not asked and not wanted and timeline.qualified:
        first = timeline.qualified[0]
        before = order[: order.index(first)]
        # Only when it really is the first: an earlier submission might still qualify.
        if all((LEADER, h) not in timeline.missing for h in before):
            wanted = [Reign(first, LEADER, played[LEADER, first])]
    return wanted


@dataclass(frozen=True)
class Standing:
    """Where the round stands in DUELS."""

    timeline: Timeline
    matches: tuple[Pair, ...]
    requests: tuple[Reign, ...]
    awaiting_generation: tuple[Hotkey, ...]
    awaiting_source: tuple[Hotkey, ...]
    leaders_approved: bool

    @property
    def settled(self) -> bool:
        """The timeline is finished and every local leader in it is approved (or no one qualified)."""
        return self.timeline.finished and self.leaders_approved

    @property
    def complete(self) -> bool:
        """Settled, and every match among qualified miners is on record: the winner may be crowned."""
        return self.settled and not self.matches and not self.requests


def standing(
    order: Sequence[Hotkey],
    rows: Sequence[MatchRow],
    requests: Sequence[AuditRequest],
    generation: Mapping[Hotkey, GenerationAudit],
    source: Sequence[SourceAudit],
    win_margin: float,
) -> Standing:
    """Everything that follows from a round's matches and audits."""
    played = margins(rows)
    known = verdicts(generation, source)
    timeline = derive_timeline(order, played, known.rejected, win_margin)
    leaders = [reign.leader for reign in timeline.reigns]
    done = known.rejected | known.generation_passed
    return Standing(
        timeline=timeline,
        matches=tuple(next_matches(timeline, played)),
        requests=tuple(audits_to_request(timeline, order, played, requests, win_margin)),
        awaiting_generation=tuple(request.hotkey for request in requests if request.hotkey not in done),
        awaiting_source=tuple(h for h in leaders if h not in known.source_passed),
        leaders_approved=all(leader in known.approved for leader in leaders),
    )
