"""The pipeline on a scripted Bittensor node: a window closes once, when the finalized block has passed it; weights.

The node is `tests.resources.subtensor_double`, its client the unmodified SDK; sensor, job and state repository are the
pipeline's own.
"""

import json
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from gen404_dagster.assets.intake import opening, stage
from gen404_dagster.assets.weights import weights
from gen404_dagster.competition import paths
from gen404_dagster.jobs import jobs
from gen404_dagster.resources import configured
from gen404_dagster.resources.chain.bittensor import BittensorChain
from gen404_dagster.resources.configured import build_resources
from gen404_dagster.resources.weights_history import WeightsHistory
from gen404_dagster.sensors import decision
from gen404_dagster.sensors.round_sensor import make_round_sensor
from gen404_dagster.sensors.weights_sensor import set_weights
from gen404_dagster.settings import Settings
from tests.resources.subtensor_double import SubtensorNode
from tests.state_remote import git, make_remote

NETUID, LATEST, DEADLINE = 17, 20_000, 20_100
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
CONFIG = {
    "name": "mesh", "description": "", "first_evaluation_date": "2026-01-01", "last_competition_date": "2026-12-31",
    "round_start_time": "08:00:00", "generation_stage_minutes": 20, "finalization_buffer_hours": 1, "win_margin": 0.05,
    "weight_decay": 0.1, "weight_floor": 0.2, "prompts_per_round": 2, "carryover_prompts": 0, "round_duration_days": 1,
}  # fmt: skip


def address(name: str) -> str:
    from bittensor.sp_core import Keypair

    return str(Keypair.create_from_uri(f"//{name}").ss58_address)


def fresh_chain(endpoint: str, netuid: int, memory: str, genesis: str) -> BittensorChain:
    """As a process that has just started: no head in memory, no endpoint left alone."""
    return BittensorChain([endpoint], netuid, Path(memory), genesis, call_seconds=1.0, head_seconds=4.0)


class Pipeline:
    """A round that is open, and the sensor that watches it."""

    def __init__(self, folder: Path, node: SubtensorNode, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.node = folder, node
        files = {
            "config.json": json.dumps(CONFIG),
            paths.STATE: '{"current_round": 0, "stage": "open", "next_stage_eta": null}',
            paths.LEADERS: json.dumps(
                [
                    {
                        "hotkey": address("leader"),
                        "repo": "a/b",
                        "commit": "",
                        "docker": "",
                        "weight": 0.8,
                        "effective_block": 0,
                    }
                ]
            ),
            "prompts.txt": "\n".join(f"https://p.example/{n}.png" for n in range(4)),
            paths.schedule(0): json.dumps(
                {"earliest_reveal_block": 0, "latest_reveal_block": LATEST, "generation_deadline_block": DEADLINE}
            ),
        }
        make_remote(folder, files)
        settings = Settings(
            data=folder / "data",
            state_repo=str(folder / "remote.git"),
            chain="bittensor",
            SUBTENSOR_ENDPOINT=node.url,
            genesis_hash="",
            set_weights=True,
            wallet_name="validator",
            wallet_path=str(folder / "wallets"),
        )
        self.parts = build_resources(settings)
        monkeypatch.setattr(configured, "_bittensor_chain", fresh_chain)

    def tick(self, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
        parts = {name: self.parts[name] for name in ("state", "chain", "lane")}
        with dg.build_sensor_context(instance=instance, resources=parts) as context:
            answer = make_round_sensor(60.0)(context)
        if not isinstance(answer, dg.SensorResult):
            return []
        for request in answer.dynamic_partitions_requests or ():
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        return [request for request in answer.run_requests or () if request.job_name in ("open_round", "advance")]

    def run(self, instance: dg.DagsterInstance, request: dg.RunRequest) -> bool:
        job = dg.Definitions(
            assets=[opening, stage], jobs=[one for one in jobs if one.name == request.job_name], resources=self.parts
        )
        done = job.resolve_job_def(request.job_name or "").execute_in_process(
            instance=instance,
            partition_key=request.partition_key,
            tags=dict(request.tags),
            run_config=QUIET,
            raise_on_error=False,
        )
        return done.success

    def log(self) -> list[str]:
        shown = git("-C", str(self.folder / "remote.git"), "log", "--reverse", "--format=%s%n%b%x00", "main")
        return [entry.strip() for entry in shown.split("\0") if entry.strip()][1:]

    def read(self, path: str) -> str:
        return git("-C", str(self.folder / "remote.git"), "show", f"main:{path}")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SubtensorNode]:
    import bittensor.config

    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(bittensor.config, "DEFAULT_TOKEN_SYMBOLS_PATH", tmp_path / "symbols.json")
    with SubtensorNode(finalized=LATEST - 10) as running:
        yield running


@pytest.fixture
def pipeline(tmp_path: Path, node: SubtensorNode, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    return Pipeline(tmp_path, node, monkeypatch)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def payload(commit: str) -> list[int]:
    raw = json.dumps({"repo": "owner/name", "commit": commit * 20, "cdn_url": "https://cdn.example/r"}).encode()
    return list((len(raw) << 2 | 1).to_bytes(2, "little") + raw)


def test_the_window_closes_when_the_finalized_block_has_passed_it_however_far_the_head_is(
    pipeline: Pipeline, node: SubtensorNode, instance: dg.DagsterInstance
) -> None:
    for finalized, lag in ((LATEST - 10, 3), (LATEST - 10, 30), (LATEST - 1, 25), (LATEST - 1, 2), (LATEST - 4, 40)):
        node.finalized, node.lag = finalized, lag
        assert pipeline.tick(instance) == [], (finalized, lag)
    node.finalized, node.lag = LATEST, 0
    (request,) = pipeline.tick(instance)
    assert request.job_name == "open_round"


def test_a_node_that_misbehaves_opens_nothing_and_the_same_work_is_launched_once(
    pipeline: Pipeline, node: SubtensorNode, instance: dg.DagsterInstance
) -> None:
    pipeline.tick(instance)  # the chain is known from here on
    node.finalized = LATEST + 50
    good = {"chain": node.chain, "fork": node.fork, "age_seconds": node.age_seconds}
    for fault in (
        {"chain": "testnet"},
        {"fork": "b"},
        {"age_seconds": 10_000 * 12.0},
        {"finalized": LATEST - 10_000},
        {"stall": {"chain_getFinalizedHead"}},
        {"hang_up": {"state_getStorageAt"}},
        {"finalized": LATEST + 1_000_000},
        {"nonsense": {"chain_getHeader": {"number": "0xffffffff"}}},
    ):
        vars(node).update(fault)
        assert pipeline.tick(instance) == [], fault
        vars(node).update(good | {"stall": set(), "hang_up": set(), "nonsense": {}, "finalized": LATEST + 50})
    first = pipeline.tick(instance)
    node.finalized = LATEST + 60
    again = pipeline.tick(instance)
    assert [request.run_key for request in first] == [request.run_key for request in again], (
        "Dagster launches a key once"
    )


def test_commitments_count_up_to_the_finalized_block_at_which_the_window_is_judged(
    pipeline: Pipeline, node: SubtensorNode, instance: dg.DagsterInstance
) -> None:
    owner, early, late = address("owner"), address("early"), address("late")
    node.register(NETUID, owner, early, late)
    reveals = ("Commitments", "RevealedCommitments")
    node.later = [
        (LATEST, (*reveals, (NETUID, early)), [(payload("aa"), LATEST)]),
        (LATEST + 1, (*reveals, (NETUID, late)), [(payload("bb"), LATEST + 1)]),
    ]
    node.finalized = LATEST
    (request,) = pipeline.tick(instance)
    node.finalized = LATEST - 1  # another node answers the run, a block behind
    assert not pipeline.run(instance, request)
    assert pipeline.log() == []
    node.finalized = LATEST + 2
    assert pipeline.run(instance, request)
    assert list(json.loads(pipeline.read(paths.submissions(0)))) == [early]
    (commit,) = pipeline.log()
    assert commit.startswith("Publish seed, 2 prompts and 1 submissions for round 0")
    assert f"Refused {late}: no valid repo, commit, cdn_url; 1 outside the window" in commit
    pipeline.run(instance, request)
    assert len(pipeline.log()) == 1


def test_a_commitment_that_does_not_count_is_told_although_its_hotkey_has_a_submission(
    pipeline: Pipeline, node: SubtensorNode, instance: dg.DagsterInstance
) -> None:
    owner, miner = address("owner"), address("miner")
    node.register(NETUID, owner, miner)
    node.reveal(NETUID, miner, (bytes(payload("aa")), LATEST - 100), (b"\xff\xfe", LATEST - 90), (b"[]", LATEST - 80))
    node.finalized = LATEST
    (request,) = pipeline.tick(instance)
    assert pipeline.run(instance, request)
    assert list(json.loads(pipeline.read(paths.submissions(0)))) == [miner]
    why = f"block {LATEST - 90}: not UTF-8; block {LATEST - 80}: a JSON list, not an object"
    assert f"Ignored of {miner}: {why}" in pipeline.log()[0]
    event = instance.get_latest_materialization_event(dg.AssetKey("submissions"))
    assert event is not None
    assert event.asset_materialization is not None
    (row,) = event.asset_materialization.metadata["ignored"].records  # type: ignore[union-attr]
    assert row.data == {"hotkey": miner, "reason": why}


def test_runs_that_meet_a_node_behind_the_sensors_do_not_use_up_the_lanes_tries(
    pipeline: Pipeline, node: SubtensorNode, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision, "FIRST_PAUSE_SECONDS", 0.0)
    owner, miner = address("owner"), address("miner")
    node.register(NETUID, owner, miner)
    node.reveal(NETUID, miner, (bytes(payload("aa")), LATEST - 100))
    node.finalized = LATEST
    (request,) = pipeline.tick(instance)
    assert pipeline.run(instance, request)
    for _ in range(4):
        node.finalized = DEADLINE
        (request,) = pipeline.tick(instance)
        node.finalized = DEADLINE - 1  # another node answers the run, a block behind
        assert not pipeline.run(instance, request)
    assert len(pipeline.log()) == 1
    node.finalized = DEADLINE
    (request,) = pipeline.tick(instance)
    assert pipeline.run(instance, request)
    assert pipeline.log()[-1].startswith("Begin downloading of round 0")


def test_over_sixty_random_heads_and_faults_each_stage_moves_once_and_never_early(
    pipeline: Pipeline, node: SubtensorNode, instance: dg.DagsterInstance
) -> None:
    owner, miner = address("owner"), address("miner")
    node.register(NETUID, owner, miner)
    node.reveal(NETUID, miner, (bytes(payload("aa")), LATEST - 100))
    pipeline.tick(instance)  # the chain is known from here on
    draw, highest = random.Random(6), LATEST - 10
    moved: dict[str, int] = {}
    for _ in range(60):
        highest += draw.choice([0, 1, 2, 4, 6])
        node.finalized, node.lag = max(0, highest - draw.choice([0, 0, 0, 1, 4, 20, 10_000])), draw.choice([0, 3, 40])
        node.stall = {"chain_getFinalizedHead"} if draw.random() < 0.03 else set()
        node.chain = "testnet" if draw.random() < 0.05 else "finney"
        for request in pipeline.tick(instance):
            before = len(pipeline.log())
            pipeline.run(instance, request)
            if len(pipeline.log()) > before:
                assert request.job_name not in moved
                moved[request.job_name or ""] = node.finalized
                assert node.chain == "finney"
    assert moved["open_round"] >= LATEST
    assert moved["advance"] >= DEADLINE
    assert [entry.splitlines()[0] for entry in pipeline.log()] == [
        "Publish seed, 2 prompts and 1 submissions for round 0",
        "Begin downloading of round 0",
    ]


def test_weights_are_set_by_the_sdk_and_the_key_is_nowhere_to_be_seen(
    pipeline: Pipeline, node: SubtensorNode, instance: dg.DagsterInstance, caplog: pytest.LogCaptureFixture
) -> None:
    import bittensor

    wallet = bittensor.Wallet("validator", "default", str(pipeline.folder / "wallets"))
    wallet.create_new_hotkey(use_password=False, suppress=True)
    kept = json.loads((pipeline.folder / "wallets/validator/hotkeys/default").read_text())
    secrets = [
        str(kept[name]).removeprefix("0x") for name in ("secretPhrase", "secretSeed", "privateKey") if kept.get(name)
    ]
    assert secrets
    node.show_weights(NETUID, address("owner"), address("leader"), wallet.hotkey.ss58_address)
    caplog.set_level(logging.DEBUG)
    job = dg.Definitions(assets=[weights], jobs=[set_weights], resources=pipeline.parts).resolve_job_def("set_weights")
    done = [job.execute_in_process(instance=instance) for _ in range(2)]
    assert all(result.success for result in done)
    given = {arg["name"]: arg["value"] for (call,) in [node.submitted] for arg in call["call"]["call_args"]}
    assert (given["dests"], given["weights"]) == ([0, 1], [16384, 65535])
    (attempt,) = WeightsHistory(pipeline.folder / "data" / "weights.jsonl").attempts()
    assert (attempt.outcome, attempt.leader) == ("confirmed", address("leader"))
    events = [str(event) for result in done for event in result.all_events]
    shown = caplog.text + "".join(events) + (pipeline.folder / "data" / "weights.jsonl").read_text()
    assert wallet.hotkey.ss58_address in str(node.state)
    assert not [secret for secret in secrets if secret in shown]
