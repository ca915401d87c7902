"""The embedded world's clock: a block number in one atomic file, and the time that a block has."""

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gen404_dagster.competition.models import Block
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
