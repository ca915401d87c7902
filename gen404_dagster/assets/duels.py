"""Duels: missing matches in canonical order, and the audits that their local leaders need."""

import asyncio
from collections.abc import Sequence
from functools import partial

import dagster as dg

from gen404_dagster.assets import checks
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
from gen404_dagster.assets.judging import judging_metadata, keep_judging
from gen404_dagster.competition import duels as rules
from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import (
    LEADER,
    AuditRequest,
    Hotkey,
    MatchRow,
    Results,
    Stage,
    write_json,
    write_matrix,
)
from gen404_dagster.competition.stages import RoundState, token
from gen404_dagster.competition.timeline import Pair
from gen404_dagster.errors import JudgeUnavailable, OperatorError
from gen404_dagster.partitions import across
from gen404_dagster.resources.cdn import Downloads
from gen404_dagster.resources.configured import (
    CdnResource,
    EmbedderResource,
    EntropyResource,
    JournalResource,
    JudgeResource,
    LaneResource,
    LimitsResource,
    StateRepositoryResource,
    StoreResource,
)
from gen404_dagster.resources.judge.kept import KeptJudge
from gen404_dagster.resources.judge.match import Ahead, Played, Player, Table
from gen404_dagster.resources.object_store import ObjectStore
from gen404_dagster.resources.prompt_pictures import PromptPictures
from gen404_dagster.resources.round_files import read_match, read_results, read_round
from gen404_dagster.resources.state_repo import Change, Snapshot, Step

GROUP = "duels"


@dg.multi_asset(
    name="match_matrix",
    specs=[
        round_spec(
            "match_matrix",
            GROUP,
            "Margins of the matches played, in order. Every miner plays the leader; who wins by win_margin qualifies and "
            "plays the local leader in order of submission; while audits run all other pairs are played. A match is one "
            "duel per prompt, judged twice with sides swapped; margin = (won - lost) / prompts.",
            kinds={"openai", "git"},
            deps=[across("renders"), "leader_baseline"],
        )
    ],
    check_specs=checks.specs_of("match_matrix"),
    pool="vlm",
)
def match_matrix(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    journal: JournalResource,
    store: StoreResource,
    cdn: CdnResource,
    entropy: EntropyResource,
    embedder: EmbedderResource,
    judge: JudgeResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    """Play what is missing until an audit is due or nothing is missing; derive again after each committed match."""
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(repository, number, "match_matrix", extra=judging_metadata(journal.get(), number))
        return
    kept = KeptJudge(judge.get(embedder.get()), journal.get(), store.get(), number)
    asyncio.run(_play_due(context, state, journal, store, cdn.get(limits.get(), entropy.get()), kept, judge, limits))
    if repository.head(fetch=False).exists(paths.matrix(number)):
        run = {"answers_asked": kept.asked, "answers_remembered": kept.remembered}
        extra = judging_metadata(journal.get(), number)
        extra |= {name: dg.MetadataValue.int(count) for name, count in run.items()}
        extra |= {"early_exit": dg.MetadataValue.bool(True)} if judge.early_exit else {}
        yield described("match_matrix", repository, number, extra)
    else:
        yield from not_yet("match_matrix", repository, number)


async def _play_due(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    journal: JournalResource,
    store: StoreResource,
    downloader: Downloads,
    kept: KeptJudge,
    judge: JudgeResource,
    limits: LimitsResource,
) -> None:
    """Commit due matches in canonical order; the questions of those after them are asked in the meantime."""
    repository, number = state.get(), round_number(context)
    progress = Progress(context, journal.get(), number, "judge", 0)
    pictures = DuelPictures(store.get(), PromptPictures(store.get(), downloader, limits.get().max_prompt_bytes))
    async with kept, downloader:
        player = Player(
            kept,
            pictures,
            limits.get(),
            repeats=judge.repeats,
            early_exit=judge.early_exit,
            on_duel=progress.step,
        )
        ahead = Ahead(player)
        try:
            while True:
                snapshot = await asyncio.to_thread(repository.head)
                round_ = await asyncio.to_thread(read_round, snapshot, number)
                due = _due(round_)
                if not due:
                    break
                left, right = due[0]
                progress.total = max(progress.total, progress.done + len(due) * len(round_.prompts or ()))
                progress.show(f"{right[:10]} against {left[:10]}, {len(due)} matches to play")
                try:
                    table, played = await ahead.first(due, partial(_table, snapshot, round_))
                except JudgeUnavailable as error:
                    raise JudgeUnavailable(_what_to_execute(error, number, left, right, kept)) from None
                keep_judging(journal.get(), number, judge.prices.priced(played.judging))
                await asyncio.to_thread(_commit_match, context, state, round_, table, played, snapshot)
            await player.close()
        finally:
            await ahead.drop()


def _due(round_: RoundState) -> Sequence[Pair]:
    """Matches to play now, in canonical order; none while an audit is to be asked for first."""
    if round_.state.current_round != round_.number or round_.state.stage != Stage.DUELS or round_.baseline_missing:
        return ()
    now = round_.standing()
    return () if now.requests else now.matches


async def _table(snapshot: Snapshot, round_: RoundState, pair: Pair) -> Table:
    left, right = pair
    results = [await asyncio.to_thread(_results, snapshot, round_.number, side) for side in pair]
    return Table(left, right, round_.prompts or (), round_.seed or 0, round_.config.win_margin, *results)


def _results(snapshot: Snapshot, number: int, hotkey: Hotkey) -> Results | None:
    return read_results(snapshot, number, hotkey, "generated" if hotkey == LEADER else "submitted")


def _what_to_execute(error: JudgeUnavailable, number: int, left: Hotkey, right: Hotkey, kept: KeptJudge) -> str:
    return (
        f"{error}. The match of {right[:10]} against {left[:10]} stays open and {kept.asked + kept.remembered} answers of "
        f"this run are kept: execute the job `judge` of round {number} again, or leave it to the sensor"
    )


class DuelPictures:
    """Pictures of a duel, from the object store."""

    def __init__(self, store: ObjectStore, prompts: PromptPictures) -> None:
        self._store, self._prompts = store, prompts

    async def prompt(self, url: str) -> bytes:
        return await self._prompts.read(url)

    async def preview(self, url: str) -> bytes:
        key = self._store.key_of(url)
        if key is None:
            raise OperatorError(f"preview {url} is not in the store: set CDN_URL to what the round's files name")
        return await asyncio.to_thread(self._store.read, key)


def _commit_match(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    read: RoundState,
    table: Table,
    played: Played,
    read_at: Snapshot,
) -> None:
    number, left, right, margin = read.number, table.left, table.right, played.margin

    def decide(snapshot: Snapshot) -> Change | None:
        round_ = read_round(snapshot, number)
        done = {(row.left, row.right) for row in round_.matrix}
        changed = any(_results(snapshot, number, side) != _results(read_at, number, side) for side in (left, right))
        if (left, right) in done or round_.state.stage != Stage.DUELS or changed:
            return None
        rows = [*round_.matrix, MatchRow(left=left, right=right, margin=margin)]
        files: dict[str, str | None] = {paths.matrix(number): write_matrix(rows)}
        if played.report is not None:
            files[paths.match_report(number, left, right)] = write_json(models.MATCH_REPORT, played.report)
        won = "wins" if margin >= round_.config.win_margin else "does not win"
        subject = f"Play {right[:10]} against {left[:10]} in round {number}: {margin:+.4f}, {won}"
        return Change(files, subject, _early_exit_in_words(played))

    inputs = token(left, right, table.left_results, table.right_results, table.seed)
    commit(context, state.get(), Step(number, "match", inputs, unit=f"{left[:10]}-{right}"), decide)


def _early_exit_in_words(played: Played) -> str:
    bound = rules.margin_bound(played.report) if played.report else None
    if played.report is None or bound is None:
        return ""
    return (
        f"Early exit: win_margin was out of reach, {played.judging.left_out} of {len(played.report.duels)} duels were not "
        f"judged. The margin counts them as draws; it could have been at most {bound:+.4f}."
    )


@dg.multi_asset(
    name="audit_requests",
    specs=[
        round_spec(
            "audit_requests",
            GROUP,
            "Who must prove its outputs: the first qualifier and every local leader, each once, with the prompts that "
            "decided a close match.",
            kinds={"git"},
            deps=["match_matrix"],
        )
    ],
    check_specs=checks.specs_of("audit_requests"),
    pool="git",
)
def audit_requests(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext, state: StateRepositoryResource, limits: LimitsResource, lane: LaneResource
):
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(repository, number, "audit_requests")
        return

    def decide(snapshot: Snapshot) -> Change | None:
        round_ = read_round(snapshot, number)
        due = round_.standing().requests
        if not due or round_.state.stage != Stage.DUELS:
            return None
        new = []
        for reign in due:
            report = read_match(snapshot, number, reign.defeated, reign.leader)
            critical = (
                rules.critical_prompts(report, round_.config.win_margin, round_.seed or 0, limits.get())
                if report
                else []
            )
            new.append(AuditRequest(hotkey=reign.leader, critical_prompts=critical))
        names = ", ".join(request.hotkey[:10] for request in new)
        text = write_json(models.AUDIT_REQUESTS, [*round_.requests, *new])
        return Change({paths.audit_requests(number): text}, f"Ask for audits of {names} in round {number}")

    now = read_round(repository.head(), number)
    commit(context, repository, Step(number, "request", token(now.matrix, now.requests)), decide)
    if repository.head(fetch=False).exists(paths.audit_requests(number)):
        yield described("audit_requests", repository, number)
    else:
        yield from not_yet("audit_requests", repository, number)
