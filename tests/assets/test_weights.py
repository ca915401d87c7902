"""The asset `weights` and its sensor on the embedded world's chain: planned, sent, confirmed, failed, never twice."""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest

from gen404_dagster.assets.weights import weights
from gen404_dagster.competition.weights import Attempt, Outcome
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.chain import Sent, SimulatedChain, SimulatedValidator
from gen404_dagster.resources.configured import NO_ROUND, WEIGHTS_LANE, build_resources
from gen404_dagster.resources.weights_history import WeightsHistory
from gen404_dagster.sensors.weights_sensor import make_weights_sensor, set_weights
from gen404_dagster.settings import Settings
from gen404_dagster.simulation.launch import World, WorldParameters, start_world

REVEAL_BLOCKS = 50


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start_world(tmp_path_factory.mktemp("world"), WorldParameters(seed=5, miners=1, prompts=2)) as running:
        yield running


@pytest.fixture(scope="module")
def hiding_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    parameters = WorldParameters(seed=5, miners=1, prompts=2, weights_reveal_blocks=REVEAL_BLOCKS)
    with start_world(tmp_path_factory.mktemp("hiding"), parameters) as running:
        yield running


class Pipeline:
    """A pipeline's folder of data on a world, with leaders of its own."""

    def __init__(self, folder: Path, world: World, **values: Any) -> None:
        self.folder, self.world = folder, world
        uids = httpx.get(f"{world.url}/chain/subnet").json()["uids"]
        self.owner, self.leader, self.validator, self.miner = uids
        self.uids: Mapping[str, int] = uids
        subprocess.run(
            ["git", "clone", "-q", "--bare", str(world.workdir.remote), str(folder / "remote.git")], check=True
        )
        self.settings = Settings(
            data=folder / "data", state_repo=str(folder / "remote.git"), world=world.url,
            **({"set_weights": True, "wallet_name": self.validator} | values),
        )  # fmt: skip
        self.history = WeightsHistory(folder / "data" / "weights.jsonl")

    def lead(self, *transitions: tuple[str, float, int]) -> None:
        """(hotkey, weight, effective block)."""
        work = self.folder / "work"
        git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run([*git, "clone", "-q", str(self.folder / "remote.git"), str(work)], check=True)
        entry = {"repo": "a/b", "commit": "c" * 40, "docker": ""}
        rows = [entry | {"hotkey": h, "weight": w, "effective_block": b} for h, w, b in transitions]
        (work / "leader.json").write_text(json.dumps(rows))
        subprocess.run([*git, "-C", str(work), "commit", "-qam", "Leaders"], check=True)
        subprocess.run([*git, "-C", str(work), "push", "-q", "origin", "main"], check=True)

    def run(self, **resources: Any) -> dg.ExecuteInProcessResult:
        with dg.DagsterInstance.ephemeral() as instance:
            parts = {**build_resources(self.settings), **resources}
            defs = dg.Definitions(assets=[weights], jobs=[set_weights], resources=parts)
            return defs.resolve_job_def("set_weights").execute_in_process(
                instance=instance,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )

    def tick(self) -> dg.RunRequest | dg.SkipReason:
        names = ("state", "chain", "journal", "limits", "lane")
        parts = build_resources(self.settings)
        with (
            dg.DagsterInstance.ephemeral() as instance,
            dg.build_sensor_context(instance=instance, resources={name: parts[name] for name in names}) as context,
        ):
            answer = make_weights_sensor(running=True)(context)
            assert isinstance(answer, dg.RunRequest | dg.SkipReason)
            return answer

    def later(self, blocks: int) -> None:
        self.world.advance(self.world.block() + blocks)

    @property
    def on_chain(self) -> tuple[int | None, dict[int, float]]:
        subnet = SimulatedChain(self.world.url).subnet(self.validator)
        return subnet.last_update, dict(subnet.weights)

    def outcomes(self) -> list[Outcome]:
        return [one.outcome for one in self.history.attempts()]


Make = Callable[..., Pipeline]


@pytest.fixture
def pipeline(tmp_path: Path) -> Make:
    def make(world: World, **values: Any) -> Pipeline:
        world.advance(world.block() + 1000)  # away from what other tests have set
        made = Pipeline(tmp_path, world, **values)
        made.lead((made.leader, 0.8, 0))
        return made

    return make


def page(result: dg.ExecuteInProcessResult) -> Mapping[str, Any]:
    assert result.success
    (event,) = result.asset_materializations_for_node("weights")
    return {name: value.value for name, value in event.metadata.items()}


def check(result: dg.ExecuteInProcessResult) -> bool:
    (found,) = result.get_asset_check_evaluations()
    return bool(found.passed)


class Deaf(dg.ConfigurableResource):
    """A validator whose answer is lost; `arrives`: the weights are set all the same."""

    set_weights: bool = True
    world: str
    hotkey: str
    arrives: bool

    def get(self, chain: object) -> "Deaf.Signer":
        return Deaf.Signer(self)

    class Signer:
        def __init__(self, of: "Deaf") -> None:
            self.hotkey, self._of = of.hotkey, of

        def set_weights(self, given: Mapping[int, float]) -> Sent:
            if self._of.arrives:
                SimulatedValidator(self._of.world, self.hotkey).set_weights(given)
            return Sent(False, "no answer")


class Locked(dg.ConfigurableResource):
    """A validator whose public address is known, and whose key is not."""

    set_weights: bool = True
    hotkey: str

    def get(self, chain: object) -> "Locked.Signer":
        return Locked.Signer(self.hotkey)

    class Signer:
        def __init__(self, hotkey: str) -> None:
            self.hotkey = hotkey

        def set_weights(self, given: Mapping[int, float]) -> Sent:
            raise OperatorError("the hotkey cannot be opened")


def test_by_default_weights_are_planned_and_nothing_is_sent(world: World, pipeline: Make) -> None:
    made = pipeline(world, set_weights=False, wallet_name="")
    before = made.on_chain
    shown = page(made.run())
    assert made.outcomes() == [Outcome.PLANNED]
    assert made.history.attempts()[0].weights == {made.uids[made.leader]: 0.8, 0: pytest.approx(0.2)}
    assert made.on_chain == before
    assert shown["sent"] is False
    assert "dry run" in shown["now"]


def test_weights_are_sent_confirmed_and_shown(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    result = made.run()
    assert made.outcomes() == [Outcome.CONFIRMED]
    assert made.on_chain == (world.block(), {0: pytest.approx(0.2), made.uids[made.leader]: pytest.approx(0.8)})
    assert check(result)
    shown = page(result)
    assert shown["leader"] == made.leader
    assert shown["shares"].startswith("![")
    (row,) = shown["history"].records
    assert (row.data["outcome"], row.data["block"]) == ("confirmed", world.block())


def test_a_leader_who_is_unknown_or_has_left_leaves_all_to_the_owner(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    (made.folder / "work").rename(made.folder / "old")
    made.lead(("5" + "G" * 47, 0.9, 0))
    shown = page(made.run())
    assert made.on_chain[1] == {0: 1.0}
    assert shown["leader"].endswith("who is not on the subnet")


def test_weights_are_set_every_30_minutes_and_never_sooner(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    first = world.block()
    for blocks in (0, 149, 1, 149, 1):
        made.later(blocks)
        if isinstance(made.tick(), dg.RunRequest):
            made.run()
    assert [one.block - first for one in made.history.attempts()] == [0, 150, 300]
    made.later(10)
    assert "next at block" in page(made.run())["now"], "a launch by hand sets nothing either"
    assert len(made.outcomes()) == 3


def test_shortly_before_another_leader_nothing_is_set_and_then_the_new_one(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    change = world.block() + 125
    (made.folder / "work").rename(made.folder / "old")
    made.lead((made.leader, 0.8, 0), (made.miner, 1.0, change))
    answer = made.tick()
    assert isinstance(answer, dg.SkipReason)
    assert f"the next leader takes over soon: next at block {change}" in str(answer.skip_message)
    made.run()
    assert made.outcomes() == []
    made.later(125)
    made.run()
    assert made.on_chain == (change, {made.uids[made.miner]: 1.0})


def test_hidden_weights_count_as_committed_and_are_confirmed_when_revealed(hiding_world: World, pipeline: Make) -> None:
    made = pipeline(hiding_world)
    result = made.run()
    assert made.outcomes() == [Outcome.COMMITTED]
    assert check(result)
    made.later(REVEAL_BLOCKS)
    made.run()
    assert made.outcomes() == [Outcome.CONFIRMED]


def test_a_lost_answer_that_arrived_is_confirmed_and_not_sent_again(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    made.run(validator=Deaf(world=world.url, hotkey=made.validator, arrives=True))
    assert made.outcomes() == [Outcome.CONFIRMED]


def test_a_failure_is_shown_and_tried_again_after_4_to_6_minutes(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    first = world.block()
    result = made.run(validator=Deaf(world=world.url, hotkey=made.validator, arrives=False))
    assert made.outcomes() == [Outcome.FAILED]
    assert not check(result)
    made.later(19)
    assert isinstance(made.tick(), dg.SkipReason)
    made.later(11)
    assert isinstance(made.tick(), dg.RunRequest)
    made.run()
    assert made.outcomes() == [Outcome.FAILED, Outcome.CONFIRMED]
    assert made.on_chain[0] == first + 30


def test_a_key_that_cannot_be_opened_is_recorded_as_a_failure_that_says_so(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    result = made.run(validator=Locked(hotkey=made.validator))
    assert not result.success
    (told,) = made.history.attempts()
    assert (told.outcome, told.note) == (Outcome.FAILED, "the hotkey cannot be opened")
    made.later(31)
    made.run()
    assert made.outcomes() == [Outcome.FAILED, Outcome.CONFIRMED]


@pytest.mark.parametrize("arrived", [True, False])
def test_a_run_killed_while_it_sent_is_looked_up_on_chain_before_anything_is_sent(
    world: World, pipeline: Make, arrived: bool
) -> None:
    made = pipeline(world)
    killed = Attempt(
        block=world.block(), time=SimulatedChain(world.url).head().time, leader=made.leader, leader_uid=made.uids[made.leader],
        weights={made.uids[made.leader]: 0.8, 0: 0.2}, outcome=Outcome.SENT, retry_block=world.block() + 25,
        seen_block=world.block(),
    )  # fmt: skip
    made.history.append(killed)
    with made.history.path.open("ab") as file:
        file.write(b'{"block": 77, "time"')
    if arrived:
        SimulatedValidator(world.url, made.validator).set_weights(killed.weights)
    made.later(10)
    made.run()
    assert made.outcomes() == [Outcome.CONFIRMED if arrived else Outcome.SENT]
    made.later(15)
    made.run()
    assert made.outcomes() == ([Outcome.CONFIRMED] if arrived else [Outcome.SENT, Outcome.CONFIRMED])


def test_two_runs_at_once_send_once(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    locks = build_resources(made.settings)["lane"].locks()  # type: ignore[attr-defined]
    with locks.hold(NO_ROUND, WEIGHTS_LANE):
        assert made.tick().skip_message == "weights are being set"  # type: ignore[union-attr]
        assert not made.run().success
    assert made.outcomes() == []


def test_who_cannot_sign_is_told_what_to_change_and_nothing_is_recorded(world: World, pipeline: Make) -> None:
    made = pipeline(world)
    for name, words in (("", "GEN404_WALLET_NAME"), ("5" + "G" * 47, "GEN404_WALLET_HOTKEY")):
        made.settings = made.settings.model_copy(update={"wallet_name": name})
        (failed,) = [event for event in made.run().all_events if event.is_step_failure]
        assert words in str(failed.event_specific_data.error)  # type: ignore[union-attr]
    assert made.outcomes() == []
