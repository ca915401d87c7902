"""What judging took: sums, rates, percentiles, cost."""

import pytest

from gen404_dagster.competition.judging import MatchJudging, Prices, facts, summed


def match(**values: object) -> MatchJudging:
    given = {"duels": 4, "draws": 1, "disagreed": 2, "questions": 8, "calls": 9, "prompt_tokens": 8000, "judge": "m"}
    return MatchJudging.model_validate(given | {"seconds": tuple(range(1, 9))} | values)


def test_a_round_is_the_sum_of_its_matches() -> None:
    both = summed([match(), match(duels=6, draws=6, disagreed=0, seconds=(10.0, 20.0))])
    row = facts(both)
    assert (row["duels"], row["questions"], row["calls"], row["prompt_tokens"]) == (10, 16, 18, 16000)
    assert (row["draw_rate"], row["disagreement"]) == (0.7, 0.2)
    assert (row["seconds_p50"], row["seconds_p90"], row["seconds_p99"]) == (5, 10, 20)
    assert both.judge == "m"


def test_nothing_judged_has_no_rates() -> None:
    row = facts(summed([]))
    assert (row["duels"], row["draw_rate"], row["seconds_p99"]) == (0, None, None)


def test_cost_is_known_when_a_price_is() -> None:
    assert "cost" not in facts(Prices().priced(match()))
    priced = Prices(prompt=0.5, completion=2.0).priced(match(completion_tokens=1_000_000))
    assert facts(summed([priced, priced]))["cost"] == pytest.approx(2 * (0.004 + 2.0))
