"""Regeneration on real image processes over real HTTP: images that work, and images that do everything wrong.

Scenarios marked `everywhere` run on local pods and on rented ones, whose SDKs talk to doubles of their APIs.
"""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from gen404_dagster.competition.audits import succeeded, verdict
from gen404_dagster.competition.models import GenerationResult, Stem
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.pods import protocol, targon, verda
from gen404_dagster.resources.pods.fleet import regenerate
from gen404_dagster.resources.pods.local import LOG_BYTES, LocalPods
from gen404_dagster.resources.pods.protocol import pod_prefix, sweep
from tests.resources.pod_world import COMMAND, LIMITS, PICTURE, World, limits, prompts, runs, world_of
from tests.waiting import wait_for

everywhere = pytest.mark.parametrize("world", ["local", "targon", "verda"], indirect=True)


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(targon, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(verda, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(protocol, "DELETE_PAUSE_SECONDS", 0.02)
    with world_of(getattr(request, "param", "local"), tmp_path) as world:
        yield world


@everywhere
def test_every_prompt_is_generated_one_at_a_time_with_the_rounds_seed(world: World) -> None:
    outcome = world.run(world.job(*prompts(12)), world.provider(), limits=limits(pods_to_start=2))
    assert list(outcome.results) == prompts(12)
    assert (outcome.deployed, outcome.stopped_early) == (True, False)
    assert all(succeeded(result) and result.attempts == 1 for result in outcome.results.values())
    assert world.files["p3"] == b"glTFp3/42"
    assert sorted(world.fetched) == sorted(prompts(12))
    asked = world.asked(0) + world.asked(1)
    assert {entry["picture"] for entry in asked} == {len(PICTURE)}
    assert {(entry["at_once"], entry["type"]) for entry in asked} == {(1, "image/png")}
    assert world.shown[-1] == (12, 12)
    assert sum(pod.processed for pod in outcome.pods.values()) == 12
    assert {pod.termination_reason for pod in outcome.pods.values()} <= {"no work available", "stopped"}
    assert all(name.startswith("gen404-test-1-5miner7890-") for name in outcome.pods)


def test_generation_time_ends_with_the_headers_and_the_next_prompt_does_not_wait_for_the_body(world: World) -> None:
    provider = world.provider({"seconds": 0.15, "body_seconds": 0.9})
    outcome = world.run(world.job(*prompts(6)), provider, limits=limits(pods_at_once=1))
    assert all(0.15 <= result.generation_time < 0.15 + 0.9 for result in outcome.results.values())
    assert max(entry["sending"] for entry in world.asked(0)) > 0, "bodies came one after the other"
    assert {entry["at_once"] for entry in world.asked(0)} == {1}


def test_a_failed_prompt_goes_to_another_pod(world: World) -> None:
    provider = world.provider({"mode": "500", "only": ["p2"]}, {})
    outcome = world.run(world.job(*prompts(4)), provider)
    assert {stem: result.attempts for stem, result in outcome.results.items()} == {"p0": 1, "p1": 1, "p2": 2, "p3": 1}
    assert succeeded(outcome.results["p2"])
    assert [entry["stem"] for entry in world.asked(1)] == ["p2"]


def test_an_overtime_prompt_keeps_its_shortest_result_and_file(world: World) -> None:
    provider = world.provider({"seconds": 0.5, "only": []}, {"seconds": 2.0})
    scaled = limits(generation_median_seconds=0.1, generation_overtime_seconds=0.3, prompt_attempts=2)
    accepted = []

    async def count(stem: Stem) -> None:
        accepted.append(stem)

    world.during = count
    outcome = world.run(world.job("p0"), provider, limits=scaled)
    assert (outcome.results["p0"].attempts, accepted) == (2, ["p0"])
    assert 0.5 <= outcome.results["p0"].generation_time < 2.0
    assert sum(pod.hard_overtime for pod in outcome.pods.values()) == 2


@pytest.mark.parametrize("mode", ["garbage", "oversize", "empty", "cut", "stall", "redirect", "compressed"])
def test_a_bad_answer_is_a_failure_and_the_pod_goes_on(world: World, mode: str) -> None:
    scaled = limits(prompt_attempts=1, **{"download_stall_seconds": 1.0} if mode == "stall" else {})
    outcome = world.run(world.job(*prompts(3)), world.provider({"mode": mode, "only": ["p1"]}), limits=scaled)
    bad = outcome.results["p1"]
    assert (bad.glb, bad.png, bad.generation_time, bad.distance, bad.attempts) == (None, None, 0.0, 0.0, 1)
    assert succeeded(outcome.results["p0"])
    assert succeeded(outcome.results["p2"])
    assert [pod.hard_failed for pod in outcome.pods.values()] == [1]


class TinyPieces(httpx.AsyncBaseTransport):
    """An image whose file is there at once, in pieces of one byte. `turns`: those that others had meanwhile."""

    def __init__(self) -> None:
        self.turns = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=self.pieces() if request.url.path == "/generate" else b"")

    async def pieces(self) -> AsyncIterator[bytes]:
        other = asyncio.create_task(self.count())
        for _ in range(6400):
            yield b"g"
        other.cancel()

    async def count(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


def test_a_file_in_tiny_pieces_does_not_hold_up_those_whose_time_is_measured(world: World) -> None:
    image = TinyPieces()
    work = regenerate(
        world.job("p0"), [world.provider()], limits(prompt_attempts=1), prompt_picture=world.picture,
        accept=world.accept, transport=image,
    )  # fmt: skip
    asyncio.run(work)
    assert image.turns >= 100


def test_a_prompt_that_hangs_ends_by_time_and_is_tried_elsewhere(world: World) -> None:
    scaled = limits(prompt_lock_seconds=2.0)
    outcome = world.run(world.job("p0", "p1"), world.provider({"mode": "hang", "only": ["p0"]}, {}), limits=scaled)
    assert (outcome.results["p0"].attempts, succeeded(outcome.results["p0"])) == (2, True)


@everywhere
def test_a_pod_that_crashes_is_replaced(world: World) -> None:
    outcome = world.run(world.job(*prompts(6)), world.provider({"mode": "crash", "only": ["p1"]}, {}))
    assert all(succeeded(result) for result in outcome.results.values())
    assert outcome.results["p1"].attempts == 2
    assert sum(result.attempts for result in outcome.results.values()) == 7, "only the prompt at work failed"
    assert next(pod.termination_reason for pod in outcome.pods.values()) == "does not answer"


def test_a_lost_pod_that_a_router_answers_for_costs_one_prompt_an_attempt(world: World) -> None:
    outcome = world.run(world.job(*prompts(6)), world.provider({"mode": "gone", "only": ["p1"]}, {}))
    assert all(succeeded(result) for result in outcome.results.values())
    assert sum(result.attempts for result in outcome.results.values()) == 7, "only the prompt at work failed"
    assert next(pod.termination_reason for pod in outcome.pods.values()) == "does not answer"


def test_a_bad_pod_is_ended_and_replaced(world: World) -> None:
    outcome = world.run(world.job(*prompts(14)), world.provider({"mode": "500"}, {}), limits=limits(pods_at_once=1))
    bad, good = outcome.pods.values()
    assert (bad.marked_bad, bad.termination_reason) == (True, "8 failures + 0 overtimes >= 8")
    assert (good.marked_bad, good.successful) == (False, 14)
    assert [result.attempts for result in outcome.results.values()] == [2] * 8 + [1] * 6


def test_a_pod_that_was_bad_is_bad_after_an_interruption_too(world: World) -> None:
    async def interrupted(stem: Stem) -> None:
        raise KeyError("power failure")

    provider = world.provider({"mode": "500"}, {})
    world.during = interrupted
    strict = limits(pods_at_once=1, pod_attempts=2)
    with pytest.raises(KeyError):
        world.run(world.job(*prompts(10)), provider, limits=strict)
    world.during = None
    outcome = world.run(world.job(*prompts(10)), provider, limits=strict)
    assert all(succeeded(result) for result in outcome.results.values())
    (bad,) = (pod for pod in outcome.pods.values() if pod.marked_bad)
    assert (bad.processed, bad.termination_reason) == (8, "8 failures + 0 overtimes >= 8")


def test_an_audit_stops_early_when_it_is_lost(world: World) -> None:
    world.distances = dict.fromkeys(prompts(40), 0.5)
    job = world.job(*prompts(40))
    outcome = world.run(job, world.provider({"seconds": 0.05}))
    assert outcome.stopped_early
    assert 12 <= len(outcome.results) < 30
    assert {pod.termination_reason for pod in outcome.pods.values()} == {"mismatch limit"}
    audit = verdict(
        job.hotkey, job.prompts, job.submitted or {}, outcome.results, (), LIMITS, stopped_early=outcome.stopped_early
    )
    assert audit.reason == f"Non-critical mismatches ({len(outcome.results)}) exceed tolerance (6)"


def test_the_leaders_baseline_is_not_compared_and_never_stops_early(world: World) -> None:
    world.distances = dict.fromkeys(prompts(14), None)
    outcome = world.run(world.job(*prompts(14), compared=False, hotkey="leader"), world.provider())
    assert {(result.distance, result.attempts) for result in outcome.results.values()} == {(0.0, 1)}
    assert len(outcome.results) == 14


def test_only_prompts_with_a_valid_submission_are_generated(world: World) -> None:
    job = world.job("p0", "p1")
    assert job.submitted
    job.submitted["p0"] = GenerationResult(glb="g")
    assert list(world.run(job, world.provider()).results) == ["p1"]


def test_a_distance_that_cannot_be_measured_is_never_taken_for_zero(world: World) -> None:
    world.distances = {"p1": None}
    with pytest.raises(Unavailable, match="distance of 5Miner7890123 on p1 could not be measured"):
        world.run(world.job(*prompts(3)), world.provider())
    assert "p1" not in world.saved
    world.distances = {}
    assert list(world.run(world.job(*prompts(3)), world.provider()).results) == prompts(3)


@everywhere
def test_after_an_interruption_nothing_is_generated_twice(world: World) -> None:
    async def interrupted(stem: Stem) -> None:
        if len(world.saved) == 5:
            raise KeyError("power failure")

    provider = world.provider({"mode": "500", "only": ["p0"]}, {})
    world.during = interrupted
    with pytest.raises(KeyError):
        world.run(world.job(*prompts(8)), provider, limits=limits(pods_at_once=1))
    assert world.alive() == []
    saved, before = dict(world.saved), list(world.pods)
    world.during = None
    outcome = world.run(world.job(*prompts(8)), provider, limits=limits(pods_at_once=1))
    assert (outcome.results["p0"].attempts, succeeded(outcome.results["p0"])) == (2, True)
    again = [entry["stem"] for entry in world.asked(1)]
    assert not [stem for stem in again if stem in saved and succeeded(saved[stem])]
    assert len(outcome.pods) == len(before) + 1
    assert set(before) < set(outcome.pods)


def test_a_finished_job_needs_no_pod(world: World) -> None:
    world.saved = {"p0": GenerationResult(glb="g", png="p", generation_time=3.0, size=1, attempts=2, distance=0.02)}
    outcome = world.run(world.job("p0"), world.provider())
    assert (outcome.results, outcome.deployed, world.images()) == (world.saved, True, [])


@pytest.mark.parametrize(
    ("command", "reason"), [("false {port}", "exit code 1"), ("no-such-command {port}", "exit code 127")]
)
def test_an_image_that_does_not_start_is_not_deployed(world: World, command: str, reason: str) -> None:
    outcome = world.run(world.job(*prompts(4)), world.provider(command=command))
    assert (outcome.deployed, outcome.results, outcome.stopped_early) == (False, {}, False)
    assert len(outcome.pods) == LIMITS.pod_attempts
    assert all(reason in (pod.termination_reason or "") for pod in outcome.pods.values())


def test_an_image_that_never_warms_up_is_not_deployed(world: World) -> None:
    scaled = limits(pod_healthy_seconds=0.8, pod_attempts=2)
    outcome = world.run(world.job("p0"), world.provider({"warm_up": 60}), limits=scaled)
    assert not outcome.deployed
    assert [pod.termination_reason for pod in outcome.pods.values()] == ["not healthy within 0.8s"] * 2


class Full:
    """A provider without room."""

    name = "full"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def deploy(self, pod: str, image: str) -> None:
        self.asked.append(pod)
        raise Unavailable("no H200 left")

    async def visible(self, pod: str) -> bool:
        return False

    async def endpoint(self, pod: str) -> None:
        return None

    async def delete(self, pod: str) -> None: ...

    async def list(self, prefix: str) -> list[str]:
        return []


def test_a_deployment_without_room_moves_on_to_the_next_provider(world: World) -> None:
    full = Full()
    outcome = world.run(world.job("p0", "p1"), full, world.provider())
    assert outcome.deployed
    assert full.asked == ["gen404-test-1-5miner7890-0"]


def test_no_room_anywhere_is_not_the_miners_fault(world: World) -> None:
    full = Full()
    with pytest.raises(Unavailable, match="no pod for 5Miner7890123: full: no H200 left"):
        world.run(world.job("p0"), full)
    assert len(full.asked) == LIMITS.pod_attempts * LIMITS.pod_deploy_attempts


@everywhere
def test_no_pod_is_left_after_a_cancellation(world: World) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(
            world.regenerate(world.job(*prompts(50)), world.provider({"seconds": 0.3}), limits=limits(pods_to_start=2))
        )
        await asyncio.to_thread(wait_for, lambda: len(world.saved) >= 2 and len(world.images()) == 2)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()  # an impatient operator
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert len(world.images()) == 2


def test_no_pod_outlives_a_pipeline_that_is_killed(world: World) -> None:
    world.provider()
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(f"""
                import asyncio, pathlib
                from gen404_dagster.resources.pods.local import LocalPods
                async def main():
                    pods = LocalPods({COMMAND!r}, pathlib.Path({str(world.folder / "logs")!r}))
                    await asyncio.gather(*(pods.deploy(f"pod-{{i}}", {str(world.folder / "plan.json")!r}) for i in (0, 1)))
                    await asyncio.sleep(60)
                asyncio.run(main())
            """),
        ]
    )
    wait_for(lambda: len(world.images()) == 2)
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(family) == 4, "two guards and their images"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(runs(member.pid) for member in family))


def test_a_sweep_takes_exactly_its_own_pods(world: World) -> None:
    sleeper = LocalPods("sleep 60 {port}", world.folder / "logs")
    names = [f"{pod_prefix('test', number, hotkey)}0" for number in (1, 10) for hotkey in ("5AAA", "5AAAB")]

    async def deploy_and_sweep() -> list[list[str]]:
        for name in names:
            await sleeper.deploy(name, "image")
        swept = [await sweep([sleeper], pod_prefix("test", 1, "5AAA")), await sweep([sleeper], pod_prefix("test", 1))]
        return [*swept, await sleeper.list(""), await sweep([sleeper], pod_prefix("test", 10))]

    assert asyncio.run(deploy_and_sweep()) == [names[:1], names[1:2], names[2:], names[2:]]
    with pytest.raises(OperatorError, match="must end in a dash"):
        asyncio.run(sweep([sleeper], "gen404-test-1"))
    with pytest.raises(OperatorError, match="instance 'a-b' must be"):
        pod_prefix("a-b", 1)


def test_a_stubborn_image_is_killed_with_all_it_started(world: World) -> None:
    script = """trap '' TERM; setsid sleep 60 & echo $! > pid; echo $SECRET; yes "$0" | head -c 3000000; while :; do sleep 1; done"""
    pods = LocalPods(f"sh -c {shlex.quote(f'cd {world.folder}; {script}')} {{image}} {{port}}", world.folder / "logs")
    os.environ["SECRET"] = "token"

    async def deploy_and_delete() -> None:
        await pods.deploy("pod", "image --hostile")
        log = pods.log("pod")
        await asyncio.to_thread(wait_for, lambda: log.exists() and log.stat().st_size >= LOG_BYTES)
        assert await pods.visible("pod")
        await pods.delete("pod")
        assert not await pods.visible("pod")

    try:
        asyncio.run(deploy_and_delete())
    finally:
        del os.environ["SECRET"]
    log = pods.log("pod").read_bytes()
    assert len(log) == LOG_BYTES
    assert log.startswith(b"\nimage --hostile\n"), "a word of the command, without our secrets"
    assert not runs(int((world.folder / "pid").read_text()))


def test_a_command_without_port_is_the_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"GEN404_LOCAL_IMAGE_COMMAND must be a command with \{port\}"):
        LocalPods("", tmp_path)
