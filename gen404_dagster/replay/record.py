"""The record of a competition, read once: typed files by path, and whether each is written as we write it.

Belongs here: finding the state files, parsing with a cache, byte-exactness. Does not: what follows from them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import Hotkey, MatchReport, MatchRow, Results, Schedule, Stage
from gen404_dagster.competition.stages import RoundState
from gen404_dagster.errors import StateFileError
from gen404_dagster.replay.findings import Cell
from gen404_dagster.resources.round_files import read_previous_prompts, read_round
from gen404_dagster.resources.state_repo import Snapshot

_REPORT = re.compile(r"duels_[^/]+\.json")
_TYPED_BY_PEOPLE = {"config.json", "leader.json", "schedule.json", "source_audit.json", "prompts.txt"}


@dataclass(frozen=True)
class Parsed:
    """A state file: its text, its value (None with `fault` when it cannot be read), and the text we would write."""

    text: str
    value: Any
    fault: str = ""
    exact: bool = True
    same_content: bool = True


class Record:
    """State files by path, each parsed once for its text. Records of nearly the same files may share a cache."""

    def __init__(self, files: Snapshot, cache: dict[str, Parsed] | None = None) -> None:
        self.files = files
        self._cache = {} if cache is None else cache

    def rounds(self) -> list[int]:
        return sorted(int(name) for name in self.files.names("rounds") if re.fullmatch(r"0|[1-9][0-9]{0,8}", name))

    def get(self, path: str) -> Any:
        """Value of a state file, None when it is absent or cannot be read (then the files cell says so)."""
        parsed = self.parsed(path)
        return parsed.value if parsed else None

    def parsed(self, path: str) -> Parsed | None:
        try:
            text = self.files.read(path)
        except StateFileError as error:
            return Parsed("", None, str(error).removeprefix(f"{path}: "), exact=False)
        if text is None:
            return None
        known = self._cache.get(path)
        if known is None or known.text != text:
            known = self._cache[path] = _parse(path, text)
        return known

    def forget(self) -> None:
        self._cache.clear()

    def root_paths(self) -> list[str]:
        return [path for path in (*models.ROOT_FILES, paths.PROMPT_POOL) if self.files.exists(path)]

    def round_paths(self, number: int) -> list[str]:
        """Every state file of a round, its own first, then each hotkey's."""
        folder = paths.round_folder(number)
        own, nested = [], []
        for name in self.files.names(folder):
            if name in models.ROUND_FILES or name in ("prompts.txt", "matches_matrix.csv"):
                own.append(f"{folder}/{name}")
            elif "." not in name:
                nested += [
                    f"{folder}/{name}/{inner}"
                    for inner in self.files.names(f"{folder}/{name}")
                    if inner in models.HOTKEY_FILES or _REPORT.fullmatch(inner)
                ]
        return own + nested


def _parse(path: str, text: str) -> Parsed:
    name = path.rsplit("/", 1)[-1]
    try:
        if name == "prompts.txt":
            value: Any = models.read_prompts(text)
            written = models.write_prompts(value)
        elif name == "matches_matrix.csv":
            value = models.read_matrix(text)
            written = models.write_matrix(value)
        else:
            adapter = (
                models.ROOT_FILES.get(path)
                or models.ROUND_FILES.get(name)
                or models.HOTKEY_FILES.get(name)
                or models.MATCH_REPORT
            )
            value = models.read_leaders(text) if adapter is models.LEADERS else models.read_json(adapter, text)
            written = models.write_json(adapter, value)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        return Parsed(text, None, f"{where + ': ' if where else ''}{fault['msg']}", exact=False)
    except ValueError as error:
        return Parsed(text, None, str(error), exact=False)
    if written == text:
        return Parsed(text, value)
    return Parsed(text, value, exact=False, same_content=_same_content(name, text, written))


def _same_content(name: str, text: str, written: str) -> bool:
    """Whether only layout and unknown fields differ."""
    if not name.endswith(".json"):
        return text.split() == written.split()
    return _covers(json.loads(text), json.loads(written))


def _covers(recorded: Any, ours: Any) -> bool:
    if isinstance(recorded, dict) and isinstance(ours, dict):
        return all(key not in recorded or _covers(recorded[key], value) for key, value in ours.items())
    if isinstance(recorded, list) and isinstance(ours, list):
        return len(recorded) == len(ours) and all(map(_covers, recorded, ours))
    return bool(recorded == ours)


def check_files(record: Record, files: list[str]) -> tuple[Cell, list[str]]:
    """Whether each file is written again to the byte; and the paths of those that are not."""
    cell, different = Cell("files"), []
    for path in files:
        parsed = record.parsed(path)
        if parsed is None or parsed.exact:
            cell.follows()
            continue
        different.append(path)
        if parsed.fault:
            cell.deviate(path, f"cannot be read: {parsed.fault}"[:300])
        elif parsed.same_content and path.rsplit("/", 1)[-1] in _TYPED_BY_PEOPLE:
            cell.explain(path, "typed by hand: the same content in another layout", evidence=path)
        else:
            cell.deviate(path, "is not written as the services write it")
    return cell, different


@dataclass(frozen=True)
class Recorded:
    """One round of the record, with what its neighbours say, under the limits of the rules."""

    record: Record
    state: RoundState
    limits: Limits
    previous_prompts: tuple[str, ...] | None
    previous_schedule: Schedule | None
    next_schedule: Schedule | None

    @property
    def number(self) -> int:
        return self.state.number

    @property
    def order(self) -> list[Hotkey]:
        return list(self.state.submissions or {})

    @property
    def played(self) -> bool:
        """The round was opened: seed, prompts and submissions are due."""
        return self.state.submissions is not None or self.number < self.state.state.current_round or self.settled

    @property
    def settled(self) -> bool:
        """A winner is due: the round is over, or the stage says that it is about to be."""
        now = self.state.state
        over = self.number < now.current_round or now.stage in (Stage.FINALIZING, Stage.FINISHED)
        return over or self.state.winner is not None

    @property
    def downloaded(self) -> bool:
        now = self.state.state
        return self.settled or (self.number == now.current_round and now.stage == Stage.DUELS)

    @cached_property
    def stem_set(self) -> frozenset[str]:
        return frozenset(self.state.stems)

    @cached_property
    def reports(self) -> Mapping[tuple[Hotkey, Hotkey], MatchReport]:
        """Reports of the matches in the matrix, in the order played (of a match listed twice, at its last row)."""
        found: dict[tuple[Hotkey, Hotkey], MatchReport] = {}
        for row in self.state.matrix:
            report = self.report(row)
            if report is not None:
                found.pop((row.left, row.right), None)
                found[row.left, row.right] = report
        return found

    def report(self, row: MatchRow) -> MatchReport | None:
        value: MatchReport | None = self.record.get(self.report_path(row.left, row.right))
        return value

    def report_path(self, left: Hotkey, right: Hotkey) -> str:
        return paths.match_report(self.number, left, right)

    def results(self, hotkey: Hotkey, kind: paths.Kind) -> Results | None:
        value: Results | None = self.record.get(paths.results(self.number, hotkey, kind))
        return value

    def played_by(self, hotkey: Hotkey) -> Results | None:
        """What a side of a match is judged on."""
        return self.results(hotkey, "generated" if hotkey == models.LEADER else "submitted")


def read_recorded(record: Record, number: int, limits: Limits) -> Recorded:
    """A round of the record. Raises StateFileError naming the file that is missing or wrong."""
    previous = read_previous_prompts(record.files, number)
    return Recorded(
        record=record,
        state=read_round(record.files, number),
        limits=limits,
        previous_prompts=None if previous is None else tuple(previous),
        previous_schedule=record.get(paths.schedule(number - 1)) if number else None,
        next_schedule=record.get(paths.schedule(number + 1)),
    )
