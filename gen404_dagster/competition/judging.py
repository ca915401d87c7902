"""What judging cost and how steady it was: per match, and per round.

Belongs here: counts of one match's questions, sums and rates over matches, prices. Does not: the questions themselves
(`resources.judge`), outcomes (`duels`).
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from gen404_dagster.competition.models import Hotkey


class Prices(BaseModel):
    """Of a million tokens, in the operator's currency; 0: nothing is said about cost."""

    model_config = ConfigDict(frozen=True)

    prompt: float = 0.0
    completion: float = 0.0

    def priced(self, judging: "MatchJudging") -> "MatchJudging":
        cost = (judging.prompt_tokens * self.prompt + judging.completion_tokens * self.completion) / 1e6
        return judging.model_copy(update={"cost": cost})


class MatchJudging(BaseModel):
    """One match's judged duels, or sums over several. `seconds`: of each question, without waits."""

    model_config = ConfigDict(frozen=True)

    left: Hotkey = ""
    right: Hotkey = ""
    duels: int = 0
    draws: int = 0
    nonsense: int = 0
    disagreed: int = 0
    left_out: int = 0
    questions: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """By the prices of its day; 0: no price was known."""
    seconds: tuple[float, ...] = ()
    judge: str = ""


_SUMMED = (
    "duels",
    "draws",
    "nonsense",
    "disagreed",
    "left_out",
    "questions",
    "calls",
    "prompt_tokens",
    "completion_tokens",
    "cost",
)
PERCENTILES = (50, 90, 99)

Row = dict[str, str | int | float | bool | None]


def summed(matches: Sequence[MatchJudging]) -> MatchJudging:
    counts = {name: sum(getattr(match, name) for match in matches) for name in _SUMMED}
    seconds = tuple(second for match in matches for second in match.seconds)
    return MatchJudging(**counts, seconds=seconds, judge=", ".join(dict.fromkeys(match.judge for match in matches)))


def facts(judging: MatchJudging) -> Row:
    """Counts, rates, percentiles of latency (nearest rank), and the cost where a price is known."""
    ordered = sorted(judging.seconds)
    row: Row = {name: getattr(judging, name) for name in _SUMMED}
    row["draw_rate"] = judging.draws / judging.duels if judging.duels else None
    row["disagreement"] = judging.disagreed / judging.duels if judging.duels else None
    for share in PERCENTILES:
        row[f"seconds_p{share}"] = ordered[math.ceil(share * len(ordered) / 100) - 1] if ordered else None
    if not judging.cost:
        del row["cost"]
    return row
