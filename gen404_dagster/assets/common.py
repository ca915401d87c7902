"""What every asset of a round shares: how it is declared, how it commits, how it describes itself."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import dagster as dg

from gen404_dagster.assets import checks
from gen404_dagster.assets.describe import Metadata, description, recorded
from gen404_dagster.partitions import rounds
from gen404_dagster.resources.configured import only_adopts
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.state_repo import Change, CommitInfo, Snapshot, StateRepository, Step

T = TypeVar("T")

OWNERS = ["team:gen404"]
CODE_VERSION = "1"


def round_spec(
    name: str, group: str, description: str, *, kinds: set[str], deps: list[str | dg.AssetDep] | None = None
) -> dg.AssetSpec:
    """An asset of a round. The description states the rule. A run may end before its file exists."""
    return dg.AssetSpec(
        name,
        deps=deps or [],
        group_name=group,
        description=description,
        kinds=kinds,
        owners=OWNERS,
        code_version=CODE_VERSION,
        partitions_def=rounds,
        skippable=True,
    )


def round_number(context: dg.AssetExecutionContext) -> int:
    return int(context.partition_key)


def described(
    name: str, repository: StateRepository, number: int, extra: Mapping[str, dg.MetadataValue] | None = None
) -> dg.MaterializeResult[Any]:
    """Materialization of a round asset as the state repository now has it, with its checks.

    Raises dg.Failure when the repository does not have it: there is nothing to show.
    """
    at = recorded(repository, number, fetch=False)
    metadata = description(name, at)
    if metadata is None:
        raise dg.Failure(f"round {number} has no {name} yet: it is made by its stage, see the sensor's reasons")
    return dg.MaterializeResult(
        asset_key=name, metadata=merged(metadata, extra or {}), check_results=checks.evaluate(name, at)
    )


def is_adopted(context: dg.AssetExecutionContext, repository: StateRepository) -> bool:
    """Whether this run only reads what is recorded, as of the remote's head: a round that is over has nothing left to
    do, and a backfill does nothing else."""
    return only_adopts(context.run) or read_round(repository.head(), round_number(context)).over


def adopted(
    repository: StateRepository, number: int, *names: str, extra: Metadata | None = None
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """What a run of `is_adopted` yields: recorded files as they are; of what a round has not reached, nothing."""
    at = recorded(repository, number, fetch=False)
    for name in names:
        if description(name, at) is None:
            yield from not_yet(name, repository, number)
        else:
            yield described(name, repository, number, extra)


def not_yet(name: str, repository: StateRepository, number: int) -> list[dg.AssetCheckResult]:
    """What a run yields for a skippable asset without a file: its checks, of what is recorded so far."""
    return checks.evaluate(name, recorded(repository, number, fetch=False))


def merged(first: Metadata, second: Mapping[str, dg.MetadataValue]) -> Metadata:
    """Scalars of both first, then pictures and words, then tables: the UI shows metadata in order."""
    both = {**first, **second}
    scalars = (dg.IntMetadataValue, dg.FloatMetadataValue, dg.BoolMetadataValue)

    def rank(name: str) -> int:
        value = both[name]
        if isinstance(value, scalars):
            return 0
        return 1 if isinstance(value, dg.MarkdownMetadataValue) else 2

    return {name: both[name] for name in sorted(both, key=rank)}


def commit(
    context: dg.AssetExecutionContext,
    repository: StateRepository,
    step: Step,
    decide: Callable[[Snapshot], Change | None],
) -> CommitInfo | None:
    """Commit on the remote's head, under this run's id, and say so in the run's log."""
    info = repository.commit(step, decide, run_id=context.run.run_id)
    if info is not None:
        context.log.info(f"{info.subject} ({info.sha[:10]})")
    return info


async def gather_all(*work: Awaitable[T]) -> list[T]:
    """Results in order. The first failure cancels the rest and is raised itself, not inside a group."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Progress:
    """How far a long step is: for `simulate`'s screen and, every ten seconds at most, the run's log."""

    def __init__(self, context: dg.AssetExecutionContext, journal: Journal, number: int, what: str, total: int) -> None:
        self._context, self._journal, self._number, self._what = context, journal, number, what
        self.total, self.done = total, 0
        self._shown = self._logged = float("-inf")

    def step(self, note: str = "", count: int = 1) -> None:
        self.done += count
        self.show(note)

    def part(self, note: str) -> Callable[[int, int], None]:
        """Takes (done, total) of one of several pieces of the step."""
        last = (0, 0)

        def report(done: int, total: int) -> None:
            nonlocal last
            self.done, self.total = self.done + done - last[0], self.total + total - last[1]
            last = done, total
            self.show(note)

        return report

    def show(self, note: str = "") -> None:
        now = time.monotonic()
        if now - self._shown > 0.2 or self.done >= self.total:
            self._shown = now
            value = {"done": self.done, "total": self.total, "note": note}
            self._journal.put(self._number, f"progress/{self._what}", "", value)
        if now - self._logged > 10:
            self._logged = now
            self._context.log.info(f"{self._what}: {self.done}/{self.total} {note}")
