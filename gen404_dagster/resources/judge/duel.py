"""The questions of one duel, and what their replies come to.

Belongs here: both orders, asked as often as configured, both at once. Does not: who wins by penalties
(`competition.duels`), which duels are due.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from gen404_dagster.competition.duels import average_penalties, orders_disagree
from gen404_dagster.errors import Gen404Error
from gen404_dagster.resources.judge.protocol import Judge, JudgeAnswer, Picture, Question, Reply


class JudgeNonsense(Gen404Error):
    """The judge answered twice, and neither answer is one."""


@dataclass(frozen=True)
class DuelJudgement:
    """Replies of a duel by repeat: `straight` with left shown first, `swapped` with right shown first."""

    straight: tuple[Reply, ...]
    swapped: tuple[Reply, ...]

    @property
    def replies(self) -> tuple[Reply, ...]:
        return (*self.straight, *self.swapped)

    @property
    def fault(self) -> str:
        """Why nothing can be concluded: an order without any valid answer. "" when something can."""
        for order in (self.straight, self.swapped):
            if not any(reply.answer for reply in order):
                return order[-1].fault
        return ""

    @property
    def left_penalty(self) -> float:
        return self._penalties()[0]

    @property
    def right_penalty(self) -> float:
        return self._penalties()[1]

    @property
    def issues(self) -> str:
        """Those of the first valid answer in which "first" is left."""
        return next((reply.answer.issues for reply in self.straight if reply.answer), "")

    @property
    def answers(self) -> tuple[JudgeAnswer, ...]:
        return tuple(reply.answer for reply in self.replies if reply.answer)

    @property
    def disagrees(self) -> bool:
        """Whether the two orders name different sides as better."""
        return not self.fault and orders_disagree(_penalties_of(self.straight), _penalties_of(self.swapped))

    def _penalties(self) -> tuple[float, float]:
        if self.fault:
            raise JudgeNonsense(self.fault)
        return average_penalties(_penalties_of(self.straight), _penalties_of(self.swapped))


def _penalties_of(replies: Sequence[Reply]) -> list[tuple[int, int]]:
    return [(reply.answer.penalty_1, reply.answer.penalty_2) for reply in replies if reply.answer]


async def judge_duel(
    judge: Judge, prompt: Picture, left: Picture, right: Picture, seed: int, repeats: int = 1
) -> DuelJudgement:
    """Questions with sides swapped, so that a preference for a position cancels out, each asked `repeats` times."""
    questions = [Question(prompt, left, right, seed, repeat) for repeat in range(repeats)]
    questions += [Question(prompt, right, left, seed, repeat) for repeat in range(repeats)]
    replies = await _all(*[judge.ask(question) for question in questions])
    return DuelJudgement(tuple(replies[:repeats]), tuple(replies[repeats:]))


async def _all(*asked: Coroutine[Any, Any, Reply]) -> list[Reply]:
    """All replies; when one question fails the others are not waited for."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
