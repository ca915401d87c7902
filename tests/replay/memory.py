"""State files in memory, with single changes laid over them: hundreds of altered copies of a history, none on disk.

A changed file is written exactly as the services write it: only its content can give the change away.
"""

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gen404_dagster.competition import models
from gen404_dagster.competition.limits import Limits
from gen404_dagster.replay.findings import Finding, Status
from gen404_dagster.replay.record import Parsed, Record
from gen404_dagster.replay.rounds import replay_competition, replay_round
from gen404_dagster.resources.state_repo import CommitInfo, Snapshot
from tests.simulations import STATE_FILES

ADAPTERS: dict[str, TypeAdapter[Any]] = STATE_FILES | {"leader/generated.json": models.RESULTS}


class MemorySnapshot(Snapshot):
    """Text by path."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.commit = ""
        self.texts = texts
        self._folders: dict[str, set[str]] = {}
        for path in texts:
            parts = path.split("/")
            for depth in range(len(parts)):
                self._folders.setdefault("/".join(parts[:depth]), set()).add(parts[depth])

    def read(self, path: str) -> str | None:
        return self.texts.get(path)

    def exists(self, path: str) -> bool:
        return path in self.texts or path in self._folders

    def names(self, folder: str) -> list[str]:
        return sorted(self._folders.get(folder, ()))

    def last_commit(self, path: str) -> CommitInfo | None:
        return None


def read_texts(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes().decode()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".json", ".csv", ".txt")
    }


def kind_of(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    if name.startswith("duels_"):
        return "duels.json"
    return "leader/generated.json" if path.endswith("/leader/generated.json") else name


def values_of(path: str, text: str) -> Any:
    """The file as plain JSON values."""
    kind = kind_of(path)
    if kind == "prompts.txt":
        return models.read_prompts(text)
    if kind == "matches_matrix.csv":
        return [row.model_dump() for row in models.read_matrix(text)]
    return ADAPTERS[kind].dump_python(models.read_json(ADAPTERS[kind], text), mode="json")


def text_of(path: str, value: Any) -> str:
    kind = kind_of(path)
    if kind == "prompts.txt":
        return models.write_prompts(value)
    if kind == "matches_matrix.csv":
        return models.write_matrix([models.MatchRow(**row) for row in value])
    return models.write_json(ADAPTERS[kind], ADAPTERS[kind].validate_python(value))


@dataclass(frozen=True)
class Change:
    """One changed field of one file."""

    path: str
    field: str
    text: str
    hotkey: str | None = None
    told: str = ""


@dataclass
class History:
    """A history in memory, and the deviations that a change adds to it."""

    texts: dict[str, str]
    limits: Limits
    cache: dict[str, Parsed] = field(default_factory=dict)
    known: set[tuple[str, str, str]] | None = None

    def deviations(self, numbers: Sequence[int], texts: Mapping[str, str]) -> list[Finding]:
        """What deviates in these rounds; when they are all there are, in the competition as a whole too."""
        cache = dict(self.cache)
        record = Record(MemorySnapshot(texts), cache)
        pairs = [replay_round(record, number, self.limits) for number in numbers]
        parts = [part for part, _ in pairs]
        if list(numbers) == record.rounds():
            parts.append(replay_competition(record, [round_ for _, round_ in pairs if round_ is not None]))
        if texts is self.texts:
            self.cache.update(cache)
        return [found for part in parts for found in part.findings if found.status == Status.DEVIATES]

    def found(self, change: Change) -> list[Finding]:
        """What replay says of the changed copy and not of the history itself."""
        if self.known is None:
            self.known = {(f.cell, f.file, f.what) for f in self.deviations(self._rounds, self.texts)}
        texts = {**self.texts, change.path: change.text}
        found = self.deviations(self._touched(change), texts)
        return [finding for finding in found if (finding.cell, finding.file, finding.what) not in self.known]

    def names(self, change: Change) -> bool:
        """Whether a finding names the change: its file or field or hotkey, in its round."""
        return any(self._named(change, finding) for finding in self.found(change))

    def _named(self, change: Change, finding: Finding) -> bool:
        name = change.path.rsplit("/", 1)[-1]
        told = f"{finding.file}: {finding.what} {finding.hotkey}"
        same_round = change.path.split("/")[:2] == finding.file.split("/")[:2] or "/" not in change.path
        if finding.file == change.path or (same_round and (name in told or re.search(rf"\b{change.field}\b", told))):
            return True
        return change.hotkey is not None and change.hotkey in told

    @property
    def _rounds(self) -> list[int]:
        return sorted({int(path.split("/")[1]) for path in self.texts if path.startswith("rounds/")})

    def _touched(self, change: Change) -> list[int]:
        """Rounds that read the changed file."""
        if not change.path.startswith("rounds/") or kind_of(change.path) == "schedule.json":
            return self._rounds
        number = int(change.path.split("/")[1])
        near = (number, number + 1) if kind_of(change.path) in ("prompts.txt", "seed.json") else (number,)
        return [n for n in near if n in self._rounds]


# --- changing one field ---


def draw_change(history: History, dice: random.Random, kind: str, name: str) -> Change | None:
    """A random other value for field `name` in a random file of the kind; None when that draw cannot be changed."""
    path = dice.choice([path for path in sorted(history.texts) if kind_of(path) == kind])
    value = values_of(path, history.texts[path])
    changed = copy.deepcopy(value)
    places = [place for place in _places(changed, kind, name) if place is not None]
    if not places:
        return None
    hotkey, was, put = dice.choice(places)
    new = _other(dice, name, was, value)
    if new == was:
        return None
    put(new)
    try:
        text = text_of(path, changed)
    except (ValidationError, ValueError):
        return None
    if text == history.texts[path]:
        return None
    hotkey = hotkey or next((part for part in path.split("/") if len(part) == 48), None)
    return Change(path, name, text, hotkey, f"{path} {name}: {str(was)[:60]!r} -> {str(new)[:60]!r}")


Place = tuple[str | None, Any, Callable[[Any], None]]


def _places(value: Any, kind: str, name: str) -> Iterator[Place | None]:
    """Every occurrence of a field, with the hotkey it is about and how to put another value."""
    if kind == "prompts.txt":
        for index in range(len(value)):
            yield None, value[index], lambda new, index=index: value.__setitem__(index, new)
    elif name == "key":
        for key in list(value):
            yield (key if len(key) == 48 else None), key, lambda new, key=key: _rename(value, key, new)
    elif kind == "duels.json" and name in models.Duel.model_fields:
        for duel in value["duels"]:
            judged = duel["left_png"] and duel["right_png"]
            yield None if name == "issues" and judged else (None, duel[name], _put(duel, name))
    elif isinstance(value, list):
        for index, record in enumerate(value):
            first_leader = kind == "leader.json" and index == 0
            hotkey = record.get("hotkey") or record.get("right")
            yield None if first_leader else (hotkey, record[name], _put(record, name))
    elif all(isinstance(inner, dict) for inner in value.values()) and value:
        for key, record in value.items():
            yield (key if len(key) == 48 else None), record[name], _put(record, name)
    else:
        yield None, value[name], _put(value, name)


def _put(record: dict[str, Any], name: str) -> Callable[[Any], None]:
    return lambda new: record.__setitem__(name, new)


def _rename(value: dict[str, Any], key: str, new: str) -> None:
    entries = [(new if known == key else known, inner) for known, inner in value.items()]
    value.clear()
    value.update(entries)


_CHOICES: dict[str, list[Any]] = {
    "stage": ["open", "miner_generation", "downloading", "duels", "finalizing", "finished"],
    "status": ["success", "failure"],
    "outcome": ["passed", "rejected"],
    "verdict": ["passed", "failed"],
    "winner": ["left", "right", "draw"],
    "first_evaluation_date": ["2026-02-01", "2026-02-04", "2026-03-02"],
    "round_start_time": ["07:00:00", "09:30:00", "20:00:00"],
    "next_stage_eta": [None, "2026-02-14T09:00:00Z", "2026-02-15T08:00:00Z"],
}


def _other(dice: random.Random, name: str, was: Any, whole: Any) -> Any:
    """Another value of the same kind: a small or a large step, another letter, null and back."""
    if name in _CHOICES:
        return dice.choice(_CHOICES[name])
    if isinstance(was, bool):
        return not was
    if isinstance(was, int):
        return max(0, was + dice.choice([-7, -2, -1, 1, 2, 5, 60]))
    if isinstance(was, float):
        return was + dice.choice([-0.5, -0.0078125, 0.0078125, 0.1, 1.0])
    if isinstance(was, list):
        return dice.choice([was[:-1], was[1:] + was[:1], [*was, f"{dice.randrange(16**8):08x}"]])
    if was is None:
        return 1.5 if name == "generation_time" else f"https://subnet404.xyz/{dice.randrange(16**8):08x}"
    if isinstance(was, str) and was and dice.random() < 0.3 and name in ("glb", "png", "left_png", "right_png"):
        return None
    position = dice.randrange(len(was)) if was else 0
    letter = dice.choice([c for c in "abcdef23456789" if c != was[position : position + 1]])
    return was[:position] + letter + was[position + 1 :]
