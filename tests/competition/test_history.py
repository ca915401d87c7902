"""The rules against four recorded rounds of the public competition: what was recorded follows from them.

Where a recorded value does not follow, it was typed by hand; each of these is named here with its reason.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.duels import critical_prompts, decide_unjudged, match_report
from gen404_dagster.competition.leadership import active_leader, name_winner, next_round, transition
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    LEADER,
    AuditRequest,
    CompetitionStage,
    DuelWinner,
    GenerationAudit,
    Hotkey,
    MatchReport,
    MatchRow,
    SourceAudit,
    Stage,
    read_json,
    read_leaders,
    read_matrix,
    read_prompts,
    write_json,
    write_matrix,
    write_prompts,
)
from gen404_dagster.competition.prompts import draw_prompts
from gen404_dagster.competition.stages import Do, Lane, RoundState, next_step
from gen404_dagster.competition.timeline import derive_timeline, margins, next_matches, standing, verdicts

pytestmark = pytest.mark.shared

ROUNDS = (0, 1, 2, 3)
CLOSING = {0: 2, 1: 5, 2: 8, 3: 11, 4: 14}  # day of February 2026, 08:00 UTC, on which a round's window closed
LIMITS = Limits()

ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "builds.json": models.BUILDS,
    "generation_audits.json": models.GENERATION_AUDITS,
    "require_audit.json": models.AUDIT_REQUESTS,
    "schedule.json": models.SCHEDULE,
    "seed.json": models.SEED,
    "source_audit.json": models.SOURCE_AUDITS,
    "submissions.json": models.SUBMISSIONS,
    "winner.json": models.WINNER,
    "submitted.json": models.RESULTS,
    "generated.json": models.RESULTS,
    "pod_stats.json": models.POD_STATS,
    "config.json": models.CONFIG,
    "state.json": models.STATE,
    "leader.json": models.LEADERS,
}


def adapter_of(path: Path) -> TypeAdapter[Any]:
    return models.MATCH_REPORT if path.name.startswith("duels_") else ADAPTERS[path.name]


@dataclass(frozen=True)
class Recorded:
    """A finished round as recorded."""

    state: RoundState
    reports: dict[tuple[Hotkey, Hotkey], MatchReport] = field(repr=False)

    @property
    def order(self) -> list[Hotkey]:
        return list(self.state.submissions or {})

    @property
    def audits(self) -> dict[Hotkey, GenerationAudit]:
        return dict(self.state.generation_audits or {})


@pytest.fixture(scope="session")
def record(shared: Path) -> Path:
    return shared / "history" / "competition-1"


@pytest.fixture(scope="session")
def rounds(record: Path) -> dict[int, Recorded]:
    return {number: load(record, number) for number in ROUNDS}


def load(record: Path, number: int) -> Recorded:
    def read(adapter: TypeAdapter[Any], path: str) -> Any:
        return read_json(adapter, (record / path).read_bytes())

    rows = tuple(read_matrix((record / paths.matrix(number)).read_text()))
    sources = record / paths.source_audits(number)
    state = RoundState(
        number=number,
        config=read(models.CONFIG, paths.CONFIG),
        state=CompetitionStage(current_round=number, stage=Stage.DUELS),
        leaders=tuple(read_leaders((record / paths.LEADERS).read_bytes())),
        schedule=read(models.SCHEDULE, paths.schedule(number)),
        seed=read(models.SEED, paths.seed(number)).seed,
        prompts=tuple(read_prompts((record / paths.prompts(number)).read_text())),
        submissions=read(models.SUBMISSIONS, paths.submissions(number)),
        builds=read(models.BUILDS, paths.builds(number)),
        requests=tuple(read(models.AUDIT_REQUESTS, paths.audit_requests(number))),
        generation_audits=read(models.GENERATION_AUDITS, paths.generation_audits(number)),
        source_audits=tuple(read(models.SOURCE_AUDITS, paths.source_audits(number)) if sources.exists() else ()),
        matrix=rows,
        winner=read(models.WINNER, paths.winner(number)),
        submitted=frozenset(path.parent.name for path in record.glob(f"rounds/{number}/*/submitted.json")),
        baseline=read(models.RESULTS, paths.results(number, LEADER, "generated")),
    )
    pairs = [(row.left, row.right) for row in rows]
    return Recorded(state, {p: read(models.MATCH_REPORT, paths.match_report(number, *p)) for p in pairs})


# --- files ---


def test_every_recorded_json_file_is_written_again_to_the_byte(record: Path) -> None:
    files = sorted(record.rglob("*.json"))
    assert len(files) == 400
    for path in files:
        adapter, recorded = adapter_of(path), path.read_bytes()
        value = read_leaders(recorded) if adapter is models.LEADERS else read_json(adapter, recorded)
        assert write_json(adapter, value).encode() == recorded, path.relative_to(record)


def test_every_file_of_a_repair_is_written_again_to_the_byte(shared: Path) -> None:
    files = sorted((shared / "history" / "repairs").rglob("*.json"))
    assert len(files) > 20
    for path in files:
        adapter, recorded = adapter_of(path), path.read_bytes()
        value = read_leaders(recorded) if adapter is models.LEADERS else read_json(adapter, recorded)
        assert write_json(adapter, value).encode() == recorded, path.relative_to(shared)


@pytest.mark.parametrize("number", ROUNDS)
def test_every_recorded_matrix_and_list_of_prompts_is_written_again_to_the_byte(record: Path, number: int) -> None:
    matrix = (record / paths.matrix(number)).read_bytes().decode()
    assert write_matrix(read_matrix(matrix)) == matrix
    prompts = (record / paths.prompts(number)).read_bytes().decode()
    assert write_prompts(read_prompts(prompts)) == prompts


# --- submissions and prompts ---


@pytest.mark.parametrize("number", ROUNDS)
def test_submissions_stand_in_order_of_their_blocks_and_builds_repeat_it(
    rounds: dict[int, Recorded], number: int
) -> None:
    state = rounds[number].state
    assert state.submissions
    assert state.builds
    assert state.schedule
    blocks = [submission.revealed_at_block for submission in state.submissions.values()]
    assert blocks == sorted(blocks)
    assert state.schedule.earliest_reveal_block <= blocks[0] <= blocks[-1] <= state.schedule.latest_reveal_block
    assert list(state.builds) == rounds[number].order
    assert {submission.round for submission in state.submissions.values()} == {state.name}
    for hotkey, build in state.builds.items():
        submission = state.submissions[hotkey]
        assert build.tag == f"{submission.commit[:7]}-{state.name}"
        assert (build.repo, build.commit) == (submission.repo, submission.commit)


@pytest.mark.parametrize("number", ROUNDS[1:])
def test_the_carry_over_is_drawn_with_the_seed_from_the_round_before(rounds: dict[int, Recorded], number: int) -> None:
    state = rounds[number].state
    assert state.prompts
    assert state.seed is not None
    drawn = draw_prompts(state.seed, rounds[number - 1].state.prompts, ["pool"] * 1000, 128, 32)
    assert drawn[:32] == list(state.prompts[:32])
    assert len(state.prompts) == 128


# --- matches ---


def test_every_recorded_margin_follows_from_its_duels(rounds: dict[int, Recorded]) -> None:
    played = [(recorded, row) for recorded in rounds.values() for row in recorded.state.matrix]
    assert len(played) == 208
    chance = random.Random(404)
    for recorded, row in played:
        report = recorded.reports[row.left, row.right]
        shuffled = chance.sample(report.duels, len(report.duels))
        assert match_report(row.left, row.right, shuffled) == report
        assert report.margin == row.margin


def test_every_outcome_without_a_preview_follows_from_the_reports_own_addresses(rounds: dict[int, Recorded]) -> None:
    found: Counter[DuelWinner] = Counter()
    for duel in (duel for recorded in rounds.values() for report in recorded.reports.values() for duel in report.duels):
        outcome = decide_unjudged(duel.name, duel.left_png, duel.right_png, False, False)
        if outcome:
            assert outcome == (duel.winner, duel.issues)
            found[duel.winner] += 1
    assert found == {DuelWinner.LEFT: 9373, DuelWinner.RIGHT: 65, DuelWinner.DRAW: 44}


@pytest.mark.parametrize("number", ROUNDS)
def test_a_report_has_one_duel_for_each_prompt_of_the_round(rounds: dict[int, Recorded], number: int) -> None:
    prompts = {models.stem_of(url): url for url in rounds[number].state.prompts or ()}
    for report in rounds[number].reports.values():
        assert {duel.name: duel.prompt for duel in report.duels} == prompts


# --- timelines ---


@pytest.mark.parametrize("number", ROUNDS)
def test_the_recorded_winner_follows_from_submissions_matrix_and_audits(
    rounds: dict[int, Recorded], number: int
) -> None:
    state = rounds[number].state
    now = state.standing()
    assert state.submissions
    assert state.builds
    assert now.complete
    assert not state.undownloaded
    assert not state.baseline_missing
    winner = now.timeline.leader
    assert state.winner == name_winner(winner, state.submissions.get(winner), state.builds.get(winner), state.leader)
    decision = next_step(state, 10**9)[Lane.MAIN]
    assert isinstance(decision, Do)
    assert decision.job == "crown"


@pytest.mark.parametrize("number", ROUNDS)
def test_playing_what_is_asked_for_fills_the_matrix_in_the_recorded_order(
    rounds: dict[int, Recorded], number: int
) -> None:
    recorded = rounds[number]
    world = margins(recorded.state.matrix)
    failed_review = verdicts({}, recorded.state.source_audits).rejected
    played: list[MatchRow] = []
    while True:
        timeline = derive_timeline(recorded.order, margins(played), failed_review, recorded.state.config.win_margin)
        due = next_matches(timeline, margins(played))
        if not due:
            break
        played.append(MatchRow(left=due[0][0], right=due[0][1], margin=world[due[0]]))
    expected = list(recorded.state.matrix)
    if number == 3:  # repair 12 removed the closest match from the matrix; played again, it stands last
        again = expected.pop()
        expected.insert(recorded.order.index(again.right), again)
    assert played == expected


def rows_of(recorded: Recorded) -> Iterator[list[MatchRow]]:
    for count in range(len(recorded.state.matrix) + 1):
        yield list(recorded.state.matrix[:count])


def test_audits_are_requested_as_recorded_when_verdicts_come_in_as_recorded(rounds: dict[int, Recorded]) -> None:
    recorded = rounds[0]
    failed = [audit for audit in recorded.state.source_audits if audit.verdict == "failed"]
    requests: list[AuditRequest] = []
    seen: dict[Hotkey, GenerationAudit] = {}

    def request(rows: list[MatchRow], source: list[SourceAudit]) -> None:
        now = standing(recorded.order, rows, requests, seen, source, recorded.state.config.win_margin)
        for reign in now.requests:
            report = recorded.reports[reign.defeated, reign.leader]
            critical = critical_prompts(report, recorded.state.config.win_margin, recorded.state.seed or 0, LIMITS)
            requests.append(AuditRequest(hotkey=reign.leader, critical_prompts=critical))

    for rows in rows_of(recorded):
        request(rows, failed)
    for hotkey, verdict in recorded.audits.items():
        seen[hotkey] = verdict
        request(list(recorded.state.matrix), failed)
    assert requests == list(recorded.state.requests)


NOT_DERIVED = {
    (1, "5GgVxYJS3RsZtdhCVkW9DwBcjojAkcSpZXz6AnefsThrhPJf"): "its match was voided by repair 08",
    (3, "5F4HaNQJAXDhirU51GTz4vBvcEuUo3YSfhKuBT7qix35DkHP"): "typed by hand (repair 10)",
}


def test_critical_prompts_follow_from_the_match_that_made_a_leader(rounds: dict[int, Recorded]) -> None:
    derived = set()
    for number, recorded in rounds.items():
        state = recorded.state
        for request in state.requests:
            made_it = [
                report
                for (_, right), report in recorded.reports.items()
                if right == request.hotkey and report.margin >= state.config.win_margin
            ]
            lists = [critical_prompts(report, state.config.win_margin, state.seed or 0, LIMITS) for report in made_it]
            if request.critical_prompts in lists:
                derived.add((number, request.hotkey))
    requested = {(number, request.hotkey) for number, found in rounds.items() for request in found.state.requests}
    assert requested - derived == NOT_DERIVED.keys()
    assert len(derived) == 7


# --- leaders and schedules ---


def test_every_leader_follows_from_the_winner_and_takes_over_when_the_next_window_closes(
    record: Path, rounds: dict[int, Recorded]
) -> None:
    derived = list(rounds[0].state.leaders[:1])  # the first was typed by hand
    for number, recorded in rounds.items():
        state = recorded.state
        following = read_json(models.SCHEDULE, (record / paths.schedule(number + 1)).read_bytes())
        assert state.schedule
        assert state.winner
        leader = active_leader(derived, state.schedule.latest_reveal_block)
        appended = transition(state.winner, leader, state.config, following.latest_reveal_block)
        assert appended
        derived.append(appended)
    assert tuple(derived) == rounds[0].state.leaders
    assert [leader.weight for leader in derived] == [0.0, 1.0, 0.8, 0.6000000000000001, 0.4000000000000001]


@pytest.mark.parametrize("number", ROUNDS)
def test_the_next_recorded_schedule_follows_at_whatever_block_the_round_was_finalized(
    record: Path, rounds: dict[int, Recorded], number: int
) -> None:
    state = rounds[number].state
    expected = read_json(models.SCHEDULE, (record / paths.schedule(number + 1)).read_bytes())
    start = datetime(2026, 2, CLOSING[number + 1], 8, tzinfo=UTC)
    assert state.schedule
    hour = 300
    for block in range(state.schedule.generation_deadline_block, expected.latest_reveal_block - hour, hour):
        for seconds in (0, 5, 11):  # the timestamp of a block falls anywhere within its 12 seconds
            now = start - timedelta(seconds=12 * (expected.latest_reveal_block - block) + seconds)
            found = next_round(state.config, state.schedule, block, now)
            assert (found.start, found.schedule, found.finished) == (start, expected, False)


def test_the_recorded_time_of_the_next_stage_is_the_start_of_the_round(record: Path) -> None:
    state = read_json(models.STATE, (record / paths.STATE).read_bytes())
    assert state.next_stage_eta == datetime(2026, 2, CLOSING[state.current_round], 8, tzinfo=UTC)


def test_a_competition_whose_last_date_has_passed_ends_but_appends_its_leader(
    shared: Path, rounds: dict[int, Recorded]
) -> None:
    before = shared / "history" / "repairs" / "05" / "before"
    config = read_json(models.CONFIG, (before / "config.json").read_bytes())
    recorded = read_leaders((before / "leader.json").read_bytes())
    state = rounds[0].state
    assert state.schedule
    assert state.winner
    now = datetime(2026, 2, 3, 9, tzinfo=UTC)
    start = datetime(2026, 2, 5, 8, tzinfo=UTC)
    block = recorded[-1].effective_block - int((start - now).total_seconds() // 12)
    following = next_round(config, state.schedule, block, now)
    assert following.finished
    appended = transition(state.winner, recorded[0], config, following.schedule.latest_reveal_block)
    assert appended == recorded[-1]
