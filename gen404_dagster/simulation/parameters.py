"""What an embedded world is made from, and where its files lie.

Belongs here: the parameters that a workdir keeps for life, and the names inside a workdir. Does not: what follows
from them (the other modules).
"""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gen404_dagster.errors import OperatorError

Skill = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class WorldParameters(BaseModel):
    """Parameters of an embedded world. A workdir keeps those it was made with: others on it are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(0, ge=0, description="Everything that is made up follows from this number.")
    miners: int = Field(9, ge=0, le=64, description="Miners with a submission in every round.")
    prompts: int = Field(12, ge=0, le=512, description="Prompts per round.")
    prompts_from: str | None = Field(None, description="Folder of real pictures that are the pool instead.")
    miner_from: str | None = Field(None, description="Folder of GLB files that one more miner serves.")
    skills: dict[str, tuple[Skill, Skill]] = Field(
        {}, description="Skill of what a named miner submits, and of what its image generates."
    )
    oversize_bytes: int = Field(34 * 1024**2, ge=1, description="Length of the file that is too large.")

    weights_reveal_blocks: int = Field(0, ge=0, description="Blocks for which the chain hides weights (commit-reveal).")

    @field_validator("prompts_from", "miner_from", mode="before")
    @classmethod
    def _absolute(cls, folder: object) -> object:
        return str(Path(folder).resolve()) if isinstance(folder, str | Path) and str(folder) else None

    @property
    def pool_size(self) -> int:
        return max(3 * self.prompts, self.prompts + 8)


def parse_parameters(text: str | bytes) -> WorldParameters:
    """Parameters from JSON. Raises OperatorError naming the parameter that is wrong."""
    try:
        return WorldParameters.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"]) or "parameters"
        raise OperatorError(f"world: {name}: {fault['msg']}") from error


def parse_skills(options: Iterable[str]) -> dict[str, tuple[float, float]]:
    """`best=0.6`, or `cheater=1.0:0.35` for a submission that the image does not reach. Raises OperatorError."""
    skills = {}
    for option in options:
        name, _, values = option.partition("=")
        try:
            submitted, _, image = values.partition(":")
            pair = float(submitted), float(image or submitted)
        except ValueError:
            pair = -1.0, -1.0
        if not name or not all(0 <= skill <= 1 for skill in pair):
            raise OperatorError(f"--skill {option}: give NAME=SKILL or NAME=SUBMITTED:IMAGE, each from 0 to 1")
        skills[name] = pair
    return skills


class Workdir:
    """Names inside a workdir."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()
        self.record = self.root / "world.json"
        self.lock = self.root / "world.lock"
        self.log = self.root / "world.log"
        self.block = self.root / "block"
        self.weights = self.root / "weights.json"
        self.remote = self.root / "remote.git"
        self.data = self.root / "data"
        self.store = self.root / "data" / "store"
        self.prompts = self.root / "prompts"
        self.dagster = self.root / "dagster"
        self.scratch = self.root / "tmp"


class WorldRecord(BaseModel):
    """`world.json`: the port that is bound again on restart, and the parameters for life."""

    port: int = Field(ge=1, le=65535)
    parameters: WorldParameters


def read_record(workdir: Workdir) -> WorldRecord | None:
    """What is remembered of the world in a workdir; None before its first start."""
    try:
        return WorldRecord.model_validate_json(workdir.record.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise OperatorError(f"{workdir.record} is not a world's record: use another --workdir") from error


def refuse_other_parameters(workdir: Workdir, kept: WorldParameters, given: WorldParameters) -> None:
    """Raise OperatorError naming every difference."""
    old, new = kept.model_dump(), given.model_dump()
    differences = [f"{name} {old[name]!r} there, {new[name]!r} now" for name in old if old[name] != new[name]]
    if differences:
        raise OperatorError(
            f"{workdir.root} holds a world with other parameters ({'; '.join(differences)}): "
            "repeat those, or use another --workdir"
        )


def write_atomic(path: Path, data: bytes | str) -> None:
    """All or nothing, also when killed: a temporary file in the same folder, then a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    temporary.replace(path)
