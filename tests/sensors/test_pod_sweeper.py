"""Rented pods that nobody works with are found by the sensor and deleted by its job, and no others."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from gen404_dagster.resources.configured import LaneResource, PodsResource
from gen404_dagster.resources.pods import targon
from gen404_dagster.resources.pods.leftovers import in_use, job_of_pod
from gen404_dagster.resources.pods.protocol import instance_of, pod_prefix
from gen404_dagster.sensors.pod_sweeper import pod_sweeper, sweep_pods
from tests.resources import targon_double
from tests.resources.pod_world import World, world_of

INSTANCE = instance_of("https://github.com/404-Repo/competition")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(targon, "PAUSE_SECONDS", 0.02)
    with world_of("targon", tmp_path) as world:
        yield world


def parts(world: World) -> dict[str, dg.ConfigurableResource]:
    assert world.cloud is not None
    pods = PodsResource(
        providers=["targon"], instance=INSTANCE, folder=str(world.folder), targon_api_key=targon_double.KEY,
        targon_resource="h200-small", targon_url=world.cloud.root,
    )  # fmt: skip
    return {"pods": pods, "lane": LaneResource(folder=str(world.folder / "locks"))}


def look(world: World) -> dg.RunRequest | dg.SkipReason:
    with dg.build_sensor_context(resources=parts(world)) as context:
        found = pod_sweeper(context)
    assert isinstance(found, dg.RunRequest | dg.SkipReason)
    return found


def test_pods_of_a_dead_regeneration_are_swept_and_live_ones_are_left(world: World) -> None:
    dead, live = pod_prefix(INSTANCE, 3, "5Dead"), pod_prefix(INSTANCE, 3, "5Live")
    provider = world.provider()
    names = [f"{dead}0", f"{dead}4", f"{live}0", "gen404-other-3-5dead-0"]
    for name in names:
        asyncio.run(provider.deploy(name, str(world.folder / "plan.json")))
    locks = LaneResource(folder=str(world.folder / "locks")).locks()

    async def sweep_beside_a_live_one() -> None:
        async with in_use(locks, 3, live):
            request = await asyncio.to_thread(look, world)
            assert isinstance(request, dg.RunRequest)
            assert request.tags["gen404/why"] == f"pods left over: {dead}"
            done = await asyncio.to_thread(lambda: sweep_pods.execute_in_process(resources=parts(world)))
            assert done.output_for_node("delete_leftover_pods") == names[:2]
            reason = await asyncio.to_thread(look, world)
            assert isinstance(reason, dg.SkipReason)
            assert reason.skip_message == "no pod is left over"

    asyncio.run(sweep_beside_a_live_one())
    assert sorted(asyncio.run(provider.list("gen404-"))) == sorted(names[2:])
    sweep_pods.execute_in_process(resources=parts(world))
    assert asyncio.run(provider.list("gen404-")) == names[3:]
    asyncio.run(provider.delete(names[3]))


def test_a_provider_that_does_not_answer_is_a_reason_to_skip(world: World) -> None:
    assert world.cloud is not None
    world.cloud.down = 5
    reason = look(world)
    assert isinstance(reason, dg.SkipReason)
    assert "targon: targon: 500" in (reason.skip_message or "")


def test_only_names_that_we_give_are_ours() -> None:
    assert job_of_pod("abc", "gen404-abc-12-5dugx-7") == (12, "gen404-abc-12-5dugx-")
    for name in (
        "gen404-abcd-12-5dugx-7",
        "gen404-abc-12-5dugx-",
        "gen404-abc-012-5dugx-7",
        "gen404-abc-1-5-dugx-7",
        "x",
    ):
        assert job_of_pod("abc", name) is None
