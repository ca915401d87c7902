"""Verification: what a leader's or a candidate's own image really generates.

The leader's baseline before the duels, the builds of miners' images, and the audits: regenerate, render, compare with
what was submitted, give a verdict. Each prompt is checkpointed in the journal; a miner's files are committed when its
audit ends.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from gen404_dagster.assets import checks
from gen404_dagster.assets.common import (
    Progress,
    adopted,
    commit,
    described,
    gather_all,
    is_adopted,
    not_yet,
    round_number,
    round_spec,
)
from gen404_dagster.assets.describe import Metadata, stored_gallery
from gen404_dagster.competition import audits, models, paths
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    LEADER,
    AuditOutcome,
    AuditRequest,
    Build,
    BuildStatus,
    GenerationAudit,
    GenerationResult,
    Hotkey,
    PodStats,
    Results,
    Stage,
    Stem,
    stem_of,
    write_json,
)
from gen404_dagster.competition.stages import RoundState, builds_settled, token
from gen404_dagster.errors import MinerFault
from gen404_dagster.partitions import across
from gen404_dagster.resources.builds import BuildRun, build_tag, docker_image
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.configured import (
    CdnResource,
    EmbedderResource,
    EntropyResource,
    JournalResource,
    LaneResource,
    LimitsResource,
    LocalStoreResource,
    PodsResource,
    RendererResource,
    SimulatedBuildsResource,
    StateRepositoryResource,
)
from gen404_dagster.resources.embedder import Embedder
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.object_store import GLB, PNG, ObjectStore
from gen404_dagster.resources.pods.fleet import Accepted, Regeneration, RegenerationJob, regenerate
from gen404_dagster.resources.pods.protocol import PodProvider
from gen404_dagster.resources.prompt_pictures import PromptPictures
from gen404_dagster.resources.renderer import Renderer
from gen404_dagster.resources.round_files import read_results, read_round
from gen404_dagster.resources.state_repo import Change, Snapshot, Step

GROUP = "verification"


@dataclass(frozen=True)
class Workshop:
    """Everything a regeneration needs, put together once a run."""

    providers: Sequence[PodProvider]
    store: ObjectStore
    journal: Journal
    renderer: Renderer
    embedder: Embedder
    downloader: Downloads
    limits: Limits
    instance: str

    async def regenerate(
        self, round_: RoundState, hotkey: Hotkey, image: str, request: AuditRequest | None, submitted: Results | None,
        progress: Progress,
    ) -> Regeneration:  # fmt: skip
        """Run an image over the round's prompts; a restart goes on where the journal ends."""
        job = RegenerationJob(
            instance=self.instance,
            round=round_.number,
            hotkey=hotkey,
            image=image,
            seed=round_.seed or 0,
            prompts=list(dict.fromkeys(round_.stems)),
            critical=request.critical_prompts if request else (),
            submitted=submitted,
        )
        inputs = token(image, job.seed, job.prompts, submitted, self.renderer.version, self.embedder.revision)
        resumed = self._known(job, inputs)
        pictures = PromptPictures(self.store, self.downloader, self.limits.max_prompt_bytes)
        urls = {stem_of(url): url for url in round_.prompts or ()}
        unit = f"generated/{hotkey}"

        def checkpoint(stem: Stem, result: GenerationResult, pod: PodStats) -> None:
            self.journal.put(round_.number, f"{unit}/{stem}", inputs, result.model_dump(mode="json"))
            self.journal.put(round_.number, f"{unit}-pods/{pod.pod_id}", inputs, pod.model_dump(mode="json"))
            progress.step(hotkey[:10], count=0)

        def show(done: int, total: int) -> None:
            progress.done, progress.total = done, total
            progress.show(hotkey[:10])

        async def accept(stem: Stem, model: bytes) -> Accepted:
            reference = submitted.get(stem) if submitted else None
            return await asyncio.to_thread(self._accept, round_.number, hotkey, stem, model, reference)

        return await regenerate(
            job,
            self.providers,
            self.limits,
            prompt_picture=lambda stem: pictures.read(urls[stem]),
            accept=accept,
            checkpoint=checkpoint,
            progress=show,
            resumed=resumed,
            resumed_pods=self._known_pods(job, inputs),
        )

    def _known(self, job: RegenerationJob, inputs: str) -> Results:
        known = {
            stem: self.journal.get(job.round, f"generated/{job.hotkey}/{stem}", inputs)
            for stem in dict.fromkeys(job.prompts)
        }
        return {stem: GenerationResult.model_validate(value) for stem, value in known.items() if value is not None}

    def _known_pods(self, job: RegenerationJob, inputs: str) -> models.PodReport:
        unit = f"generated/{job.hotkey}-pods/"
        found = self.journal.units(job.round, unit)
        names = [name for name in found if self.journal.get(job.round, name, inputs) is not None]
        return {name.removeprefix(unit): PodStats.model_validate(found[name]) for name in names}

    def _accept(
        self, number: int, hotkey: Hotkey, stem: Stem, model: bytes, reference: GenerationResult | None
    ) -> Accepted:
        """Render, store, measure. A refused file is kept without preview, unless a better one is there."""
        glb_key = paths.object_key(number, hotkey, "generated", stem, "glb")
        png_key = paths.object_key(number, hotkey, "generated", stem, "png")
        try:
            picture = self.renderer.preview(model)
        except MinerFault:
            if not self.store.exists(glb_key):
                self.store.put(glb_key, model, GLB)
            return Accepted(glb=self.store.url(glb_key), png=None)
        distance = 0.0
        if reference is not None and reference.png is not None:
            key = self.store.key_of(reference.png)
            distance = self.embedder.distance(self.store.read(key or reference.png), picture)
        self.store.put(glb_key, model, GLB, overwrite=True)
        self.store.put(png_key, picture, PNG, overwrite=True)
        return Accepted(glb=self.store.url(glb_key), png=self.store.url(png_key), distance=distance)


def _instance(repository: str) -> str:
    """Names this pipeline's pods, so that another pipeline's are never touched."""
    return hashlib.sha256(repository.encode()).hexdigest()[:8]


@dg.multi_asset(
    name="leader_baseline",
    specs=[
        round_spec(
            "leader_baseline",
            "outputs",
            "What the leader's own image generates for the round's prompts and seed: what challengers are compared "
            "with. From MINER_GENERATION on; complete before any match against the leader.",
            kinds={"docker", "git"},
            deps=["seed", "prompts"],
        )
    ],
    check_specs=checks.specs_of("leader_baseline"),
    pool="pods",
)
def leader_baseline(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    journal: JournalResource,
    store: LocalStoreResource,
    cdn: CdnResource,
    entropy: EntropyResource,
    renderer: RendererResource,
    embedder: EmbedderResource,
    pods: PodsResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(
            repository, number, "leader_baseline", extra=_gallery(repository.head(fetch=False), number, LEADER, store)
        )
        return
    round_ = read_round(repository.head(), number)
    leader = round_.leader
    if round_.baseline_missing and leader is not None:
        progress = Progress(context, journal.get(), number, "baseline", len(round_.stems))
        progress.show(leader.docker)

        async def run() -> Regeneration:
            async with cdn.get(limits.get(), entropy.get()) as downloader:
                shop = Workshop(
                    pods.get(), store.get(), journal.get(), renderer.get(), embedder.get(), downloader, limits.get(),
                    _instance(state.remote),
                )  # fmt: skip
                return await shop.regenerate(round_, LEADER, leader.docker, None, None, progress)

        made = asyncio.run(run())
        if not made.deployed:
            raise dg.Failure(f"the leader's image {leader.docker} could not be deployed: see the pods' logs")
        _commit_generated(context, state, number, LEADER, made, None)
    yield described(
        "leader_baseline", repository, number, _gallery(repository.head(fetch=False), number, LEADER, store)
    )


def _gallery(snapshot: Snapshot, number: int, hotkey: Hotkey, store: LocalStoreResource) -> Metadata:
    objects = store.get()
    results = read_results(snapshot, number, hotkey, "generated") or {}
    keys = {stem: objects.key_of(result.png) if result.png else None for stem, result in results.items()}
    pictures = [(stem, objects.read(key) if key and objects.exists(key) else None) for stem, key in keys.items()]
    return stored_gallery("previews_gallery", pictures)


def _commit_generated(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    number: int,
    hotkey: Hotkey,
    made: Regeneration | None,
    verdict: GenerationAudit | None,
) -> None:
    """One commit when a regeneration ends: results, pods, and for a miner the verdict."""

    def decide(snapshot: Snapshot) -> Change | None:
        round_ = read_round(snapshot, number)
        known = round_.generation_audits or {}
        if verdict is not None and hotkey in known and known[hotkey].outcome != AuditOutcome.PENDING:
            return None
        if verdict is None and not round_.baseline_missing:
            return None
        if round_.state.current_round != number:
            return None
        files: dict[str, str | None] = {}
        if made is not None and made.deployed:
            known_results = read_results(snapshot, number, hotkey, "generated") or {}
            results = {
                stem: (known_results | made.results)[stem]
                for stem in round_.stems
                if stem in known_results | made.results
            }
            # The leader's baseline covers each prompt: one that never succeeded has an empty result.
            if verdict is None:
                results = {stem: results.get(stem, GenerationResult()) for stem in round_.stems}
            files[paths.results(number, hotkey, "generated")] = write_json(models.RESULTS, results)
        if made is not None and made.pods:
            files[paths.pod_stats(number, hotkey)] = write_json(models.POD_STATS, made.pods)
        if verdict is None:
            return Change(
                files, f"Record the leader's baseline of round {number}: {len(round_.stems)} prompts regenerated"
            )
        files[paths.generation_audits(number)] = write_json(models.GENERATION_AUDITS, {**known, hotkey: verdict})
        how = "passes" if verdict.outcome == AuditOutcome.PASSED else "fails"
        return Change(files, f"{hotkey[:10]} {how} its audit in round {number}", verdict.reason)

    if verdict is None:
        step = Step(number, "baseline", token(made.results if made else None))
    else:
        step = Step(number, "audit", token(verdict), unit=hotkey)
    commit(context, state.get(), step, decide)


@dg.multi_asset(
    name="builds",
    specs=[
        round_spec(
            "builds",
            GROUP,
            "The build of each miner's docker image, found by the opening's commit message. A job that is missing while "
            "the run goes on is looked for again.",
            kinds={"github", "git"},
            deps=["submissions"],
        )
    ],
    check_specs=checks.specs_of("builds"),
)
def builds(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    build_registry: SimulatedBuildsResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    repository, number, bounds = state.get(), round_number(context), limits.get()
    if is_adopted(context, repository):
        yield from adopted(repository, number, "builds")
        return
    deadline = time.monotonic() + bounds.build_timeout_seconds
    while True:
        round_ = read_round(repository.head(), number)
        if builds_settled(round_) and round_.builds is not None:
            break
        run = build_registry.get().run_of(number)
        timed_out = time.monotonic() > deadline

        def decide(snapshot: Snapshot, run: BuildRun = run, timed_out: bool = timed_out) -> Change | None:
            found = read_round(snapshot, number)
            entries = {
                hotkey: _build(hotkey, entry, found, run, timed_out, build_registry.docker_image_template)
                for hotkey, entry in (found.submissions or {}).items()
            }
            ready = sum(build.status == BuildStatus.SUCCESS for build in entries.values())
            subject = f"Record builds of round {number}: {ready} of {len(entries)} images are ready"
            return Change({paths.builds(number): write_json(models.BUILDS, entries)}, subject)

        commit(context, repository, Step(number, "builds", token(run.jobs, run.found, timed_out)), decide)
        if run.finished or timed_out:
            break
        time.sleep(bounds.build_poll_seconds)
    yield described("builds", repository, number)


def _build(
    hotkey: Hotkey, entry: models.Submission, round_: RoundState, run: BuildRun, timed_out: bool, template: str
) -> Build:
    known = (round_.builds or {}).get(hotkey)
    if known is not None and known.status in (BuildStatus.SUCCESS, BuildStatus.FAILURE, BuildStatus.TIMED_OUT):
        return known
    status, tag = run.status(hotkey), build_tag(entry.commit, round_.name)
    if timed_out and status in (BuildStatus.PENDING, BuildStatus.IN_PROGRESS):
        status = BuildStatus.TIMED_OUT
    image = docker_image(template, hotkey, tag) if status == BuildStatus.SUCCESS else None
    return Build(
        repo=entry.repo,
        commit=entry.commit,
        revealed_at_block=entry.revealed_at_block,
        tag=tag,
        status=status,
        docker_image=image,
    )


@dg.multi_asset(
    name="generation_audits",
    specs=[
        round_spec(
            "generation_audits",
            GROUP,
            "Verdicts on candidates: their own image regenerates every prompt with a valid submission. Rejected when too "
            "many previews differ from the submitted ones, critical prompts above all, or when it takes too long.",
            kinds={"docker", "torch", "git"},
            deps=["audit_requests", "builds", across("renders")],
        )
    ],
    check_specs=checks.specs_of("generation_audits"),
    pool="pods",
)
def generation_audits(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    journal: JournalResource,
    store: LocalStoreResource,
    cdn: CdnResource,
    entropy: EntropyResource,
    renderer: RendererResource,
    embedder: EmbedderResource,
    pods: PodsResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    """Audit until no request is open; requests that arrive meanwhile are taken up."""
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(
            repository, number, "generation_audits", extra=_audit_pictures(repository.head(fetch=False), number, store)
        )
        return

    async def audit_all() -> None:
        async with cdn.get(limits.get(), entropy.get()) as downloader:
            shop = Workshop(
                pods.get(), store.get(), journal.get(), renderer.get(), embedder.get(), downloader, limits.get(),
                _instance(state.remote),
            )  # fmt: skip
            while True:
                snapshot = await asyncio.to_thread(repository.head)
                round_ = read_round(snapshot, number)
                waiting = set(round_.standing().awaiting_generation)
                due = [request for request in round_.requests if request.hotkey in waiting]
                if not due or round_.state.current_round != number or round_.state.stage != Stage.DUELS:
                    return
                some = due[: limits.get().audits_at_once]
                await gather_all(*(_audit(context, state, shop, snapshot, round_, request) for request in some))

    asyncio.run(audit_all())
    if repository.head(fetch=False).exists(paths.generation_audits(number)):
        yield described(
            "generation_audits", repository, number, _audit_pictures(repository.head(fetch=False), number, store)
        )
    else:
        yield from not_yet("generation_audits", repository, number)


async def _audit(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    shop: Workshop,
    snapshot: Snapshot,
    round_: RoundState,
    request: AuditRequest,
) -> None:
    hotkey = request.hotkey
    build = (round_.builds or {}).get(hotkey)
    made: Regeneration | None = None
    if build is None or build.status != BuildStatus.SUCCESS or build.docker_image is None:
        verdict = audits.build_failed_verdict(hotkey)
    else:
        submitted = read_results(snapshot, round_.number, hotkey, "submitted") or {}
        progress = Progress(context, shop.journal, round_.number, "verify", len(submitted))
        made = await shop.regenerate(round_, hotkey, build.docker_image, request, submitted, progress)
        if made.deployed:
            verdict = audits.verdict(
                hotkey, list(round_.stems), submitted, made.results, request.critical_prompts, shop.limits,
                stopped_early=made.stopped_early,
            )  # fmt: skip
        else:
            verdict = audits.deploy_failed_verdict(hotkey)
    await asyncio.to_thread(_commit_generated, context, state, round_.number, hotkey, made, verdict)


def _audit_pictures(snapshot: Snapshot, number: int, store: LocalStoreResource) -> Metadata:
    """Submitted beside regenerated, the most different first: what the verdict saw."""
    objects, round_ = store.get(), read_round(snapshot, number)
    pairs = []
    for hotkey in round_.generation_audits or {}:
        submitted = read_results(snapshot, number, hotkey, "submitted") or {}
        generated = read_results(snapshot, number, hotkey, "generated") or {}
        pairs += [
            (result.distance, hotkey, submitted[stem].png, result.png)
            for stem, result in generated.items()
            if stem in submitted and submitted[stem].png and result.png
        ]
    tiles: list[tuple[str, bytes | None]] = []
    for distance, hotkey, first, second in sorted(pairs, key=lambda pair: -pair[0])[:12]:
        for label, url in ((f"{hotkey[:8]} submitted", first), (f"regenerated, d {distance:.3f}", second)):
            key = objects.key_of(url or "")
            tiles.append((label, objects.read(key) if key and objects.exists(key) else None))
    return stored_gallery("submitted_and_regenerated", tiles)
