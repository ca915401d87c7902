"""Who takes part, what they reveal, and what the pipeline's rules make of it."""

import pytest

from gen404_dagster.competition.commitments import collect_submissions
from gen404_dagster.competition.models import Schedule
from gen404_dagster.errors import OperatorError
from gen404_dagster.simulation.cast import BLOCKS_PER_DAY, Cast
from gen404_dagster.simulation.parameters import WorldParameters, parse_parameters, parse_skills


def day(number: int) -> Schedule:
    latest = 300 + BLOCKS_PER_DAY * number
    first = latest - BLOCKS_PER_DAY + 1 if number else 0
    return Schedule(earliest_reveal_block=first, latest_reveal_block=latest, generation_deadline_block=latest + 300)


def submitters(cast: Cast, number: int) -> list[str]:
    schedule = day(number)
    revealed = cast.revealed(schedule.latest_reveal_block)
    found = collect_submissions(revealed, schedule, f"sim-{number}", allow_http=True)
    return [cast.miners[hotkey].name for hotkey in found.submissions]


ORDER = ["build-fails", "copycat", "messy", "cdn-down", "weaker", "cheater", "best", "rising"]


@pytest.mark.parametrize("number", [0, 1, 2, 9, 40])
def test_every_round_has_the_same_submissions_in_the_order_of_the_story(number: int) -> None:
    assert submitters(Cast(WorldParameters(miners=9), 5000), number) == [*ORDER, "honest-1"]


def test_fewer_miners_are_the_most_important_ones() -> None:
    assert submitters(Cast(WorldParameters(miners=3), 5000), 0) == ["weaker", "cheater", "best"]
    assert submitters(Cast(WorldParameters(miners=0), 5000), 0) == []
    assert len(submitters(Cast(WorldParameters(miners=64), 5000), 0)) == 64


def test_everyone_else_is_refused_for_a_reason_of_its_own() -> None:
    cast = Cast(WorldParameters(miners=2), 5000)
    refused = collect_submissions(cast.revealed(400), day(0), "sim-0", allow_http=True).refused
    assert len(refused) == 13
    assert len({reason.split(": ")[-1] for reason in refused.values()}) >= 11
    assert any("outside the window" in reason for reason in refused.values())


def test_reveals_appear_at_their_block_and_ten_are_remembered() -> None:
    cast = Cast(WorldParameters(miners=1), 5000)
    (best,) = cast.miners
    assert best not in cast.revealed(159)
    assert [block for block, _ in cast.revealed(160)[best]] == [160]
    assert len(cast.revealed(30 * BLOCKS_PER_DAY)[best]) == 10


def test_the_rising_miner_has_a_new_commit_each_day_and_ends_best() -> None:
    rising = Cast(WorldParameters(), 5000).named("rising")
    assert [rising.version_at(block * BLOCKS_PER_DAY) for block in (0, 1, 2, 3)] == [0, 1, 2, 2]
    assert len({rising.commit(version) for version in range(3)}) == 3
    assert rising.role.skills[2][0] > Cast(WorldParameters(), 5000).named("best").role.skills[0][0]


def test_an_image_is_known_by_the_name_that_its_build_has() -> None:
    cast = Cast(WorldParameters(), 5000)
    cheater, failing = cast.named("cheater"), cast.named("build-fails")
    image = cast.image(f"registry.local/competition/{cheater.hotkey[:10]}:{cheater.commit(0)[:7]}-sim-4".lower())
    assert image is not None
    assert (image.miner.name, image.skill) == ("cheater", 0.35)
    assert cast.image(cast.first_image) is not None
    assert cast.image(f"registry.local/competition/{failing.hotkey[:10]}:{failing.commit(0)[:7]}-sim-0".lower()) is None
    assert cast.image("registry.local/competition/5unknownxx:0000000-sim-0") is None


def test_skills_are_set_by_name() -> None:
    skills = parse_skills(["best=0.6", "cheater=1.0:0.9", "rising=0.1"])
    cast = Cast(WorldParameters(skills=skills), 5000)
    assert cast.named("best").role.skills == ((0.6, 0.6),)
    assert cast.named("cheater").role.skills == ((1.0, 0.9),)
    assert cast.named("rising").role.skills == ((0.1, 0.1),) * 3


@pytest.mark.parametrize("option", ["best", "best=", "best=2", "=0.5", "best=0.5:x", "best=nan"])
def test_a_wrong_skill_is_refused(option: str) -> None:
    with pytest.raises(OperatorError, match="--skill"):
        parse_skills([option])


def test_unknown_names_and_parameters_are_refused() -> None:
    with pytest.raises(OperatorError, match="no miner is called bset: there are base, best"):
        _ = Cast(WorldParameters(miners=1, skills={"bset": (0.5, 0.5)}), 5000).miners
    with pytest.raises(OperatorError, match="miners"):
        parse_parameters('{"miners": 1000}')


def test_hotkeys_look_like_addresses_and_differ_between_seeds() -> None:
    first, second = (set(Cast(WorldParameters(seed=seed, miners=64), 5000).miners) for seed in (1, 2))
    assert not first & second
    assert all(len(hotkey) == 48 and hotkey[0] == "5" and not set("0OIl") & set(hotkey) for hotkey in first)
