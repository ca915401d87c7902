"""`gen404 replay`: opens a record, replays it, prints.

Belongs here: putting the parts together for the command line. Does not: options and exit codes (`cli`).
"""

import json
import os
import re
from pathlib import Path

from rich.console import Console

from gen404_dagster.competition import paths
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import CompetitionConfig
from gen404_dagster.errors import OperatorError, StateFileError
from gen404_dagster.replay.record import Record
from gen404_dagster.replay.rounds import as_json, replay
from gen404_dagster.replay.show import show_replay, show_what_if
from gen404_dagster.replay.what_if import as_json as what_if_as_json
from gen404_dagster.replay.what_if import parse_changes, what_if
from gen404_dagster.resources.recorded_files import open_record
from gen404_dagster.settings import Settings, load_settings


def run_replay(location: str, rounds: str | None, commit: str | None, changes: list[str], as_data: bool) -> bool:
    """Print the comparison, or with changes the what-if; whether nothing deviates."""
    limits = limits_for(location)
    with open_record(location, commit) as files:
        record = Record(files)
        for path in (paths.STATE, paths.CONFIG):
            if not files.exists(path):
                raise OperatorError(f"{location} has no {path}: it is no record of a competition")
        numbers = choose_rounds(rounds, record.rounds())
        if changes:
            return _tell_what_if(record, limits, numbers, changes, as_data)
        result = replay(record, limits, numbers)
    if as_data:
        print(json.dumps(as_json(result), indent=2))
    else:
        show_replay(result, Console())
    return not result.deviates


def _tell_what_if(record: Record, limits: Limits, numbers: list[int], changes: list[str], as_data: bool) -> bool:
    config = record.get(paths.CONFIG)
    if not isinstance(config, CompetitionConfig):
        raise StateFileError(f"{paths.CONFIG} cannot be read: replay without --set says why")
    change = parse_changes(changes, limits, config)
    endings = what_if(record, limits, change, numbers)
    if as_data:
        print(json.dumps(what_if_as_json(change, endings, limits, config), indent=2))
    else:
        show_what_if(change, endings, Console())
    return True


def limits_for(location: str) -> Limits:
    """The configured limits; for the repository of a simulation, those it was played with.

    Recorded distances are those of the public competition's network, unless a limit is set.
    """
    played = Path(location).absolute().parent / "gen404.env"
    if "GEN404_ENV_FILE" in os.environ or not played.is_file() or not Path(location).is_dir():
        return load_settings(embedder="dinov3").limits
    return Settings(_env_file=played).limits


def choose_rounds(asked: str | None, known: list[int]) -> list[int]:
    """Rounds of `A-B` or `A`, all without it. Raises OperatorError naming what there is."""
    if asked is None:
        return known
    span = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", asked.strip())
    if span is None:
        raise OperatorError(f"--rounds {asked}: write A-B or A, for instance 0-3")
    first, last = int(span[1]), int(span[2] or span[1])
    chosen = [number for number in known if first <= number <= last]
    if not chosen or first not in known or last not in known:
        there = f"{known[0]}-{known[-1]}" if known else "none"
        raise OperatorError(f"--rounds {asked}: the record has rounds {there}")
    return chosen
