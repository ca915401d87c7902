"""Metadata of a small Substrate runtime, written as SCALE bytes: what a node tells a client about its storage and calls.

Format: RuntimeMetadataV14, https://docs.rs/frame-metadata (v14). Types and hashers of the storage items are those of
Bittensor's runtime, as `bittensor._generated.storage` names them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


def compact(value: int) -> bytes:
    if value < 1 << 6:
        return bytes([value << 2])
    if value < 1 << 14:
        return (value << 2 | 1).to_bytes(2, "little")
    return (value << 2 | 2).to_bytes(4, "little")


def vector(items: Sequence[bytes]) -> bytes:
    return compact(len(items)) + b"".join(items)


def text(value: str) -> bytes:
    raw = value.encode()
    return compact(len(raw)) + raw


def option(value: bytes | None) -> bytes:
    return b"\0" if value is None else b"\1" + value


PRIMITIVES = {"bool": 0, "str": 2, "u8": 3, "u16": 4, "u32": 5, "u64": 6, "u128": 7}
HASHERS = {"Blake2_128Concat": 2, "Twox64Concat": 5, "Identity": 6}


@dataclass
class Registry:
    """Types by number, in order of their first mention."""

    types: list[bytes] = field(default_factory=list)
    numbers: dict[object, int] = field(default_factory=dict)

    def add(
        self, key: object, definition: bytes, path: Sequence[str] = (), parameters: Sequence[tuple[str, int]] = ()
    ) -> int:
        if key not in self.numbers:
            named = vector([text(name) + option(compact(number)) for name, number in parameters])
            self.numbers[key] = len(self.types)
            self.types.append(vector([text(part) for part in path]) + named + definition + vector([]))
        return self.numbers[key]

    def primitive(self, name: str) -> int:
        return self.add(name, b"\5" + bytes([PRIMITIVES[name]]))

    def array(self, length: int, of: int) -> int:
        return self.add(("array", length, of), b"\3" + length.to_bytes(4, "little") + compact(of))

    def sequence(self, of: int) -> int:
        return self.add(("vec", of), b"\2" + compact(of))

    def group(self, *of: int) -> int:
        return self.add(("tuple", of), b"\4" + vector([compact(one) for one in of]))

    def compact(self, of: int) -> int:
        return self.add(("compact", of), b"\6" + compact(of))

    def composite(self, path: str, fields: Sequence[tuple[str | None, int]]) -> int:
        return self.add(("struct", path), b"\0" + self._fields(fields), path.split("::"))

    def variant(self, path: str, variants: Sequence[tuple[str, int, Sequence[tuple[str | None, int]]]]) -> int:
        shown = [text(name) + self._fields(fields) + bytes([index]) + vector([]) for name, index, fields in variants]
        return self.add(("enum", path), b"\1" + vector(shown), path.split("::"))

    def _fields(self, fields: Sequence[tuple[str | None, int]]) -> bytes:
        return vector(
            [
                option(None if name is None else text(name)) + compact(number) + option(None) + vector([])
                for name, number in fields
            ]
        )


Keys = Sequence[tuple[str, int]]


def storage(name: str, value: int, keys: Keys = (), default: bytes | None = None) -> bytes:
    """One storage item. `default`: what a missing key reads as; None: the item is optional."""
    if not keys:
        kind = b"\0" + compact(value)
    else:
        hashers = vector([bytes([HASHERS[hasher]]) for hasher, _ in keys])
        kind = (
            b"\1" + hashers + compact(R.group(*(n for _, n in keys)) if len(keys) > 1 else keys[0][1]) + compact(value)
        )
    shown = b"\0" if default is None else default
    return text(name) + bytes([default is not None]) + kind + compact(len(shown)) + shown + vector([])


def pallet(
    name: str, index: int, items: Sequence[bytes] = (), calls: int | None = None, constants: Sequence[bytes] = ()
) -> bytes:
    kept = text(name) + vector(items) if items else None
    return (
        text(name)
        + option(kept)
        + option(None if calls is None else compact(calls))
        + option(None)
        + vector(constants)
        + option(None)
        + bytes([index])
    )


R = Registry()
U8, U16, U32, U64, U128, BOOL = (R.primitive(name) for name in ("u8", "u16", "u32", "u64", "u128", "bool"))
UNIT = R.group()
BYTES = R.sequence(U8)
HASH = R.composite("primitive_types::H256", [(None, R.array(32, U8))])
ACCOUNT = R.composite("sp_core::crypto::AccountId32", [(None, R.array(32, U8))])
ADDRESS = R.variant(
    "sp_runtime::multiaddress::MultiAddress", [("Id", 0, [(None, ACCOUNT)]), ("Raw", 2, [(None, BYTES)])]
)
SIGNATURE_BYTES = R.array(64, U8)
SIGNATURE = R.variant(
    "sp_runtime::MultiSignature", [("Ed25519", 0, [(None, SIGNATURE_BYTES)]), ("Sr25519", 1, [(None, SIGNATURE_BYTES)])]
)
WEIGHT = R.composite("sp_weights::weight_v2::Weight", [("ref_time", R.compact(U64)), ("proof_size", R.compact(U64))])
CLASS = R.variant(
    "frame_support::dispatch::DispatchClass", [("Normal", 0, []), ("Operational", 1, []), ("Mandatory", 2, [])]
)
PAYS = R.variant("frame_support::dispatch::Pays", [("Yes", 0, []), ("No", 1, [])])
INFO = R.composite("frame_support::dispatch::DispatchInfo", [("weight", WEIGHT), ("class", CLASS), ("pays_fee", PAYS)])
FEE = R.composite(
    "pallet_transaction_payment::types::RuntimeDispatchInfo",
    [("weight", WEIGHT), ("class", CLASS), ("partial_fee", U64)],
)
ERROR = R.variant("sp_runtime::DispatchError", [("Other", 0, []), ("CannotLookup", 1, []), ("BadOrigin", 2, [])])
SYSTEM_EVENT = R.variant(
    "frame_system::pallet::Event",
    [
        ("ExtrinsicSuccess", 0, [("dispatch_info", INFO)]),
        ("ExtrinsicFailed", 1, [("dispatch_error", ERROR), ("dispatch_info", INFO)]),
    ],
)
EVENT = R.variant("node_subtensor_runtime::RuntimeEvent", [("System", 0, [(None, SYSTEM_EVENT)])])
PHASE = R.variant(
    "frame_system::Phase", [("ApplyExtrinsic", 0, [(None, U32)]), ("Finalization", 1, []), ("Initialization", 2, [])]
)
RECORD = R.composite("frame_system::EventRecord", [("phase", PHASE), ("event", EVENT), ("topics", R.sequence(HASH))])
MECHANISM_CALLS = R.variant(
    "pallet_subtensor::pallet::Call",
    [
        ("set_mechanism_weights", 119, [("netuid", U16), ("mecid", U8), ("dests", R.sequence(U16)), ("weights", R.sequence(U16)), ("version_key", U64)]),
        ("commit_timelocked_mechanism_weights", 120, [("netuid", U16), ("mecid", U8), ("commit", BYTES), ("reveal_round", U64), ("commit_reveal_version", U16)]),
    ],
)  # fmt: skip
CALL = R.variant("node_subtensor_runtime::RuntimeCall", [("SubtensorModule", 7, [(None, MECHANISM_CALLS)])])
MODE = R.variant("subtensor::EpochConsensus", [("Yuma", 0, []), ("Null", 1, [])])
ERA = R.variant(
    "sp_runtime::generic::era::Era", [("Immortal", 0, []), *((f"Mortal{n}", n, [(None, U8)]) for n in range(1, 256))]
)
EXTRA = R.group(ERA, R.compact(U32), R.compact(U64))
EXTRINSIC = R.add(
    "extrinsic",
    b"\0" + R._fields([(None, BYTES)]),
    ["sp_runtime", "generic", "unchecked_extrinsic", "UncheckedExtrinsic"],
    [("Address", ADDRESS), ("Call", CALL), ("Signature", SIGNATURE), ("Extra", EXTRA)],
)

NETUID = ("Identity", U16)
ZERO16, ZERO64, EMPTY = bytes(2), bytes(8), b"\0"


def _constant(name: str, number: int, value: bytes) -> bytes:
    return text(name) + compact(number) + compact(len(value)) + value + vector([])


def metadata() -> bytes:
    """The whole blob, magic first."""
    pallets = [
        pallet("System", 0, [storage("Events", R.sequence(RECORD), default=EMPTY)]),
        pallet("Timestamp", 2, [storage("Now", U64, default=ZERO64)]),
        pallet("Aura", 3, constants=[_constant("SlotDuration", U64, (12_000).to_bytes(8, "little"))]),
        pallet(
            "SubtensorModule",
            7,
            [
                storage("Keys", ACCOUNT, [NETUID, ("Identity", U16)], default=bytes(32)),
                storage("Uids", U16, [NETUID, ("Blake2_128Concat", ACCOUNT)]),
                storage("SubnetOwnerHotkey", ACCOUNT, [NETUID], default=bytes(32)),
                storage("LastUpdate", R.sequence(U64), [NETUID], default=EMPTY),
                storage("Weights", R.sequence(R.group(U16, U16)), [NETUID, ("Identity", U16)], default=EMPTY),
                storage("WeightsVersionKey", U64, [NETUID], default=ZERO64),
                storage("WeightsSetRateLimit", U64, [NETUID], default=ZERO64),
                storage("MinAllowedWeights", U16, [NETUID], default=ZERO16),
                storage("MaxWeightsLimit", U16, [NETUID], default=b"\xff\xff"),
                storage("CommitRevealWeightsEnabled", BOOL, [NETUID], default=b"\0"),
                storage("SubnetEpochConsensus", MODE, [NETUID], default=b"\0"),
                storage("TokenSymbol", BYTES, [NETUID], default=EMPTY),
                storage("Tempo", U16, [NETUID], default=(360).to_bytes(2, "little")),
                storage("RevealPeriodEpochs", U64, [NETUID], default=(1).to_bytes(8, "little")),
                storage("LastEpochBlock", U64, [NETUID], default=ZERO64),
                storage("PendingEpochAt", U64, [NETUID], default=ZERO64),
                storage("SubnetEpochIndex", U64, [NETUID], default=ZERO64),
                storage("BlocksSinceLastStep", U64, [NETUID], default=ZERO64),
                storage(
                    "TimelockedWeightCommits",
                    R.sequence(R.group(ACCOUNT, U64, BYTES, U64)),
                    [NETUID, ("Twox64Concat", U64)],
                    default=EMPTY,
                ),
            ],
            calls=MECHANISM_CALLS,
        ),
        pallet(
            "Commitments",
            18,
            [storage("RevealedCommitments", R.sequence(R.group(BYTES, U64)), [NETUID, ("Twox64Concat", ACCOUNT)])],
        ),
    ]  # fmt: skip
    extensions = [
        ("CheckMortality", ERA, HASH),
        ("CheckNonce", R.compact(U32), UNIT),
        ("ChargeTransactionPayment", R.compact(U64), UNIT),
    ]
    signed = vector([text(name) + compact(kind) + compact(added) for name, kind, added in extensions])
    types = vector([compact(number) + kind for number, kind in enumerate(R.types)])
    return b"meta\x0e" + types + vector(pallets) + compact(EXTRINSIC) + b"\4" + signed + compact(EXTRINSIC)
