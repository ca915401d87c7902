"""A process that plays one match per line of its input, each in a child of its own that a test may kill.

    python judging_nursery.py BASE_URL FOLDER PROMPTS CONCURRENCY

For each line it forks, says `child PID`, and after the child's end `ended STATUS`. A child prints the match's margin.
Heavy packages are imported once, before any child.
"""

import asyncio
import os
import sys
from pathlib import Path

import httpx
import openai.resources.chat.completions  # noqa: F401 (so that no child has to)

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import GenerationResult
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import OpenAIJudge
from gen404_dagster.resources.judge.kept import KeptJudge
from gen404_dagster.resources.judge.match import Player, Table
from gen404_dagster.resources.object_store import LocalObjectStore

BASE = "http://store.test"


class Stored:
    """Pictures of a folder, by URL."""

    def __init__(self, store: LocalObjectStore) -> None:
        self._store = store

    async def prompt(self, url: str) -> bytes:
        return self._store.read(url.removeprefix(f"{BASE}/"))

    async def preview(self, url: str) -> bytes:
        return self._store.read(url.removeprefix(f"{BASE}/"))


def results(side: str, prompts: int) -> dict[str, GenerationResult]:
    return {f"{n:03}": GenerationResult(glb="g", png=f"{BASE}/{side}/{n:03}.png") for n in range(prompts)}


def play(base_url: str, folder: Path, prompts: int, concurrency: int) -> float:
    store = LocalObjectStore(folder / "store", BASE)
    judge = OpenAIJudge([base_url], ["key"], "tiny-vlm", as_urls=False, concurrency=concurrency, waits=(0.1, 0.2))
    urls = tuple(f"{BASE}/prompt/{n:03}.png" for n in range(prompts))
    table = Table("leader", "5A", urls, 7, 0.05, results("left", prompts), results("right", prompts))

    async def played() -> float:
        with Journal(folder / "journal.sqlite", "repository") as journal:
            kept = KeptJudge(judge, journal, store, 0)
            async with kept:
                return (await Player(kept, Stored(store), Limits()).play(table)).margin

    return asyncio.run(played())


def main() -> None:
    base_url, folder, prompts, concurrency = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    httpx.create_ssl_context()
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            print("margin", play(base_url, folder, prompts, concurrency), flush=True)
            os._exit(0)
        print("child", pid, flush=True)
        print("ended", os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
