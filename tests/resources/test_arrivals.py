"""Files that could not be measured: kept, measured again, never generated twice, never counted twice."""

import io
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen404_dagster.competition.models import GenerationResult, Stem
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.pods.arrivals import Arrival, Arrivals
from tests.resources.pod_world import World, limits, prompts, world_of


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_of("local", tmp_path) as world:
        yield world


def asked(world: World) -> Counter[Stem]:
    """How often the images were asked for each prompt, over all pods and runs."""
    return Counter(entry["stem"] for pod in range(len(world.images())) for entry in world.asked(pod))


def kept(world: World) -> list[Stem]:
    found = [world.arrivals.read(path) for path in world.arrivals.pending()]
    return sorted(one[0].stem for one in found if one)


def test_a_short_outage_costs_nothing_but_time(world: World) -> None:
    tries: Counter[Stem] = Counter()

    async def busy(stem: Stem) -> None:
        tries[stem] += 1
        if stem == "p1" and tries[stem] < 4:
            raise Unavailable("the renderer starts again")

    world.during = busy
    outcome = world.run(world.job(*prompts(3)), world.provider())
    assert tries == {"p0": 1, "p1": 4, "p2": 1}
    assert {stem: result.attempts for stem, result in outcome.results.items()} == dict.fromkeys(prompts(3), 1)
    assert asked(world) == Counter(prompts(3))
    assert kept(world) == []


def test_a_file_that_could_not_be_measured_is_measured_later_and_not_generated_again(world: World) -> None:
    world.distances = {"p2": None}
    one_pod = limits(pods_at_once=1, pod_prompts_in_flight=1)
    with pytest.raises(Unavailable, match="distance of 5Miner7890123 on p2 could not be measured"):
        world.run(world.job(*prompts(4)), world.provider({"seconds": 0.2}), limits=one_pod)
    assert (sorted(world.saved), kept(world)) == (["p0", "p1"], ["p2"])

    with pytest.raises(Unavailable, match="p2 could not be measured"):
        world.run(world.job(*prompts(4)), world.provider({"seconds": 0.2}), limits=one_pod)
    assert len(world.images()) == 1, "an outage that goes on costs no pod"

    world.distances = {"p2": 0.5}
    outcome = world.run(world.job(*prompts(4)), world.provider({"seconds": 0.0}), limits=one_pod)
    late = outcome.results["p2"]
    assert (late.distance, late.attempts, late.size) == (0.5, 1, len(world.files["p2"]))
    assert late.generation_time >= 0.2, "the time is that of the generation that was measured"
    assert asked(world) == Counter(prompts(4))
    assert kept(world) == []


def test_an_operators_mistake_costs_no_generation_either(world: World) -> None:
    async def mistaken(stem: Stem) -> None:
        raise OperatorError("GEN404_RENDER_BACKEND names a backend that cannot draw here")

    world.during = mistaken
    with pytest.raises(OperatorError):
        world.run(world.job("p0"), world.provider())
    world.during = None
    assert list(world.run(world.job("p0"), world.provider()).results) == ["p0"]
    assert asked(world) == Counter(["p0"])


def test_the_last_file_alone_needs_no_pod(world: World) -> None:
    world.arrivals.keep(Arrival("p0", "gen404-test-1-5miner7890-0", 3.5, 0), io.BytesIO(b"glTF late"))
    outcome = world.run(world.job("p0"), world.provider())
    assert (outcome.deployed, outcome.results["p0"].generation_time, world.images()) == (True, 3.5, [])
    assert [pod.termination_reason for pod in outcome.pods.values()] == ["stopped"]


def test_what_was_counted_before_a_kill_is_not_counted_again(world: World) -> None:
    slow = GenerationResult(glb="g", png="p", generation_time=170.0, size=9, attempts=1, distance=0.02)
    world.saved = {"p0": slow}
    world.arrivals.keep(Arrival("p0", "gen404-test-1-5miner7890-0", 120.0, 0), io.BytesIO(b"glTF counted"))
    outcome = world.run(world.job("p0"), world.provider(), limits=limits(prompt_attempts=1))
    assert outcome.results == {"p0": slow}
    assert (world.files, kept(world)) == ({}, [])


def test_a_slower_file_never_replaces_a_better_one(world: World) -> None:
    world.saved = {"p0": GenerationResult(glb="g", png="p", generation_time=95.0, size=9, attempts=1, distance=0.02)}
    world.arrivals.keep(Arrival("p0", "gen404-test-1-5miner7890-0", 150.0, 1), io.BytesIO(b"glTF slower"))
    world.run(world.job("p0"), world.provider({"seconds": 0.0}))
    assert world.files["p0"] != b"glTF slower"


@pytest.mark.parametrize("cut", [0, 1, 30, 200])
def test_half_a_file_is_generated_again(world: World, cut: int) -> None:
    world.arrivals.keep(Arrival("p0", "gen404-test-1-5miner7890-0", 3.5, 0), io.BytesIO(b"glTF" + bytes(400)))
    (path,) = world.arrivals.pending()
    path.write_bytes(path.read_bytes()[:cut])
    world.run(world.job("p0"), world.provider())
    assert asked(world) == Counter(["p0"])
    assert kept(world) == []


def test_a_disk_without_room_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable, match="no room for a file that arrived"):
        Arrivals(tmp_path / "file").keep(Arrival("p0", "pod", 1.0, 0), io.BytesIO(b"glTF"))


def test_what_has_no_room_leaves_no_part_of_it(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(Unavailable, match="no room for a file that arrived: File too large"):
            Arrivals(tmp_path / "kept").keep(Arrival("p0", "pod", 1.0, 0), io.BytesIO(bytes(2_000_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "kept").iterdir()) == []
