"""Targon and Verda through their own SDKs, when their APIs refuse, lag, lie, hang and lose pods. No pod is ever left."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen404_dagster.competition.audits import succeeded
from gen404_dagster.errors import Gen404Error, MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.lanes import LaneLocks
from gen404_dagster.resources.pods import protocol, targon, verda
from gen404_dagster.resources.pods.leftovers import in_use, leftovers, sweep_leftovers
from gen404_dagster.resources.pods.protocol import PodProvider, delete_pod, sweep
from tests.resources import targon_double, verda_double
from tests.resources.cloud_double import Cloud, Rented
from tests.resources.pod_world import World, limits, prompts, rented, world_of
from tests.waiting import wait_for

CREDENTIAL = {"targon": "TARGON_API_KEY", "verda": "VERDA_CLIENT_SECRET"}


@pytest.fixture(params=["targon", "verda"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for module in (targon, verda):
        monkeypatch.setattr(module, "PAUSE_SECONDS", 0.03)
    monkeypatch.setattr(protocol, "DELETE_PAUSE_SECONDS", 0.005)
    with world_of(request.param, tmp_path) as world:
        yield world


def cloud_of(world: World) -> Cloud:
    assert world.cloud is not None
    return world.cloud


def image(world: World) -> str:
    return str(world.folder / "plan.json")


async def seen(provider: PodProvider, pod: str) -> None:
    async with asyncio.timeout(60):
        while not await provider.visible(pod):  # noqa: ASYNC110 - the other side is another program
            await asyncio.sleep(0.02)


def test_without_room_the_next_provider_is_tried_and_nothing_is_left(world: World) -> None:
    cloud, local = cloud_of(world), World(world.folder)
    cloud.full = 100
    outcome = world.run(world.job("p0", "p1"), world.provider(), local.provider())
    assert outcome.deployed
    assert all(succeeded(result) for result in outcome.results.values())
    assert cloud.alive == []


def test_no_room_anywhere_is_not_the_miners_fault(world: World) -> None:
    cloud_of(world).full = 1000
    with pytest.raises(Unavailable, match=r"no pod for 5Miner7890123: .*(no capacity|No capacity)"):
        world.run(world.job("p0"), world.provider(), limits=limits(pod_attempts=1))


def test_a_deployment_whose_answer_is_lost_leaves_no_pod(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod was made, and is shown only later: nobody told us its identity."""
    cloud = cloud_of(world)
    cloud.slow, cloud.lag = 0.6, 0.7
    for module in (targon, verda):
        monkeypatch.setattr(module, "CALL_SECONDS", 0.5)
        monkeypatch.setattr(module, "PAUSE_SECONDS", 0.2)
    provider = world.provider()

    async def deploy_and_delete() -> None:
        with pytest.raises(Unavailable, match="no answer"):
            await provider.deploy("gen404-test-1-5miner7890-0", image(world))
        assert await delete_pod(provider, "gen404-test-1-5miner7890-0")

    asyncio.run(deploy_and_delete())
    assert len(cloud.pods) == 1


def test_pods_that_appear_late_are_waited_for(world: World) -> None:
    cloud_of(world).lag = 0.4
    outcome = world.run(world.job(*prompts(3)), world.provider())
    assert list(outcome.results) == prompts(3)
    assert len(cloud_of(world).pods) <= 2


def test_a_deletion_that_is_answered_but_not_done_is_repeated(world: World) -> None:
    cloud_of(world).stubborn = 2
    outcome = world.run(world.job("p0"), world.provider())
    assert outcome.deployed


def test_a_pod_that_cannot_be_deleted_is_reported_and_the_next_sweep_takes_it(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = cloud_of(world)
    cloud.stubborn = 100
    provider = world.provider()
    pod = "gen404-test-1-5miner7890-0"

    async def deploy_and_sweep() -> None:
        await provider.deploy(pod, image(world))
        assert not await delete_pod(provider, pod)
        assert f"does not delete {pod}" in caplog.text
        with pytest.raises(Unavailable, match=f"{pod} is still there"):
            await sweep([provider], "gen404-test-1-5miner7890-")
        cloud.stubborn = 0
        assert await sweep([provider], "gen404-test-1-5miner7890-") == [pod]

    asyncio.run(deploy_and_sweep())


def test_a_list_that_still_shows_deleted_pods_does_not_hold_up(world: World) -> None:
    cloud = cloud_of(world)
    cloud.ghost = 60
    provider = world.provider()

    async def deploy_and_sweep() -> None:
        await provider.deploy("gen404-test-1-5aaa-0", image(world))
        assert await sweep([provider], "gen404-test-1-5aaa-") == ["gen404-test-1-5aaa-0"]
        assert await provider.list("gen404-test-1-") == ["gen404-test-1-5aaa-0"], "the double lies"
        await sweep([provider], "gen404-test-1-5aaa-")

    asyncio.run(deploy_and_sweep())


def test_a_lost_pod_is_replaced(world: World) -> None:
    cloud = cloud_of(world)
    lost: list[Rented] = []

    async def lose(stem: str) -> None:
        if not lost:
            lost.append(cloud.alive[0])
            cloud.lose(cloud.alive[0])

    world.during = lose
    outcome = world.run(world.job(*prompts(6)), world.provider({"seconds": 0.05}), limits=limits(pods_at_once=1))
    assert all(succeeded(result) for result in outcome.results.values())
    assert len(outcome.results) == 6
    assert len(cloud.pods) >= 2


def test_pods_that_are_all_lost_are_not_the_miners_fault(world: World) -> None:
    cloud = cloud_of(world)

    async def lose(stem: str) -> None:
        for pod in cloud.alive:
            cloud.lose(pod)

    world.during = lose
    strict = limits(pods_at_once=1, pod_attempts=1)
    with pytest.raises(Unavailable, match=f"{world.provider().name} lost gen404-test-1-5miner7890-0"):
        world.run(world.job(*prompts(6)), world.provider({"seconds": 0.05}), limits=strict)


def test_an_api_that_fails_for_a_while_is_asked_again(world: World) -> None:
    cloud = cloud_of(world)

    async def fail(stem: str) -> None:
        cloud.down = 3

    world.during = fail
    outcome = world.run(world.job(*prompts(4)), world.provider())
    assert len(outcome.results) == 4


def test_an_api_that_hangs_is_unavailable_and_holds_nobody_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud_of(world).hang = 60.0
    for module in (targon, verda):
        monkeypatch.setattr(module, "CALL_SECONDS", 0.2)
    provider = world.provider()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no answer"):
        asyncio.run(provider.list("gen404-"))
    assert time.monotonic() - began < 30, "the end of the event loop waited for the answer"
    cloud_of(world).hang = 0.0
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "verda"])


def test_refused_credentials_are_the_operators_mistake_and_are_not_shown(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.provider()
    provider = rented(cloud_of(world), key="wrong-secret-value")
    with pytest.raises(OperatorError, match=CREDENTIAL[provider.name]) as caught:
        world.run(world.job("p0"), provider)
    shown = caplog.text + str(caught.value) + repr(caught.value.__context__) + repr(caught.value.__cause__)
    assert "wrong-secret-value" not in shown


def test_secrets_do_not_come_back_in_errors(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    provider = world.provider()
    asyncio.run(provider.list("gen404-"))
    cloud_of(world).down = 100
    with pytest.raises(Unavailable) as caught:
        asyncio.run(provider.list("gen404-"))
    for secret in (targon_double.KEY, verda_double.SECRET, verda_double.KEY):
        assert secret not in caplog.text + str(caught.value)


def test_an_unreachable_api_is_unavailable(world: World) -> None:
    cloud = cloud_of(world)
    cloud.root, root = "http://127.0.0.1:9", cloud.root
    with pytest.raises(Unavailable, match=r"^(targon|verda): "):
        asyncio.run(rented(cloud).list("gen404-"))
    cloud.root = root


def test_an_image_that_cannot_be_pulled_is_not_deployed(world: World) -> None:
    provider = world.provider()
    (world.folder / "plan.json").unlink()
    outcome = world.run(world.job("p0"), provider, limits=limits(pod_attempts=2, pod_healthy_seconds=0.5))
    assert not outcome.deployed
    reasons = {pod.termination_reason for pod in outcome.pods.values()}
    assert reasons <= {"targon: workload failed: ImagePullBackOff", "not healthy within 0.5s"}


def test_another_process_finds_and_deletes_exactly_its_own_pods(world: World) -> None:
    names = [f"gen404-test-{part}-0" for part in ("1-5aaa", "1-5aaab", "10-5aaa")] + ["gen404-other-1-5aaa-0"]

    async def deploy_and_sweep() -> None:
        first = world.provider()
        for name in names:
            await first.deploy(name, image(world))
            await seen(first, name)
        other = rented(cloud_of(world))
        assert sorted(await other.list("gen404-test-1-")) == names[:2]
        assert await sweep([other], "gen404-test-1-5aaa-") == names[:1]
        assert sorted(await other.list("gen404-")) == sorted(names[1:])
        assert [await sweep([other], prefix) for prefix in ("gen404-test-", "gen404-other-")] == [names[1:3], names[3:]]

    asyncio.run(deploy_and_sweep())


def test_leftovers_are_swept_but_never_the_pods_of_a_live_regeneration(world: World, tmp_path: Path) -> None:
    locks = LaneLocks(tmp_path / "locks")
    live, dead, foreign = "gen404-test-2-5live-0", "gen404-test-1-5dead-3", "gen404-tester-1-5dead-0"

    async def sweep_around() -> None:
        provider = world.provider()
        for name in (live, dead, foreign):
            await provider.deploy(name, image(world))
            await seen(provider, name)
        async with in_use(locks, 2, "gen404-test-2-5live-"):
            assert await leftovers([provider], "test", locks) == [(1, "gen404-test-1-5dead-")]
            assert await sweep_leftovers([provider], "test", locks) == [dead]
            assert await sweep_leftovers([provider], "test", locks) == []
        assert sorted(await provider.list("gen404-")) == sorted([live, foreign])
        assert await sweep_leftovers([provider], "test", locks) == [live]
        await provider.delete(foreign)

    asyncio.run(sweep_around())


def test_what_answers_is_told_with_the_number_of_pods(world: World) -> None:
    provider = world.provider()
    assert asyncio.run(protocol.what_answers([provider], "test")) == f"{provider.name}: 0 pods"


def test_targons_list_is_read_to_its_last_page(tmp_path: Path) -> None:
    names = [f"gen404-test-1-5aaa-{i}" for i in range(5)]

    async def deploy_and_list(provider: PodProvider, plan: str) -> None:
        for name in names:
            await provider.deploy(name, plan)
        assert await provider.list("gen404-test-1-5aaa-") == names
        assert await sweep([provider], "gen404-test-1-5aaa-") == names

    with world_of("targon", tmp_path) as world:
        asyncio.run(deploy_and_list(world.provider(), image(world)))


def test_a_failed_workload_at_targon_names_its_reason(tmp_path: Path) -> None:
    async def deploy(provider: PodProvider) -> None:
        await provider.deploy("gen404-test-1-5aaa-0", "registry/no-such:image")
        with pytest.raises(MinerFault, match="workload failed: ImagePullBackOff"):
            await provider.visible("gen404-test-1-5aaa-0")
        await provider.delete("gen404-test-1-5aaa-0")

    with world_of("targon", tmp_path) as world:
        asyncio.run(deploy(world.provider()))


def test_verdas_token_is_renewed_when_it_expires(tmp_path: Path) -> None:
    with world_of("verda", tmp_path) as world:
        cloud = world.cloud
        assert isinstance(cloud, verda_double.Verda)
        cloud.lifetime = 0  # each call finds it expired
        provider = world.provider()
        for _ in range(2):
            asyncio.run(provider.list("gen404-"))
        assert len(cloud.tokens) >= 3


def test_verdas_calls_that_never_return_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world_of("verda", tmp_path) as world:
        cloud = world.cloud
        assert cloud is not None
        provider = world.provider()
        asyncio.run(provider.list("gen404-"))
        cloud.hang = 60.0
        monkeypatch.setattr(verda, "CALL_SECONDS", 0.2)

        async def many() -> list[BaseException | list[str]]:
            calls = (provider.list("gen404-") for _ in range(verda.CALLS_AT_ONCE + 4))
            return await asyncio.gather(*calls, return_exceptions=True)

        answers = [str(answer) for answer in asyncio.run(many())]
        assert len([answer for answer in answers if "still wait for an answer" in answer]) == 4
        cloud.hang = 0.0
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "verda"])
        monkeypatch.undo()
        assert asyncio.run(provider.list("gen404-")) == []


@pytest.mark.parametrize(
    ("missing", "variable"), [(0, "VERDA_CLIENT_ID"), (1, "VERDA_CLIENT_SECRET"), (2, "VERDA_INFERENCE_KEY")]
)
def test_missing_credentials_are_named(missing: int, variable: str) -> None:
    given = ["id", "secret", "key"]
    given[missing] = ""
    with pytest.raises(OperatorError, match=f"{variable} is not set"):
        verda.VerdaPods(given[0], given[1], given[2], "H200")
    with pytest.raises(Gen404Error, match="TARGON_API_KEY is not set"):
        targon.TargonPods("", "h200-small")
