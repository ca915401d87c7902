"""What tests of backfills share: git repositories of recorded rounds, the command, and what Dagster knows then."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from gen404_dagster.assets.describe import DESCRIPTIONS
from gen404_dagster.assets.insights import INSIGHTS

STAMP = 1770000000


def git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    when = {f"GIT_{role}_DATE": f"{STAMP} +0000" for role in ("AUTHOR", "COMMITTER")}
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=os.environ | who | when)
    return done.stdout.strip()


def make_repository(folder: Path) -> Path:
    """A repository of a folder of state files, in one commit."""
    git(folder, "init", "--quiet", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Record everything")
    return folder


@dataclass(frozen=True)
class Pipeline:
    """A pipeline's folder of data and its Dagster directory, without world, chain or network."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "dagster"

    def environment(self) -> dict[str, str]:
        ours = ("GEN404_", "DAGSTER_", "CDN_URL", "GPU_PROVIDERS")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        dead = "http://127.0.0.1:9"  # whatever were fetched would fail
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), dead)
        return clean | proxies | {"GEN404_DATA": str(self.folder / "data"), "PYTHONWARNINGS": "ignore"}

    def gen404(self, *arguments: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "gen404_dagster.cli", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=self.environment(), cwd=self.folder
        )

    def backfill(self, repository: Path, *options: str) -> dict[str, Any]:
        done = self.gen404("backfill", str(repository), "--instance", str(self.home), "--json", *options)
        assert done.returncode == 0, done.stderr + done.stdout
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.from_config(str(self.home)) as instance:
            yield instance

    def partitions(self) -> dict[str, list[str]]:
        with self.instance() as instance:
            return {name: list(instance.get_dynamic_partitions(name)) for name in ("round", "round_miner")}

    def materialized(self) -> dict[str, set[str]]:
        with self.instance() as instance:
            names = [*DESCRIPTIONS, "downloads", "renders"]
            return {name: set(instance.get_materialized_partitions(dg.AssetKey(name))) for name in names}

    def events(self) -> dict[str, int]:
        """How many materializations each asset ever had."""
        with self.instance() as instance:
            names = [*DESCRIPTIONS, *INSIGHTS, "downloads", "renders"]
            return {n: len(instance.fetch_materializations(dg.AssetKey(n), limit=5000).records) for n in names}

    def metadata(self, asset: str, partition: str | None = None) -> dict[str, Any]:
        with self.instance() as instance:
            chosen = dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(asset), asset_partitions=[partition] if partition else None
            )
            found = instance.fetch_materializations(chosen, limit=1).records[0].asset_materialization
            assert found is not None
            return {name: value.value for name, value in found.metadata.items()}
