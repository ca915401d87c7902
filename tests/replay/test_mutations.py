"""Replay is not blind: whatever single field of a history is changed, if anything derives it, the change is named.

`DERIVABLE` is the list of fields, per kind of file, that follow from the rest of the record; `docs/replay.md` repeats it
in words. Files are rewritten exactly as the services write them, so that nothing but the content tells.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen404_dagster.competition import models
from gen404_dagster.competition.limits import Limits
from tests.replay.memory import ADAPTERS, Change, History, draw_change, read_texts, text_of, values_of

DERIVABLE: dict[str, tuple[str, ...]] = {
    "config.json": (
        "name", "first_evaluation_date", "round_start_time", "generation_stage_minutes", "weight_decay",
        "prompts_per_round", "carryover_prompts", "round_duration_days",
    ),
    "state.json": ("current_round", "stage", "next_stage_eta"),
    "leader.json": ("hotkey", "repo", "commit", "docker", "weight", "effective_block"),
    "schedule.json": ("latest_reveal_block", "generation_deadline_block"),
    "seed.json": ("seed",),
    "prompts.txt": ("line",),
    "submissions.json": ("key", "repo", "commit", "revealed_at_block", "round"),
    "builds.json": ("key", "repo", "commit", "revealed_at_block", "tag", "status", "docker_image"),
    "require_audit.json": ("hotkey", "critical_prompts"),
    "generation_audits.json": (
        "key", "hotkey", "outcome", "checked_prompts", "failed_prompts", "failed_critical", "generation_time", "reason",
    ),
    "source_audit.json": ("hotkey", "verdict"),
    "matches_matrix.csv": ("left", "right", "margin"),
    "winner.json": ("winner_hotkey", "repo", "commit", "docker_image"),
    "submitted.json": ("key", "glb", "png", "generation_time", "attempts", "distance"),
    "generated.json": ("key", "glb", "png"),
    "leader/generated.json": ("key", "glb", "png", "distance"),
    "pod_stats.json": ("key", "pod_id", "processed", "successful", "hard_failed", "hard_overtime", "marked_bad"),
    "duels.json": (
        "left", "right", "score", "margin", "name", "prompt", "left_glb", "left_png", "right_glb", "right_png", "winner",
        "issues",
    ),
}  # fmt: skip
"""Of `duels.json` the issues of duels without a judge; of `leader.json` all entries but the first."""

NOT_DERIVABLE: dict[str, tuple[str, ...]] = {
    "config.json": ("description", "last_competition_date", "finalization_buffer_hours", "win_margin", "weight_floor"),
    "schedule.json": ("earliest_reveal_block",),
    "submissions.json": ("cdn_url",),
    "source_audit.json": ("reason",),
    "submitted.json": ("size",),
    "generated.json": ("generation_time", "size", "attempts", "distance"),
    "leader/generated.json": ("generation_time", "size", "attempts"),
    "pod_stats.json": (
        "time_min", "time_max", "time_avg", "time_median", "retry_cumulative_delta", "retry_delta_count",
        "termination_reason",
    ),
}  # fmt: skip
"""Fields that no derivation can check, or only where a decision turns on them (see `docs/replay.md`)."""

CHANGES = 220
FOUND_AT_LEAST = 0.95


@pytest.fixture(scope="session")
def history(shared: Path) -> History:
    return History(read_texts(shared / "history" / "competition-1"), Limits())


def test_every_field_of_every_kind_is_listed_once() -> None:
    shapes = {
        "leader.json": models.LeaderTransition, "submissions.json": models.Submission, "builds.json": models.Build,
        "require_audit.json": models.AuditRequest, "generation_audits.json": models.GenerationAudit,
        "source_audit.json": models.SourceAudit, "submitted.json": models.GenerationResult,
        "generated.json": models.GenerationResult, "leader/generated.json": models.GenerationResult,
        "pod_stats.json": models.PodStats, "config.json": models.CompetitionConfig, "state.json": models.CompetitionStage,
        "schedule.json": models.Schedule, "seed.json": models.Seed, "winner.json": models.Winner,
        "duels.json": models.MatchReport,
    }  # fmt: skip
    assert shapes.keys() == ADAPTERS.keys()
    for kind, shape in shapes.items():
        listed = [*DERIVABLE[kind], *NOT_DERIVABLE.get(kind, ())]
        assert len(set(listed)) == len(listed)
        fields = set(shape.model_fields) | (set(models.Duel.model_fields) if kind == "duels.json" else set())
        assert set(listed) - {"key"} == fields - {"duels"}, kind


@pytest.mark.shared
def test_random_changes_of_derivable_fields_are_found_and_named(history: History) -> None:
    dice = random.Random(404)
    fields = [(kind, name) for kind, names in DERIVABLE.items() for name in names]
    changes: list[Change] = []
    while len(changes) < CHANGES:
        # Every field once, then at random.
        kind, name = fields[len(changes)] if len(changes) < len(fields) else dice.choice(fields)
        change = draw_change(history, dice, kind, name)
        if change is not None:
            changes.append(change)
    missed = [change.told for change in changes if not history.names(change)]
    assert len(missed) <= (1 - FOUND_AT_LEAST) * CHANGES, missed


LEADER_MATCH = "rounds/0/5GgpGaDxzTyBAME1Ju9ZhUstWj2VTm1n4tAUkRHLi4birQZg/duels_leader.json"


def changed(history: History, path: str, field: str, change: Callable[[Any], Any]) -> Change:
    value = values_of(path, history.texts[path])
    value = change(value) or value
    return Change(path, field, text_of(path, value))


def rename_first(entries: dict[str, Any]) -> dict[str, Any]:
    first = next(iter(entries))
    return {f"{first[:-1]}x" if key == first else key: value for key, value in entries.items()}


SINGLE_CHANGES: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "one duel's winner": (
        LEADER_MATCH,
        "score",
        lambda report: report["duels"][5].update(winner="draw" if report["duels"][5]["winner"] != "draw" else "left"),
    ),
    "one margin": ("rounds/2/matches_matrix.csv", "margin", lambda rows: rows[3].update(margin=-0.9921875)),
    "one prompt": ("rounds/1/prompts.txt", "line", lambda lines: lines.__setitem__(70, f"{lines[70][:-5]}x.png")),
    "one audit count": (
        "rounds/1/generation_audits.json",
        "failed_prompts",
        lambda audits: next(iter(audits.values())).update(failed_prompts=5),
    ),
    "one weight": ("leader.json", "weight", lambda leaders: leaders[2].update(weight=0.9)),
    "one block": ("rounds/3/schedule.json", "latest_reveal_block", lambda s: s.update(latest_reveal_block=7519265)),
    "one hotkey": ("rounds/2/submissions.json", "key", rename_first),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", SINGLE_CHANGES)
def test_a_single_change_is_found_and_named(history: History, name: str) -> None:
    change = changed(history, *SINGLE_CHANGES[name])
    assert change.text != history.texts[change.path]
    assert history.names(change), history.found(change)


@pytest.mark.shared
def test_a_field_that_nothing_derives_changes_nothing(history: History) -> None:
    dice = random.Random(5)
    for kind, name in [("submissions.json", "cdn_url"), ("submitted.json", "size"), ("config.json", "description")]:
        change = draw_change(history, dice, kind, name)
        while change is None:
            change = draw_change(history, dice, kind, name)
        assert history.found(change) == []
