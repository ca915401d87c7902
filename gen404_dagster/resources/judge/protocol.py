"""What a judge is asked and what it replies.

Belongs here: the shapes that every form of the judge shares, and what makes two questions the same. Does not: how a
form finds its answer.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

WORST = 10
MAX_ISSUES_CHARS = 1000


def one_line(text: object) -> object:
    """Printable, on one line, bounded."""
    if not isinstance(text, str):
        return text
    shown = "".join(character if character.isprintable() else " " for character in text[: 4 * MAX_ISSUES_CHARS])
    return " ".join(shown.split())[:MAX_ISSUES_CHARS]


Penalty = Annotated[int, Field(strict=True, ge=0, le=WORST)]


class JudgeAnswer(BaseModel):
    """Penalties of the first and the second model, 0 (as the prompt shows) to 10 (nothing of it), and why."""

    model_config = ConfigDict(frozen=True)

    penalty_1: Penalty
    penalty_2: Penalty
    issues: Annotated[str, BeforeValidator(one_line)]


@dataclass(frozen=True)
class Picture:
    """A prompt picture or a preview. `url`: where a judge elsewhere can read the same bytes."""

    data: bytes
    url: str | None
    sha256: str

    @classmethod
    def of(cls, data: bytes, url: str | None = None) -> "Picture":
        return cls(data, url, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class Question:
    """Which of two previews, `first` or `second`, matches `prompt` less?

    `seed` is the round's. `repeat` counts the times that the same is asked: a judge on a GPU may answer otherwise.
    """

    prompt: Picture
    first: Picture
    second: Picture
    seed: int
    repeat: int = 0

    def key(self, identity: str) -> str:
        """What makes two questions the same: pictures by content in their order, the judge, seed, repeat. 64 hex digits."""
        asked = [identity, self.prompt.sha256, self.first.sha256, self.second.sha256, self.seed, self.repeat]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class Reply(BaseModel):
    """What came of a question. Without an `answer` the judge talked nonsense, and `fault` says what was wrong with it."""

    model_config = ConfigDict(frozen=True)

    answer: JudgeAnswer | None
    fault: str = ""
    raw: tuple[str, ...] = Field((), description="What the model said, word for word; twice if nonsense came first.")
    endpoint: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False, description="How long it answered, without waits.")
    calls: int = Field(1, ge=0, description="Requests made, those that failed included.")

    @model_validator(mode="after")
    def _says_why(self) -> Self:
        if self.answer is None and not self.fault:
            raise ValueError("a reply without an answer says why")
        return self


class Judge(Protocol):
    """Enter it (`async with`) where questions are asked; it may be entered again, also in another event loop."""

    reads_urls: bool
    """Whether it may be told where pictures lie. Else it gets bytes alone, which do not say whose they are."""

    @property
    def identity(self) -> str:
        """Who answers: model and prompt version. Another identity may answer differently."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses of its servers; none when it needs no server."""

    @property
    def at_once(self) -> int:
        """Most questions that it works on at a time; more may be asked, and wait."""

    async def ask(self, question: Question) -> Reply:
        """One reply. Raises JudgeUnavailable, or OperatorError when the request itself is refused."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...
