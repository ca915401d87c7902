"""Models of the state files: reading is tolerant, writing is exact to the byte.

Belongs here: the shape of each file in the competition's git repository and its one way to text. Does not: where a
file lies (`paths`), how it is fetched or committed (`resources.state_repo`), what follows from it (the other modules).
Formats: JSON with two spaces and no final newline, floats as pydantic's serializer writes them (shortest round trip).
"""

import re
from datetime import date, datetime, time
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, TypeAdapter

T = TypeVar("T")

Hotkey = str
Stem = str
Block = int

LEADER: Hotkey = "leader"
"""Name of the defending leader in matches, result folders and `winner.json`."""


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("must be a finite number")
    return value


Finite = Annotated[float, AfterValidator(_finite)]


def _whole_as_int(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _utc(value: time) -> time:
    if value.utcoffset():
        raise ValueError("must be UTC, as HH:MM:SS")
    return value.replace(tzinfo=None)


class StateModel(BaseModel):
    """A record of a state file. Unknown fields are tolerated and dropped; fields are written in the order declared."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Stage(StrEnum):
    OPEN = "open"
    MINER_GENERATION = "miner_generation"
    DOWNLOADING = "downloading"
    DUELS = "duels"
    FINALIZING = "finalizing"
    FINISHED = "finished"
    PAUSED = "paused"


class CompetitionConfig(StateModel):
    """`config.json`, written by hand."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    description: str = ""
    first_evaluation_date: date
    last_competition_date: date
    round_start_time: Annotated[time, AfterValidator(_utc)]
    generation_stage_minutes: int = Field(ge=0)
    # Hand-written as the integer 1; a fraction stays a fraction.
    finalization_buffer_hours: Annotated[Finite, PlainSerializer(_whole_as_int)] = 1.0
    win_margin: Finite = 0.05
    weight_decay: Finite = 0.1
    weight_floor: Finite = 0.1
    prompts_per_round: int = Field(ge=0)
    carryover_prompts: int = Field(ge=0)
    round_duration_days: int = Field(default=1, ge=1)


class CompetitionStage(StateModel):
    """`state.json`: which round, which stage, and when the next stage is expected (UTC)."""

    current_round: int = Field(ge=0)
    stage: Stage
    next_stage_eta: datetime | None = None


class LeaderTransition(StateModel):
    """An entry of `leader.json`: from `effective_block` on, `hotkey` leads with `weight`.

    The public README's entries have no repository, commit or image.
    """

    hotkey: Hotkey
    repo: str = ""
    commit: str = ""
    docker: str = ""
    weight: Finite
    effective_block: Block


class Schedule(StateModel):
    """`schedule.json`: the window of reveals (inclusive) and the block by which miners must have generated."""

    earliest_reveal_block: Block = Field(ge=0)
    latest_reveal_block: Block = Field(ge=0)
    generation_deadline_block: Block = Field(ge=0)


class Seed(StateModel):
    seed: int = Field(ge=0, lt=2**32)


class Submission(StateModel):
    repo: str
    commit: str
    cdn_url: str
    revealed_at_block: Block
    round: str


class BuildStatus(StrEnum):
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    SUCCESS = "success"
    FAILURE = "failure"
    TIMED_OUT = "timed_out"
    NOT_FOUND = "not_found"


class Build(StateModel):
    repo: str
    commit: str
    revealed_at_block: Block
    tag: str
    status: BuildStatus
    docker_image: str | None = None


class AuditRequest(StateModel):
    hotkey: Hotkey
    critical_prompts: list[Stem] = []


class AuditOutcome(StrEnum):
    PENDING = "pending"
    PASSED = "passed"
    REJECTED = "rejected"


class GenerationAudit(StateModel):
    hotkey: Hotkey
    outcome: AuditOutcome
    checked_prompts: int = 0
    failed_prompts: int = 0
    failed_critical: int = 0
    generation_time: Finite | None = None
    reason: str = ""


class SourceAudit(StateModel):
    hotkey: Hotkey
    verdict: Literal["passed", "failed"]
    reason: str = ""


class Winner(StateModel):
    """`winner.json`; `winner_hotkey` is "leader" when the leader defended."""

    winner_hotkey: Hotkey
    repo: str | None
    commit: str | None
    docker_image: str | None


class GenerationResult(StateModel):
    """One prompt's 3D file and preview. `glb` null: no file; `png` null: no preview (refused or failed)."""

    glb: str | None = None
    png: str | None = None
    generation_time: Finite = 0.0
    size: int = 0
    attempts: int = 0
    distance: Finite = 0.0


class PodStats(StateModel):
    pod_id: str
    processed: int = 0
    successful: int = 0
    hard_failed: int = 0
    hard_overtime: int = 0
    time_min: Finite | None = None
    time_max: Finite | None = None
    time_avg: Finite | None = None
    time_median: Finite | None = None
    marked_bad: bool = False
    retry_cumulative_delta: Finite = 0.0
    retry_delta_count: int = 0
    termination_reason: str | None = None


class DuelWinner(StrEnum):
    LEFT = "left"
    RIGHT = "right"
    DRAW = "draw"
    SKIPPED = "skipped"


class Duel(StateModel):
    name: Stem
    prompt: str
    left_glb: str | None = None
    left_png: str | None = None
    right_glb: str | None = None
    right_png: str | None = None
    winner: DuelWinner
    issues: str = ""


class MatchReport(StateModel):
    """`duels_*.json`: `left` defends, `right` challenges; margin > 0 means right won."""

    left: Hotkey
    right: Hotkey
    score: int
    margin: Finite
    duels: list[Duel]


class MatchRow(StateModel):
    left: Hotkey
    right: Hotkey
    margin: Finite


Submissions = dict[Hotkey, Submission]
Builds = dict[Hotkey, Build]
Results = dict[Stem, GenerationResult]
Audits = dict[Hotkey, GenerationAudit]
PodReport = dict[str, PodStats]
Margins = dict[tuple[Hotkey, Hotkey], float]

CONFIG = TypeAdapter(CompetitionConfig)
STATE = TypeAdapter(CompetitionStage)
LEADERS = TypeAdapter(list[LeaderTransition])
SCHEDULE = TypeAdapter(Schedule)
SEED = TypeAdapter(Seed)
SUBMISSIONS = TypeAdapter(Submissions)
BUILDS = TypeAdapter(Builds)
AUDIT_REQUESTS = TypeAdapter(list[AuditRequest])
GENERATION_AUDITS = TypeAdapter(Audits)
SOURCE_AUDITS = TypeAdapter(list[SourceAudit])
WINNER = TypeAdapter(Winner)
RESULTS = TypeAdapter(Results)
POD_STATS = TypeAdapter(PodReport)
MATCH_REPORT = TypeAdapter(MatchReport)

# JSON files by name: at the root, of a round, of a hotkey in a round. Match reports are `duels_<left>.json`.
ROOT_FILES: dict[str, TypeAdapter[Any]] = {"config.json": CONFIG, "state.json": STATE, "leader.json": LEADERS}
ROUND_FILES: dict[str, TypeAdapter[Any]] = {
    "schedule.json": SCHEDULE,
    "seed.json": SEED,
    "submissions.json": SUBMISSIONS,
    "builds.json": BUILDS,
    "require_audit.json": AUDIT_REQUESTS,
    "generation_audits.json": GENERATION_AUDITS,
    "source_audit.json": SOURCE_AUDITS,
    "winner.json": WINNER,
}
HOTKEY_FILES: dict[str, TypeAdapter[Any]] = {
    "submitted.json": RESULTS,
    "generated.json": RESULTS,
    "pod_stats.json": POD_STATS,
}

_ASCII_ONLY = (SUBMISSIONS, SEED)
_STRING_OR_EXPONENT = re.compile(r'"(?:[^"\\]|\\.)*"|e\+')


def read_json(adapter: TypeAdapter[T], text: str | bytes) -> T:
    """Parse and check a state file. Raises pydantic's ValidationError (a ValueError) naming field and fault."""
    return adapter.validate_json(text)


def read_leaders(text: str | bytes) -> list[LeaderTransition]:
    """`leader.json` is a bare list; the object with `transitions` of the public README is accepted too."""
    raw = TypeAdapter(Any).validate_json(text)
    return LEADERS.validate_python(raw.get("transitions", []) if isinstance(raw, dict) else raw)


def write_json(adapter: TypeAdapter[Any], value: object) -> str:
    """Text of a state file, exact to the byte (spec section 1). The hand-written config.json ends in a newline."""
    if adapter is SEED:  # one line, with a space after the colon
        return f'{{"seed": {SEED.validate_python(value).seed}}}'
    text = adapter.dump_json(value, indent=2, ensure_ascii=adapter in _ASCII_ONLY).decode()
    if "e+" in text:  # 1e16 as in the record; this pydantic writes 1e+16
        text = _STRING_OR_EXPONENT.sub(lambda found: "e" if found[0] == "e+" else found[0], text)
    return text + "\n" if adapter is CONFIG else text


def read_prompts(text: str) -> list[str]:
    """Image URLs, one a line."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def write_prompts(prompts: list[str]) -> str:
    return "\n".join(prompts)


MATRIX_HEADER = "left,right,margin"


def read_matrix(text: str) -> list[MatchRow]:
    """`matches_matrix.csv` in the order played. Raises ValueError naming the line."""
    lines = text.splitlines()
    if not lines or lines[0].strip() != MATRIX_HEADER:
        raise ValueError(f"line 1 must be {MATRIX_HEADER!r}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            left, right, margin = line.strip().split(",")
            rows.append(MatchRow(left=left, right=right, margin=float(margin)))
        except ValueError as error:
            raise ValueError(f"line {number} is not left,right,margin: {line[:120]!r}") from error
    return rows


def write_matrix(rows: list[MatchRow]) -> str:
    return "\n".join([MATRIX_HEADER, *(f"{row.left},{row.right},{row.margin!r}" for row in rows)])


def stem_of(url: str) -> Stem:
    """A prompt's id: the last part of its URL's path without its extension."""
    name = url.split("?", 1)[0].split("#", 1)[0].rstrip("/").rsplit("/", 1)[-1]
    return name.rsplit(".", 1)[0] if "." in name else name
