"""What miners and the leader made: result files and pod reports.

Belongs here: what every result must look like whatever was made. Does not: who won with it (`matches`), whether it was
reproduced (`verification`).
"""

import re
from collections import Counter
from typing import Literal

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import LEADER, GenerationResult, Hotkey, PodStats, Results
from gen404_dagster.replay.findings import Cell
from gen404_dagster.replay.record import Recorded

_HARMLESS = {"no work available", "stopped", "mismatch limit"}
"""Ends that do not make a pod bad."""
_COUNTS = re.compile(r"(\d+) failures \+ (\d+) overtimes")


def check_results(round_: Recorded) -> Cell:
    """Keys are prompts of the round, addresses follow from their keys, an absent file has no size."""
    cell, number = Cell("results"), round_.number
    folders = [name for name in round_.record.files.names(paths.round_folder(number)) if "." not in name]
    base = _base(round_, folders)
    known = set(round_.order)
    for folder in folders:
        if folder != LEADER and folder not in known:
            cell.deviate(f"{paths.round_folder(number)}/{folder}", "is no hotkey of submissions.json", folder)
        for kind in _KINDS:
            results = round_.results(folder, kind)
            if results is not None:
                _check_results(round_, cell, folder, kind, results, base)
        pods: models.PodReport | None = round_.record.get(paths.pod_stats(number, folder))
        for pod, stats in (pods or {}).items():
            faults = _pod_faults(pod, stats)
            cell.expect(not faults, paths.pod_stats(number, folder), f"{pod}: {'; '.join(faults)}", folder)
    if round_.downloaded:
        for hotkey in round_.order:
            if hotkey not in folders or not round_.record.files.exists(paths.results(number, hotkey, "submitted")):
                cell.deviate(
                    paths.results(number, hotkey, "submitted"), "is missing although duels were played", hotkey
                )
    return cell


_KINDS: tuple[Literal["submitted", "generated"], ...] = ("submitted", "generated")


def _base(round_: Recorded, folders: list[str]) -> str:
    """Address of the store, as most of the round's files have it."""
    found: Counter[str] = Counter()
    for folder in folders:
        for kind in _KINDS:
            results = round_.results(folder, kind) or {}
            stem, glb = next(((stem, result.glb) for stem, result in results.items() if result.glb), ("", ""))
            if glb:
                found[glb.removesuffix(paths.object_key(round_.number, folder, kind, stem, "glb"))] += 1
    return found.most_common(1)[0][0] if found else ""


def _check_results(round_: Recorded, cell: Cell, hotkey: Hotkey, kind: paths.Kind, results: Results, base: str) -> None:
    path = paths.results(round_.number, hotkey, kind)
    wrong = 0
    for stem, result in results.items():
        faults = _faults(result, hotkey, kind, f"{base}rounds/{round_.number}/{hotkey}/{kind}/{stem}")
        if stem not in round_.stem_set:
            faults.append("is no prompt of the round")
        if faults:
            wrong += 1
            cell.deviate(path, f"{stem}: {'; '.join(faults)}", hotkey)
    cell.follows(len(results) - wrong)
    missing = [stem for stem in dict.fromkeys(round_.state.stems) if stem not in results]
    if missing and (kind == "submitted" or (hotkey == LEADER and round_.settled)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        cell.deviate(path, f"{missing[0]}{more}: the prompt has no entry", hotkey)


def _faults(result: GenerationResult, hotkey: Hotkey, kind: paths.Kind, address: str) -> list[str]:
    faults = []
    if result.glb is None:
        if result.png is not None or (kind == "submitted" and result.size):
            faults.append("has no glb, yet a png or a size")
    else:
        if result.glb != f"{address}.glb":
            faults.append(f"glb is {result.glb}, not {address}.glb")
        if result.png is not None and result.png != f"{address}.png":
            faults.append(f"png is {result.png}, not {address}.png")
        if result.size <= 0:
            faults.append(f"has a glb of size {result.size}")
    if kind == "submitted" and (result.generation_time or result.attempts):
        faults.append("nothing was generated here: generation_time and attempts are 0")
    if result.distance and (kind == "submitted" or hotkey == LEADER):
        faults.append(f"was not compared, yet distance is {result.distance}")
    return faults


def _pod_faults(pod: str, stats: PodStats) -> list[str]:
    faults = []
    if stats.pod_id != pod:
        faults.append(f"pod_id is {stats.pod_id}")
    parts = stats.successful + stats.hard_failed + stats.hard_overtime
    if stats.processed != parts:
        faults.append(f"processed is {stats.processed}, its parts sum to {parts}")
    reason = stats.termination_reason or ""
    counted = _COUNTS.match(reason)
    if counted and (stats.hard_failed < int(counted[1]) or stats.hard_overtime < int(counted[2])):
        faults.append(
            f"hard_failed {stats.hard_failed}, hard_overtime {stats.hard_overtime}, but it ended by {reason!r}"
        )
    bad = counted is not None or reason.startswith("rolling median")
    if (bad or reason in _HARMLESS) and bad != stats.marked_bad:
        faults.append(f"marked_bad is {str(stats.marked_bad).lower()}, but it ended by {reason!r}")
    return faults
