"""Checks of recorded state, on rounds whose answers are known."""

import dagster as dg
import pytest

from gen404_dagster.assets import checks
from gen404_dagster.assets.describe import Recorded
from gen404_dagster.competition import models, paths
from gen404_dagster.competition.duels import match_report
from gen404_dagster.competition.models import Duel, DuelWinner, MatchReport, MatchRow, Submission
from tests.replay.memory import MemorySnapshot

A, B = "5A" + "x" * 46, "5B" + "x" * 46
CLOSE, CLEAR, LOST = "rrrrlldddd", "rrrrrrrrrr", "llllllllrr"


def report(left: str, right: str, outcomes: str) -> MatchReport:
    words = {"r": DuelWinner.RIGHT, "l": DuelWinner.LEFT, "d": DuelWinner.DRAW}
    return match_report(
        left, right, [Duel(name=f"{n:03}", prompt="https://p", winner=words[o]) for n, o in enumerate(outcomes)]
    )


def check_of(matches: dict[tuple[str, str], str]) -> dg.AssetCheckResult:
    """The check of a round of A and B, played as told."""
    reports = [report(left, right, outcomes) for (left, right), outcomes in matches.items()]
    entry = Submission(repo="a/b", commit="c" * 40, cdn_url="https://c.t", revealed_at_block=1, round="t-0")
    files = {
        paths.CONFIG: '{"name": "t", "first_evaluation_date": "2026-01-01", "last_competition_date": "2027-01-01", '
        '"round_start_time": "08:00:00", "generation_stage_minutes": 1, "prompts_per_round": 10, "carryover_prompts": 0}',
        paths.STATE: '{"current_round": 0, "stage": "finalizing", "next_stage_eta": null}',
        paths.LEADERS: "[]",
        paths.submissions(0): models.write_json(models.SUBMISSIONS, {A: entry, B: entry}),
        paths.matrix(0): models.write_matrix([MatchRow(left=r.left, right=r.right, margin=r.margin) for r in reports]),
        **{paths.match_report(0, r.left, r.right): models.write_json(models.MATCH_REPORT, r) for r in reports},
    }
    (check,) = [check for check in checks.CHECKS if check.name == "no_close_match_decided"]
    return check.evaluate(Recorded(None, MemorySnapshot(files), 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("matches", "warned"),
    [
        ({("leader", A): CLEAR, ("leader", B): LOST}, []),
        ({("leader", A): CLOSE, ("leader", B): LOST}, ["5Axxxxxxxx against leader"]),
        ({("leader", A): CLEAR, ("leader", B): CLEAR, (A, B): CLOSE}, ["5Bxxxxxxxx against 5Axxxxxxxx"]),
        # A's narrow win against the leader decides nothing: B beats the leader without it too.
        ({("leader", A): CLOSE, ("leader", B): CLEAR, (A, B): CLEAR}, []),
    ],
    ids=["clear", "qualification", "timeline", "irrelevant"],
)
def test_a_warning_names_the_close_matches_that_decided_the_round(
    matches: dict[tuple[str, str], str], warned: list[str]
) -> None:
    result = check_of(matches)
    assert result.passed is (not warned)
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert result.description
    assert [name for name in warned if name not in result.description] == []
    if warned:
        assert result.description.startswith("1 close match decided the round")
        assert "+0.2000 in" in result.description
