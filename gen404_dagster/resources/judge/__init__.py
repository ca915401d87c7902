"""Who says which of two models matches the prompt picture less, and how badly.

Belongs here: asking one question (`protocol`), in an embedded form (`embedded`) and as OpenAI-compatible servers are
asked (`wording`, `openai`, `endpoints`, `answers`); keeping every answer (`kept`); the questions of a duel (`duel`) and
of matches (`match`). Does not: what the penalties mean for a duel (`competition.duels`), which matches are due
(`competition.timeline`), committing them (assets).

Two ways to fail, never mixed up: `JudgeUnavailable`, the match stays open; a reply without an answer, the judge did
say something and the duel is a draw that says so.
"""

from gen404_dagster.resources.judge.answers import ANSWER_SCHEMA
from gen404_dagster.resources.judge.choice import make_judge
from gen404_dagster.resources.judge.duel import DuelJudgement, JudgeNonsense, judge_duel
from gen404_dagster.resources.judge.embedded import EmbeddedJudge
from gen404_dagster.resources.judge.openai import OpenAIJudge
from gen404_dagster.resources.judge.protocol import Judge, JudgeAnswer, Picture, Question, Reply

__all__ = [
    "ANSWER_SCHEMA",
    "DuelJudgement",
    "EmbeddedJudge",
    "Judge",
    "JudgeAnswer",
    "JudgeNonsense",
    "OpenAIJudge",
    "Picture",
    "Question",
    "Reply",
    "judge_duel",
    "make_judge",
]
