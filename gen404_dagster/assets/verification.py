"""Verification: what a leader's or a candidate's own image really generates.

The leader's baseline before the duels, the builds of miners' images, and the audits: regenerate, render, compare with
what was submitted, give a verdict. Each prompt is checkpointed in the journal; a miner's files are committed when its
audit ends.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from gen404_dagster.assets import checks
from gen404_dagster.assets.audit_pages import audit_pages
from gen404_dagster.assets.common import (
    Progress,
    adopted,
    commit,
    described,
    is_adopted,
    not_yet,
    round_number,
    round_spec,
)
from gen404_dagster.assets.describe import Metadata, recorded, stored_gallery
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
    Stage,
    write_json,
)
from gen404_dagster.competition.stages import RoundState, builds_settled, token
from gen404_dagster.errors import Unavailable
from gen404_dagster.partitions import across
from gen404_dagster.resources.builds import BuildRun, build_tag, docker_image
from gen404_dagster.resources.configured import (
    BuildsResource,
    LaneResource,
    LimitsResource,
    RendererResource,
    StateRepositoryResource,
    StoreResource,
    WorkshopResource,
)
from gen404_dagster.resources.embedder import Embedder
from gen404_dagster.resources.pods.fleet import Regeneration
from gen404_dagster.resources.pods.rota import work_off
from gen404_dagster.resources.pods.workshop import Workshop
from gen404_dagster.resources.round_files import read_results, read_round
from gen404_dagster.resources.state_repo import Change, Snapshot, Step

GROUP = "verification"
BASELINE_STAGES = (Stage.MINER_GENERATION, Stage.DOWNLOADING, Stage.DUELS)


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
    workshop: WorkshopResource,
    lane: LaneResource,
):
    repository, number, store = state.get(), round_number(context), workshop.store
    if is_adopted(context, repository):
        yield from adopted(
            repository, number, "leader_baseline", extra=_gallery(repository.head(fetch=False), number, LEADER, store)
        )
        return
    round_ = read_round(repository.head(), number)
    leader = round_.leader
    if round_.baseline_missing and leader is not None:
        progress = Progress(context, workshop.journal.get(), number, "baseline", 0)
        progress.show(leader.docker)
        made: list[Regeneration] = []

        async def run() -> None:
            async with workshop.open() as shop:

                async def wanted() -> list[Hotkey]:
                    now = read_round(await asyncio.to_thread(repository.head), number)
                    going_on = now.state.current_round == number and now.state.stage in BASELINE_STAGES
                    return [LEADER] if going_on and now.baseline_missing else []

                async def baseline(hotkey: Hotkey) -> None:
                    show = progress.part(LEADER)
                    made.append(await shop.regenerate(round_, hotkey, leader.docker, None, None, show))

                await work_off(wanted, baseline, at_once=1)

        with _stays_open("The baseline", "baseline", number):
            asyncio.run(run())
        if not made:
            raise dg.Failure("the baseline was called off: the round moved on, its pods are deleted")
        if not made[0].deployed:
            raise dg.Failure(f"the leader's image {leader.docker} could not be deployed: see the pods' logs")
        _commit_generated(context, state, number, LEADER, made[0], None)
    yield described(
        "leader_baseline",
        repository,
        number,
        _gallery(repository.head(fetch=False), number, LEADER, store) | _rendered_by(context, workshop.renderer),
    )


@contextmanager
def _stays_open(what: str, job: str, number: int) -> Iterator[None]:
    """Say what to execute when something of ours is unavailable."""
    try:
        yield
    except Unavailable as error:
        raise Unavailable(
            f"{error}. {what} stays open, and what was regenerated is kept: execute the job `{job}` of round {number} "
            "again, or leave it to the sensor"
        ) from None


def _rendered_by(context: dg.AssetExecutionContext, renderer: RendererResource) -> Metadata:
    """Who draws in this run, if anything was drawn."""
    choice = renderer.get().choice
    if not choice:
        return {}
    context.log.info(f"renderer: {choice}")
    return {"renderer": dg.MetadataValue.text(choice)}


def _gallery(snapshot: Snapshot, number: int, hotkey: Hotkey, store: StoreResource) -> Metadata:
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
    measured: str = "",
) -> None:
    """One commit when a regeneration ends: results, pods, and for a miner the verdict and how distances were measured.

    The files' format has no place for the last: the commit's message has.
    """

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
        words = "\n".join(line for line in (verdict.reason, measured) if line)
        return Change(files, f"{hotkey[:10]} {how} its audit in round {number}", words)

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
    build_registry: BuildsResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    repository, number, bounds = state.get(), round_number(context), limits.get()
    if is_adopted(context, repository):
        yield from adopted(repository, number, "builds")
        return
    began = time.monotonic()
    while True:
        round_ = read_round(repository.head(), number)
        if builds_settled(round_) and round_.builds is not None:
            break
        run = build_registry.get().run_of(number)
        timed_out = max(run.seconds, time.monotonic() - began) > bounds.build_timeout_seconds

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
    workshop: WorkshopResource,
    lane: LaneResource,
):
    """Audit until no request is open; requests that arrive meanwhile are taken up."""
    repository, number, limits = state.get(), round_number(context), workshop.limits.get()

    def pages() -> Metadata:
        return audit_pages(recorded(repository, number, fetch=False), workshop.store.get(), limits)

    if is_adopted(context, repository):
        yield from adopted(repository, number, "generation_audits", extra=pages())
        return

    async def audit_all() -> None:
        async with workshop.open() as shop:

            async def wanted() -> list[Hotkey]:
                """Whose verdict is missing, in the order of the requests; nobody's once the stage has changed."""
                round_ = read_round(await asyncio.to_thread(repository.head), number)
                if round_.state.current_round != number or round_.state.stage != Stage.DUELS:
                    return []
                waiting = set(round_.standing().awaiting_generation)
                return [request.hotkey for request in round_.requests if request.hotkey in waiting]

            async def audit(hotkey: Hotkey) -> None:
                snapshot = repository.head(fetch=False)
                round_ = read_round(snapshot, number)
                request = next(request for request in round_.requests if request.hotkey == hotkey)
                await _audit(context, state, shop, snapshot, round_, request, progress.part(hotkey[:10]))

            progress = Progress(context, shop.journal, number, "verify", 0)
            await work_off(wanted, audit, limits.audits_at_once)

    with _stays_open("The audit", "verify", number):
        asyncio.run(audit_all())
    if repository.head(fetch=False).exists(paths.generation_audits(number)):
        measured = {"distances": dg.MetadataValue.text(_measured(workshop.embedder.get(), limits))}
        yield described(
            "generation_audits", repository, number, pages() | _rendered_by(context, workshop.renderer) | measured
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
    progress: Callable[[int, int], None],
) -> None:
    hotkey = request.hotkey
    build = (round_.builds or {}).get(hotkey)
    made: Regeneration | None = None
    measured = ""
    if build is None or build.status in (BuildStatus.PENDING, BuildStatus.IN_PROGRESS):
        raise Unavailable(f"the build of {hotkey}'s image has not ended")
    if build.status != BuildStatus.SUCCESS or build.docker_image is None:
        verdict = audits.build_failed_verdict(hotkey)
    else:
        submitted = read_results(snapshot, round_.number, hotkey, "submitted") or {}
        made = await shop.regenerate(round_, hotkey, build.docker_image, request, submitted, progress)
        if made.deployed:
            measured = _measured(shop.embedder, shop.limits)
            verdict = audits.verdict(
                hotkey, list(round_.stems), submitted, made.results, request.critical_prompts, shop.limits,
                stopped_early=made.stopped_early,
            )  # fmt: skip
        else:
            verdict = audits.deploy_failed_verdict(hotkey)
    await asyncio.to_thread(_commit_generated, context, state, round_.number, hotkey, made, verdict, measured)


def _measured(embedder: Embedder, limits: Limits) -> str:
    """Whose distances were judged, and by which limit."""
    return f"Distances: {embedder.model}, accepted up to {limits.acceptable_distance:g}"
