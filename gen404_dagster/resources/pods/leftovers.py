"""Pods that outlived their work: found by name, deleted once nobody works with them.

Belongs here: which pods of this pipeline are left over. Does not: deleting by prefix (`protocol.sweep`), when to look
(`sensors.pod_sweeper`). A regeneration holds a file lock of its pods' prefix until its process ends, also by `kill -9`:
so pods whose lock is free are nobody's.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from gen404_dagster.errors import Gen404Error, LaneBusy, Unavailable
from gen404_dagster.resources.lanes import LaneLocks
from gen404_dagster.resources.pods.protocol import DELETE_SECONDS, PodProvider, sweep

WAIT_SECONDS = 600.0
"""Longest wait of a regeneration for the sweep of its own leftovers to end, in seconds."""
_PAUSE_SECONDS = 0.5


def job_of_pod(instance: str, pod: str) -> tuple[int, str] | None:
    """Round and prefix of the regeneration that a pod worked for; None when the name is not one of this pipeline's."""
    found = re.fullmatch(rf"(gen404-{re.escape(instance)}-(0|[1-9][0-9]*)-[a-z0-9]+-)[0-9]+", pod)
    return (int(found[2]), found[1]) if found else None


@asynccontextmanager
async def in_use(locks: LaneLocks, number: int, prefix: str) -> AsyncIterator[None]:
    """Keep pods of this prefix from being swept as leftovers; waits for a sweep that is at it."""
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        lock = locks.hold(number, prefix)
        try:
            lock.__enter__()
            break
        except LaneBusy:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


async def leftovers(providers: Sequence[PodProvider], instance: str, locks: LaneLocks) -> list[tuple[int, str]]:
    """Round and prefix of every regeneration that has pods but no process. Raises Unavailable when nobody answers."""
    found: set[tuple[int, str]] = set()
    faults = []
    for provider in dict.fromkeys(providers):
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                pods = await provider.list(f"gen404-{instance}-")
        except (Gen404Error, TimeoutError) as error:
            faults.append(f"{provider.name}: {error or 'no answer'}")
            continue
        found |= {job for pod in pods if (job := job_of_pod(instance, pod))}
    left = sorted(job for job in found if locks.is_free(*job))
    if faults and not left:
        raise Unavailable("; ".join(faults))
    return left


async def sweep_leftovers(providers: Sequence[PodProvider], instance: str, locks: LaneLocks) -> list[str]:
    """Delete what `leftovers` finds, names of the deleted. Raises Unavailable when some are still there."""
    deleted: list[str] = []
    faults = []
    for number, prefix in await leftovers(providers, instance, locks):
        with suppress(LaneBusy), locks.hold(number, prefix):
            try:
                deleted += await sweep(providers, prefix)
            except Unavailable as error:
                faults.append(str(error))
    if faults:
        raise Unavailable("; ".join(faults))
    return deleted
