"""From what a model said to an answer, or to why it is none.

Belongs here: the schema that is asked for, and reading what came instead: thoughts, fences, truncation, refusal,
numbers out of bounds. Does not: sending (`openai`), what a draw is (`competition.duels`).
"""

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from gen404_dagster.resources.judge.protocol import WORST, JudgeAnswer, one_line

MAX_ANSWER_CHARS = 100_000

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "penalty_1": {"type": "integer", "minimum": 0, "maximum": WORST},
        "penalty_2": {"type": "integer", "minimum": 0, "maximum": WORST},
        "issues": {"type": "string"},
    },
    "required": ["penalty_1", "penalty_2", "issues"],
    "additionalProperties": False,
}


class NoAnswer(Exception):
    """The model said something, and it is not an answer."""


class NotThisApi(Exception):
    """What came is no completion: a proxy's page, or another service."""


REFUSED = "it refused to answer"


@dataclass(frozen=True)
class Said:
    """A completion as far as it can be read. `fault`: why its text cannot hold an answer, "" when it may."""

    text: str
    fault: str
    prompt_tokens: int
    completion_tokens: int


def read_completion(completion: Any) -> Said:
    """What the model said. The client does not check what it is sent: nothing here is taken for granted.

    Raises NotThisApi.
    """
    choices = getattr(completion, "choices", None)
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise NotThisApi("no choices in it")
    content = getattr(message, "content", None)
    text = content if isinstance(content, str) else ""
    reason = getattr(choice, "finish_reason", None)
    fault = ""
    if getattr(message, "refusal", None) or reason == "content_filter":
        fault = REFUSED
    elif reason == "length":
        fault = "its answer was cut off at the limit of tokens (GEN404_JUDGE_MAX_TOKENS)"
    elif not text.strip():
        fault = "its answer is empty"
    usage = getattr(completion, "usage", None)
    return Said(text, fault, _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"))


def _count(usage: object, name: str) -> int:
    value = getattr(usage, name, 0)
    return value if type(value) is int and 0 <= value < 2**31 else 0


def parse_answer(text: str) -> JudgeAnswer:
    """The answer in a model's text: after its thoughts, without fences and other wrapping. Raises NoAnswer."""
    if len(text) > MAX_ANSWER_CHARS:
        raise NoAnswer(f"its answer has {len(text)} characters")
    said = text.rpartition("</think>")[2]
    if "<think>" in said:
        raise NoAnswer("its thoughts have no end")
    start, end = said.find("{"), said.rfind("}")
    if start < 0 or end < start:
        raise NoAnswer(f"its answer holds no JSON object: {str(one_line(said))[:120]!r}")
    try:
        return JudgeAnswer.model_validate(json.loads(said[start : end + 1]))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise NoAnswer(f"its answer is out of bounds: {where}: {fault['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise NoAnswer(f"its answer is not JSON: {str(one_line(said))[:120]!r}") from error
