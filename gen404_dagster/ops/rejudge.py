"""A recorded match, judged again beside its record.

Belongs here: which duels are asked again, their pictures as the report names them, the comparison. Does not: replacing
anything. The answers are kept under a namespace of their own, so that they never count for a round.
"""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gen404_dagster.competition import duels as rules
from gen404_dagster.competition.judging import facts, summed
from gen404_dagster.competition.models import LEADER, Duel, Hotkey, MatchReport
from gen404_dagster.competition.stages import RoundState
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.configured import open_store
from gen404_dagster.resources.embedder import make_embedder
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import DuelJudgement, make_judge
from gen404_dagster.resources.judge.kept import KeptJudge
from gen404_dagster.resources.judge.match import Player, count
from gen404_dagster.resources.object_store import ObjectStore
from gen404_dagster.resources.prompt_pictures import PromptPictures
from gen404_dagster.resources.recorded_files import open_record
from gen404_dagster.resources.round_files import read_match, read_round
from gen404_dagster.settings import Settings, load_settings

MAX_PREVIEW_BYTES = 64 * 1024**2


def plan_rejudging(location: str, number: int, left: str, right: str) -> dict[str, Any]:
    """What would be asked: nothing is."""
    settings = _settings_for(location)
    round_, report = _recorded(location, number, left, right)
    again, store = _asked_again(report), open_store(settings)
    urls = {url for duel in again for url in (duel.left_png, duel.right_png) if url}
    stored = sum((key := store.key_of(url)) is not None and store.exists(key) for url in urls)
    return {
        "round": number,
        "left": report.left,
        "right": report.right,
        "recorded": _margin(report, round_.config.win_margin),
        "duels": len(again),
        "questions": 2 * len(again) * settings.judge_repeats,
        "previews_in_the_store": stored,
        "previews_to_fetch": len(urls) - stored,
    }


def rejudge_match(location: str, number: int, left: str, right: str, take: int) -> dict[str, Any]:
    """Ask again, and compare. Raises JudgeUnavailable: the same command goes on."""
    settings = _settings_for(location)
    round_, report = _recorded(location, number, left, right)
    judge = make_judge(settings, make_embedder(settings))
    with Journal(settings.data.absolute() / "journal.sqlite", location) as journal:
        kept = KeptJudge(judge, journal, open_store(settings), number, f"judge-again/{take}")
        judged = asyncio.run(_judge_again(settings, kept, report, round_.seed or 0))
    fresh = {duel.name: duel for duel, _ in judged}
    again = rules.match_report(report.left, report.right, [fresh.get(duel.name, duel) for duel in report.duels])
    win_margin = round_.config.win_margin
    penalties = {duel.name: judgement for duel, judgement in judged}
    recorded, now = _margin(report, win_margin), _margin(again, win_margin)
    return {
        "round": number,
        "left": report.left,
        "right": report.right,
        "judge": kept.identity,
        "take": take,
        "duels": len(report.duels),
        "judged_again": len(judged),
        "recorded": recorded,
        "again": now,
        "turned": recorded["won"] != now["won"],
        "changed": [
            _change(before, after, penalties[after.name])
            for before, after in zip(report.duels, again.duels, strict=True)
            if before.winner != after.winner
        ],
        "judging": facts(summed([count(judged, kept.identity)])),
    }


async def _judge_again(
    settings: Settings, kept: KeptJudge, report: MatchReport, seed: int
) -> list[tuple[Duel, DuelJudgement]]:
    limits = settings.limits
    downloads = Downloads(limits, settings.allow_private_network)
    pictures = _RecordedPictures(open_store(settings), downloads, limits.max_prompt_bytes)
    async with kept, downloads:
        player = Player(kept, pictures, limits, repeats=settings.judge_repeats)
        return await asyncio.gather(*[player.judge(duel, seed) for duel in _asked_again(report)])


class _RecordedPictures:
    """Pictures by the addresses that a report names: from the store, else from where they lie."""

    def __init__(self, store: ObjectStore, downloads: Downloads, most_prompt_bytes: int) -> None:
        self._store, self._downloads = store, downloads
        self._prompts = PromptPictures(store, downloads, most_prompt_bytes)

    async def prompt(self, url: str) -> bytes:
        return await self._prompts.read(url)

    async def preview(self, url: str) -> bytes:
        key = self._store.key_of(url)
        if key is not None and self._store.exists(key):
            return await asyncio.to_thread(self._store.read, key)
        return await self._downloads.fetch_bytes(url, MAX_PREVIEW_BYTES)


def _asked_again(report: MatchReport) -> list[Duel]:
    """Duels that pictures decide: those the judge decided, and those it failed or was not asked about."""
    settled = ("No preview", "Generation time exceeded")
    return [duel for duel in report.duels if duel.left_png and duel.right_png and not duel.issues.startswith(settled)]


def _settings_for(location: str) -> Settings:
    """The environment's; beside the repository of a simulation those that it was played with."""
    played = Path(location).absolute().parent / "gen404.env"
    if "GEN404_ENV_FILE" in os.environ or not played.is_file() or not Path(location).is_dir():
        return load_settings()
    return Settings(_env_file=played)


def _recorded(location: str, number: int, left: str, right: str) -> tuple[RoundState, MatchReport]:
    with open_record(location, None) as files:
        round_ = read_round(files, number)
        sides = [LEADER, *(round_.submissions or {})]
        report = read_match(files, number, _named(left, sides, "--left"), _named(right, sides, "--right"))
    if report is None:
        played = ", ".join(f"{row.right[:10]} against {row.left[:10]}" for row in round_.matrix[:8])
        raise OperatorError(f"round {number} has no report of {right} against {left}; played were: {played or 'none'}")
    return round_, report


def _named(given: str, known: Sequence[Hotkey], option: str) -> Hotkey:
    """The one side whose name begins as given."""
    found = [given] if given in known else [hotkey for hotkey in known if hotkey.startswith(given)]
    if len(found) != 1:
        raise OperatorError(f"{option} {given} fits {len(found)} of the round's {len(known)} sides: give more of it")
    return found[0]


def _margin(report: MatchReport, win_margin: float) -> dict[str, Any]:
    interval = rules.margin_interval(report)
    return {
        "margin": report.margin,
        "interval": list(interval) if interval else None,
        "close": rules.is_close(report, win_margin),
        "won": report.margin >= win_margin,
    }


def _change(before: Duel, after: Duel, judgement: DuelJudgement) -> dict[str, Any]:
    valid = not judgement.fault
    return {
        "prompt": before.name,
        "recorded": str(before.winner),
        "again": str(after.winner),
        "left_penalty": judgement.left_penalty if valid else None,
        "right_penalty": judgement.right_penalty if valid else None,
        "recorded_issues": before.issues,
        "issues": after.issues,
    }


def show_plan(plan: dict[str, Any]) -> None:
    print(
        f"would ask {plan['questions']} questions about {plan['duels']} duels of {plan['right'][:10]} against "
        f"{plan['left'][:10]} in round {plan['round']}, recorded {_in_words(plan['recorded'])}; "
        f"{plan['previews_to_fetch']} previews are to be fetched. Nothing was asked"
    )


def show_rejudged(result: dict[str, Any]) -> None:
    console = Console()
    console.print(
        f"{result['right'][:10]} against {result['left'][:10]} in round {result['round']}, judged again by "
        f"{result['judge']} (take {result['take']})",
        highlight=False,
    )
    for name in ("recorded", "again"):
        console.print(f"{name:>9}: {_in_words(result[name])}", highlight=False)
    table = Table("prompt", "recorded", "again", "penalties", "issues")
    for row in result["changed"]:
        both = "" if row["left_penalty"] is None else f"{row['left_penalty']:g} : {row['right_penalty']:g}"
        table.add_row(row["prompt"][:16], row["recorded"], row["again"], both, row["issues"][:120])
    if result["changed"]:
        console.print(table)
    turned = "the outcome of the match turns" if result["turned"] else "the outcome of the match stays"
    console.print(f"{len(result['changed'])} of {result['judged_again']} duels changed, {turned}", highlight=False)


def _in_words(margin: dict[str, Any]) -> str:
    interval = margin["interval"]
    between = f", interval {interval[0]:+.4f} to {interval[1]:+.4f}" if interval else ""
    return f"{margin['margin']:+.4f}{between}, {'won' if margin['won'] else 'not won'}{', close' if margin['close'] else ''}"
