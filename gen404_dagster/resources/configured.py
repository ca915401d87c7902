"""The parts as Dagster resources: typed configuration in, one working part out.

Belongs here: which fields a part takes and how it is made. Does not: what a part does (its own module), where the
values come from (`gen404_dagster.settings`). Parts are kept for the life of the process: a run of a simulation and the
next share one network, one git mirror. https://docs.dagster.io/guides/build/external-resources
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, SecretStr

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.stages import LANE_OF_JOB, Lane
from gen404_dagster.errors import OperatorError
from gen404_dagster.partitions import split_miner_key
from gen404_dagster.resources.builds import BuildTracker, SimulatedBuilds
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.chain import Chain, SimulatedChain
from gen404_dagster.resources.embedder import Embedder, make_embedder
from gen404_dagster.resources.entropy import DerivedEntropy, Entropy, SecretEntropy
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import Judge, make_judge
from gen404_dagster.resources.lanes import LaneLocks
from gen404_dagster.resources.object_store import LocalObjectStore, ObjectStore
from gen404_dagster.resources.pods.local import LocalPods
from gen404_dagster.resources.pods.protocol import PodProvider
from gen404_dagster.resources.recorded_folder import RecordedFolder, is_recorded_folder
from gen404_dagster.resources.renderer import Renderer
from gen404_dagster.resources.state_repo import StateRepository
from gen404_dagster.settings import Settings

LANE_TAG = "gen404/lane"
TOKEN_TAG = "gen404/token"
"""Tags of a run: the lane it holds ("<round>/<lane>") and the piece of work it does."""

ADOPT_TAG = "gen404/adopt"
BACKFILL_TAG = "dagster/backfill"
"""Tags of a run that only adopts what is recorded: Dagster gives the second to each run of a backfill."""
BACKFILL_LANE = "backfill"
"""Such a run waits for no lane of its round and holds this one, so that its death is noticed too."""

LANE_OF_ASSET = {
    "match_matrix": Lane.DUELS,
    "audit_requests": Lane.DUELS,
    "leader_baseline": Lane.PODS,
    "builds": Lane.PODS,
    "generation_audits": Lane.PODS,
}


class StateRepositoryResource(dg.ConfigurableResource):
    """The competition's git repository: the truth. A plain folder of its files can be read, not written."""

    remote: str = Field(description="URL or path of the repository.")
    mirror: str = Field(description="Folder of the local bare mirror.")
    branch: str = "main"
    author: str = "gen404-dagster <gen404@localhost>"

    def get(self) -> StateRepository:
        if not self.remote:
            raise OperatorError("GEN404_STATE_REPO is not set: name the competition's git repository, or run `make ui`")
        if is_recorded_folder(self.remote):
            return RecordedFolder(Path(self.remote))
        return _state_repository(self.remote, self.mirror, self.branch, self.author)


@cache
def _state_repository(remote: str, mirror: str, branch: str, author: str) -> StateRepository:
    return StateRepository(remote, Path(mirror), branch=branch, author=author)


class JournalResource(dg.ConfigurableResource):
    """Checkpoints of work in progress. Losing it costs work, never correctness."""

    path: str
    repository: str = Field(description="State repository that the checkpoints belong to.")

    @property
    def folder(self) -> Path:
        """The pipeline's folder of data, in which the journal lies."""
        return Path(self.path).parent

    def get(self) -> Journal:
        return _journal(self.path, self.repository)


@cache
def _journal(path: str, repository: str) -> Journal:
    return Journal(Path(path), repository)


class LocalStoreResource(dg.ConfigurableResource):
    """3D files and previews in a local folder that something serves at `base_url`."""

    root: str
    base_url: str

    def get(self) -> ObjectStore:
        return LocalObjectStore(Path(self.root), self.base_url)


class SimulatedChainResource(dg.ConfigurableResource):
    """The chain of the embedded world."""

    world: str

    def get(self) -> Chain:
        return SimulatedChain(self.world)


class SimulatedBuildsResource(dg.ConfigurableResource):
    """The build registry of the embedded world."""

    world: str
    docker_image_template: str

    def get(self) -> BuildTracker:
        return SimulatedBuilds(self.world)


class CdnResource(dg.ConfigurableResource):
    """The guarded downloader of miners' files and prompt pictures."""

    allow_private_network: bool = False

    def get(self, limits: Limits, entropy: Entropy) -> Downloads:
        """Enter it (`async with`) where files are fetched."""
        return Downloads(limits, self.allow_private_network, entropy.generator("download jitter"))


class EntropyResource(dg.ConfigurableResource):
    """Where round seeds come from; `seed` only in simulations."""

    seed: int | None = None

    def get(self) -> Entropy:
        return SecretEntropy() if self.seed is None else DerivedEntropy(self.seed)


class RendererResource(dg.ConfigurableResource):
    """Previews of 3D files."""

    backend: str = "auto"

    def get(self) -> Renderer:
        return Renderer(self.backend)


class EmbedderResource(dg.ConfigurableResource):
    """The network behind distances and the embedded judge."""

    network: str = "efficientnet"

    def get(self) -> Embedder:
        return _embedder(self.network)


@cache
def _embedder(network: str) -> Embedder:
    return make_embedder(Settings(embedder=network))


class JudgeResource(dg.ConfigurableResource):
    """Who judges duels."""

    form: str = "embedded"
    model: str = ""
    images: str = "auto"
    base_url: str = ""
    api_key: str = Field("", description="Name the environment variable (EnvVar), never the key.")
    timeout_seconds: float = 30.0
    max_tokens: int = 1024
    cdn_url: str = ""

    def get(self, embedder: Embedder) -> Judge:
        values: dict[str, Any] = {
            "judge": self.form,
            "judge_model": self.model,
            "judge_images": self.images,
            "openai_base_url": self.base_url,
            "openai_api_key": SecretStr(self.api_key),
            "judge_timeout_seconds": self.timeout_seconds,
            "judge_max_tokens": self.max_tokens,
            "cdn_url": self.cdn_url,
        }
        key = (self.form, self.model, self.images, self.base_url, self.api_key, self.cdn_url)
        if key not in _judges:
            _judges[key] = make_judge(Settings(**values), embedder)
        return _judges[key]


_judges: dict[tuple[str, ...], Judge] = {}


class PodsResource(dg.ConfigurableResource):
    """Rented (or local) machines that run miners' images; providers in the order in which they are tried."""

    providers: list[str] = Field(default_factory=lambda: ["local"])
    local_image_command: str = ""
    folder: str

    def get(self) -> list[PodProvider]:
        return [self._provider(name) for name in self.providers]

    def _provider(self, name: str) -> PodProvider:
        if name == "local":
            if not self.local_image_command:
                raise OperatorError(
                    "GEN404_LOCAL_IMAGE_COMMAND is not set: local pods need the command that serves an image"
                )
            return _local_pods(self.local_image_command, self.folder)
        raise OperatorError(f"GPU_PROVIDERS names {name!r}: known are local")


@cache
def _local_pods(command: str, folder: str) -> LocalPods:
    return LocalPods(command, Path(folder))


class LimitsResource(dg.ConfigurableResource):
    """The limits of the rules."""

    values: dict[str, Any] = Field(default_factory=dict)

    def get(self) -> Limits:
        return Limits(**self.values)


class LaneResource(dg.ConfigurableResource):
    """Holds the run's lane from its first step to its end. A run that cannot have it ends at once."""

    folder: str

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator["LaneResource", None, None]:
        number, lane = lane_of_run(context.run) if context.run else (None, None)
        if number is None or lane is None:
            yield self
        else:
            with LaneLocks(Path(self.folder)).hold(number, lane):
                yield self

    def locks(self) -> LaneLocks:
        return LaneLocks(Path(self.folder))


def only_adopts(run: dg.DagsterRun) -> bool:
    """Whether a run may only read what is recorded, whatever its round still lacks."""
    return ADOPT_TAG in run.tags or BACKFILL_TAG in run.tags


def lane_of_run(run: dg.DagsterRun) -> tuple[int | None, str | None]:
    """Round and lane that a run works on: from its tag, else from its partition and what it materializes."""
    tagged = run.tags.get(LANE_TAG)
    if tagged:
        number, _, lane = tagged.partition("/")
        return int(number), lane
    key = run.tags.get("dagster/partition") or run.tags.get("dagster/asset_partition_range_start")
    if key is None:
        return None, None
    if only_adopts(run) and "|" not in key:
        return int(key), BACKFILL_LANE
    names = {asset.path[-1] for asset in run.asset_selection or ()}
    lane = LANE_OF_JOB.get(run.job_name) or next((LANE_OF_ASSET[n] for n in names if n in LANE_OF_ASSET), Lane.MAIN)
    return split_miner_key(key)[0], str(lane)


def build_resources(settings: Settings) -> dict[str, dg.ConfigurableResource]:
    """Every part, as the settings choose it."""
    data = settings.data.absolute()
    return {
        "state": StateRepositoryResource(
            remote=settings.state_repo,
            mirror=str(data / "state.git"),
            branch=settings.state_branch,
            author=settings.git_author,
        ),
        "journal": JournalResource(path=str(data / "journal.sqlite"), repository=settings.state_repo),
        "store": LocalStoreResource(root=str(data / "store"), base_url=settings.cdn_url),
        "chain": SimulatedChainResource(world=settings.world),
        "build_registry": SimulatedBuildsResource(
            world=settings.world, docker_image_template=settings.docker_image_template
        ),
        "cdn": CdnResource(allow_private_network=settings.allow_private_network),
        "entropy": EntropyResource(seed=settings.entropy_seed),
        "renderer": RendererResource(backend=settings.render_backend),
        "embedder": EmbedderResource(network=settings.embedder),
        "judge": JudgeResource(
            form=settings.judge,
            model=settings.judge_model,
            images=settings.judge_images,
            base_url=settings.openai_base_url,
            api_key=settings.openai_api_key.get_secret_value()
            if settings.judge == "embedded"
            else dg.EnvVar("OPENAI_API_KEY"),
            timeout_seconds=settings.judge_timeout_seconds,
            max_tokens=settings.judge_max_tokens,
            cdn_url=settings.cdn_url,
        ),
        "pods": PodsResource(
            providers=[name.strip() for name in settings.gpu_providers.split(",") if name.strip()],
            local_image_command=settings.local_image_command,
            folder=str(data / "pods"),
        ),
        "limits": LimitsResource(values=settings.limits.model_dump(exclude_defaults=True)),
        "lane": LaneResource(folder=str(data / "locks")),
    }
