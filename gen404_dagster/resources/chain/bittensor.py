"""Bittensor through its SDK: several endpoints, none of them trusted.

Belongs here: which endpoint is asked, how long, what it must prove before it is believed, and how the SDK's values are
read. Does not: what a commitment says (`competition.commitments`), when weights are due (`competition.weights`).

The SDK's own failover is off: it asks neither whether the next endpoint is on the same chain nor how far it is behind.
Each contact is a connection of its own, so that every answer comes from an endpoint that was just checked, and nothing
of it is left when the call returns. https://docs.learnbittensor.org/sdk
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock
from pydantic import BaseModel, ValidationError

from gen404_dagster.competition.commitments import Unreadable, revealed_text
from gen404_dagster.competition.models import Block, Hotkey
from gen404_dagster.errors import Gen404Error, OperatorError, Unavailable
from gen404_dagster.resources.chain.protocol import Head, Revelations, Sent, Subnet

T = TypeVar("T")

MOST_BLOCKS_BEHIND = 100
"""An endpoint may be so far behind the highest finalized block ever seen, and behind the clock; 20 minutes."""
BLOCK_SECONDS = 12
CALL_SECONDS = 8.0
HEAD_SECONDS = 20.0
READ_SECONDS = 120.0
SEND_SECONDS = 240.0
CLOSE_SECONDS = 2.0
"""Longest single call, look at the head, reading of a subnet, sending and close."""
FRESH_SECONDS = 6.0
"""A head is not asked for again within half a block."""
LONGEST_PAUSE_SECONDS = 60.0
ERA_BLOCKS = 16
"""How long an extrinsic is valid: one whose answer was lost cannot arrive after the next try, 20 blocks later."""


class Distrusted(Exception):
    """What an endpoint says cannot be right. The message goes on after its host."""


class Seen(BaseModel):
    """The chain as it was last seen: its genesis, and the highest finalized block of any endpoint."""

    genesis: str
    block: Block
    hash: str
    time: datetime


class ChainMemory:
    """`Seen` in one file, written whole, by any process: it only ever rises."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Seen | None:
        """Raises OperatorError naming the file when it does not hold what it should."""
        try:
            return Seen.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise OperatorError(
                f"{self.path} is damaged: delete it, and check the endpoints' chain yourself"
            ) from error

    def raise_to(self, seen: Seen) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock", timeout=5):
            known = self.read()
            if known is None or known.block < seen.block:
                partial = self.path.with_suffix(".partial")
                partial.write_text(seen.model_dump_json())
                partial.replace(self.path)


@dataclass(frozen=True)
class Contact:
    """An open connection to an endpoint that was believed at `head`. Reads are at that block."""

    endpoint: str
    substrate: Any
    head: Head
    hash: str
    seconds: float

    async def query(self, pallet: str, item: str, *keys: object) -> Any:
        async with asyncio.timeout(self.seconds):
            return await self.substrate.query(pallet, item, list(keys), block_hash=self.hash)

    async def query_map(self, pallet: str, item: str, *keys: object) -> list[tuple[Any, Any]]:
        # Some 256 hotkeys come in pages, each of two calls.
        async with asyncio.timeout(4 * self.seconds):
            rows: list[tuple[Any, Any]] = await self.substrate.query_map(pallet, item, list(keys), block_hash=self.hash)
            return rows


class BittensorChain:
    """A subnet of a Substrate chain, through the first of several endpoints that can be believed.

    `genesis`: hash of the chain's first block; "": that of the first endpoint which answers, remembered from then on.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        netuid: int,
        memory: Path,
        genesis: str = "",
        *,
        call_seconds: float = CALL_SECONDS,
        head_seconds: float = HEAD_SECONDS,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        for endpoint in endpoints:
            if urlsplit(endpoint).scheme not in ("ws", "wss"):
                raise OperatorError("SUBTENSOR_ENDPOINT must name ws:// or wss:// addresses, separated by commas")
        if not endpoints:
            raise OperatorError("SUBTENSOR_ENDPOINT is empty: name at least one ws:// or wss:// address")
        self._endpoints = list(endpoints)
        self.netuid = netuid
        self._memory = ChainMemory(memory)
        self._genesis = genesis.lower()
        self._call_seconds, self._head_seconds, self._fresh = call_seconds, head_seconds, fresh_seconds
        self._failures: dict[str, tuple[int, float]] = {}
        self._last: tuple[float, Head] | None = None
        self._lock = threading.Lock()

    # --- what a chain is asked for ---

    def head(self) -> Head:
        with self._lock:
            if self._last is not None and time.monotonic() - self._last[0] < self._fresh:
                return self._last[1]

            async def look(contact: Contact) -> Head:
                return contact.head

            found = self.ask(look, self._head_seconds)
            self._last = (time.monotonic(), found)
            return found

    def revealed(self) -> Revelations:
        async def read(contact: Contact) -> Revelations:
            rows = await contact.query_map("Commitments", "RevealedCommitments", self.netuid)
            registered = {str(hotkey) for _, hotkey in await contact.query_map("SubtensorModule", "Keys", self.netuid)}
            return Revelations(
                contact.head,
                {str(hotkey): read_entries(entries, str(hotkey) in registered) for hotkey, entries in rows},
            )

        return self.ask(read, READ_SECONDS)

    def subnet(self, validator: Hotkey | None) -> Subnet:
        async def read(contact: Contact) -> Subnet:
            keys = await contact.query_map("SubtensorModule", "Keys", self.netuid)
            uids = {str(hotkey): int(uid) for uid, hotkey in keys}
            owner = await contact.query("SubtensorModule", "SubnetOwnerHotkey", self.netuid)
            owner = None if owner is None else str(owner)
            if validator is None or validator not in uids:
                return Subnet(contact.head, uids, owner)
            uid = uids[validator]
            updates = await contact.query("SubtensorModule", "LastUpdate", self.netuid) or []
            row = await contact.query("SubtensorModule", "Weights", self.netuid, uid) or []
            commits = await contact.query_map("SubtensorModule", "TimelockedWeightCommits", self.netuid)
            return Subnet(
                contact.head,
                uids,
                owner,
                last_update=int(updates[uid]) if uid < len(updates) else None,
                weights=shares({int(target): int(weight) for target, weight in row}),
                commit_pending=any(str(commit[0]) == validator for _, epoch in commits for commit in epoch or ()),
            )

        return self.ask(read, READ_SECONDS)

    # --- who is asked ---

    def ask(self, question: Callable[[Contact], Awaitable[T]], seconds: float) -> T:
        """The answer of the first endpoint that can be believed. Raises Unavailable saying what was wrong with each."""
        return in_own_loop(self._ask(question, seconds), seconds, f"the chain did not answer within {seconds:g} s")

    async def _ask(self, question: Callable[[Contact], Awaitable[T]], seconds: float) -> T:
        faults, ends = [], time.monotonic() + seconds
        for position, endpoint in enumerate(self._endpoints):
            host = urlsplit(endpoint).hostname
            count, pause_ends = self._failures.get(endpoint, (0, 0.0))
            if (left := pause_ends - time.monotonic()) > 0:
                faults.append(f"{host} failed {count} times, next try in {left:.0f} s")
                continue
            # Counted before the answer: a call that the total time cuts short has failed too.
            pause = min(LONGEST_PAUSE_SECONDS, 5.0 * 2.0 ** min(count, 10))
            self._failures[endpoint] = (count + 1, time.monotonic() + pause)
            # Slow in every call, it must not use up the time of those after it.
            share = (ends - time.monotonic()) / (len(self._endpoints) - position)
            try:
                async with self._contact(endpoint, share) as contact:
                    answer = await question(contact)
            except Gen404Error:
                raise
            except Exception as error:  # whatever a node sends, the next one is asked
                faults.append(f"{host} {self._in_words(error, endpoint)}")
            else:
                del self._failures[endpoint]
                return answer
        raise Unavailable(f"no endpoint of the chain can be used: {'; '.join(faults)}")

    def _in_words(self, error: Exception, endpoint: str) -> str:
        """One line, without the address: it may carry a key."""
        if isinstance(error, Distrusted):
            return str(error)
        if isinstance(error, TimeoutError):
            return "did not answer in time"
        words = " ".join(str(error).replace(endpoint, "").split())[:200]
        return f"failed: {words or type(error).__name__}"

    @asynccontextmanager
    async def _contact(self, endpoint: str, seconds: float) -> AsyncIterator[Contact]:
        """`seconds`: longest time until it is believed."""
        substrate, close = _connection(endpoint)
        try:
            async with asyncio.timeout(seconds):
                async with asyncio.timeout(self._call_seconds):
                    await substrate.connect()
                contact = await self._believed(endpoint, substrate)
            yield contact
        finally:
            # A close with a request outstanding may hang: what is left ends with the loop.
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await close()

    async def _believed(self, endpoint: str, substrate: Any) -> Contact:
        """The endpoint at its finalized block. Raises Distrusted."""
        seen = self._memory.read()
        async with asyncio.timeout(self._call_seconds):
            genesis = str(await substrate.block_hash(0))
        wanted = self._genesis or (seen.genesis if seen else genesis)
        if genesis != wanted:
            raise Distrusted(f"is on another chain: its genesis is {genesis}, not {wanted}")
        if seen is not None and seen.genesis != genesis:
            raise OperatorError(
                f"GEN404_GENESIS_HASH is not the chain of this pipeline so far ({seen.genesis}): "
                f"correct it, or delete {self._memory.path} to begin with another chain"
            )
        async with asyncio.timeout(self._call_seconds):
            block = int(await substrate.finalized_block_number())
            block_hash = str(await substrate.block_hash(block))
        async with asyncio.timeout(self._call_seconds):
            stamp = await substrate.query("Timestamp", "Now", [], block_hash=block_hash)
        head = Head(block, datetime.fromtimestamp(int(stamp) / 1000, UTC))
        if seen is not None:
            await self._same_history(substrate, head, seen)
        late = time.time() - head.time.timestamp()
        if abs(late) > MOST_BLOCKS_BEHIND * BLOCK_SECONDS:
            word = "behind" if late > 0 else "ahead of"
            raise Distrusted(f"is {abs(late) / 60:.0f} minutes {word} this machine's clock at block {block}")
        self._memory.raise_to(Seen(genesis=genesis, block=block, hash=block_hash, time=head.time))
        return Contact(endpoint, substrate, head, block_hash, self._call_seconds)

    async def _same_history(self, substrate: Any, head: Head, seen: Seen) -> None:
        if head.block < seen.block - MOST_BLOCKS_BEHIND:
            raise Distrusted(f"is {seen.block - head.block} blocks behind the finalized block {seen.block}")
        most = seen.block + (head.time - seen.time).total_seconds() / BLOCK_SECONDS + MOST_BLOCKS_BEHIND
        if head.block > most:
            raise Distrusted(f"is at block {head.block}, which cannot be: there was time for {most:.0f} at most")
        if head.block >= seen.block:
            try:
                async with asyncio.timeout(self._call_seconds):
                    there = str(await substrate.block_hash(seen.block))
            except TimeoutError:
                raise
            except Exception:  # a node that began at a later block does not know older ones
                return
            if there != seen.hash:
                raise Distrusted(
                    f"has another block {seen.block} than was final before: one of them is on a fork "
                    f"({self._memory.path} has what was seen)"
                )


class BittensorValidator:
    """A validator with a wallet on this machine. The hotkey alone is opened, and not before it signs."""

    def __init__(self, chain: BittensorChain, name: str, hotkey: str, path: str) -> None:
        self._chain, self._name, self._key_name, self._path = chain, name, hotkey, path

    def _wallet(self) -> Any:
        import bittensor

        return bittensor.Wallet(self._name, self._key_name, **({"path": self._path} if self._path else {}))

    @property
    def hotkey(self) -> Hotkey:
        """From the public file beside the key where there is one, else from the key."""
        wallet = self._wallet()
        return self._open(lambda: wallet.hotkeypub, lambda: wallet.hotkey)

    def _open(self, *keys: Callable[[], Any]) -> Hotkey:
        """Address of the first of these keys that can be read. Raises OperatorError."""
        for read in keys:
            try:
                return str(read().ss58_address)
            except Exception as error:  # of many kinds, some of which name what a key file holds
                kind = type(error).__name__
        raise OperatorError(
            f"the hotkey {self._name}/{self._key_name} cannot be opened ({kind}): see GEN404_WALLET_NAME, "
            "GEN404_WALLET_HOTKEY and GEN404_WALLET_PATH"
        )

    def set_weights(self, weights: Mapping[int, float]) -> Sent:
        import bittensor

        wallet, netuid = self._wallet(), self._chain.netuid
        self._open(lambda: wallet.hotkey)  # what is wrong with the key is said before anyone is asked

        async def send(contact: Contact) -> Sent:
            version = int(await contact.query("SubtensorModule", "WeightsVersionKey", netuid) or 0)
            intent = bittensor.SetWeights(netuid=netuid, weights=dict(weights), version_key=version)
            client = bittensor.Client(contact.endpoint, substrate=contact.substrate)
            try:
                async with asyncio.timeout(4 * contact.seconds):
                    plan = await client.plan(intent, wallet)
            except bittensor.ChainError as error:  # the chain would refuse: not registered, too early
                return Sent(False, " ".join(str(error).split())[:200])
            # From here on the weights may be set, whatever comes back: no other endpoint is asked.
            try:
                result = await contact.substrate.submit(plan.call, wallet.hotkey, period=ERA_BLOCKS)
            except Exception as error:
                return Sent(False, f"its fate is unknown: {' '.join(str(error).split())[:200]}")
            return Sent(bool(result.success), " ".join(str(result.message).split())[:200])

        try:
            return self._chain.ask(send, SEND_SECONDS)
        except Unavailable as error:
            return Sent(False, str(error))


def _connection(endpoint: str) -> tuple[Any, Callable[[], Awaitable[None]]]:
    """The SDK's substrate without fallbacks, and how to close it whatever state it is in.

    The SDK forgets a connection whose opening is cut short, and leaves its socket open: it is remembered here.
    """
    import bittensor

    opened: list[Any] = []

    class Endpoint(bittensor.RpcSubstrate):
        def _interface(self, endpoint: str, fallbacks: list[str]) -> Any:
            opened.append(super()._interface(endpoint, fallbacks))
            return opened[-1]

    substrate = Endpoint(endpoint)

    async def close() -> None:
        for connection in opened:
            await connection.close()
        await substrate.close()

    return substrate, close


def read_entries(entries: object, registered: bool) -> list[tuple[Block, str | Unreadable]]:
    """Revealed entries as the SDK returns them, [(text or 0x-hex, block), ...]: one that is strange costs itself."""
    found: list[tuple[Block, str | Unreadable]] = []
    for entry in entries if isinstance(entries, list | tuple) else ():
        match entry:
            case (value, int(block)) if not isinstance(block, bool) and block >= 0:
                raw = _raw(value)
                text = revealed_text(raw) if raw is not None else Unreadable("not bytes")
                found.append((block, text if registered else Unreadable("the hotkey has left the subnet")))
    return found


def _raw(value: object) -> bytes | None:
    """Bytes of what the SDK shows as text, or, of what is not UTF-8, as 0x-hex. A text may itself look like hex."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return None
    if value.startswith("0x"):
        with suppress(ValueError):
            raw = bytes.fromhex(value[2:])
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return raw
    return value.encode("utf-8", "surrogatepass")


def shares(row: Mapping[int, int]) -> dict[int, float]:
    """Weights as the chain keeps them (16 bits, any scale) as shares of 1."""
    total = sum(row.values())
    return {uid: weight / total for uid, weight in sorted(row.items()) if weight} if total else {}


def in_own_loop(work: Awaitable[T], seconds: float, late: str) -> T:
    """Run in a thread of its own, but wait no longer than `seconds` for the answer. Raises Unavailable.

    A name that does not resolve holds up the end of its loop for longer than any timeout inside it, also when another
    endpoint has answered: that thread is left behind and ends by itself.
    """
    result: list[T] = []
    errors: list[BaseException] = []
    answered = threading.Event()

    async def bounded() -> None:
        try:
            async with asyncio.timeout(seconds):
                result.append(await work)
        except BaseException as error:
            errors.append(error)
        answered.set()

    thread = threading.Thread(target=asyncio.run, args=(bounded(),), name="chain", daemon=True)
    thread.start()
    answered.wait(seconds + CLOSE_SECONDS + 1)
    thread.join(CLOSE_SECONDS)
    if result:
        return result[0]
    if errors and not isinstance(errors[0], TimeoutError):
        raise errors[0]
    raise Unavailable(late)
