"""What a chain is asked for, whichever it is. Every answer names the finalized block that it was read at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from gen404_dagster.competition.commitments import Unreadable
from gen404_dagster.competition.models import Block, Hotkey


@dataclass(frozen=True)
class Head:
    """A finalized block and its timestamp (UTC)."""

    block: Block
    time: datetime


@dataclass(frozen=True)
class Revelations:
    """What hotkeys have revealed, all of it read at `head`. An entry that cannot count says why instead of a text."""

    head: Head
    entries: dict[Hotkey, list[tuple[Block, str | Unreadable]]]


@dataclass(frozen=True)
class Subnet:
    """The subnet at `head`, as far as weights need it.

    `last_update`, `weights` (uid -> share, their sum 1) and `commit_pending` are those of one validator; where the
    subnet hides weights (commit-reveal), `last_update` moves with the commit and `weights` blocks later.
    """

    head: Head
    uids: Mapping[Hotkey, int]
    owner: Hotkey | None
    last_update: Block | None = None
    weights: Mapping[int, float] = field(default_factory=dict)
    commit_pending: bool = False


@dataclass(frozen=True)
class Sent:
    """What came back from setting weights. The chain alone says whether they are set: an answer may be lost."""

    accepted: bool
    note: str


class Chain(Protocol):
    def head(self) -> Head:
        """The finalized block. Raises Unavailable."""
        ...

    def revealed(self) -> Revelations:
        """What each hotkey of the subnet has revealed, at the finalized block. Raises Unavailable."""
        ...

    def subnet(self, validator: Hotkey | None) -> Subnet:
        """Who is who at the finalized block, and the weights of a validator. Raises Unavailable."""
        ...


class Validator(Protocol):
    """Holds a validator's key. Only the asset `weights` has one."""

    @property
    def hotkey(self) -> Hotkey:
        """The public address. Raises OperatorError: no such key."""
        ...

    def set_weights(self, weights: Mapping[int, float]) -> Sent:
        """Sign and send, once: never again by itself. An outage is an answer that was not accepted.

        Raises OperatorError when the key cannot be opened: nothing was sent.
        """
        ...
