"""Who leads follows from order, matches and verdicts; what is missing is asked for once and always leads to an end."""

import random
from collections.abc import Sequence, Set
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from gen404_dagster.competition.timeline import (
    Reign,
    Standing,
    audits_to_request,
    decides,
    derive_timeline,
    exploratory_pairs,
    margins,
    next_matches,
    standing,
    verdicts,
)

MARGIN = 0.05


def rows(played: Margins) -> list[MatchRow]:
    return [MatchRow(left=left, right=right, margin=margin) for (left, right), margin in played.items()]


def audit(hotkey: Hotkey, outcome: str) -> GenerationAudit:
    return GenerationAudit(hotkey=hotkey, outcome=AuditOutcome(outcome))


def stand(
    order: str,
    played: Margins,
    *,
    requested: str = "",
    generated: str = "",
    rejected: str = "",
    source_passed: str = "",
    source_failed: str = "",
) -> Standing:
    """Standing of miners with one-letter names."""
    return standing(
        list(order),
        rows(played),
        [AuditRequest(hotkey=h) for h in requested],
        {h: audit(h, "passed") for h in generated} | {h: audit(h, "rejected") for h in rejected},
        [SourceAudit(hotkey=h, verdict="passed") for h in source_passed]
        + [SourceAudit(hotkey=h, verdict="failed") for h in source_failed],
        MARGIN,
    )


def qualify(hotkeys: str, margin: float = 0.1) -> Margins:
    return {(LEADER, h): margin for h in hotkeys}


# --- the chain of leaders ---


def test_no_submissions_leave_the_leader_in_place_at_once() -> None:
    now = stand("", {})
    assert now.complete
    assert now.timeline.leader == LEADER
    assert not now.matches
    assert not now.requests


def test_everyone_rejected_leaves_the_leader_in_place() -> None:
    now = stand("ABC", qualify("ABC"), rejected="AB", source_failed="C")
    assert now.complete
    assert now.timeline.leader == LEADER


def test_everyone_rejected_before_a_single_match_needs_no_match() -> None:
    assert stand("ABC", {}, source_failed="ABC").complete


def test_nobody_qualified_leaves_the_leader_in_place() -> None:
    assert stand("AB", qualify("AB", 0.0499)).complete


def test_a_miner_that_was_rejected_before_its_qualification_is_not_played() -> None:
    assert stand("ABC", {}, source_failed="B").matches == ((LEADER, "A"), (LEADER, "C"))


@pytest.mark.parametrize(
    ("margin", "leads"), [(0.05, True), (0.049999999, False), (0.0, False), (-1.0, False), (100.0, True)]
)
def test_reaching_the_margin_exactly_qualifies_and_a_tie_does_not(margin: float, leads: bool) -> None:
    timeline = derive_timeline(["A"], {(LEADER, "A"): margin}, set(), MARGIN)
    assert timeline.finished
    assert timeline.leader == ("A" if leads else LEADER)


def test_the_timeline_starts_only_when_all_qualifications_are_played() -> None:
    timeline = derive_timeline(["A", "B", "C"], qualify("AC"), set(), MARGIN)
    assert timeline.missing == ((LEADER, "B"),)
    assert timeline.qualified == ("A", "C")
    assert timeline.reigns == ()


def test_each_qualified_miner_plays_the_local_leader_in_order_of_submission() -> None:
    played = qualify("ABCD") | {("A", "B"): 0.0, ("A", "C"): 0.05}
    timeline = derive_timeline(list("ABCD"), played, set(), MARGIN)
    assert timeline.reigns == (Reign("A", LEADER, 0.1), Reign("C", "A", 0.05))
    assert timeline.missing == (("C", "D"),)
    assert derive_timeline(list("ABCD"), played | {("C", "D"): 1.0}, set(), MARGIN).leader == "D"


def test_a_local_leader_rejected_after_three_others_built_on_it_is_as_if_never_submitted() -> None:
    played = qualify("ABCDE") | {("A", "B"): 0.1, ("B", "C"): 0.1, ("C", "D"): 0.1, ("D", "E"): 0.1}
    before = stand("ABCDE", played)
    assert [reign.leader for reign in before.timeline.reigns] == list("ABCDE")
    after = stand("ABCDE", played, rejected="B", requested="ABCDE")
    assert after.timeline.reigns == (Reign("A", LEADER, 0.1),)
    assert after.timeline.missing == (("A", "C"),)
    played |= {("A", "C"): 0.0, ("A", "D"): 0.0, ("A", "E"): 0.07}
    rebuilt = stand("ABCDE", played, rejected="B", requested="ABCDE")
    assert rebuilt.timeline.reigns == (Reign("A", LEADER, 0.1), Reign("E", "A", 0.07))
    assert set(rebuilt.matches) == {("C", "E")}  # (C, D) and (D, E) were played before the rejection


def test_a_match_that_was_played_again_counts_as_played_last() -> None:
    again = [MatchRow(left=LEADER, right="A", margin=m) for m in (0.5, -0.5)]
    assert margins(again) == {(LEADER, "A"): -0.5}
    assert standing(["A"], again, [], {}, [], MARGIN).complete


def test_a_match_of_somebody_who_never_submitted_changes_nothing() -> None:
    assert stand("A", qualify("A", 0.0) | {(LEADER, "X"): 1.0, ("X", "A"): 1.0}).timeline.leader == LEADER


# --- exploratory matches ---


def test_missing_pairs_of_qualified_miners_are_played_left_major_in_order_of_submission() -> None:
    assert exploratory_pairs("ABCD", {("A", "C"): 0.0, ("D", "A"): 0.0}) == [
        ("A", "B"),
        ("A", "D"),
        ("B", "C"),
        ("B", "D"),
        ("C", "D"),
    ]


def test_exploratory_matches_wait_for_the_timeline() -> None:
    played = qualify("ABC") | {("A", "B"): 0.1}
    assert next_matches(derive_timeline("ABC", played, set(), MARGIN), played) == [("B", "C")]
    played["B", "C"] = 0.0
    assert next_matches(derive_timeline("ABC", played, set(), MARGIN), played) == [("A", "C")]


# --- audits ---


def test_the_first_qualifier_is_audited_before_the_others_are_qualified() -> None:
    now = stand("ABC", {(LEADER, "A"): 0.0, (LEADER, "B"): 0.1})
    assert now.requests == (Reign("B", LEADER, 0.1),)
    assert now.timeline.missing == ((LEADER, "C"),)


def test_a_qualifier_is_not_the_first_while_an_earlier_submission_is_unplayed() -> None:
    assert stand("AB", {(LEADER, "B"): 0.1}).requests == ()


def test_an_earlier_submission_that_was_rejected_unplayed_does_not_hold_the_first_qualifier_back() -> None:
    assert stand("ABC", {(LEADER, "B"): 0.1}, source_failed="A").requests == (Reign("B", LEADER, 0.1),)


def test_only_the_first_qualifier_is_audited_early() -> None:
    assert stand("ABC", qualify("AB"), requested="A").requests == ()


def test_a_request_of_an_operator_takes_the_place_of_the_early_one() -> None:
    assert stand("ABC", qualify("AB"), requested="C").requests == ()
    assert stand("AB", qualify("AB") | {("A", "B"): 0.0}, requested="B").requests == (Reign("A", LEADER, 0.1),)


def test_every_local_leader_is_requested_once_from_the_match_that_made_it_one() -> None:
    played = qualify("ABC") | {("A", "B"): 0.06, ("B", "C"): 0.07}
    assert stand("ABC", played, requested="A").requests == (Reign("B", "A", 0.06), Reign("C", "B", 0.07))
    assert stand("ABC", played, requested="ABC").requests == ()


def test_a_hotkey_is_not_requested_again_when_another_match_makes_it_leader() -> None:
    played = qualify("ABC") | {("A", "B"): 0.06, ("B", "C"): 0.07, ("A", "C"): 0.5}
    now = stand("ABC", played, requested="ABC", rejected="B")
    assert now.timeline.reigns[-1] == Reign("C", "A", 0.5)
    assert now.requests == ()


def test_rejected_by_either_audit_is_out_and_approved_needs_both() -> None:
    known = verdicts(
        {
            h: audit(h, outcome)
            for h, outcome in {"A": "passed", "B": "rejected", "C": "passed", "D": "pending"}.items()
        },
        [SourceAudit(hotkey=h, verdict="passed") for h in "ABD"] + [SourceAudit(hotkey="C", verdict="failed")],
    )
    assert known.rejected == {"B", "C"}
    assert known.approved == {"A"}


def test_of_several_reviews_of_a_miner_the_last_counts() -> None:
    reviews = [SourceAudit(hotkey="A", verdict="failed"), SourceAudit(hotkey="A", verdict="passed")]
    assert verdicts({}, reviews).rejected == frozenset()
    assert verdicts({}, reviews[::-1]).rejected == {"A"}


# --- the end of a round ---


@pytest.mark.parametrize(
    ("known", "settled"),
    [
        ({}, False),
        ({"generated": "AB"}, False),
        ({"source_passed": "AB"}, False),
        ({"generated": "AB", "source_passed": "B"}, False),
        ({"generated": "B", "source_passed": "AB"}, False),
        ({"generated": "AB", "source_passed": "AB"}, True),
        ({"generated": "ABC", "source_passed": "ABC"}, True),
    ],
)
def test_a_round_is_settled_when_all_its_local_leaders_passed_both_audits(known: dict[str, str], settled: bool) -> None:
    played = qualify("ABC") | {("A", "B"): 0.1, ("B", "C"): 0.0, ("A", "C"): 0.0}
    now = stand("ABC", played, requested="AB", **known)
    assert now.settled == settled
    assert now.complete == settled


def test_a_settled_round_is_complete_when_all_pairs_of_qualified_miners_are_played() -> None:
    played = qualify("ABC") | {("A", "B"): 0.1, ("B", "C"): 0.0}
    now = stand("ABC", played, requested="AB", generated="AB", source_passed="AB")
    assert now.settled
    assert not now.complete
    assert now.matches == (("A", "C"),)


def test_a_leader_whose_verdicts_were_typed_in_without_a_request_is_requested_first() -> None:
    now = stand("A", qualify("A"), generated="A", source_passed="A")
    assert now.settled
    assert not now.complete
    assert now.requests == (Reign("A", LEADER, 0.1),)


def test_an_audit_of_somebody_who_does_not_lead_is_not_waited_for() -> None:
    now = stand("AB", qualify("A") | qualify("B", 0.0), requested="AB", generated="A", source_passed="A")
    assert now.complete
    assert now.awaiting_generation == ("B",)


def test_a_failed_review_ends_the_generation_audit_too() -> None:
    assert stand("AB", qualify("AB"), requested="AB", source_failed="A").awaiting_generation == ("B",)


def test_the_leaders_a_reviewer_has_not_seen_are_named() -> None:
    played = qualify("AB") | {("A", "B"): 0.1}
    assert stand("AB", played, requested="AB", generated="AB", source_passed="A").awaiting_source == ("B",)


# --- facts that hold for every round ---

NAMES = "ABCDEF"
VALUES = st.sampled_from([-100.0, -1.0, 0.0, 0.0499, 0.05, 0.0625, 0.2, 100.0])
PAIRS = [(LEADER, h) for h in NAMES] + list(permutations(NAMES, 2))
WORLDS = st.fixed_dictionaries(dict.fromkeys(PAIRS, VALUES))
SOME = st.frozensets(st.sampled_from(NAMES))
ORDERS = st.integers(0, 6).flatmap(lambda n: st.permutations(NAMES).map(lambda order: order[:n]))


def derive_by_hand(order: Sequence[Hotkey], world: Margins, rejected: Set[Hotkey]) -> list[Hotkey]:
    """The rule as a person would play it, with every match known."""
    chain = [LEADER]
    for hotkey in order:
        out = hotkey in rejected or world[LEADER, hotkey] < MARGIN
        if not out and world[chain[-1], hotkey] >= MARGIN:
            chain.append(hotkey)
    return chain[1:]


@given(ORDERS, WORLDS, SOME)
def test_with_all_matches_played_the_chain_is_what_a_person_would_find(
    order: list[Hotkey], world: Margins, rejected: frozenset[Hotkey]
) -> None:
    timeline = derive_timeline(order, world, rejected, MARGIN)
    assert timeline.finished
    assert [reign.leader for reign in timeline.reigns] == derive_by_hand(order, world, rejected)


@given(ORDERS, st.dictionaries(st.sampled_from(PAIRS), VALUES), SOME)
def test_a_rejected_miner_is_as_if_it_had_never_submitted(
    order: list[Hotkey], played: Margins, rejected: frozenset[Hotkey]
) -> None:
    without = [hotkey for hotkey in order if hotkey not in rejected]
    pairs = {pair: margin for pair, margin in played.items() if not rejected & set(pair)}
    assert derive_timeline(order, played, rejected, MARGIN) == derive_timeline(without, pairs, set(), MARGIN)


@given(ORDERS, WORLDS, SOME)
def test_order_decides_who_leads_but_not_who_qualifies(
    order: list[Hotkey], world: Margins, rejected: frozenset[Hotkey]
) -> None:
    expected = {h for h in order if h not in rejected and world[LEADER, h] >= MARGIN}
    for other in (order, order[::-1], sorted(order)):
        timeline = derive_timeline(other, world, rejected, MARGIN)
        assert set(timeline.qualified) == expected
        leaders = [reign.leader for reign in timeline.reigns]
        assert leaders == [h for h in other if h in leaders]
        assert leaders[:1] == list(timeline.qualified[:1])
        assert all(world[reign.defeated, reign.leader] == reign.margin >= MARGIN for reign in timeline.reigns)


@given(ORDERS, WORLDS, st.randoms(use_true_random=False))
def test_the_order_of_rows_in_the_matrix_does_not_matter(
    order: list[Hotkey], world: Margins, chance: random.Random
) -> None:
    shuffled = rows(world)
    chance.shuffle(shuffled)
    assert standing(order, shuffled, [], {}, [], MARGIN) == standing(order, rows(world), [], {}, [], MARGIN)


def play_out(
    order: Sequence[Hotkey], world: Margins, cheats: Set[Hotkey], chance: random.Random
) -> tuple[Standing, list[tuple[Hotkey, Hotkey]], list[Hotkey]]:
    """Play a round as the lanes do: one match at a time, audits requested and decided meanwhile, in any order."""
    table: list[MatchRow] = []
    requests: list[AuditRequest] = []
    generation: dict[Hotkey, GenerationAudit] = {}
    source: list[SourceAudit] = []
    for _ in range(400):
        now = standing(order, table, requests, generation, source, MARGIN)
        if now.complete:
            return now, [(row.left, row.right) for row in table], [request.hotkey for request in requests]
        requests += [AuditRequest(hotkey=reign.leader) for reign in now.requests]
        lane = chance.choice(["duels", "pods", "reviewer"])
        if lane == "duels" and now.matches:
            left, right = now.matches[0]
            table.append(MatchRow(left=left, right=right, margin=world[left, right]))
        elif lane == "pods" and now.awaiting_generation:
            hotkey = now.awaiting_generation[0]
            generation[hotkey] = audit(hotkey, "rejected" if hotkey in cheats else "passed")
        elif lane == "reviewer" and now.awaiting_source:
            source.append(SourceAudit(hotkey=now.awaiting_source[0], verdict="passed"))
    raise AssertionError("the round did not end")


@given(ORDERS, WORLDS, SOME, st.integers(0, 1000))
def test_doing_what_is_asked_always_ends_the_round_with_every_match_and_audit_asked_once(
    order: list[Hotkey], world: Margins, cheats: frozenset[Hotkey], chance: int
) -> None:
    now, played, requested = play_out(order, world, cheats, random.Random(chance))
    assert len(played) == len(set(played)) <= len(order) + len(order) * (len(order) - 1) // 2
    assert len(requested) == len(set(requested))
    leaders = [reign.leader for reign in now.timeline.reigns]
    assert not cheats & set(leaders)
    assert leaders == derive_by_hand(order, world, cheats & set(requested))


@given(ORDERS, WORLDS, SOME)
def test_once_all_pairs_are_played_no_verdict_asks_for_another_match(
    order: list[Hotkey], world: Margins, rejected: frozenset[Hotkey]
) -> None:
    qualified = derive_timeline(order, world, set(), MARGIN).qualified
    wanted = [(LEADER, h) for h in order] + list(combinations(qualified, 2))
    timeline = derive_timeline(order, played := {pair: world[pair] for pair in wanted}, rejected, MARGIN)
    assert next_matches(timeline, played) == []


@given(ORDERS, st.dictionaries(st.sampled_from(PAIRS), VALUES), SOME, SOME)
def test_only_standing_miners_are_matched_and_audited(
    order: list[Hotkey], played: Margins, rejected: frozenset[Hotkey], asked: frozenset[Hotkey]
) -> None:
    timeline = derive_timeline(order, played, rejected, MARGIN)
    standing_miners = [h for h in order if h not in rejected]
    matches = next_matches(timeline, played)
    assert len(matches) == len(set(matches))
    for left, right in matches:
        assert (left, right) not in played
        assert left == LEADER or standing_miners.index(left) < standing_miners.index(right)
    requests = [AuditRequest(hotkey=h) for h in sorted(asked)]
    for reign in audits_to_request(timeline, order, played, requests, MARGIN):
        assert reign.leader in standing_miners
        assert reign.leader not in asked
        assert played[reign.defeated, reign.leader] == reign.margin >= MARGIN


def test_a_match_decides_when_its_other_outcome_crowns_another_or_leaves_it_open() -> None:
    """A and B qualify, B beats A; C failed to qualify and has played nobody else; D and E lost to all they met."""
    played = {
        (LEADER, "A"): 0.2, (LEADER, "B"): 0.06, (LEADER, "C"): 0.04, (LEADER, "D"): 0.3,
        ("A", "B"): 0.05, ("B", "D"): 0.049, ("A", "D"): -0.5,
    }  # fmt: skip
    hang = {pair for pair in played if decides(pair, "ABCD", played, set(), MARGIN)}
    # A against the leader does not count: without A, B still leads from the leader, and D does not beat it.
    # C, had it qualified, would have to play B: nobody knows. D against A is in no chain.
    assert hang == {(LEADER, "B"), ("A", "B"), ("B", "D"), (LEADER, "C")}


def test_of_a_rejected_miner_no_match_decides() -> None:
    played = {(LEADER, "A"): 0.2, (LEADER, "B"): 0.06, ("A", "B"): 0.05}
    assert not decides(("A", "B"), "AB", played, {"B"}, MARGIN)
    assert decides((LEADER, "A"), "AB", played, {"B"}, MARGIN)
