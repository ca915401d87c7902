"""One regeneration with all its parts: an image runs over a round's prompts, files are rendered, stored and measured.

Belongs here: what a run needs to regenerate, and what becomes of a file. Does not: pods and their order of work (`fleet`),
whose turn it is and what is committed (`assets.verification`).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    AuditRequest,
    GenerationResult,
    Hotkey,
    PodStats,
    Results,
    Stem,
    stem_of,
)
from gen404_dagster.competition.stages import RoundState, token
from gen404_dagster.errors import MinerFault, Unavailable
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.embedder import Embedder
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.lanes import LaneLocks
from gen404_dagster.resources.object_store import GLB, PNG, ObjectMissing, ObjectStore
from gen404_dagster.resources.pictures import UnreadablePicture
from gen404_dagster.resources.pods.arrivals import Arrivals
from gen404_dagster.resources.pods.fleet import Accepted, Regeneration, RegenerationJob, regenerate
from gen404_dagster.resources.pods.leftovers import in_use
from gen404_dagster.resources.pods.protocol import PodProvider
from gen404_dagster.resources.prompt_pictures import PromptPictures
from gen404_dagster.resources.renderer import Renderer


@dataclass(frozen=True)
class Workshop:
    """Everything a regeneration needs, put together once a run. `folder`: the pipeline's folder of data."""

    providers: Sequence[PodProvider]
    store: ObjectStore
    journal: Journal
    renderer: Renderer
    embedder: Embedder
    downloader: Downloads
    limits: Limits
    instance: str
    locks: LaneLocks
    folder: Path

    async def regenerate(
        self,
        round_: RoundState,
        hotkey: Hotkey,
        image: str,
        request: AuditRequest | None,
        submitted: Results | None,
        progress: Callable[[int, int], None],
    ) -> Regeneration:
        """Run an image over the round's prompts; a restart goes on where the journal ends.

        Raises Unavailable when something of ours failed for good: what arrived until then is kept.
        """
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
        inputs = token(image, job.seed, job.prompts, submitted, self.renderer.version, str(self.embedder.model))
        pictures = PromptPictures(self.store, self.downloader, self.limits.max_prompt_bytes)
        urls = {stem_of(url): url for url in round_.prompts or ()}
        arrivals = Arrivals(self.folder / "arrivals" / str(job.round) / f"{job.prefix}{inputs}")
        arrivals.forget_other_rounds()

        def checkpoint(stem: Stem, result: GenerationResult, pod: PodStats) -> None:
            measured = result.model_dump(mode="json") | {"embedder": str(self.embedder.model)}
            self.journal.put(job.round, f"generated/{hotkey}/{stem}", inputs, measured)
            self.journal.put(job.round, f"generated/{hotkey}-pods/{pod.pod_id}", inputs, pod.model_dump(mode="json"))

        async def accept(stem: Stem, model: bytes) -> Accepted:
            reference = submitted[stem] if submitted else None
            return await asyncio.to_thread(self.accept, job.round, hotkey, stem, model, reference)

        async with in_use(self.locks, job.round, job.prefix):
            made = await regenerate(
                job,
                self.providers,
                self.limits,
                prompt_picture=lambda stem: pictures.read(urls[stem]),
                accept=accept,
                checkpoint=checkpoint,
                progress=progress,
                resumed=self._known(job, inputs),
                resumed_pods=self._known_pods(job, inputs),
                arrivals=arrivals,
            )
        arrivals.clear()
        return made

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

    def accept(
        self, number: int, hotkey: Hotkey, stem: Stem, model: bytes, reference: GenerationResult | None
    ) -> Accepted:
        """Render, measure against `reference` (None: nothing to compare with), store.

        A file that the renderer refuses is kept without preview, unless a better one is there. Raises Unavailable when
        something of ours failed.
        """
        glb_key = paths.object_key(number, hotkey, "generated", stem, "glb")
        png_key = paths.object_key(number, hotkey, "generated", stem, "png")
        try:
            try:
                picture = self.renderer.preview(model)
            except MinerFault:
                if not self.store.exists(glb_key):
                    self.store.put(glb_key, model, GLB)
                return Accepted(glb=self.store.url(glb_key), png=None)
            distance = None if reference is None else self._distance(hotkey, stem, reference, picture)
            self.store.put(glb_key, model, GLB, overwrite=True)
            self.store.put(png_key, picture, PNG, overwrite=True)
        except OSError as error:
            raise Unavailable(f"object store: {error}") from error
        return Accepted(glb=self.store.url(glb_key), png=self.store.url(png_key), distance=distance)

    def _distance(self, hotkey: Hotkey, stem: Stem, reference: GenerationResult, picture: bytes) -> float:
        """Raises Unavailable whatever keeps us from measuring: that is no word about the miner."""
        key = self.store.key_of(reference.png or "")
        if key is None:
            raise Unavailable(
                f"{hotkey}'s preview of {stem} is not of this store: does CDN_URL name the store's address?"
            )
        try:
            return self.embedder.distance(self.store.read(key), picture).value
        except (ObjectMissing, UnreadablePicture) as error:
            raise Unavailable(
                f"{hotkey}'s preview of {stem} is recorded, but lost in the store ({error}): execute the job `render`"
            ) from error
        except RuntimeError as error:  # torch: no memory left on the device, a device that was lost
            raise Unavailable(f"embedder: {' '.join(str(error).split())[:300]}") from error
