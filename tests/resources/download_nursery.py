"""A round's downloads as a process of its own, for tests that kill it: URL FOLDER [ENDPOINT KEY SECRET BUCKET].

Belongs here: one miner's files through the asset's own download. Does not: serving them, killing.
"""

import asyncio
import sys
from pathlib import Path

from gen404_dagster.assets import outputs
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import Submission
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.object_store import LocalObjectStore, ObjectStore

FILES = 24


class Shown:
    """Takes the place of a run's screen."""

    def step(self, note: str = "") -> None: ...


def open_store(folder: Path, s3: list[str]) -> ObjectStore:
    if not s3:
        return LocalObjectStore(folder / "store", "https://cdn.test")
    from gen404_dagster.resources.object_store.s3 import open_s3

    endpoint, key, secret, bucket = s3
    return open_s3(endpoint, key, secret, bucket, "https://cdn.test")


def download(url: str, folder: Path, s3: list[str]) -> None:
    """Fetch what the journal and the store lack, as the round's run does."""
    store, journal = open_store(folder, s3), Journal(folder / "journal.sqlite", "repository")
    submissions = {"5A": Submission(repo="a/b", commit="c" * 40, cdn_url=url, revealed_at_block=1, round="t-7")}
    kept = set(store.list("rounds/7/"))
    files = [outputs.File(7, "5A", f"p{number}") for number in range(FILES)]
    todo = [f for f in files if not outputs._is_downloaded(f, submissions, journal, kept, final=True)]
    limits = Limits(download_jitter_seconds=0, download_retry_seconds=0)
    asyncio.run(outputs._download(todo, submissions, Downloads(limits, True), store, journal, Shown()))  # type: ignore[arg-type]


if __name__ == "__main__":
    download(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
