"""The chain of the embedded world, over HTTP."""

from collections.abc import Mapping
from datetime import datetime

import httpx
from pydantic import BaseModel, ValidationError

from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import Unavailable
from gen404_dagster.resources.chain.protocol import Head, Revelations, Sent, Subnet


class _HeadAnswer(BaseModel):
    block: int
    timestamp: datetime

    def head(self) -> Head:
        return Head(self.block, self.timestamp)


class _CommitmentsAnswer(_HeadAnswer):
    commitments: dict[str, list[tuple[int, str]]]


class _SubnetAnswer(_HeadAnswer):
    uids: dict[str, int]
    owner: str
    last_update: Block | None
    weights: dict[int, float]
    commit_pending: bool


class SimulatedChain:
    """The chain of the embedded world: what it shows is final."""

    def __init__(self, world: str, timeout_seconds: float = 30.0) -> None:
        self._world = world.rstrip("/")
        self._timeout = timeout_seconds

    def head(self) -> Head:
        return _HeadAnswer.model_validate_json(self._get("/chain/head")).head()

    def revealed(self) -> Revelations:
        answer = _CommitmentsAnswer.model_validate_json(self._get("/chain/commitments"))
        return Revelations(answer.head(), {hotkey: [*entries] for hotkey, entries in answer.commitments.items()})

    def subnet(self, validator: Hotkey | None) -> Subnet:
        answer = _SubnetAnswer.model_validate_json(self._get(f"/chain/subnet?validator={validator or ''}"))
        return Subnet(
            head=answer.head(),
            uids=answer.uids,
            owner=answer.owner,
            last_update=answer.last_update,
            weights=answer.weights,
            commit_pending=answer.commit_pending,
        )

    def _get(self, path: str) -> bytes:
        return get_from_world(self._world, path, self._timeout)


class SimulatedValidator:
    """A validator of the embedded world: its name is its key."""

    def __init__(self, world: str, hotkey: Hotkey) -> None:
        self._world = world.rstrip("/")
        self.hotkey = hotkey

    def set_weights(self, weights: Mapping[int, float]) -> Sent:
        try:
            answer = httpx.post(
                f"{self._world}/chain/weights",
                json={"validator": self.hotkey, "weights": {str(uid): share for uid, share in weights.items()}},
                timeout=30.0,
            )
        except httpx.HTTPError as error:
            return Sent(False, f"no answer: {error}")
        return Sent(answer.is_success, answer.text[:200])


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
