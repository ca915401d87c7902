"""The parts as Dagster resources: typed configuration in, one working part out.

Belongs here: which fields a part takes and how it is made. Does not: what a part does (its own module), where the
values come from (`gen404_dagster.settings`). Parts are kept for the life of the process: a run of a simulation and the
next share one network, one git mirror. https://docs.dagster.io/guides/build/external-resources
"""

import os
import re
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, SecretStr

from gen404_dagster.competition.judging import Prices
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.news import Kind
from gen404_dagster.competition.stages import LANE_OF_JOB, Lane
from gen404_dagster.errors import OperatorError
from gen404_dagster.partitions import split_miner_key
from gen404_dagster.resources.builds import BuildTracker, SimulatedBuilds, check_template
from gen404_dagster.resources.builds.github import GitHubBuilds, github_repository
from gen404_dagster.resources.cdn import Downloads, public_hosts
from gen404_dagster.resources.chain import Chain, SimulatedChain, SimulatedValidator, Validator
from gen404_dagster.resources.chain.bittensor import BittensorChain, BittensorValidator
from gen404_dagster.resources.embedder import Embedder, make_embedder
from gen404_dagster.resources.entropy import DerivedEntropy, Entropy, SecretEntropy
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import Judge, make_judge
from gen404_dagster.resources.lanes import LaneLocks
from gen404_dagster.resources.notifier import Notifier
from gen404_dagster.resources.object_store import LocalObjectStore, ObjectStore
from gen404_dagster.resources.outbox import Outbox
from gen404_dagster.resources.pods.docker import DockerPods
from gen404_dagster.resources.pods.local import LocalPods
from gen404_dagster.resources.pods.protocol import PodProvider, instance_of
from gen404_dagster.resources.pods.targon import TargonPods
from gen404_dagster.resources.pods.verda import VerdaPods
from gen404_dagster.resources.pods.workshop import Workshop
from gen404_dagster.resources.recorded_folder import RecordedFolder, is_recorded_folder
from gen404_dagster.resources.renderer import Renderer, shared_renderer
from gen404_dagster.resources.state_repo import StateRepository, check_remote
from gen404_dagster.settings import Settings, load_settings

LANE_TAG = "gen404/lane"
TOKEN_TAG = "gen404/token"
"""Tags of a run: the lane it holds ("<round>/<lane>") and the piece of work it does."""

ADOPT_TAG = "gen404/adopt"
BACKFILL_TAG = "dagster/backfill"
"""Tags of a run that only adopts what is recorded: Dagster gives the second to each run of a backfill."""
BACKFILL_LANE = "backfill"
"""Such a run waits for no lane of its round and holds this one, so that its death is noticed too."""

NO_ROUND, WEIGHTS_LANE = -1, "weights"
"""Setting weights belongs to no round; two runs at once would send them twice."""

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
    token: str = Field(default="", repr=False, description="Name the environment variable (EnvVar), never the token.")
    ssh_key: str = Field(default="", description="File of the key for an ssh remote.")

    def get(self) -> StateRepository:
        if not self.remote:
            raise OperatorError("GEN404_STATE_REPO is not set: name the competition's git repository, or run `make ui`")
        if is_recorded_folder(self.remote):
            return RecordedFolder(Path(self.remote))
        # Outside of Dagster's runs (driver, command line) the variable has not been read yet.
        token = self.token.get_value() if isinstance(self.token, dg.EnvVar) else self.token
        return _state_repository(self.remote, self.mirror, self.branch, self.author, token or "", self.ssh_key)


@cache
def _state_repository(remote: str, mirror: str, branch: str, author: str, token: str, ssh_key: str) -> StateRepository:
    return StateRepository(remote, Path(mirror), branch=branch, author=author, token=token, ssh_key=ssh_key)


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


class StoreResource(dg.ConfigurableResource):
    """3D files, previews and answers: a local folder that something serves at `base_url`, or a bucket of S3."""

    form: str = "local"
    base_url: str
    root: str = Field(default="", description="The local form's folder.")
    endpoint: str = ""
    access_key_id: str = Field(default="", repr=False, description="Name the environment variable (EnvVar).")
    secret_access_key: str = Field(
        default="", repr=False, description="Name the environment variable (EnvVar), never the secret."
    )
    bucket: str = ""

    def get(self) -> ObjectStore:
        if self.form == "s3":
            return _s3_store(self.endpoint, self.access_key_id, self.secret_access_key, self.bucket, self.base_url)
        return LocalObjectStore(Path(self.root), self.base_url)


@cache
def _s3_store(endpoint: str, access_key_id: str, secret_access_key: str, bucket: str, base_url: str) -> ObjectStore:
    try:
        from gen404_dagster.resources.object_store.s3 import open_s3
    except ImportError as error:
        raise OperatorError(
            f"GEN404_STORE=s3 needs {error.name}: install it with `pip install 'gen404-dagster[validator]'`"
        ) from error
    return open_s3(endpoint, access_key_id, secret_access_key, bucket, base_url)


class ChainResource(dg.ConfigurableResource):
    """The chain that is read: Bittensor's, or the embedded world's."""

    form: str = "simulated"
    world: str = ""
    endpoints: str = ""
    netuid: int = 17
    genesis: str = ""
    memory: str = Field("", description="File that keeps the chain's genesis and highest finalized block.")

    def get(self) -> Chain:
        return self.bittensor() if self.form == "bittensor" else SimulatedChain(self.world)

    def bittensor(self) -> BittensorChain:
        return _bittensor_chain(self.endpoints, self.netuid, self.memory, self.genesis)


@cache
def _bittensor_chain(endpoints: str, netuid: int, memory: str, genesis: str) -> BittensorChain:
    addresses = [address.strip() for address in endpoints.split(",") if address.strip()]
    return BittensorChain(addresses, netuid, Path(memory), genesis)


class ValidatorResource(dg.ConfigurableResource):
    """Who sets weights. The key stays in the wallet until the asset `weights` signs with it."""

    set_weights: bool = Field(False, description="False: weights are worked out and shown, never sent.")
    wallet: str = Field("", description="Name of the wallet; in the embedded world the validator's hotkey.")
    hotkey: str = "default"
    path: str = Field("", description="Folder of wallets; empty: the SDK's own.")

    def get(self, chain: ChainResource) -> Validator | None:
        """None: no wallet is configured."""
        if not self.wallet:
            return None
        if chain.form == "bittensor":
            return BittensorValidator(chain.bittensor(), self.wallet, self.hotkey, self.path)
        return SimulatedValidator(chain.world, self.wallet)


class BuildsResource(dg.ConfigurableResource):
    """Where miners' docker images are built, and how they are named."""

    form: str = "simulated"
    world: str = ""
    repository: str = Field("", description="owner/name of the repository whose workflow builds images.")
    branch: str = "main"
    token: str = Field("", description="Name the environment variable (EnvVar), never the token.")
    url: str = ""
    docker_image_template: str

    def get(self) -> BuildTracker:
        if self.form == "github":
            return _github_builds(self.repository, self.token, self.branch, self.url)
        return SimulatedBuilds(self.world)


_github_builds = cache(GitHubBuilds)


class CdnResource(dg.ConfigurableResource):
    """The guarded downloader of miners' files and prompt pictures."""

    allow_private_network: bool = False
    known_hosts: list[str] = Field(default_factory=list)

    def get(self, limits: Limits, entropy: Entropy) -> Downloads:
        """Enter it (`async with`) where files are fetched."""
        jitter = entropy.generator("download jitter")
        return Downloads(limits, self.allow_private_network, jitter, known_hosts=self.known_hosts)


class EntropyResource(dg.ConfigurableResource):
    """Where round seeds come from; `seed` only in simulations."""

    seed: int | None = None

    def get(self) -> Entropy:
        return SecretEntropy() if self.seed is None else DerivedEntropy(self.seed)


class RendererResource(dg.ConfigurableResource):
    """Previews of 3D files, made in processes that are limited in memory and time."""

    backend: str = "auto"
    workers: int = 2
    seconds: float = 60.0
    memory_bytes: int = 4 * 1024**3

    def get(self) -> Renderer:
        return shared_renderer(self.backend, self.workers, self.memory_bytes, self.seconds)


class EmbedderResource(dg.ConfigurableResource):
    """The network behind distances and the embedded judge."""

    network: str = "efficientnet"
    path: str = ""
    revision: str = ""
    device: str = "auto"
    batch: int = 32
    data: str = Field(description="The pipeline's folder of data, which keeps embeddings.")

    def get(self) -> Embedder:
        return _embedder(self.network, self.path, self.revision, self.device, self.batch, self.data)


@cache
def _embedder(network: str, path: str, revision: str, device: str, batch: int, data: str) -> Embedder:
    chosen: dict[str, Any] = {
        "embedder": network,
        "embedder_path": path or None,
        "embedder_device": device,
        "embedder_batch": batch,
        "data": data,
    }
    # The token is read where it is used: it is no part of a run's configuration.
    return make_embedder(load_settings(**chosen, **({"embedder_revision": revision} if revision else {})))


class JudgeResource(dg.ConfigurableResource):
    """Who judges duels."""

    form: str = "embedded"
    model: str = ""
    images: str = "auto"
    base_url: str = ""
    api_key: str = Field("", description="Name the environment variable (EnvVar), never the key.")
    timeout_seconds: float = 30.0
    max_tokens: int = 1024
    concurrency: int = Field(16, description="Questions to one endpoint at once.")
    repeats: int = Field(1, description="How often each question is asked.")
    early_exit: bool = Field(False, description="Whether a match ends when its win_margin is out of reach.")
    prompt_price: float = Field(0.0, description="Of a million tokens; 0: unknown.")
    completion_price: float = Field(0.0, description="Of a million tokens; 0: unknown.")
    cdn_url: str = ""

    @property
    def prices(self) -> Prices:
        return Prices(prompt=self.prompt_price, completion=self.completion_price)

    def get(self, embedder: Embedder) -> Judge:
        """Enter it (`async with`) where questions are asked. The embedded one is shared: it remembers pictures."""
        values: dict[str, Any] = {
            "judge": self.form,
            "judge_model": self.model,
            "judge_images": self.images,
            "openai_base_url": self.base_url,
            "openai_api_key": SecretStr(self.api_key),
            "judge_timeout_seconds": self.timeout_seconds,
            "judge_max_tokens": self.max_tokens,
            "cdn_url": self.cdn_url,
            "limits": Limits(judge_concurrency=self.concurrency),
        }
        if self.form != "embedded":
            return make_judge(Settings(**values), embedder)
        if embedder.model.revision not in _embedded_judges:
            _embedded_judges[embedder.model.revision] = make_judge(Settings(**values), embedder)
        return _embedded_judges[embedder.model.revision]


_embedded_judges: dict[str, Judge] = {}


class PodsResource(dg.ConfigurableResource):
    """Rented (or local) machines that run miners' images; providers in the order in which they are tried."""

    providers: list[str] = Field(default_factory=lambda: ["local"])
    instance: str = Field("", description="Names this pipeline's pods.")
    local_image_command: str = ""
    folder: str
    docker_run_options: str = ""
    targon_api_key: str = Field("", description="Name the environment variable (EnvVar), never the key.")
    targon_resource: str = ""
    targon_url: str = ""
    verda_client_id: str = Field("", description="Name the environment variable (EnvVar).")
    verda_client_secret: str = Field("", description="Name the environment variable (EnvVar), never the secret.")
    verda_inference_key: str = Field("", description="Name the environment variable (EnvVar), never the key.")
    verda_compute: str = ""
    verda_gpus: int = 1
    verda_url: str = ""

    def get(self) -> list[PodProvider]:
        """Raises OperatorError naming the variable that is wrong or missing."""
        if not self.providers:
            raise OperatorError(f"GPU_PROVIDERS is empty: known are {', '.join(PROVIDERS)}")
        return [self._provider(name) for name in self.providers]

    def _provider(self, name: str) -> PodProvider:
        if name == "local":
            if not self.local_image_command:
                raise OperatorError(
                    "GEN404_LOCAL_IMAGE_COMMAND is not set: local pods need the command that serves an image"
                )
            return _local_pods(self.local_image_command, self.folder)
        if name == "docker":
            return _docker_pods(self.docker_run_options)
        if name == "targon":
            return _targon_pods(self.targon_api_key, self.targon_resource, self.targon_url)
        if name == "verda":
            return _verda_pods(
                self.verda_client_id,
                self.verda_client_secret,
                self.verda_inference_key,
                self.verda_compute,
                self.verda_gpus,
                self.verda_url,
            )
        raise OperatorError(f"GPU_PROVIDERS names {name!r}: known are {', '.join(PROVIDERS)}")


PROVIDERS = ("local", "docker", "targon", "verda")


@cache
def _local_pods(command: str, folder: str) -> LocalPods:
    return LocalPods(command, Path(folder))


_docker_pods, _targon_pods, _verda_pods = cache(DockerPods), cache(TargonPods), cache(VerdaPods)


class NotifierResource(dg.ConfigurableResource):
    """Who is told what happens."""

    addresses: str = Field("", repr=False, description="Name the environment variable (EnvVar): addresses are secrets.")
    events: list[str] = Field(description="Kinds of news that are told.")
    outbox_path: str = Field(description="File of messages that wait.")
    dagster_url: str = ""

    def get(self) -> Notifier:
        """Raises OperatorError for an address that nothing is known of."""
        return _notifier(self.addresses)

    def outbox(self) -> Outbox:
        return Outbox(Path(self.outbox_path))

    def chosen(self) -> list[Kind]:
        return [Kind(event) for event in self.events]

    def run_link(self, run_id: str) -> str | None:
        """Page of a run, when the UI's address is known."""
        return f"{self.dagster_url.rstrip('/')}/runs/{run_id}" if self.dagster_url else None


_notifier = cache(Notifier)


class LimitsResource(dg.ConfigurableResource):
    """The limits of the rules."""

    values: dict[str, Any] = Field(default_factory=dict)

    def get(self) -> Limits:
        return Limits(**self.values)


class WorkshopResource(dg.ConfigurableResource):
    """What regenerates, renders, stores and measures: the parts of a baseline or an audit as one."""

    store: StoreResource
    journal: JournalResource
    renderer: RendererResource
    embedder: EmbedderResource
    cdn: CdnResource
    entropy: EntropyResource
    pods: PodsResource
    limits: LimitsResource
    locks: str = Field(description="Folder of the lanes' locks.")

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Workshop]:
        """For one run; the renderer begins to load at once."""
        self.renderer.get().start()
        limits = self.limits.get()
        async with self.cdn.get(limits, self.entropy.get()) as downloader:
            yield Workshop(
                providers=self.pods.get(),
                store=self.store.get(),
                journal=self.journal.get(),
                renderer=self.renderer.get(),
                embedder=self.embedder.get(),
                downloader=downloader,
                limits=limits,
                instance=self.pods.instance,
                locks=LaneLocks(Path(self.locks)),
                folder=self.journal.folder,
            )


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
    if run.job_name == "set_weights" or {asset.path[-1] for asset in run.asset_selection or ()} == {"weights"}:
        return NO_ROUND, WEIGHTS_LANE
    key = run.tags.get("dagster/partition") or run.tags.get("dagster/asset_partition_range_start")
    if key is None:
        return None, None
    if only_adopts(run) and "|" not in key:
        return int(key), BACKFILL_LANE
    names = {asset.path[-1] for asset in run.asset_selection or ()}
    lane = LANE_OF_JOB.get(run.job_name) or next((LANE_OF_ASSET[n] for n in names if n in LANE_OF_ASSET), Lane.MAIN)
    return split_miner_key(key)[0], str(lane)


def _secret(variable: str, value: SecretStr) -> Any:
    """A secret as Dagster's configuration holds it: the variable's name, since values are shown in the UI.

    One that stands in the file GEN404_ENV_FILE is put into the environment first. A missing one stays empty, for the
    part to name it.
    """
    if not value.get_secret_value():
        return ""
    os.environ.setdefault(variable, value.get_secret_value())
    return dg.EnvVar(variable)


def _endpoints(addresses: str) -> Any:
    """The chain's endpoints, which may hold a provider's key in what follows or precedes the host."""
    only_hosts = all(re.fullmatch(r"wss?://[\w.:\[\]-]+/?", address.strip()) for address in addresses.split(","))
    return addresses if only_hosts else _secret("SUBTENSOR_ENDPOINT", SecretStr(addresses))


def open_store(settings: Settings) -> ObjectStore:
    """The configured store, for code outside of Dagster's runs."""
    store = _store(settings)
    if store.form == "local":
        return store.get()
    keys = settings.r2_access_key_id.get_secret_value(), settings.r2_secret_access_key.get_secret_value()
    return _s3_store(settings.r2_endpoint, *keys, settings.r2_bucket, settings.cdn_url)


def _store(settings: Settings) -> StoreResource:
    """The store as configured. Raises OperatorError for missing settings, before any work."""
    if settings.store == "local":
        return StoreResource(base_url=settings.cdn_url, root=str(settings.data.absolute() / "store"))
    given = {
        "R2_ENDPOINT": settings.r2_endpoint,
        "R2_ACCESS_KEY_ID": settings.r2_access_key_id.get_secret_value(),
        "R2_SECRET_ACCESS_KEY": settings.r2_secret_access_key.get_secret_value(),
        "R2_BUCKET": settings.r2_bucket,
        "CDN_URL": settings.cdn_url,
    }
    missing = [variable for variable, value in given.items() if not value]
    if missing:
        raise OperatorError(f"GEN404_STORE=s3 needs {', '.join(missing)}")
    return StoreResource(
        form="s3",
        base_url=settings.cdn_url,
        endpoint=settings.r2_endpoint,
        access_key_id=_secret("R2_ACCESS_KEY_ID", settings.r2_access_key_id),
        secret_access_key=_secret("R2_SECRET_ACCESS_KEY", settings.r2_secret_access_key),
        bucket=settings.r2_bucket,
    )


def _builds(settings: Settings) -> BuildsResource:
    """Builds as configured. Raises OperatorError for a missing token, repository or template, before any work."""
    repository = settings.builds_repo or github_repository(settings.state_repo)
    if settings.builds == "github":
        GitHubBuilds(repository, settings.github_token.get_secret_value())
        # An image of a wrong name is never deployed, for which its miner would be rejected.
        if "docker_image_template" not in settings.model_fields_set or not settings.docker_image_template:
            raise OperatorError(
                "GEN404_DOCKER_IMAGE_TEMPLATE is not set: GEN404_BUILDS=github needs the name under which the builds push "
                "their images"
            )
        check_template(settings.docker_image_template)
    return BuildsResource(
        form=settings.builds,
        world=settings.world,
        repository=repository,
        branch=settings.state_branch,
        token=_secret("GITHUB_TOKEN", settings.github_token) if settings.builds == "github" else "",
        url=settings.github_url,
        docker_image_template=settings.docker_image_template,
    )


def _pods(settings: Settings, data: Path) -> PodsResource:
    """Pods as configured. Raises OperatorError for an unknown provider or missing credentials, before any work."""
    names = [name.strip() for name in settings.gpu_providers.split(",") if name.strip()]
    targon, verda = "targon" in names, "verda" in names
    unknown = [name for name in names if name not in PROVIDERS]
    if unknown or not names:
        raise OperatorError(f"GPU_PROVIDERS names {', '.join(unknown) or 'none'}: known are {', '.join(PROVIDERS)}")
    needed = {
        "TARGON_API_KEY": targon and not settings.targon_api_key.get_secret_value(),
        "VERDA_CLIENT_ID": verda and not settings.verda_client_id.get_secret_value(),
        "VERDA_CLIENT_SECRET": verda and not settings.verda_client_secret.get_secret_value(),
        "VERDA_INFERENCE_KEY": verda and not settings.verda_inference_key.get_secret_value(),
    }
    missing = [variable for variable, is_missing in needed.items() if is_missing]
    if missing:
        raise OperatorError(f"GPU_PROVIDERS={settings.gpu_providers} needs {', '.join(missing)}")
    return PodsResource(
        providers=names,
        instance=instance_of(settings.state_repo),
        local_image_command=settings.local_image_command,
        folder=str(data / "pods"),
        docker_run_options=settings.docker_run_options,
        targon_api_key=_secret("TARGON_API_KEY", settings.targon_api_key) if targon else "",
        targon_resource=settings.targon_resource,
        targon_url=settings.targon_url,
        verda_client_id=_secret("VERDA_CLIENT_ID", settings.verda_client_id) if verda else "",
        verda_client_secret=_secret("VERDA_CLIENT_SECRET", settings.verda_client_secret) if verda else "",
        verda_inference_key=_secret("VERDA_INFERENCE_KEY", settings.verda_inference_key) if verda else "",
        verda_compute=settings.verda_compute,
        verda_gpus=settings.verda_gpus,
        verda_url=settings.verda_url,
    )


def _notifier_resource(settings: Settings, data: Path) -> NotifierResource:
    """Notifications as configured. Raises OperatorError for an unknown kind of event, before any work."""
    events = [event.strip() for event in settings.notify_events.split(",") if event.strip()]
    unknown = [event for event in events if event not in list(Kind)]
    if unknown:
        raise OperatorError(f"GEN404_NOTIFY_EVENTS names {', '.join(unknown)}: known are {', '.join(Kind)}")
    return NotifierResource(
        addresses=_secret("GEN404_NOTIFY", settings.notify),
        events=events,
        outbox_path=str(data / "notifications.sqlite"),
        dagster_url=settings.dagster_url,
    )


def _state(settings: Settings, data: Path) -> StateRepositoryResource:
    """The state repository as configured. Raises OperatorError for an address with credentials, before any work."""
    check_remote(settings.state_repo, settings.github_token.get_secret_value())
    return StateRepositoryResource(
        remote=settings.state_repo,
        mirror=str(data / "state.git"),
        branch=settings.state_branch,
        author=settings.git_author,
        token=_secret("GITHUB_TOKEN", settings.github_token),
        ssh_key=settings.git_ssh_key,
    )


def build_resources(
    settings: Settings, overrides: Mapping[str, dg.ConfigurableResource] | None = None
) -> dict[str, dg.ConfigurableResource]:
    """Every part, as the settings choose it or `overrides` has it."""
    data = settings.data.absolute()
    parts: dict[str, Any] = {
        "state": _state(settings, data),
        "journal": JournalResource(path=str(data / "journal.sqlite"), repository=settings.state_repo),
        "store": _store(settings),
        "chain": ChainResource(
            form=settings.chain,
            world=settings.world,
            endpoints=_endpoints(settings.subtensor_endpoint),
            netuid=settings.netuid,
            genesis=settings.genesis_hash,
            memory=str(data / "chain.json"),
        ),
        "validator": ValidatorResource(
            set_weights=settings.set_weights,
            wallet=settings.wallet_name,
            hotkey=settings.wallet_hotkey,
            path=settings.wallet_path,
        ),
        "build_registry": _builds(settings),
        "cdn": CdnResource(
            allow_private_network=settings.allow_private_network,
            known_hosts=public_hosts(settings.state_repo, settings.r2_endpoint, settings.cdn_url),
        ),
        "entropy": EntropyResource(seed=settings.entropy_seed),
        "renderer": RendererResource(
            backend=settings.render_backend,
            workers=settings.limits.render_concurrency,
            seconds=settings.limits.render_seconds,
            memory_bytes=settings.limits.render_memory_bytes,
        ),
        "embedder": EmbedderResource(
            network=settings.embedder,
            path=str(settings.embedder_path.absolute()) if settings.embedder_path else "",
            revision=settings.embedder_revision,
            device=settings.embedder_device,
            batch=settings.embedder_batch,
            data=str(data),
        ),
        "judge": JudgeResource(
            form=settings.judge,
            model=settings.judge_model,
            images=settings.judge_images,
            base_url=settings.openai_base_url,
            api_key="" if settings.judge == "embedded" else _secret("OPENAI_API_KEY", settings.openai_api_key),
            timeout_seconds=settings.judge_timeout_seconds,
            max_tokens=settings.judge_max_tokens,
            concurrency=settings.limits.judge_concurrency,
            repeats=settings.judge_repeats,
            early_exit=settings.early_exit,
            prompt_price=settings.judge_prompt_price,
            completion_price=settings.judge_completion_price,
            cdn_url=settings.cdn_url,
        ),
        "pods": _pods(settings, data),
        "notifier": _notifier_resource(settings, data),
        "limits": LimitsResource(values=settings.limits.model_dump(exclude_defaults=True)),
        "lane": LaneResource(folder=str(data / "locks")),
        **(overrides or {}),
    }
    inside = {name: parts[name] for name in WorkshopResource.model_fields if name in parts}
    return {"workshop": WorkshopResource(**inside, locks=str(data / "locks")), **parts}
