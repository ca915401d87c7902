"""The chain adapter through the unmodified SDK, against a scripted node on loopback: heads, faults, weights."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gen404_dagster.competition.commitments import Unreadable, collect_submissions
from gen404_dagster.competition.models import Schedule
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.chain import bittensor as bittensor_chain
from gen404_dagster.resources.chain.bittensor import BittensorChain, BittensorValidator, Seen
from gen404_dagster.resources.configured import ChainResource, build_resources
from gen404_dagster.settings import load_settings
from tests.resources.subtensor_double import SubtensorNode

NETUID = 17
COMMIT = "0f" * 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The SDK keeps metadata and token symbols under the home folder; each test has its own."""
    import bittensor.config

    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr(bittensor.config, "DEFAULT_TOKEN_SYMBOLS_PATH", tmp_path / "symbols.json")
    return tmp_path


def address(name: str) -> str:
    from bittensor.sp_core import Keypair

    return str(Keypair.create_from_uri(f"//{name}").ss58_address)


@pytest.fixture
def node() -> Iterator[SubtensorNode]:
    with SubtensorNode() as running:
        yield running


@pytest.fixture
def spare() -> Iterator[SubtensorNode]:
    with SubtensorNode() as running:
        yield running


Make = Callable[..., BittensorChain]


@pytest.fixture
def chain_of(tmp_path: Path) -> Make:
    """A chain on these nodes, as a fresh process would have it: only the memory file is shared."""

    def make(*nodes: SubtensorNode, genesis: str = "", seconds: float = 20.0) -> BittensorChain:
        return BittensorChain(
            [node.url for node in nodes],
            NETUID,
            tmp_path / "chain.json",
            genesis,
            call_seconds=seconds,
            head_seconds=6 * seconds,
            fresh_seconds=0.0,
        )

    return make


def scale(text: bytes) -> bytes:
    """Under its SCALE length, as miners' tools put it on chain."""
    size = len(text)
    return (bytes([size << 2]) if size < 64 else (size << 2 | 1).to_bytes(2, "little")) + text


def commitment(**changes: str) -> bytes:
    return json.dumps({"repo": "owner/name", "commit": COMMIT, "cdn_url": "https://cdn.example/r"} | changes).encode()


# --- heads ---


def test_the_head_is_the_finalized_block_with_its_own_time(node: SubtensorNode, chain_of: Make) -> None:
    node.finalized, node.lag, node.age_seconds = 4000, 50, 30.0
    head = chain_of(node).head()
    assert head.block == 4000
    assert time.time() - head.time.timestamp() == pytest.approx(30, abs=25)


def test_a_best_block_that_rolls_back_moves_nothing(node: SubtensorNode, chain_of: Make) -> None:
    chain = chain_of(node)
    seen = []
    for lag in (20, 17, 25, 3):
        node.lag = lag
        seen.append(chain.head().block)
    assert seen == [1000] * 4


def test_a_head_is_asked_for_once_within_half_a_block(node: SubtensorNode, tmp_path: Path) -> None:
    chain = BittensorChain([node.url], NETUID, tmp_path / "chain.json")
    assert {chain.head().block for _ in range(20)} == {1000}
    assert node.asked["chain_getFinalizedHead"] <= 3


def test_an_endpoint_that_stalls_costs_one_call_and_the_next_is_asked(
    node: SubtensorNode, spare: SubtensorNode, chain_of: Make
) -> None:
    node.stall = {"chain_getFinalizedHead"}
    spare.finalized = 1001
    chain = chain_of(node, spare, seconds=1.5)
    assert chain.head().block == 1001
    assert chain.head().block == 1001
    assert node.asked["chain_getFinalizedHead"] == 1, "the stalled one is left alone for a while"


@pytest.mark.parametrize("method", ["chain_getFinalizedHead", "state_getStorageAt", "state_getMetadata"])
def test_an_endpoint_that_closes_gracefully_with_a_request_open_holds_nobody_up(
    node: SubtensorNode, chain_of: Make, method: str
) -> None:
    node.hang_up = {method}
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        chain_of(node, seconds=0.3).head()
    assert time.monotonic() - began < 15
    node.hang_up = set()
    assert chain_of(node).head().block == 1000


def test_when_every_endpoint_stalls_the_whole_look_is_bounded_and_leaves_no_thread(
    node: SubtensorNode, spare: SubtensorNode, chain_of: Make
) -> None:
    for one in (node, spare):
        one.stall = {"state_getRuntimeVersion"}
    threads = set(threading.enumerate())
    began = time.monotonic()
    with pytest.raises(Unavailable):
        chain_of(node, spare, seconds=0.3).head()
    assert time.monotonic() - began < 15
    assert set(threading.enumerate()) <= threads


def test_an_endpoint_that_is_slow_in_every_call_leaves_time_for_the_next(
    node: SubtensorNode, spare: SubtensorNode, chain_of: Make, tmp_path: Path
) -> None:
    chain_of(spare).head()  # the runtime is known
    node.answer_seconds = 0.9
    endpoints = [node.url, spare.url]
    chain = BittensorChain(endpoints, NETUID, tmp_path / "chain.json", call_seconds=4.0, head_seconds=8.0)
    asked = spare.asked["chain_getFinalizedHead"]
    assert chain.head().block == 1000
    assert spare.asked["chain_getFinalizedHead"] > asked


def test_an_answer_is_not_lost_to_another_endpoints_name_that_does_not_resolve(
    node: SubtensorNode, chain_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's resolver cannot be interrupted: it holds the end of its loop up."""
    chain_of(node).head()  # the runtime is known
    look_up, over = socket.getaddrinfo, threading.Event()

    def resolve(host: str, *rest: Any, **options: Any) -> Any:
        if host == "stalled.test":
            over.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return look_up(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    endpoints = ["ws://stalled.test:9944", node.url]
    chain = BittensorChain(endpoints, NETUID, tmp_path / "chain.json", call_seconds=1.5, head_seconds=10.0)
    try:
        assert chain.head().block == 1000
    finally:
        over.set()


def test_a_failed_endpoint_is_tried_again_after_a_pause(node: SubtensorNode, chain_of: Make) -> None:
    node.refuse = {"chain_getFinalizedHead"}
    chain = chain_of(node)
    for _ in range(3):
        with pytest.raises(Unavailable):
            chain.head()
    assert node.asked["chain_getFinalizedHead"] == 1
    chain._failures = {endpoint: (count, 0.0) for endpoint, (count, _) in chain._failures.items()}
    node.refuse = set()
    assert chain.head().block == 1000


def test_nobody_listening_is_said_in_one_line_without_the_address(tmp_path: Path) -> None:
    chain = BittensorChain(["ws://127.0.0.1:9/secret-key"], NETUID, tmp_path / "chain.json", call_seconds=0.5)
    with pytest.raises(Unavailable) as told:
        chain.head()
    assert "127.0.0.1" in str(told.value)
    assert "secret-key" not in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("answer", [None, 7, "0x", "0xzz", [], {}, {"number": "x"}, "0x" + "ff" * 40, "\ud800", True])
@pytest.mark.parametrize("method", ["chain_getHeader", "chain_getBlockHash", "state_getStorageAt"])
def test_an_endpoint_that_answers_nonsense_is_passed_over(
    node: SubtensorNode, spare: SubtensorNode, chain_of: Make, method: str, answer: object
) -> None:
    node.nonsense = {method: answer}
    assert chain_of(node, spare, genesis=spare.genesis).head().block == 1000
    assert spare.asked["chain_getFinalizedHead"]


# --- trust ---


def test_a_node_of_another_chain_is_refused_by_name_and_the_next_is_asked(
    node: SubtensorNode, spare: SubtensorNode, chain_of: Make
) -> None:
    node.chain = "testnet"
    assert chain_of(node, spare, genesis=spare.genesis).head().block == 1000
    with pytest.raises(Unavailable, match="another chain: its genesis is 0x"):
        chain_of(node, genesis=spare.genesis).head()


def test_the_first_chain_is_remembered_over_processes_and_another_is_refused(
    node: SubtensorNode, chain_of: Make, tmp_path: Path
) -> None:
    chain_of(node).head()
    node.chain = "testnet"
    with pytest.raises(Unavailable, match="another chain"):
        chain_of(node).head()
    with pytest.raises(OperatorError, match=str(tmp_path / "chain.json")):
        chain_of(node, genesis=node.genesis).head()


def test_a_node_10000_blocks_behind_is_refused_and_the_next_is_asked(
    node: SubtensorNode, spare: SubtensorNode, chain_of: Make
) -> None:
    node.finalized = spare.finalized = 20_000
    assert chain_of(node).head().block == 20_000
    node.finalized = 10_000
    with pytest.raises(Unavailable, match="10000 blocks behind the finalized block 20000"):
        chain_of(node).head()
    assert chain_of(node, spare).head().block == 20_000


def test_a_node_that_was_never_fresh_is_known_by_the_time_of_its_block(node: SubtensorNode, chain_of: Make) -> None:
    node.age_seconds = 10_000 * 12.0
    with pytest.raises(Unavailable, match="2000 minutes behind this machine's clock"):
        chain_of(node).head()
    node.age_seconds = -3600.0
    with pytest.raises(Unavailable, match="60 minutes ahead of this machine's clock"):
        chain_of(node).head()


def test_a_node_whose_blocks_are_more_than_time_allows_is_refused(node: SubtensorNode, chain_of: Make) -> None:
    chain_of(node).head()
    node.finalized = 1_000_000
    with pytest.raises(Unavailable, match="at block 1000000, which cannot be"):
        chain_of(node).head()
    node.finalized = 1001
    assert chain_of(node).head().block == 1001, "and is not believed later either"


def test_a_node_on_a_fork_of_what_was_final_is_refused(node: SubtensorNode, chain_of: Make) -> None:
    chain_of(node).head()
    node.finalized, node.fork = 1010, "b"
    with pytest.raises(Unavailable, match="another block 1000 than was final before"):
        chain_of(node).head()


def test_the_memory_only_rises(node: SubtensorNode, spare: SubtensorNode, chain_of: Make, tmp_path: Path) -> None:
    node.finalized = 1050
    chain_of(node).head()
    assert chain_of(spare).head().block == 1000, "a little behind is usual"
    assert Seen.model_validate_json((tmp_path / "chain.json").read_bytes()).block == 1050


def test_a_damaged_memory_is_named(node: SubtensorNode, chain_of: Make, tmp_path: Path) -> None:
    (tmp_path / "chain.json").write_text("{")
    with pytest.raises(OperatorError, match=r"chain\.json is damaged"):
        chain_of(node).head()


@pytest.mark.parametrize("endpoints", [[], ["https://node.example"], ["node.example:9944"]])
def test_endpoints_that_are_no_websockets_are_an_operators_mistake(endpoints: list[str], tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="SUBTENSOR_ENDPOINT"):
        BittensorChain(endpoints, NETUID, tmp_path / "chain.json")


# --- commitments ---


def test_commitments_are_read_at_the_finalized_block_of_their_head(node: SubtensorNode, chain_of: Make) -> None:
    owner, miner = address("owner"), address("miner")
    node.register(NETUID, owner, miner)
    node.reveal(NETUID, miner, (scale(commitment()), 990))
    later = [(list(scale(commitment(commit="a1" * 20))), 1001)]
    node.later = [(1001, ("Commitments", "RevealedCommitments", (NETUID, miner)), later)]
    found = chain_of(node).revealed()
    assert found.head.block == 1000
    assert found.entries == {miner: [(990, commitment().decode())]}


def test_every_form_that_miners_put_on_chain_is_read_or_said_to_be_unreadable(
    node: SubtensorNode, chain_of: Make
) -> None:
    owner, miner, gone = address("owner"), address("miner"), address("gone")
    node.register(NETUID, owner, miner)
    padded = commitment(note="x" * 500)
    raws = [
        scale(commitment()), commitment(), scale(padded), scale(b"{}"), scale(b"123"), b"", b"\xff\xfe", b"\x00",
        scale(commitment()[:-1] + b"\xff"), b"0x7b7d", scale("{'repo': 'ö'}".encode()), scale(b""),
    ]  # fmt: skip
    node.reveal(NETUID, miner, *((raw, 900 + n) for n, raw in enumerate(raws)))
    node.reveal(NETUID, gone, (scale(commitment()), 950))
    unreadable = Unreadable("not UTF-8")
    found = chain_of(node).revealed().entries
    assert found[miner] == list(
        zip(
            range(900, 912),
            [
                commitment().decode(), commitment().decode(), padded.decode(), "{}", "123", "", unreadable, "",
                unreadable, "0x7b7d", "{'repo': 'ö'}", "",
            ],
            strict=True,
        )
    )  # fmt: skip
    assert found[gone] == [(950, Unreadable("the hotkey has left the subnet"))]


def test_one_hostile_commitment_costs_that_hotkey_and_is_reported(node: SubtensorNode, chain_of: Make) -> None:
    names = [address(name) for name in ("owner", "honest", "hostile", "gone", "copy")]
    owner, honest, hostile, gone, copy = names
    node.register(NETUID, owner, honest, hostile, copy)
    node.reveal(NETUID, honest, (scale(commitment()), 950))
    node.reveal(NETUID, copy, (scale(commitment()), 950))
    node.reveal(NETUID, hostile, (b"\xff" * 1000, 950), (scale(b"[" * 700), 951))
    node.reveal(NETUID, gone, (scale(commitment()), 950))
    window = Schedule(earliest_reveal_block=900, latest_reveal_block=1000, generation_deadline_block=1100)
    found = collect_submissions(chain_of(node).revealed().entries, window, "mesh-1")
    assert set(found.submissions) == {honest, copy}
    assert found.same_payload == (tuple(sorted([honest, copy])),)
    assert found.refused[hostile].endswith("block 950: not UTF-8; block 951: not JSON")
    assert "left the subnet" in found.refused[gone]


def test_256_hotkeys_with_ten_commitments_each_are_read_in_pages(node: SubtensorNode, chain_of: Make) -> None:
    hotkeys = [address(f"miner-{n}") for n in range(256)]
    node.register(NETUID, *hotkeys)
    for hotkey in hotkeys:
        node.reveal(NETUID, hotkey, *((scale(commitment(note=hotkey)), 900 + n) for n in range(10)))
    found = chain_of(node).revealed().entries
    assert len(found) == 256
    assert all(len(entries) == 10 and hotkey in str(entries[0][1]) for hotkey, entries in found.items())


def test_an_endpoint_that_dies_while_commitments_are_read_gives_no_half_answer(
    node: SubtensorNode, spare: SubtensorNode, chain_of: Make
) -> None:
    hotkeys = [address(f"miner-{n}") for n in range(120)]
    for one in (node, spare):
        one.register(NETUID, *hotkeys)
        for hotkey in hotkeys:
            one.reveal(NETUID, hotkey, (scale(commitment()), 950))
    node.after["state_queryStorageAt"] = lambda: node.stall.add("state_getKeysPaged")
    assert len(chain_of(node, spare, seconds=1.0).revealed().entries) == 120
    assert node.asked["state_queryStorageAt"] == 1


# --- weights ---


@pytest.fixture
def wallet(tmp_path: Path) -> tuple[str, str]:
    """Folder and public address of a wallet without a password."""
    import bittensor

    made = bittensor.Wallet("validator", "hot", str(tmp_path / "wallets"))
    made.create_new_hotkey(use_password=False, suppress=True)
    return str(tmp_path / "wallets"), str(made.hotkey.ss58_address)


def test_weights_are_signed_sent_once_and_read_back(
    node: SubtensorNode, chain_of: Make, wallet: tuple[str, str]
) -> None:
    path, validator = wallet
    node.show_weights(NETUID, address("owner"), address("leader"), validator)
    chain = chain_of(node)
    signer = BittensorValidator(chain, "validator", "hot", path)
    assert signer.hotkey == validator
    answer = signer.set_weights({1: 0.8, 0: 0.2})
    assert answer.accepted, answer.note
    assert len(node.submitted) == 1
    given = {arg["name"]: arg["value"] for arg in node.submitted[0]["call"]["call_args"]}
    assert (given["netuid"], given["version_key"]) == (NETUID, 7)
    seen = chain.subnet(validator)
    assert seen.last_update == 1001
    assert seen.weights == {0: pytest.approx(0.2, abs=1e-4), 1: pytest.approx(0.8, abs=1e-4)}
    assert seen.owner == address("owner")


def test_under_commit_reveal_the_commit_is_pending_and_the_weights_are_not_shown(
    node: SubtensorNode, chain_of: Make, wallet: tuple[str, str]
) -> None:
    path, validator = wallet
    node.show_weights(NETUID, address("owner"), address("leader"), validator)
    node.state["SubtensorModule", "CommitRevealWeightsEnabled", (NETUID,)] = True
    chain = chain_of(node)
    answer = BittensorValidator(chain, "validator", "hot", path).set_weights({1: 1.0})
    assert answer.accepted, answer.note
    seen = chain.subnet(validator)
    assert (seen.last_update, seen.weights, seen.commit_pending) == (1001, {}, True)


@pytest.mark.parametrize(
    "fault",
    [
        {"dies_on_submit": True},
        {"stall": {"author_submitAndWatchExtrinsic"}},
        {"nonsense": {"chain_getBlock": None}},
        {"refuse": {"author_submitAndWatchExtrinsic"}},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_weights_whose_answer_is_lost_are_never_sent_again(
    node: SubtensorNode,
    spare: SubtensorNode,
    chain_of: Make,
    wallet: tuple[str, str],
    fault: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bittensor_chain, "SEND_SECONDS", 4.0)
    path, validator = wallet
    for one in (node, spare):
        one.show_weights(NETUID, address("owner"), address("leader"), validator)
    vars(node).update(fault)
    chain = chain_of(node, spare)
    answer = BittensorValidator(chain, "validator", "hot", path).set_weights({1: 1.0})
    assert not answer.accepted
    assert (len(node.submitted), len(spare.submitted)) == (1, 0)
    node.stall = set()
    assert chain_of(node).subnet(validator).last_update == 1001, "only the chain knows that it arrived"


def test_what_the_chain_would_refuse_is_said_and_not_sent(
    node: SubtensorNode, chain_of: Make, wallet: tuple[str, str]
) -> None:
    node.register(NETUID, address("owner"), address("leader"))
    answer = BittensorValidator(chain_of(node), "validator", "hot", wallet[0]).set_weights({1: 1.0})
    assert not answer.accepted
    assert "not registered" in answer.note
    assert not node.submitted


def test_a_missing_wallet_is_an_operators_mistake_that_names_the_variables(
    node: SubtensorNode, chain_of: Make, tmp_path: Path
) -> None:
    with pytest.raises(OperatorError, match="GEN404_WALLET_NAME"):
        BittensorValidator(chain_of(node), "nobody", "hot", str(tmp_path)).set_weights({1: 1.0})
    (tmp_path / "bad/hotkeys").mkdir(parents=True)
    (tmp_path / "bad/hotkeys/hot").write_text('{"secretSeed": "0xSECRET')
    with pytest.raises(OperatorError) as told:
        _ = BittensorValidator(chain_of(node), "bad", "hot", str(tmp_path)).hotkey
    assert "SECRET" not in str(told.value)


@pytest.mark.parametrize("kept", [None, '{"secretSeed": "0xSECRET'], ids=["missing", "damaged"])
def test_a_key_that_cannot_be_opened_is_not_blamed_on_the_endpoints_where_the_public_file_can(
    node: SubtensorNode, chain_of: Make, wallet: tuple[str, str], kept: str | None
) -> None:
    path, validator = wallet
    key = Path(path, "validator", "hotkeys", "hot")
    key.unlink()
    if kept is not None:
        key.write_text(kept)
    signer = BittensorValidator(chain_of(node), "validator", "hot", path)
    assert signer.hotkey == validator
    with pytest.raises(OperatorError, match="GEN404_WALLET_HOTKEY") as told:
        signer.set_weights({1: 1.0})
    assert "SECRET" not in str(told.value)
    assert not node.asked


@pytest.mark.parametrize("secret", ["/k3y-of-mine", "/?apikey=k3y-of-mine", "wss://me:k3y-of-mine@node.test"])
def test_a_key_in_an_endpoint_s_address_is_not_in_the_configuration_that_dagster_shows(
    monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    plain = "wss://entrypoint.test:443, ws://[::1]:9944/"
    address = secret if "://" in secret else f"wss://node.test{secret}"
    for endpoints, shown in ((plain, True), (f"{plain}, {address}", False)):
        monkeypatch.setenv("SUBTENSOR_ENDPOINT", endpoints)
        resource = build_resources(load_settings())["chain"]
        assert isinstance(resource, ChainResource)
        assert ("entrypoint.test" in repr(resource)) == shown
        assert "k3y" not in repr(resource)
        assert resource.process_config_and_initialize().endpoints == endpoints
