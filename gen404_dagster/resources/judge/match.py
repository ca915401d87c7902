"""Matches, from pictures to reports: the questions of many at a time, the results in the order in which they are due.

Belongs here: reading the pictures of a duel, how many duels are at work, matches that are played ahead of their turn.
Does not: which matches are due (`competition.timeline`), outcomes (`competition.duels`), commits (assets).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gen404_dagster.competition import duels as rules
from gen404_dagster.competition.judging import MatchJudging
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import Duel, DuelWinner, Hotkey, MatchReport, Results
from gen404_dagster.competition.timeline import Pair
from gen404_dagster.resources.judge.duel import DuelJudgement, judge_duel
from gen404_dagster.resources.judge.protocol import Judge, Picture


@dataclass(frozen=True)
class Table:
    """A match about to be played. `prompts` are URLs in round order; results None: the side has no such file."""

    left: Hotkey
    right: Hotkey
    prompts: tuple[str, ...]
    seed: int
    win_margin: float
    left_results: Results | None
    right_results: Results | None


@dataclass(frozen=True)
class Played:
    """Margin, report (None: a side had no results) and what judging took."""

    margin: float
    report: MatchReport | None
    judging: MatchJudging


class Pictures(Protocol):
    async def prompt(self, url: str) -> bytes: ...

    async def preview(self, url: str) -> bytes: ...


class Player:
    """Plays matches: as many duels at work as the judge takes questions at once, in the order in which they come."""

    def __init__(
        self,
        judge: Judge,
        pictures: Pictures,
        limits: Limits,
        *,
        repeats: int = 1,
        early_exit: bool = False,
        on_duel: Callable[[], None] = lambda: None,
    ) -> None:
        """early_exit: leave a match when its win_margin is out of reach. on_duel: called after each judged duel."""
        self._judge, self._pictures, self._limits = judge, pictures, limits
        self._repeats, self._early_exit, self._on_duel = repeats, early_exit, on_duel
        self._slots = asyncio.Semaphore(judge.at_once)
        self._closing = False
        self._queued: set[asyncio.Task[tuple[Duel, DuelJudgement]]] = set()
        self._at_work: set[asyncio.Task[Any]] = set()
        self.moved = asyncio.Event()
        """Set whenever a duel begins or ends."""

    @property
    def has_room(self) -> bool:
        """Whether fewer duels wait than the judge takes at once: then another match may be begun."""
        return len(self._queued) < self._judge.at_once

    async def close(self) -> None:
        """Begin no more duels, and wait for those at work: their answers are kept."""
        self._closing = True
        while self._at_work:
            self.moved.clear()
            await self.moved.wait()

    async def play(self, table: Table) -> Played:
        """Raises JudgeUnavailable: the match stays open; a judge that keeps its answers has those so far."""
        margin = rules.margin_without_results(table.left_results, table.right_results)
        if margin is not None:
            return Played(margin, None, MatchJudging(left=table.left, right=table.right, judge=self._judge.identity))
        done, to_judge = rules.unjudged_duels(
            table.prompts, table.left_results or {}, table.right_results or {}, self._limits
        )
        tasks = {position: asyncio.create_task(self.judge(duel, table.seed)) for position, duel in to_judge.items()}
        for task in tasks.values():
            self._queued.add(task)
            task.add_done_callback(self._queued.discard)
        judged: dict[int, tuple[Duel, DuelJudgement]] = {}
        try:
            await self._until_decided(table, done, tasks, judged)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        left_out = {
            position: rules.left_out(duel, table.win_margin)
            for position, duel in to_judge.items()
            if position not in judged
        }
        duels = {**done, **{position: duel for position, (duel, _) in judged.items()}, **left_out}
        report = rules.match_report(table.left, table.right, [duels[position] for position in sorted(duels)])
        took = count(list(judged.values()), self._judge.identity)
        named = {"left": table.left, "right": table.right, "left_out": len(left_out)}
        return Played(report.margin, report, took.model_copy(update=named))

    async def _until_decided(
        self,
        table: Table,
        done: dict[int, Duel],
        tasks: dict[int, "asyncio.Task[tuple[Duel, DuelJudgement]]"],
        judged: dict[int, tuple[Duel, DuelJudgement]],
    ) -> None:
        """Fill `judged`, in round order: where an early exit falls does not depend on which answer came first."""
        winners = [duel.winner for duel in done.values()]
        total, waiting, pending = len(done) + len(tasks), list(tasks.items()), set(tasks.values())
        while waiting and not (self._early_exit and rules.out_of_reach(winners, total, table.win_margin)):
            position, task = waiting[0]
            if task.done():
                judged[position] = task.result()
                winners.append(judged[position][0].winner)
                waiting.pop(0)
            else:
                finished, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for one in finished:
                    one.result()  # raises what fails first

    async def judge(self, duel: Duel, seed: int) -> tuple[Duel, DuelJudgement]:
        """An open duel, decided, and what the judge said."""
        async with self._slots:
            if self._closing:
                await asyncio.Event().wait()  # until it is cancelled
            task = asyncio.current_task()
            assert task is not None
            self._queued.discard(task)
            self._at_work.add(task)
            self.moved.set()
            try:
                judgement = await self._ask(duel, seed)
            finally:
                self._at_work.discard(task)
                self.moved.set()
        self._on_duel()
        if judgement.fault:
            winner, issues = DuelWinner.DRAW, f"No valid answer: {judgement.fault}"
        else:
            winner = rules.decide_by_penalties(judgement.left_penalty, judgement.right_penalty, self._limits)
            issues = judgement.issues
        return duel.model_copy(update={"winner": winner, "issues": issues}), judgement

    async def _ask(self, duel: Duel, seed: int) -> DuelJudgement:
        prompt = await self._pictures.prompt(duel.prompt)
        left, right = [await self._pictures.preview(url or "") for url in (duel.left_png, duel.right_png)]
        return await judge_duel(
            self._judge,
            self._picture(prompt, duel.prompt),
            self._picture(left, duel.left_png),
            self._picture(right, duel.right_png),
            seed,
            self._repeats,
        )

    def _picture(self, data: bytes, url: str | None) -> Picture:
        return Picture.of(data, url if self._judge.reads_urls else None)


def count(judged: Sequence[tuple[Duel, DuelJudgement]], judge: str) -> MatchJudging:
    """What judging these duels took."""
    replies = [reply for _, judgement in judged for reply in judgement.replies]
    return MatchJudging(
        duels=len(judged),
        draws=sum(duel.winner == DuelWinner.DRAW for duel, _ in judged),
        nonsense=sum(reply.answer is None for reply in replies),
        disagreed=sum(judgement.disagrees for _, judgement in judged),
        questions=len(replies),
        calls=sum(reply.calls for reply in replies),
        prompt_tokens=sum(reply.prompt_tokens for reply in replies),
        completion_tokens=sum(reply.completion_tokens for reply in replies),
        seconds=tuple(reply.seconds for reply in replies),
        judge=judge,
    )


class Ahead:
    """Matches that are played before it is their turn, because they are certain to be due: the judge stays busy."""

    def __init__(self, player: Player) -> None:
        self._player = player
        self._begun: dict[Pair, tuple[Table, asyncio.Task[Played]]] = {}

    async def first(self, due: Sequence[Pair], table_of: Callable[[Pair], Awaitable[Table]]) -> tuple[Table, Played]:
        """The first due match. Those after it are begun in their order as long as the judge has room for them.

        What is not due any more, or whose results have changed, is dropped. A match that fails, fails in its turn.
        """
        for pair, (table, task) in list(self._begun.items()):
            if pair not in due or await table_of(pair) != table:
                del self._begun[pair]
                await _ended([task])
        while True:
            self._player.moved.clear()
            for pair in due:
                if pair in self._begun:
                    continue
                if pair != due[0] and not self._player.has_room:
                    break
                table = await table_of(pair)
                self._begun[pair] = (table, asyncio.create_task(self._player.play(table)))
                await asyncio.sleep(0)  # its duels queue up before the next match's
            table, task = self._begun[due[0]]
            moved = asyncio.create_task(self._player.moved.wait())
            try:
                await asyncio.wait([task, moved], return_when=asyncio.FIRST_COMPLETED)
            finally:
                moved.cancel()
            if task.done():
                del self._begun[due[0]]
                return table, task.result()

    async def drop(self) -> None:
        """End what was begun and is not due any more."""
        await _ended([task for _, task in self._begun.values()])


async def _ended(tasks: Sequence["asyncio.Task[Played]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
