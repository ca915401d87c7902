"""The embedded world's chain: a block number in one atomic file, the time that a block has, and validators' weights."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import OperatorError
from gen404_dagster.simulation.parameters import write_atomic

GENESIS = datetime(2026, 1, 5, 7, 0, tzinfo=UTC)
BLOCK_SECONDS = 12
LAST_BLOCK = 10_000_000


def time_of(block: Block) -> datetime:
    return GENESIS + timedelta(seconds=BLOCK_SECONDS * block)


class Clock:
    """The finalized block. It is on disk before anyone is told: a killed world goes on where it was seen last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._block = int(path.read_text())
        except FileNotFoundError:
            self._block = 0
            write_atomic(path, "0")
        except ValueError as error:
            raise OperatorError(f"{path} does not hold a block number: use another --workdir") from error

    @property
    def block(self) -> Block:
        return self._block

    def advance(self, block: Block) -> None:
        """Move on to a block. Raises ValueError for one in the past, or beyond the world's end."""
        with self._lock:
            if block < self._block:
                raise ValueError(f"block {block} is in the past: the chain is at {self._block}")
            if block > LAST_BLOCK:
                raise ValueError(f"block {block} is beyond the world's last, {LAST_BLOCK}")
            if block != self._block:
                write_atomic(self._path, str(block))
                self._block = block

    def pass_blocks(self, count: int) -> None:
        """Time passes by itself."""
        with self._lock:
            block = min(self._block + count, LAST_BLOCK)
            write_atomic(self._path, str(block))
            self._block = block


class WeightsRow(BaseModel):
    """A validator's weights: since `update` they are committed, from `reveal` on everyone sees `hidden`."""

    update: Block
    shown: dict[int, float] = {}
    hidden: dict[int, float] = {}
    reveal: Block

    def at(self, block: Block) -> dict[int, float]:
        return self.hidden if block >= self.reveal else self.shown


_LEDGER = TypeAdapter(dict[str, WeightsRow])


class WeightsLedger:
    """Validators' weights, in one atomic file. `reveal_blocks`: how long a subnet hides them (commit-reveal)."""

    def __init__(self, path: Path, reveal_blocks: int) -> None:
        self._path, self._reveal_blocks = path, reveal_blocks
        self._lock = threading.Lock()

    def row(self, validator: Hotkey) -> WeightsRow | None:
        return self._read().get(validator)

    def set(self, validator: Hotkey, weights: Mapping[int, float], block: Block) -> None:
        with self._lock:
            rows = self._read()
            before = rows.get(validator)
            rows[validator] = WeightsRow(
                update=block,
                shown=before.at(block) if before else {},
                hidden=dict(weights),
                reveal=block + self._reveal_blocks,
            )
            write_atomic(self._path, _LEDGER.dump_json(rows))

    def _read(self) -> dict[str, WeightsRow]:
        try:
            return _LEDGER.validate_json(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise OperatorError(f"{self._path} does not hold weights: use another --workdir") from error
