"""Duels: missing matches in canonical order, and the audits that their local leaders need."""

import asyncio
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
from gen404_dagster.competition import duels as rules
from gen404_dagster.competition import models, paths
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    LEADER,
    AuditRequest,
    Duel,
    DuelWinner,
    Hotkey,
    MatchReport,
    MatchRow,
    Results,
    Stage,
    write_json,
    write_matrix,
)
from gen404_dagster.competition.stages import RoundState, token
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
    LocalStoreResource,
    StateRepositoryResource,
)
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import Judge, JudgeNonsense, Picture, judge_duel
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
    store: LocalStoreResource,
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
        yield from adopted(repository, number, "match_matrix")
        return
    tally = Tally()
    while True:
        snapshot = repository.head()
        round_ = read_round(snapshot, number)
        if round_.state.current_round != number or round_.state.stage != Stage.DUELS or round_.baseline_missing:
            break
        now = round_.standing()
        if now.requests or not now.matches:
            break
        left, right = now.matches[0]
        table = Table(
            round_, left, right, _results(snapshot, number, left), _results(snapshot, number, right), limits.get()
        )
        progress = Progress(context, journal.get(), number, "judge", len(round_.prompts or ()))
        progress.show(f"{right[:10]} against {left[:10]}, {len(now.matches)} matches to play")
        downloader = cdn.get(limits.get(), entropy.get())
        pictures = PromptPictures(store.get(), downloader, limits.get().max_prompt_bytes)
        player = Player(
            judge.get(embedder.get()), store.get(), journal.get(), downloader, pictures, limits.get(), progress, tally
        )
        margin, report = asyncio.run(player.play(table))
        _commit_match(context, state, table, margin, report, snapshot)
    if repository.head(fetch=False).exists(paths.matrix(number)):
        yield described("match_matrix", repository, number, tally.metadata())
    else:
        yield from not_yet("match_matrix", repository, number)


def _results(snapshot: Snapshot, number: int, hotkey: Hotkey) -> Results | None:
    return read_results(snapshot, number, hotkey, "generated" if hotkey == LEADER else "submitted")


@dataclass(frozen=True)
class Table:
    """A match about to be played."""

    round: RoundState
    left: Hotkey
    right: Hotkey
    left_results: Results | None
    right_results: Results | None
    limits: Limits


class Tally:
    """What judging cost in this run."""

    def __init__(self) -> None:
        self.asked = self.remembered = self.nonsense = self.disagreed = 0
        self.seconds: list[float] = []

    def metadata(self) -> dict[str, dg.MetadataValue]:
        if not self.asked and not self.remembered:
            return {}
        counts = {"duels_asked": self.asked, "duels_remembered": self.remembered, "nonsense_answers": self.nonsense}
        counts["orders_disagreed"] = self.disagreed
        found: dict[str, dg.MetadataValue] = {name: dg.MetadataValue.int(value) for name, value in counts.items()}
        if self.seconds:
            found["median_duel_seconds"] = dg.MetadataValue.float(
                round(sorted(self.seconds)[len(self.seconds) // 2], 3)
            )
        return found


@dataclass(frozen=True)
class Player:
    """Plays one match: all open duels at once, as many as the judge may be asked at a time."""

    judge: Judge
    store: ObjectStore
    journal: Journal
    downloader: Downloads
    prompts: PromptPictures
    limits: Limits
    progress: Progress
    tally: Tally

    async def play(self, table: Table) -> tuple[float, MatchReport | None]:
        """Margin and report. Raises JudgeUnavailable: the match stays open, answers so far are kept."""
        margin = rules.margin_without_results(table.left_results, table.right_results)
        if margin is not None:
            return margin, None
        prompts = table.round.prompts or ()
        done, to_judge = rules.unjudged_duels(prompts, table.left_results or {}, table.right_results or {}, self.limits)
        self.progress.step(count=len(done))
        slots = asyncio.Semaphore(self.limits.judge_concurrency)
        async with self.downloader:
            tasks = {position: self._judge(duel, table.round, slots) for position, duel in to_judge.items()}
            judged = dict(zip(tasks, await gather_all(*tasks.values()), strict=True))
        duels = done | judged
        report = rules.match_report(table.left, table.right, [duels[position] for position in sorted(duels)])
        return report.margin, report

    async def _judge(self, duel: Duel, round_: RoundState, slots: asyncio.Semaphore) -> Duel:
        async with slots:
            prompt = self._picture(await self.prompts.read(duel.prompt), duel.prompt)
            left, right = self._preview(duel.left_png), self._preview(duel.right_png)
            seed = round_.seed or 0
            asked = token(self.judge.identity, prompt.sha256, left.sha256, right.sha256, seed)
            unit = f"duel/{duel.name}/{left.sha256[:16]}/{right.sha256[:16]}"
            known = self.journal.get(round_.number, unit, asked)
            if known is None:
                began = time.monotonic()
                try:
                    judged = await judge_duel(self.judge, prompt, left, right, seed)
                    known = {
                        "left": judged.left_penalty,
                        "right": judged.right_penalty,
                        "issues": judged.issues,
                        "answers": [answer.model_dump() for answer in judged.answers],
                    }
                except JudgeNonsense as nonsense:
                    known = {"nonsense": str(nonsense)}
                self.journal.put(round_.number, unit, asked, known)
                self.tally.asked += 1
                self.tally.seconds.append(time.monotonic() - began)
            else:
                self.tally.remembered += 1
            self.progress.step()
        if "nonsense" in known:
            self.tally.nonsense += 1
            return duel.model_copy(
                update={"winner": DuelWinner.DRAW, "issues": f"No valid answer: {known['nonsense']}"}
            )
        self.tally.disagreed += self._disagree(known["answers"])
        winner = rules.decide_by_penalties(known["left"], known["right"], self.limits)
        return duel.model_copy(update={"winner": winner, "issues": known["issues"]})

    def _disagree(self, answers: Sequence[dict[str, int]]) -> bool:
        """Whether the two orders name different sides as better."""
        if len(answers) != 2:
            return False
        first = answers[0]["penalty_1"] - answers[0]["penalty_2"]
        swapped = answers[1]["penalty_2"] - answers[1]["penalty_1"]
        return first * swapped < 0

    def _preview(self, url: str | None) -> Picture:
        key = self.store.key_of(url or "")
        assert key is not None, f"{url} is not in the store"
        return self._picture(self.store.read(key), url)

    def _picture(self, data: bytes, url: str | None) -> Picture:
        return Picture.of(data, url if self.judge.reads_urls else None)


def _commit_match(
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    table: Table,
    margin: float,
    report: MatchReport | None,
    read_at: Snapshot,
) -> None:
    number, left, right = table.round.number, table.left, table.right

    def decide(snapshot: Snapshot) -> Change | None:
        round_ = read_round(snapshot, number)
        played = {(row.left, row.right) for row in round_.matrix}
        changed = any(_results(snapshot, number, side) != _results(read_at, number, side) for side in (left, right))
        if (left, right) in played or round_.state.stage != Stage.DUELS or changed:
            return None
        rows = [*round_.matrix, MatchRow(left=left, right=right, margin=margin)]
        files: dict[str, str | None] = {paths.matrix(number): write_matrix(rows)}
        if report is not None:
            files[paths.match_report(number, left, right)] = write_json(models.MATCH_REPORT, report)
        won = "wins" if margin >= round_.config.win_margin else "does not win"
        subject = f"Play {right[:10]} against {left[:10]} in round {number}: {margin:+.4f}, {won}"
        return Change(files, subject)

    inputs = token(left, right, table.left_results, table.right_results, table.round.seed)
    commit(context, state.get(), Step(number, "match", inputs, unit=f"{left[:10]}-{right}"), decide)


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
