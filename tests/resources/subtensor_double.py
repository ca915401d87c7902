"""A scripted Substrate node on loopback: JSON-RPC over a websocket, for the unmodified SDK as its client.

Storage answers are SCALE bytes under real storage keys (`runtime_metadata`). What a test scripts are the heads and the
faults: `finalized`, `lag`, `fork`, `age_seconds`, `answer_seconds`, `stall`, `hang_up`, `refuse`, `nonsense`.
"""

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.resources.runtime_metadata import metadata

SPEC_VERSION = 473
Key = tuple[str, str, tuple[object, ...]]


class SubtensorNode:
    """Enter it to serve. `state` maps (pallet, item, keys) to a value at every block; `at` to one from a block on."""

    def __init__(self, finalized: int = 1000, chain: str = "finney") -> None:
        import bittensor_core

        self.chain, self.fork, self.finalized, self.lag = chain, "", finalized, 3
        self.age_seconds, self.answer_seconds = 12.0, 0.0
        self.state: dict[Key, object] = {}
        self.later: list[tuple[int, Key, object]] = []
        self.stall: set[str] = set()
        self.hang_up: set[str] = set()
        self.refuse: set[str] = set()
        self.nonsense: dict[str, object] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.asked: Counter[str] = Counter()
        self.submitted: list[dict[str, Any]] = []
        self.on_submit: Callable[[dict[str, Any]], None] = lambda call: None
        self.dies_on_submit = False
        self._blob = metadata()
        self._runtime = bittensor_core.Runtime(self._blob, SPEC_VERSION, 1, 42)
        self._blocks: dict[int, tuple[bytes, bytes]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # --- scripting ---

    @property
    def best(self) -> int:
        return self.finalized + self.lag

    @property
    def genesis(self) -> str:
        return self.hash_of(0)

    def hash_of(self, block: int) -> str:
        fork = self.fork if block else ""
        return "0x" + hashlib.blake2b(f"{self.chain}/{fork}/{block}".encode(), digest_size=32).hexdigest()

    def reveal(self, netuid: int, hotkey: str, *entries: tuple[bytes, int]) -> None:
        """(bytes under their SCALE length, block)."""
        self.state["Commitments", "RevealedCommitments", (netuid, hotkey)] = [
            (list(raw), block) for raw, block in entries
        ]

    def register(self, netuid: int, *hotkeys: str) -> None:
        """Uids 0, 1, ...; uid 0 is the owner's."""
        for uid, hotkey in enumerate(hotkeys):
            self.state["SubtensorModule", "Keys", (netuid, uid)] = hotkey
            self.state["SubtensorModule", "Uids", (netuid, hotkey)] = uid
        self.state["SubtensorModule", "SubnetOwnerHotkey", (netuid,)] = hotkeys[0]
        self.state["SubtensorModule", "LastUpdate", (netuid,)] = [0] * len(hotkeys)

    def show_weights(self, netuid: int, owner: str, leader: str, validator: str) -> None:
        """Uids 0, 1 and 2; what the validator sends is seen from its block on."""
        self.register(netuid, owner, leader, validator)
        self.state["SubtensorModule", "WeightsVersionKey", (netuid,)] = 7

        def show(call: dict[str, Any]) -> None:
            block = self.finalized
            given = {arg["name"]: arg["value"] for arg in call["call"]["call_args"]}
            self.later.append((block, ("SubtensorModule", "LastUpdate", (netuid,)), [0, 0, block]))
            if "dests" in given:
                row = list(zip(given["dests"], given["weights"], strict=True))
                self.later.append((block, ("SubtensorModule", "Weights", (netuid, 2)), row))
            else:
                hidden = ("SubtensorModule", "TimelockedWeightCommits", (netuid, 5))
                self.later.append((block, hidden, [(validator, block, [1, 2, 3], 9)]))

        self.on_submit = show

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    def __enter__(self) -> "SubtensorNode":
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def _listen(self) -> Any:
        return await serve(self._serve, "127.0.0.1", 0)

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            await self._server.wait_closed()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    # --- the wire ---

    async def _serve(self, socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                request = json.loads(message)
                method, params = request["method"], request["params"]
                self.asked[method] += 1
                if method in self.hang_up:
                    await socket.close(1000, "going away")
                    return
                if method == "author_submitAndWatchExtrinsic":
                    self._include(bytes.fromhex(params[0][2:]))
                if method in self.stall:
                    continue
                answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
                if method in self.refuse:
                    answer["error"] = {"code": -32000, "message": "refused"}
                elif method in self.nonsense:
                    answer["result"] = self.nonsense[method]
                elif method == "author_submitAndWatchExtrinsic":
                    if self.dies_on_submit:
                        socket.transport.abort()
                        return
                    answer["result"] = "watch"
                else:
                    try:
                        answer["result"] = self._answer(method, params)
                    except LookupError as error:
                        answer["error"] = {"code": -32601, "message": str(error)}
                await asyncio.sleep(self.answer_seconds)
                await socket.send(json.dumps(answer))
                if method == "author_submitAndWatchExtrinsic":
                    landed = {"finalized": self.hash_of(self.finalized)}
                    update = {"jsonrpc": "2.0", "method": "author_extrinsicUpdate"}
                    await socket.send(json.dumps({**update, "params": {"subscription": "watch", "result": landed}}))
                if then := self.after.pop(method, None):
                    then()

    def _answer(self, method: str, params: list[Any]) -> Any:
        match method, params:
            case "chain_getBlockHash", [int(block)]:
                return self.hash_of(block) if block <= self.best else None
            case "chain_getFinalizedHead", _:
                return self.hash_of(self.finalized)
            case "chain_getHead", _:
                return self.hash_of(self.best)
            case "chain_getHeader", [block_hash]:
                block = self._number(block_hash)
                return {"number": hex(block), "parentHash": self.hash_of(max(0, block - 1))}
            case "chain_getBlock", [block_hash]:
                block = self._number(block_hash)
                extrinsics = ["0x" + self._blocks[block][0].hex()] if block in self._blocks else []
                return {"block": {"header": {"number": hex(block)}, "extrinsics": extrinsics}}
            case "state_getRuntimeVersion", _:
                return {"specVersion": SPEC_VERSION, "transactionVersion": 1, "specName": "node-subtensor"}
            case "state_getMetadata", _:
                return "0x" + self._blob.hex()
            case "state_call", ["TransactionPaymentApi_query_info", *_]:
                return "0x" + (b"\0\0\0" + (125_000).to_bytes(8, "little")).hex()
            case "state_call", [name, *_]:
                raise LookupError(f"Exported method {name} is not found")
            case "state_getStorageAt", [key, block_hash]:
                return self._storage(self._number(block_hash)).get(key)
            case "state_getKeysPaged", [prefix, count, start, block_hash]:
                keys = sorted(key for key in self._storage(self._number(block_hash)) if key.startswith(prefix))
                return [key for key in keys if key > start][:count]
            case "state_queryStorageAt", [keys, block_hash]:
                found = self._storage(self._number(block_hash))
                return [{"block": block_hash, "changes": [[key, found.get(key)] for key in keys]}]
            case "account_nextIndex", _:
                return len(self.submitted)
            case "author_unwatchExtrinsic", _:
                return True
        raise LookupError(f"Method not found: {method}")

    def _number(self, block_hash: str | None) -> int:
        if block_hash is None:
            return self.best
        for block in (*range(self.best, max(-1, self.best - 300), -1), 0):
            if self.hash_of(block) == block_hash:
                return block
        raise LookupError(f"UnknownBlock: {block_hash}")

    def _storage(self, block: int) -> Mapping[str, str]:
        stamp = (time.time() - self.age_seconds - 12 * (self.finalized - block)) * 1000
        state = {("Timestamp", "Now", ()): int(stamp), **self.state}
        state |= {key: value for since, key, value in self.later if block >= since}
        found = {self._key(key): self._encoded(key, value) for key, value in state.items()}
        if block in self._blocks:
            found[self._key(("System", "Events", ()))] = "0x" + self._blocks[block][1].hex()
        return found

    def _key(self, key: Key) -> str:
        return "0x" + bytes(self._runtime.storage_key(key[0], key[1], list(key[2]))).hex()

    def _encoded(self, key: Key, value: object) -> str:
        return "0x" + bytes(self._runtime.encode(self._runtime.storage_entry(key[0], key[1]).value_type, value)).hex()

    # --- extrinsics ---

    def _include(self, raw: bytes) -> None:
        """The next finalized block carries it, as a success."""
        call = self._runtime.decode_extrinsic(raw, True)
        self.finalized += 1
        events = self._runtime.storage_entry("System", "Events")
        success = {
            "ExtrinsicSuccess": {
                "dispatch_info": {"weight": {"ref_time": 1, "proof_size": 1}, "class": "Normal", "pays_fee": "Yes"}
            }
        }
        record = {"phase": {"ApplyExtrinsic": 0}, "event": {"System": success}, "topics": []}
        self._blocks[self.finalized] = (raw, bytes(self._runtime.encode(events.value_type, [record])))
        self.submitted.append(call)
        self.on_submit(call)
