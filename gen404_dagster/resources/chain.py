"""Reading the chain: finalized block and revealed commitments, as they are. What they mean: `competition.commitments`."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import httpx
from pydantic import BaseModel, ValidationError

from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import Unavailable


@dataclass(frozen=True)
class Head:
    """A finalized block and its timestamp (UTC)."""

    block: Block
    time: datetime


class Chain(Protocol):
    def head(self) -> Head:
        """The finalized block. Raises Unavailable."""
        ...

    def revealed(self) -> dict[Hotkey, list[tuple[Block, str]]]:
        """What each hotkey of the subnet has revealed, up to the finalized block. Raises Unavailable."""
        ...


class _HeadAnswer(BaseModel):
    block: int
    timestamp: datetime


class _CommitmentsAnswer(BaseModel):
    commitments: dict[str, list[tuple[int, str]]]


class SimulatedChain:
    """The chain of the embedded world, over HTTP."""

    def __init__(self, world: str, timeout_seconds: float = 30.0) -> None:
        self._world = world.rstrip("/")
        self._timeout = timeout_seconds

    def head(self) -> Head:
        answer = _HeadAnswer.model_validate_json(self._get("/chain/head"))
        return Head(answer.block, answer.timestamp)

    def revealed(self) -> dict[Hotkey, list[tuple[Block, str]]]:
        return _CommitmentsAnswer.model_validate_json(self._get("/chain/commitments")).commitments

    def _get(self, path: str) -> bytes:
        return get_from_world(self._world, path, self._timeout)


def get_from_world(world: str, path: str, timeout_seconds: float = 30.0) -> bytes:
    """Body of a GET to the embedded world. Raises Unavailable saying what to start."""
    try:
        answer = httpx.get(f"{world}{path}", timeout=timeout_seconds)
        answer.raise_for_status()
    except (httpx.HTTPError, ValidationError) as error:
        raise Unavailable(
            f"the embedded world at {world or '(GEN404_WORLD is not set)'} did not answer {path}: {error}; "
            "start it with `gen404 world --workdir DIR`"
        ) from error
    return answer.content
