"""Who is at work: at most so many at once, in order, as long as their work is wanted.

Belongs here: starting, awaiting and calling off pieces of long work. Does not: what the work is (`fleet`), which is
wanted (`assets.verification`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from gen404_dagster.errors import Unavailable

K = TypeVar("K")

LOOK_SECONDS = 30.0
"""Pause between two looks at what is wanted, when nothing ends meanwhile, in seconds."""


async def work_off(
    wanted: Callable[[], Awaitable[Sequence[K]]],
    work: Callable[[K], Coroutine[Any, Any, None]],
    at_once: int,
    look_seconds: float = LOOK_SECONDS,
) -> None:
    """Work on what is wanted, first things first, until all of it was worked on.

    What is wanted is asked again whenever a piece ends and every `look_seconds`: new pieces start as soon as there is
    room, and one that is no longer wanted is cancelled. A piece is worked on once. When one is Unavailable the others go
    on, and it is raised at the end; any other failure ends them all.
    """
    running: dict[K, asyncio.Task[None]] = {}
    begun: set[K] = set()
    called_off: set[asyncio.Task[None]] = set()
    failed: Unavailable | None = None
    try:
        while True:
            try:
                keys = list(await wanted())
            except Unavailable:
                if not running:
                    raise
                keys = list(running)  # what we cannot know does not end an audit of hours
            for key, task in running.items():
                if key not in keys and task not in called_off:
                    called_off.add(task)
                    task.cancel()
            for key in keys:
                if key not in begun and len(running) < at_once and not failed:
                    begun.add(key)
                    running[key] = asyncio.create_task(work(key))
            if not running:
                break
            await asyncio.wait(running.values(), timeout=look_seconds, return_when=asyncio.FIRST_COMPLETED)
            for key, task in list(running.items()):
                if not task.done():
                    continue
                del running[key]
                try:
                    task.result()
                except Unavailable as error:
                    failed = failed or error
                except asyncio.CancelledError:
                    if task not in called_off:
                        raise
    finally:
        for task in running.values():
            task.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)
    if failed is not None:
        raise failed
