"""When weights are set on chain, and whether they are.

Belongs here: what an attempt is, when the next one is due, what the chain says of earlier ones. Does not: which weights
(`leadership.weights`), sending them and keeping the record (`assets.weights`).
Source: spec section 5 "On chain"; times are blocks, because nothing can be set while there are none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import Block, Hotkey, LeaderTransition

EQUAL_SHARES = 1e-4
"""The chain keeps weights in 16 bits: shares come back a little changed."""


class Outcome(StrEnum):
    """`planned`: a dry run, nothing was sent. `sent`: nothing is known yet. `committed`: accepted, hidden until the
    subnet reveals it. `differs`: set, but the chain shows other weights."""

    PLANNED = "planned"
    SENT = "sent"
    COMMITTED = "committed"
    CONFIRMED = "confirmed"
    DIFFERS = "differs"
    FAILED = "failed"


class Attempt(BaseModel):
    """One setting of weights. `block` is the finalized block at which it was decided, and names it. `leader_uid`: None
    when the leader is not on the subnet."""

    model_config = ConfigDict(frozen=True)

    block: Block
    time: datetime
    leader: Hotkey | None
    leader_uid: int | None = None
    weights: dict[int, float]
    outcome: Outcome
    note: str = ""
    retry_block: Block | None = None
    seen_block: Block

    @property
    def leader_share(self) -> float:
        return 0.0 if self.leader_uid is None else self.weights.get(self.leader_uid, 0.0)


@dataclass(frozen=True)
class OnChain:
    """What the chain shows of a validator at a finalized block."""

    block: Block
    last_update: Block | None
    weights: Mapping[int, float]
    commit_pending: bool


@dataclass(frozen=True)
class Due:
    """Weights are to be set now."""


@dataclass(frozen=True)
class NotYet:
    """Nothing is to be set: why, and the block that changes it."""

    why: str
    until: Block


def due(last: Attempt | None, leaders: Sequence[LeaderTransition], block: Block, limits: Limits) -> Due | NotYet:
    """Every `weights_interval_minutes`, after a failure sooner; never shortly before another leader takes over."""
    if last is not None:
        following = last.block + _blocks(limits.weights_interval_minutes, limits)
        why = f"weights were {last.outcome} at block {last.block}"
        if last.outcome in (Outcome.FAILED, Outcome.SENT):
            following, why = last.retry_block or following, f"setting weights at block {last.block} failed: {last.note}"
        if block < following:
            return NotYet(why, following)
    near = block + _blocks(limits.leader_change_wait_minutes, limits)
    change = next((leader.effective_block for leader in leaders if block < leader.effective_block <= near), None)
    if change is not None:
        return NotYet("the next leader takes over soon", change)
    return Due()


def retry_block(block: Block, chance: float, limits: Limits) -> Block:
    """Block of the next try after a failure; `chance` in [0, 1) keeps validators apart."""
    least, most = limits.weights_retry_least_minutes, limits.weights_retry_most_minutes
    return block + _blocks(least + chance * (most - least), limits)


def settle(attempts: Sequence[Attempt], seen: OnChain) -> list[Attempt]:
    """Those of the attempts (oldest first) that the chain now shows otherwise than recorded, corrected.

    The last attempt counts when the validator's last update is at or after it, and is confirmed when the weights read
    back are those that were sent. Under commit-reveal the first moves with the commit, the second when it is revealed,
    perhaps after later commits. A failure too may be corrected: an extrinsic whose answer was lost may have arrived.
    """
    changed = []
    for attempt in attempts:
        last = attempt is attempts[-1]
        open_ = attempt.outcome == Outcome.COMMITTED or (last and attempt.outcome in (Outcome.SENT, Outcome.FAILED))
        if not open_ or seen.last_update is None or seen.last_update < attempt.block:
            continue
        told = _told(attempt, seen)
        if told.outcome != attempt.outcome and (last or told.outcome == Outcome.CONFIRMED):
            changed.append(told)
    return changed


def _told(attempt: Attempt, seen: OnChain) -> Attempt:
    if same_weights(attempt.weights, seen.weights):
        outcome, note = Outcome.CONFIRMED, f"last update at block {seen.last_update}, weights read back"
    elif seen.commit_pending:
        outcome, note = Outcome.COMMITTED, f"committed at block {seen.last_update}, hidden until it is revealed"
    else:
        shown = ", ".join(f"{uid}: {share:.4f}" for uid, share in seen.weights.items()) or "none"
        outcome, note = Outcome.DIFFERS, f"updated at block {seen.last_update}, but the chain shows {shown}"
    return attempt.model_copy(update={"outcome": outcome, "note": note, "retry_block": None, "seen_block": seen.block})


def same_weights(sent: Mapping[int, float], shown: Mapping[int, float]) -> bool:
    """Whether the shares are equal but for the chain's rounding. A share of 0 is not kept."""
    total = sum(sent.values())
    return bool(total) and all(
        abs(sent.get(uid, 0.0) / total - shown.get(uid, 0.0)) <= EQUAL_SHARES for uid in sent.keys() | shown.keys()
    )


def _blocks(minutes: float, limits: Limits) -> int:
    return int(minutes * 60 // limits.block_seconds)
