"""The comparison as a whole: every cell of every round, and the JSON of it.

Belongs here: which checks a round gets, in which order, and their shape as data. Does not: the checks, the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import Hotkey, Winner
from gen404_dagster.errors import StateFileError
from gen404_dagster.replay.finale import check_competition, check_leader, check_winner, derive_winner
from gen404_dagster.replay.findings import Cell, Finding, Status
from gen404_dagster.replay.matches import check_duels, check_margins, check_matrix
from gen404_dagster.replay.opening import carry_over, check_builds, check_prompts, check_schedule, check_submissions
from gen404_dagster.replay.outputs import check_results
from gen404_dagster.replay.record import Record, Recorded, check_files, read_recorded
from gen404_dagster.replay.verification import DerivedAudit, check_audits, check_requests


@dataclass(frozen=True)
class RoundReplay:
    """What a round's record says, cell by cell."""

    number: int
    cells: tuple[Cell, ...]
    files: int
    different: tuple[str, ...]
    carried: tuple[list[str], list[str]] | None = None
    derived_winner: Winner | None = None
    recorded_winner: Winner | None = None
    audits: dict[Hotkey, tuple[DerivedAudit, Any]] = field(default_factory=dict)
    critical: dict[Hotkey, Status] = field(default_factory=dict)

    def cell(self, name: str) -> Cell:
        return next((cell for cell in self.cells if cell.name == name), Cell(name))

    @property
    def findings(self) -> list[Finding]:
        return [found for cell in self.cells for found in cell.findings]

    @property
    def deviates(self) -> bool:
        return any(cell.status == Status.DEVIATES for cell in self.cells)


@dataclass(frozen=True)
class Replay:
    """Rounds, and what belongs to none of them."""

    rounds: tuple[RoundReplay, ...]
    competition: RoundReplay

    @property
    def deviates(self) -> bool:
        return any(part.deviates for part in (*self.rounds, self.competition))


def replay_round(record: Record, number: int, limits: Limits) -> tuple[RoundReplay, Recorded | None]:
    """Every comparison of one round; without the round's state when a file that all depends on cannot be read."""
    files = record.round_paths(number)
    whole, different = check_files(record, files)
    try:
        round_ = read_recorded(record, number, limits)
    except StateFileError as error:
        path, _, what = str(error).partition(": ")
        if not any(found.file == path for found in whole.findings):
            whole.deviate(path, what or "is missing")
        return RoundReplay(number, (whole,), len(files), tuple(different)), None
    requests, critical = check_requests(round_)
    verdicts, audits = check_audits(round_)
    cells = (
        whole,
        check_schedule(round_),
        check_prompts(round_),
        check_submissions(round_),
        check_builds(round_),
        check_results(round_),
        check_margins(round_),
        check_duels(round_),
        check_matrix(round_),
        requests,
        verdicts,
        check_winner(round_),
        check_leader(round_),
    )
    state = round_.state
    return RoundReplay(
        number=number,
        cells=cells,
        files=len(files),
        different=tuple(different),
        carried=carry_over(round_),
        derived_winner=derive_winner(round_) if state.winner else None,
        recorded_winner=state.winner,
        audits={hotkey: (audit, (state.generation_audits or {})[hotkey]) for hotkey, audit in audits.items()},
        critical=critical,
    ), round_


def replay(record: Record, limits: Limits, numbers: Sequence[int] | None = None) -> Replay:
    """The rounds (default: all that the record has), and the competition's own files."""
    chosen = list(record.rounds() if numbers is None else numbers)
    rounds, read = [], []
    for number in chosen:
        result, round_ = replay_round(record, number, limits)
        rounds.append(result)
        if round_ is not None:
            read.append(round_)
        record.forget()
    return Replay(tuple(rounds), replay_competition(record, read if chosen == record.rounds() else []))


def replay_competition(record: Record, rounds: list[Recorded]) -> RoundReplay:
    """The files at the root. State and leaders are compared only when every round was looked at."""
    files = record.root_paths()
    whole, different = check_files(record, files)
    return RoundReplay(-1, (whole, check_competition(record, rounds)), len(files), tuple(different))


def as_json(result: Replay) -> dict[str, Any]:
    """The stable form that scripts read."""
    parts = (result.competition, *result.rounds)
    different = [path for part in parts for path in part.different]
    total = sum(part.files for part in parts)
    return {
        "rounds": {str(part.number): _round_as_json(part) for part in result.rounds},
        "competition": {
            "status": str(result.competition.cell("competition").status),
            "findings": [_finding_as_json(found) for found in result.competition.findings],
        },
        "files": {"total": total, "exact": total - len(different), "different": different},
        "deviates": result.deviates,
    }


def _round_as_json(part: RoundReplay) -> dict[str, Any]:
    margins, carried = part.cell("margins"), part.carried
    return {
        "margins": {"total": margins.total, "exact": margins.exact},
        "carry_over": {
            "exact": None if carried is None else carried[0] == carried[1],
            "total": 0 if carried is None else len(carried[0]),
        },
        "winner": {
            "derived": part.derived_winner.winner_hotkey if part.derived_winner else None,
            "recorded": part.recorded_winner.winner_hotkey if part.recorded_winner else None,
            "status": str(part.cell("winner").status),
        },
        "generation_audits": {
            hotkey: {
                "status": str(audit.status),
                "derived": audit.derived.model_dump(mode="json") if audit.derived else None,
                "recorded": recorded.model_dump(mode="json"),
                "evidence": audit.evidence or None,
            }
            for hotkey, (audit, recorded) in part.audits.items()
        },
        "critical_prompts": {hotkey: {"status": str(status)} for hotkey, status in part.critical.items()},
        "leader": {"status": str(part.cell("leader").status)},
        "schedule": {"status": str(part.cell("schedule").status)},
        "cells": {
            cell.name: {
                "status": str(cell.status),
                "total": cell.total,
                "exact": cell.exact,
                "explained": cell.explained,
                "deviates": cell.deviating,
            }
            for cell in part.cells
        },
        "findings": [_finding_as_json(found) for found in part.findings],
    }


def _finding_as_json(found: Finding) -> dict[str, Any]:
    return {
        "cell": found.cell,
        "status": str(found.status) if found.status else "noticed",
        "file": found.file,
        "hotkey": found.hotkey,
        "what": found.what,
        "evidence": found.evidence,
        "count": found.count,
    }
