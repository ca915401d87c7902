"""A folder in which images leave their traces, and regenerations on pods of any provider: what the tests of pods share."""

import asyncio
import json
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import GenerationResult, PodReport, PodStats, Stem
from gen404_dagster.resources.pods import fleet
from gen404_dagster.resources.pods.arrivals import Arrivals
from gen404_dagster.resources.pods.fleet import Accepted, Regeneration, RegenerationJob, regenerate
from gen404_dagster.resources.pods.local import LocalPods
from gen404_dagster.resources.pods.protocol import PodProvider
from gen404_dagster.resources.pods.targon import TargonPods
from gen404_dagster.resources.pods.verda import VerdaPods
from tests.resources import targon_double, verda_double
from tests.resources.cloud_double import Cloud, serving
from tests.resources.targon_double import Targon
from tests.resources.verda_double import Verda

SERVER = Path(__file__).with_name("image_server.py")
COMMAND = f"{shlex.quote(sys.executable)} {shlex.quote(str(SERVER))} {{image}} {{port}}"
PICTURE = b"\x89PNG" + bytes(5000)
LIMITS = Limits(
    pods_to_start=1,
    pods_at_once=2,
    pod_start_interval_seconds=0.0,
    pod_deploy_retry_seconds=0.05,
    pod_deploy_attempts=2,
    pod_visible_seconds=60.0,
    pod_healthy_seconds=60.0,
    prompt_lock_seconds=60.0,
    download_stall_seconds=30.0,
    download_retry_seconds=0.02,
    max_file_bytes=1_000_000,
)


@dataclass
class World:
    """A folder in which images leave their traces, and what the caller of a regeneration does."""

    folder: Path
    distances: dict[Stem, float | None] = field(default_factory=dict)
    saved: dict[Stem, GenerationResult] = field(default_factory=dict)
    pods: PodReport = field(default_factory=dict)
    files: dict[Stem, bytes] = field(default_factory=dict)
    shown: list[tuple[int, int]] = field(default_factory=list)
    fetched: list[Stem] = field(default_factory=list)
    during: Callable[[Stem], Awaitable[None]] | None = None
    cloud: Cloud | None = None

    def provider(self, *behaviours: Mapping[str, object], command: str = COMMAND) -> PodProvider:
        """Pods that behave so, one after the other: subprocesses, or rented from the double."""
        (self.folder / "plan.json").write_text(json.dumps(behaviours or [{}]))
        return LocalPods(command, self.folder / "logs") if self.cloud is None else rented(self.cloud)

    @property
    def arrivals(self) -> Arrivals:
        return Arrivals(self.folder / "arrivals")

    def job(self, *prompts: Stem, compared: bool = True, hotkey: str = "5Miner7890123") -> RegenerationJob:
        known = {stem: GenerationResult(glb="g", png="p", size=1, attempts=1) for stem in prompts}
        image = str(self.folder / "plan.json")
        return RegenerationJob("test", 1, hotkey, image, 42, prompts, (), known if compared else None)

    async def picture(self, stem: Stem) -> bytes:
        self.fetched.append(stem)
        return PICTURE

    async def accept(self, stem: Stem, glb: bytes) -> Accepted:
        if self.during:
            await self.during(stem)
        if not glb.startswith(b"glTF"):
            return Accepted(glb=None, png=None)
        self.files[stem] = glb
        return Accepted(f"url/{stem}.glb", f"url/{stem}.png", self.distances.get(stem, 0.01))

    def checkpoint(self, stem: Stem, result: GenerationResult, pod: PodStats) -> None:
        self.saved[stem], self.pods[pod.pod_id] = result, pod

    async def regenerate(self, job: RegenerationJob, *providers: PodProvider, limits: Limits = LIMITS) -> Regeneration:
        return await regenerate(
            job,
            providers,
            limits,
            prompt_picture=self.picture,
            accept=self.accept,
            checkpoint=self.checkpoint,
            progress=lambda done, total: self.shown.append((done, total)),
            resumed=dict(self.saved),
            resumed_pods=dict(self.pods),
            arrivals=self.arrivals,
        )

    def run(self, job: RegenerationJob, *providers: PodProvider, limits: Limits = LIMITS) -> Regeneration:
        return asyncio.run(self.regenerate(job, *providers, limits=limits))

    def asked(self, pod: int) -> list[dict[str, Any]]:
        path = self.folder / f"{pod}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def images(self) -> list[int]:
        return [int(text) for path in self.folder.glob("*.pid") if (text := path.read_text())]

    def alive(self) -> list[int]:
        return [pid for pid in self.images() if runs(pid)]


def rented(cloud: Cloud, **credentials: str) -> PodProvider:
    """The real provider, its unmodified SDK pointed at the double."""
    if isinstance(cloud, Targon):
        return TargonPods(credentials.get("key", targon_double.KEY), "h200-small", cloud.root)
    secret = credentials.get("key", verda_double.SECRET)
    return VerdaPods(verda_double.CLIENT, secret, verda_double.KEY, "H200", 1, f"{cloud.root}/v1")


@contextmanager
def world_of(form: str, folder: Path) -> Iterator[World]:
    """A world whose pods are local, targon's or verda's, looked at often. Afterwards none may be left."""
    clouds: dict[str, Cloud] = {"targon": Targon(), "verda": Verda()}
    with pytest.MonkeyPatch.context() as patch, serving(clouds[form]) if form in clouds else nullcontext() as cloud:
        patch.setattr(fleet, "POLL_SECONDS", 0.05)
        world = World(folder, cloud=cloud)
        yield world
        assert world.alive() == [], "pods are left"


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def prompts(count: int) -> list[Stem]:
    return [f"p{i}" for i in range(count)]


def limits(**changes: float) -> Limits:
    return LIMITS.model_copy(update=changes)
