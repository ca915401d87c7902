"""Equal simulations end equally: what is random follows from the seed, not from time, port or order of arrival."""

from pathlib import Path

import pytest

from tests.simulations import FULL, Played, Simulation, play_side_by_side


def assert_equal(first: Played, second: Played, rounds: int) -> None:
    """The same seeds, prompts, submissions (but for the port), matrices, audits, winners and leaders."""
    assert first.result == second.result
    assert [round_["round"] for round_ in first.result["rounds"]] == list(range(rounds))
    for part in ("seed", "prompts", "submissions", "matrix", "audits", "winner", "leader"):
        assert all(round_[part] for round_ in first.result["rounds"]), f"no {part}: nothing was compared"
    for played in (first, second):
        played.simulation.assert_whole()
    second.simulation.assert_equals(first.simulation)


def test_one_small_round_played_twice_is_the_same(undisturbed: tuple[Played, Played]) -> None:
    assert_equal(*undisturbed, rounds=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_rounds_played_twice_are_the_same(tmp_path: Path) -> None:
    three = ("--rounds", "3", *FULL)
    first, second = play_side_by_side(Simulation(tmp_path / "A", *three), Simulation(tmp_path / "B", *three))
    assert_equal(first, second, rounds=3)
