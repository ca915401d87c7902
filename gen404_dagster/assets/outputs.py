"""Outputs: miners' 3D files and their previews, one partition a miner; and the leader's baseline.

A miner's fault (a dead CDN, a refused file) is a recorded result. Each file is checkpointed in the journal: a kill
costs the files in flight.
"""

import asyncio
import hashlib
import warnings
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass

import dagster as dg

from gen404_dagster.assets.common import CODE_VERSION, OWNERS, Progress, commit, gather_all, merged
from gen404_dagster.assets.describe import (
    Metadata,
    Recorded,
    recorded_miner,
    recorded_results,
    stored_gallery,
    table,
)
from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import GenerationResult, Hotkey, Results, Stage, Stem, write_json
from gen404_dagster.competition.stages import RoundState, token
from gen404_dagster.errors import MinerFault
from gen404_dagster.partitions import across, miner_key, round_miners, split_miner_key
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.configured import (
    ADOPT_TAG,
    LANE_TAG,
    CdnResource,
    EntropyResource,
    JournalResource,
    LaneResource,
    LimitsResource,
    RendererResource,
    StateRepositoryResource,
    StoreResource,
)
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.object_store import PNG, ObjectStore
from gen404_dagster.resources.renderer import Renderer
from gen404_dagster.resources.round_files import read_results, read_round
from gen404_dagster.resources.state_repo import Change, Snapshot, Step

GROUP = "outputs"

# One run for all miners of a round is what this pipeline is built on; the parameter is marked beta.
warnings.filterwarnings("ignore", "Parameter `backfill_policy`", dg.BetaWarning)


@dataclass(frozen=True)
class File:
    """One file of one miner."""

    number: int
    hotkey: Hotkey
    stem: Stem

    def key(self, suffix: str) -> str:
        return paths.object_key(self.number, self.hotkey, "submitted", self.stem, suffix)  # type: ignore[arg-type]

    def unit(self, work: str) -> str:
        return f"{work}/{self.hotkey}/{self.stem}"


def _files(round_: RoundState, hotkeys: Sequence[Hotkey]) -> list[File]:
    return [File(round_.number, hotkey, stem) for hotkey in hotkeys for stem in dict.fromkeys(round_.stems)]


def _miners(context: dg.AssetExecutionContext) -> dict[int, list[Hotkey]]:
    """The miners of a run by their round."""
    found: dict[int, list[Hotkey]] = {}
    for number, hotkey in map(split_miner_key, context.partition_keys):
        found.setdefault(number, []).append(hotkey)
    return found


def _only_adopts(context: dg.AssetExecutionContext, round_: RoundState) -> bool:
    """Whether this run only reads what is recorded: of a round that is over, or of several rounds at once."""
    return round_.over or ADOPT_TAG in context.run.tags or len(_miners(context)) > 1


@dg.asset(
    partitions_def=round_miners,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name=GROUP,
    deps=[across("submissions"), across("prompts")],
    kinds={"http", "s3"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    description="A miner's 3D files, fetched from its CDN while the round is DOWNLOADING: `{cdn_url}/{prompt}.glb`, two "
    "tries, capped while streaming. A failed download is final and stops nobody else. Materializing one miner again "
    "during DOWNLOADING fetches what is missing, and nothing afterwards.",
)
def downloads(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    journal: JournalResource,
    store: StoreResource,
    cdn: CdnResource,
    entropy: EntropyResource,
    renderer: RendererResource,
    limits: LimitsResource,
    lane: LaneResource,
) -> None:
    repository, log = state.get(), journal.get()
    snapshot = repository.head()
    for number, hotkeys in _miners(context).items():
        at = Recorded(repository, snapshot, number)
        if at.round.state.stage == Stage.DOWNLOADING and not _only_adopts(context, at.round):
            renderer.get().start()  # what comes next needs it, and now there is time
            _download_missing(context, at.round, hotkeys, log, store.get(), cdn, entropy, limits)
        for hotkey in hotkeys:
            _describe_downloads(context, at, hotkey, log)


def _download_missing(
    context: dg.AssetExecutionContext,
    round_: RoundState,
    hotkeys: Sequence[Hotkey],
    log: Journal,
    objects: ObjectStore,
    cdn: CdnResource,
    entropy: EntropyResource,
    limits: LimitsResource,
) -> None:
    number, submissions, launched = round_.number, round_.submissions or {}, LANE_TAG in context.run.tags
    kept = set(objects.list(f"rounds/{number}/"))
    todo = [f for f in _files(round_, hotkeys) if not _is_downloaded(f, submissions, log, kept, final=launched)]
    if todo:
        entropy.get().generator(f"order of round {number}").shuffle(todo)  # nobody's CDN is always first
        progress = Progress(context, log, number, "download", len(todo))
        downloader = cdn.get(limits.get(), entropy.get())
        asyncio.run(_download(todo, submissions, downloader, objects, log, progress))


def _describe_downloads(context: dg.AssetExecutionContext, at: Recorded, hotkey: Hotkey, log: Journal) -> None:
    """What the journal knows of a miner's downloads; without it, what is recorded of them."""
    submissions = at.round.submissions or {}
    rows = [
        (file, log.get(at.number, file.unit("download"), _source(submissions, file)))
        for file in _files(at.round, [hotkey])
    ]
    failed = [{"prompt": file.stem[:16], "reason": done["fault"]} for file, done in rows if done and "fault" in done]
    sizes = [done["size"] for _, done in rows if done and "size" in done]
    cdn = submissions[hotkey].cdn_url if hotkey in submissions else "not a miner of this round"
    metadata: Metadata = {
        "files": dg.MetadataValue.int(len(sizes)),
        "failed": dg.MetadataValue.int(len(failed)),
        "megabytes": dg.MetadataValue.float(round(sum(sizes) / 1e6, 3)),
        "cdn": dg.MetadataValue.text(cdn),
        **({"failures": table(failed)} if failed else {}),
    }
    if not any(done for _, done in rows):
        metadata = {**recorded_miner(at, hotkey), "cdn": metadata["cdn"]}
    context.add_asset_metadata(metadata, asset_key="downloads", partition_key=miner_key(at.number, hotkey))


def _source(submissions: models.Submissions, file: File) -> str:
    entry = submissions.get(file.hotkey)
    return f"{entry.cdn_url}/{file.stem}.glb" if entry else ""


def _is_downloaded(file: File, submissions: models.Submissions, log: Journal, kept: Set[str], *, final: bool) -> bool:
    """Whether a file has its entry. A fault is final for the round's own run; an operator may try it again."""
    if file.hotkey not in submissions:
        return True
    done = log.get(file.number, file.unit("download"), _source(submissions, file))
    if done is None or "fault" in done:
        return done is not None and final
    return file.key("glb") in kept


async def _download(
    todo: Sequence[File],
    submissions: models.Submissions,
    downloader: Downloads,
    objects: ObjectStore,
    log: Journal,
    progress: Progress,
) -> None:
    async def fetch(file: File) -> None:
        url = _source(submissions, file)
        try:
            # What is stored, but was killed before the checkpoint, is not fetched again: what a miner sent first counts.
            stored = await downloader.fetch(url, objects, file.key("glb"))
            done: dict[str, object] = {"size": stored.size, "sha256": stored.sha256}
        except MinerFault as fault:
            done = {"fault": str(fault)}
        log.put(file.number, file.unit("download"), url, done)
        progress.step(file.hotkey[:10])

    async with downloader:
        await gather_all(*(fetch(file) for file in todo))


@dg.asset(
    partitions_def=round_miners,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name=GROUP,
    deps=[downloads],
    kinds={"gltf", "png", "git"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    pool="gpu",
    description="Previews of a miner's files: four views in a 2x2 grid of 1041 x 1041 pixels, each file drawn in a "
    "process with limits on memory and time. A refused file leaves its size and no preview. Committed as "
    "`submitted.json`. Materializing again renders missing or stale previews from the stored files; it never moves the "
    "stage.",
)
def renders(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    journal: JournalResource,
    store: StoreResource,
    renderer: RendererResource,
    limits: LimitsResource,
    lane: LaneResource,
) -> None:
    repository, log, objects = state.get(), journal.get(), store.get()
    head = repository.head()
    for number, hotkeys in _miners(context).items():
        round_ = read_round(head, number)
        if _only_adopts(context, round_):
            _restore_previews(head, round_, hotkeys, renderer, objects)
        else:
            _render_missing(context, state, round_, hotkeys, log, objects, renderer, limits)
    now = repository.head(fetch=False)
    for number, hotkeys in _miners(context).items():
        at = Recorded(repository, now, number)
        for hotkey in hotkeys:
            _describe_renders(context, at, hotkey, objects, log)


def _restore_previews(
    snapshot: Snapshot, round_: RoundState, hotkeys: Sequence[Hotkey], renderer: RendererResource, objects: ObjectStore
) -> None:
    """Render lost previews of files that the store still has. What is recorded stays as it is."""
    for hotkey in hotkeys:
        kept = set(objects.list(f"rounds/{round_.number}/{hotkey}/submitted/"))
        if not kept:
            continue
        for stem, result in (read_results(snapshot, round_.number, hotkey, "submitted") or {}).items():
            file = File(round_.number, hotkey, stem)
            if result.png and file.key("glb") in kept and file.key("png") not in kept:
                with suppress(MinerFault):
                    objects.put(file.key("png"), renderer.get().preview(objects.read(file.key("glb"))), PNG)


def _render_missing(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    round_: RoundState,
    hotkeys: Sequence[Hotkey],
    log: Journal,
    objects: ObjectStore,
    renderer: RendererResource,
    limits: LimitsResource,
) -> None:
    number = round_.number
    mine = [hotkey for hotkey in hotkeys if hotkey in (round_.submissions or {})]
    progress = Progress(context, log, number, "render", len(_files(round_, mine)))

    async def render_all() -> None:
        slots = asyncio.Semaphore(limits.get().render_concurrency)

        async def one(file: File, order: list[Stem]) -> None:
            async with slots:
                await asyncio.to_thread(_render, file, renderer.get(), objects, log)
            order.append(file.stem)
            progress.step(file.hotkey[:10])

        async def miner(hotkey: Hotkey) -> None:
            order: list[Stem] = []
            await gather_all(*(one(file, order) for file in _files(round_, [hotkey])))
            submitted = await asyncio.to_thread(
                lambda: {stem: _result(File(number, hotkey, stem), objects, log) for stem in order}
            )
            faults = file_faults(log, number, hotkey)
            await asyncio.to_thread(_commit_submitted, context, state, number, hotkey, submitted, faults)

        await gather_all(*(miner(hotkey) for hotkey in mine))

    asyncio.run(render_all())
    if renderer.get().choice:
        context.log.info(f"renderer: {renderer.get().choice}")


def _render(file: File, renderer: Renderer, objects: ObjectStore, log: Journal) -> None:
    """Render a stored file unless its preview is there and up to date."""
    if not objects.exists(file.key("glb")):
        return
    model = objects.read(file.key("glb"))
    inputs = hashlib.sha256(model).hexdigest() + "/" + renderer.version
    done = log.get(file.number, file.unit("preview"), inputs)
    if done is not None and ("fault" in done or objects.exists(file.key("png"))):
        return
    try:
        objects.put(file.key("png"), renderer.preview(model), PNG, overwrite=True)
        log.put(file.number, file.unit("preview"), inputs, {"renderer": renderer.choice})
    except MinerFault as fault:
        log.put(file.number, file.unit("preview"), inputs, {"fault": str(fault)})


def _result(file: File, objects: ObjectStore, log: Journal) -> GenerationResult:
    """A file's entry: without a 3D file all empty; a refused one keeps `glb` and `size`."""
    model = objects.stat(file.key("glb"))
    if model is None:
        return GenerationResult()
    refused = "fault" in (log.units(file.number, file.unit("preview")).get(file.unit("preview")) or {})
    has_preview = objects.exists(file.key("png")) and not refused
    png = objects.url(file.key("png")) if has_preview else None
    return GenerationResult(glb=objects.url(file.key("glb")), png=png, size=model.size)


def file_faults(log: Journal, number: int, hotkey: Hotkey) -> dict[Stem, str]:
    """Why files of a miner were not fetched or not rendered."""
    found: dict[Stem, str] = {}
    for work in ("download", "preview"):
        prefix = f"{work}/{hotkey}/"
        units = log.units(number, prefix)
        found |= {unit.removeprefix(prefix): str(value["fault"]) for unit, value in units.items() if "fault" in value}
    return found


def _commit_submitted(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    number: int,
    hotkey: Hotkey,
    submitted: Results,
    faults: Mapping[Stem, str],
) -> None:
    path = paths.results(number, hotkey, "submitted")
    previews = sum(entry.png is not None for entry in submitted.values())

    def decide(snapshot: Snapshot) -> Change | None:
        known = read_results(snapshot, number, hotkey, "submitted")
        round_ = read_round(snapshot, number)
        begun = round_.state.current_round > number or round_.state.stage not in (Stage.OPEN, Stage.MINER_GENERATION)
        if known == submitted or not begun:
            return None
        # Keep the order in which entries were first completed.
        results = {stem: submitted.get(stem, entry) for stem, entry in (known or {}).items()} | submitted
        subject = f"Record {hotkey[:10]}'s outputs in round {number}: {previews} of {len(submitted)} with a preview"
        reasons = [f"{stem}: {faults[stem]}"[:300] for stem in round_.stems if stem in faults]
        return Change({path: write_json(models.RESULTS, results)}, subject, "\n".join(reasons[:200]))

    commit(context, state.get(), Step(number, "outputs", token(submitted), unit=hotkey), decide)


def _describe_renders(
    context: dg.AssetExecutionContext, at: Recorded, hotkey: Hotkey, objects: ObjectStore, log: Journal
) -> None:
    results = recorded_results(at, hotkey)
    faults = file_faults(log, at.number, hotkey)
    refused = [{"prompt": stem[:16], "reason": faults[stem]} for stem in results if stem in faults]
    pictures = [(stem, _preview(File(at.number, hotkey, stem), objects)) for stem in at.round.stems if stem in results]
    extra: Metadata = {"refused": dg.MetadataValue.int(len(refused))} if refused or not at.round.over else {}
    drawn = log.units(at.number, f"preview/{hotkey}/").values()
    renderers = sorted({str(value["renderer"]) for value in drawn if value.get("renderer")})
    if renderers:
        extra["renderer"] = dg.MetadataValue.text("; ".join(renderers))
    extra |= stored_gallery("previews_gallery", pictures)
    if refused:
        extra["refusals"] = table(refused)
    context.add_asset_metadata(
        merged(recorded_miner(at, hotkey), extra), asset_key="renders", partition_key=miner_key(at.number, hotkey)
    )


def _preview(file: File, objects: ObjectStore) -> bytes | None:
    return objects.read(file.key("png")) if objects.exists(file.key("png")) else None
