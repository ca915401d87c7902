"""One run at a time on a lane of a round, and a way to tell a dead run from a busy one.

A run holds the file lock `<data>/locks/<round>-<lane>` until its process lets go of it, also by dying: so an active
run whose lock is free is dead. https://py-filelock.readthedocs.io
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from gen404_dagster.errors import LaneBusy


class LaneLocks:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def hold(self, number: int, lane: str) -> Iterator[None]:
        """Hold the lane. Raises LaneBusy at once when another run has it."""
        lock = self._lock(number, lane)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LaneBusy(f"another run works on lane {lane} of round {number}: wait for it to end") from None
        try:
            yield
        finally:
            lock.release()

    def is_free(self, number: int, lane: str) -> bool:
        lock = self._lock(number, lane)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True

    def _lock(self, number: int, lane: str) -> FileLock:
        self._folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self._folder / f"{number}-{lane}", is_singleton=False, thread_local=False)
