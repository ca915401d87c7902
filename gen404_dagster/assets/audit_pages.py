"""What the page of generation audits shows of each miner: the verdict, the worst prompts as pictures, the pods.

Belongs here: recorded verdicts, results and pods, with previews of the store, as one markdown entry a miner. Does not:
the verdict (`competition.audits`), the table of all audits (`describe`).
"""

from collections.abc import Sequence

import dagster as dg
from PIL import Image, ImageDraw, ImageFont

from gen404_dagster.assets.describe import Metadata, Recorded
from gen404_dagster.assets.pictures import as_markdown
from gen404_dagster.competition import audits
from gen404_dagster.competition.audits import Fault
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    GenerationAudit,
    GenerationResult,
    Hotkey,
    PodReport,
    Results,
    Stem,
)
from gen404_dagster.resources.object_store import ObjectStore
from gen404_dagster.resources.pictures import RGB, UnreadablePicture, decode
from gen404_dagster.resources.round_files import read_pod_stats, read_results

MOST_MINERS = 8
MOST_PROMPTS = 6
_TILE, _TEXT, _GAP, _COLUMNS = 200, 48, 18, 2
"""Pixels: a preview, the lines below a pair, the space around it. Pairs a row."""
_GOOD, _BAD, _GREY, _FRAME = "#2e7d32", "#b0413e", "#444444", "#9e9e9e"


def audit_pages(at: Recorded, store: ObjectStore, limits: Limits) -> Metadata:
    """An entry for each audited miner, at most eight: those last audited. About 100 kB each, with its pictures."""
    known = at.round.generation_audits or {}
    distances: list[float] = []
    pages: Metadata = {}
    for position, (hotkey, audit) in enumerate(known.items()):
        submitted = read_results(at.snapshot, at.number, hotkey, "submitted") or {}
        generated = read_results(at.snapshot, at.number, hotkey, "generated") or {}
        distances += [result.distance for result in generated.values() if audits.succeeded(result)]
        if position >= len(known) - MOST_MINERS:
            pages[f"audit_{hotkey[:10]}"] = dg.MetadataValue.md(
                _page(at, hotkey, audit, submitted, generated, store, limits)
            )
    largest: Metadata = {"largest_distance": dg.MetadataValue.float(round(max(distances), 5))} if distances else {}
    return largest | pages


def _page(
    at: Recorded,
    hotkey: Hotkey,
    audit: GenerationAudit,
    submitted: Results,
    generated: Results,
    store: ObjectStore,
    limits: Limits,
) -> str:
    request = next((request for request in at.round.requests if request.hotkey == hotkey), None)
    critical = set(request.critical_prompts) if request else set()
    checked = audits.prompts_to_check(at.round.stems, submitted)
    if audit.checked_prompts < len(checked):  # it stopped early
        checked = [stem for stem in checked if stem in generated]
    words = [f"**{hotkey}** {audit.outcome}" + (f": {audit.reason}" if audit.reason else "")]
    if checked:
        wrong = audits.mismatches(checked, generated, critical, limits)
        asked = sum(stem in critical for stem in checked)
        words += [
            f"- {len(checked)} of {len(at.round.stems)} prompts checked, {asked} of them critical",
            f"- mismatches: {len(wrong.non_critical)} non-critical ({limits.max_mismatches} tolerated), "
            f"{len(wrong.critical)} critical ({limits.max_critical_mismatches} tolerated)",
        ]
    if audit.generation_time is not None:
        limit = limits.generation_median_seconds
        words.append(f"- trimmed median generation time {audit.generation_time:.2f} s (limit {limit:g} s)")
    parts = ["\n".join(words)]
    worst = audits.worst_first(checked, generated, limits)[:MOST_PROMPTS]
    pairs = [(stem, submitted[stem], generated.get(stem)) for stem in worst]
    pictures = [(_stored(store, first), _stored(store, second)) for _, first, second in pairs]
    if any(picture is not None for pair in pictures for picture in pair):
        sheet = _sheet(pairs, pictures, critical, limits)
        parts += [
            "Submitted (left) and regenerated (right), the worst first:",
            as_markdown(sheet, "worst prompts", "JPEG"),
        ]
    pods = read_pod_stats(at.snapshot, at.number, hotkey)
    if pods:
        parts.append(_pod_table(pods))
    return "\n\n".join(parts)


def _stored(store: ObjectStore, result: GenerationResult | None) -> RGB | None:
    """A preview; None where there is none, or the store has it not (a round that was played elsewhere) or damaged."""
    key = store.key_of(result.png) if result and result.png else None
    try:
        return decode(store.read(key)) if key and store.exists(key) else None
    except UnreadablePicture:
        return None


def _sheet(
    pairs: Sequence[tuple[Stem, GenerationResult, GenerationResult | None]],
    pictures: Sequence[tuple[RGB | None, RGB | None]],
    critical: set[Stem],
    limits: Limits,
) -> Image.Image:
    """Pairs of previews, with what was measured below each."""
    columns = min(_COLUMNS, len(pairs))
    rows = (len(pairs) + columns - 1) // columns
    width, height = 2 * (_TILE + _GAP), _TILE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw, font, bold = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(14)
    for position, ((stem, _, made), both) in enumerate(zip(pairs, pictures, strict=True)):
        x, y = _GAP + position % columns * width, _GAP + position // columns * height
        for left, picture in zip((x, x + _TILE + 4), both, strict=True):
            draw.rectangle((left, y, left + _TILE - 1, y + _TILE - 1), outline=_BAD if picture is None else _FRAME)
            if picture is None:
                draw.text((left + 64, y + _TILE // 2 - 8), "no preview", fill=_BAD, font=font)
                continue
            small = Image.fromarray(picture).resize((_TILE - 4, _TILE - 4), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + 2, y + 2))
        why = audits.fault(made, limits)
        title = f"{stem[:16]}{', critical' if stem in critical else ''}: {why or 'accepted'}"
        draw.text((x, y + _TILE + 4), title, fill=_BAD if why else _GOOD, font=bold)
        draw.text((x, y + _TILE + 23), _measures(made, why, limits), fill=_GREY, font=font)
    return sheet


def _measures(made: GenerationResult | None, why: Fault | None, limits: Limits) -> str:
    if made is None or why is Fault.FAILED:
        return f"{made.attempts} attempts" if made else ""
    tries = f"{made.attempts} attempt{'s' * (made.attempts != 1)}"
    return f"distance {made.distance:.4f} (limit {limits.acceptable_distance:g}), {made.generation_time:.2f} s, {tries}"


def _pod_table(pods: PodReport) -> str:
    """The pods in the order in which they ended."""
    head = "pod", "processed", "successful", "failed", "overtime", "least s", "median s", "most s", "bad", "ended"
    rows = [head, ("---",) * len(head)]
    for pod in pods.values():
        times = [f"{time:.2f}" if time is not None else "" for time in (pod.time_min, pod.time_median, pod.time_max)]
        counts = [str(count) for count in (pod.processed, pod.successful, pod.hard_failed, pod.hard_overtime)]
        ended = (pod.termination_reason or "").replace("|", "/").replace("\n", " ")[:120]
        rows.append((pod.pod_id, *counts, *times, "yes" if pod.marked_bad else "", ended))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
