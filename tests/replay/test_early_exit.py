"""A match that was left early is a record that follows, as long as what was left out could not have won it."""

from pathlib import Path

import pytest

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.duels import left_out, match_report, out_of_reach
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import DuelWinner, MatchReport
from gen404_dagster.replay.record import Record
from gen404_dagster.replay.rounds import replay_round
from gen404_dagster.replay.what_if import parse_changes, what_if
from tests.replay.memory import MemorySnapshot, read_texts

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def texts(shared: Path) -> dict[str, str]:
    return read_texts(shared / "history" / "competition-1")


def with_early_exit(texts: dict[str, str], keep: int | None) -> tuple[dict[str, str], MatchReport]:
    """Round 0 with one lost match left early: at the first moment that the rule allows, or with `keep` duels judged."""
    rows = models.read_matrix(texts[paths.matrix(0)])
    config = models.read_json(models.CONFIG, texts[paths.CONFIG])
    row = next(row for row in rows if -0.2 < row.margin < 0.0)
    path = paths.match_report(0, row.left, row.right)
    whole = models.read_json(models.MATCH_REPORT, texts[path])
    winners = [duel.winner for duel in whole.duels]
    known = keep or next(n for n in range(128) if out_of_reach(winners[:n], 128, config.win_margin))
    judged = {DuelWinner.LEFT, DuelWinner.RIGHT, DuelWinner.DRAW}
    duels = [
        left_out(duel, config.win_margin)
        if n >= known and duel.winner in judged and duel.left_png and duel.right_png and "Gen" not in duel.issues[:3]
        else duel
        for n, duel in enumerate(whole.duels)
    ]
    early = match_report(row.left, row.right, duels)
    changed = [each.model_copy(update={"margin": early.margin}) if each == row else each for each in rows]
    written = {path: models.write_json(models.MATCH_REPORT, early), paths.matrix(0): models.write_matrix(changed)}
    return {**texts, **written}, early


def margin_faults(texts: dict[str, str]) -> list[str]:
    result = replay_round(Record(MemorySnapshot(texts)), 0, Limits())[0]
    return [
        found.what
        for cell in ("margins", "duels")
        for found in result.cell(cell).findings
        if found.status == "deviates"
    ]


def test_a_match_left_early_follows(texts: dict[str, str]) -> None:
    changed, early = with_early_exit(texts, None)
    assert sum(duel.winner == DuelWinner.SKIPPED for duel in early.duels) > 3
    assert margin_faults(changed) == margin_faults(texts) == []


def test_a_match_left_too_early_deviates(texts: dict[str, str]) -> None:
    changed, _ = with_early_exit(texts, 10)
    (fault,) = margin_faults(changed)
    assert "duels were left out, although the margin could have reached" in fault


def test_what_another_margin_makes_of_a_match_left_early_is_unknown(texts: dict[str, str]) -> None:
    changed, early = with_early_exit(texts, None)
    record = Record(MemorySnapshot(changed))
    config = models.read_json(models.CONFIG, texts[paths.CONFIG])
    lower = early.margin + 0.001
    (ending,) = what_if(record, Limits(), parse_changes([f"win_margin={lower}"], Limits(), config), [0])
    (same,) = what_if(record, Limits(), parse_changes(["win_margin=0.06"], Limits(), config), [0])
    told = f"{early.left},{early.right} was left early"
    assert any(told in unknown for unknown in ending.unknown)
    assert not any(told in unknown for unknown in same.unknown)
