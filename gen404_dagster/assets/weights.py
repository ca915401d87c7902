"""Weights on chain: what the current leader and the subnet's owner get, set by this validator, and proof that they are.

Belongs here: reading leaders and chain, sending once, recording. Does not: which weights (`competition.leadership`),
when (`competition.weights`; the sensor asks the same rule). It is no part of a round: nothing waits for it.
"""

import time
from collections.abc import Sequence

import dagster as dg

from gen404_dagster.assets import plots
from gen404_dagster.assets.common import CODE_VERSION, OWNERS
from gen404_dagster.assets.describe import Metadata, table
from gen404_dagster.competition import leadership
from gen404_dagster.competition.models import LeaderTransition
from gen404_dagster.competition.weights import Attempt, NotYet, OnChain, Outcome, due, retry_block, settle
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.chain import Chain, Subnet
from gen404_dagster.resources.configured import (
    ChainResource,
    EntropyResource,
    JournalResource,
    LaneResource,
    LimitsResource,
    StateRepositoryResource,
    ValidatorResource,
)
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.weights_history import WeightsHistory

LOOK_SECONDS, LONGEST_LOOK_SECONDS = 6.0, 180.0
"""Pause between two looks at the chain after sending, and when they end: finality may lag behind."""

SHOWN, PLOTTED = 20, 30
_SHOWN_AS = {
    "planned": {Outcome.PLANNED},
    "committed": {Outcome.COMMITTED},
    "confirmed": {Outcome.CONFIRMED},
    "not set": {Outcome.SENT, Outcome.FAILED, Outcome.DIFFERS},
}


def history_of(journal: JournalResource) -> WeightsHistory:
    return WeightsHistory(journal.folder / "weights.jsonl")


@dg.asset(
    name="weights",
    group_name="weights",
    deps=["leader"],
    description="The weights that this validator sets on chain, from `leader.json` at the finalized block: the current "
    "leader's uid gets its weight, the subnet owner's uid the rest; without a known leader the owner gets all. Every 30 "
    "minutes; it waits when the next leader takes over within 25 minutes, and tries again 4 to 6 minutes after a failure. "
    "Confirmed when the validator's last update has moved and the weights read back. A dry run unless GEN404_SET_WEIGHTS.",
    kinds={"bittensor"},
    owners=OWNERS,
    code_version=CODE_VERSION,
    check_specs=[
        dg.AssetCheckSpec("are_set", asset="weights", description="The last attempt has not failed on chain.")
    ],
)
def weights(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    chain: ChainResource,
    validator: ValidatorResource,
    journal: JournalResource,
    entropy: EntropyResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    """Raises OperatorError: no such wallet or hotkey; Unavailable: the chain does not answer."""
    rules, asked, signer = limits.get(), chain.get(), validator.get(chain)
    if validator.set_weights and signer is None:
        raise OperatorError("GEN404_SET_WEIGHTS needs a wallet: set GEN404_WALLET_NAME and GEN404_WALLET_HOTKEY")
    hotkey = signer.hotkey if signer is not None else None
    history = history_of(journal)
    subnet = asked.subnet(hotkey)
    for told in settle(history.attempts(), on_chain(subnet)):
        history.append(told)
        context.log.info(f"weights of block {told.block}: {told.outcome}, {told.note}")
    leaders = read_round(state.get().head()).leaders
    attempts = history.attempts()
    decision = due(attempts[-1] if attempts else None, leaders, subnet.head.block, rules)
    if isinstance(decision, NotYet):
        context.log.info(f"nothing is set before block {decision.until}: {decision.why}")
        return _described(history.attempts(), validator, f"{decision.why}: next at block {decision.until}")
    plan = planned(leaders, subnet)
    if not validator.set_weights or signer is None:
        history.append(plan)
        return _described(history.attempts(), validator, "a dry run: nothing was sent")
    if hotkey not in subnet.uids:
        raise OperatorError(f"{hotkey} is not registered on the subnet: check GEN404_WALLET_HOTKEY and NETUID")
    chance = entropy.get().generator(f"weights {plan.block}").random()
    again = retry_block(plan.block, chance, rules)
    sent = plan.model_copy(update={"outcome": Outcome.SENT, "note": "no answer yet", "retry_block": again})
    history.append(sent)
    try:
        answer = signer.set_weights(plan.weights)
    except OperatorError as error:  # the key cannot be opened: nothing was sent
        history.append(sent.model_copy(update={"outcome": Outcome.FAILED, "note": str(error)}))
        raise
    context.log.info(f"weights {plan.weights} at block {plan.block}: {answer.note}")
    told = _watch(asked, hotkey, sent, rules.weights_confirm_blocks if answer.accepted else 0, answer.note)
    history.append(told)
    return _described(history.attempts(), validator, f"{told.outcome}: {told.note}")


def planned(leaders: Sequence[LeaderTransition], subnet: Subnet) -> Attempt:
    """The weights due at a block, not sent yet. Raises Unavailable: the subnet has no registered owner."""
    block = subnet.head.block
    if subnet.owner is None or subnet.owner not in subnet.uids:
        raise Unavailable(f"the subnet's owner {subnet.owner} has no uid at block {block}: nobody can get its share")
    leader = leadership.active_leader(leaders, block)
    uid = subnet.uids.get(leader.hotkey) if leader else None
    return Attempt(
        block=block,
        time=subnet.head.time,
        leader=leader.hotkey if leader else None,
        leader_uid=uid,
        weights=leadership.weights(leader, uid, subnet.uids[subnet.owner]),
        outcome=Outcome.PLANNED,
        seen_block=block,
    )


def on_chain(subnet: Subnet) -> OnChain:
    return OnChain(subnet.head.block, subnet.last_update, subnet.weights, subnet.commit_pending)


def _watch(chain: Chain, hotkey: str | None, sent: Attempt, confirm_blocks: int, note: str) -> Attempt:
    """Look until the chain shows the attempt, or `confirm_blocks` have passed since it was answered. Sends nothing."""
    began, since = time.monotonic(), None
    while True:
        try:
            subnet = chain.subnet(hotkey)
        except Unavailable as error:
            return sent.model_copy(update={"outcome": Outcome.FAILED, "note": f"{note}; {error}"[:300]})
        since = subnet.head.block if since is None else since
        if told := settle([sent], on_chain(subnet)):
            return told[0]
        late = time.monotonic() - began > LONGEST_LOOK_SECONDS
        if late or subnet.head.block >= since + confirm_blocks:
            words = f"{note}; the last update has not moved up to block {subnet.head.block}"
            return sent.model_copy(update={"outcome": Outcome.FAILED, "note": words, "seen_block": subnet.head.block})
        time.sleep(LOOK_SECONDS)


def _described(attempts: Sequence[Attempt], validator: ValidatorResource, words: str) -> dg.MaterializeResult[None]:
    last = attempts[-1] if attempts else None
    metadata: Metadata = {
        "block": dg.MetadataValue.int(last.block if last else 0),
        "sent": dg.MetadataValue.bool(validator.set_weights),
        "now": dg.MetadataValue.text(words),
        "leader": dg.MetadataValue.text(_leader(last) if last else "unknown"),
    }
    recent = attempts[-PLOTTED:]
    if recent:
        metadata["shares"] = plots.bars(
            "Share of the leader, by block of the attempt",
            [str(attempt.block) for attempt in recent],
            {
                word: [attempt.leader_share if attempt.outcome in outcomes else 0.0 for attempt in recent]
                for word, outcomes in _SHOWN_AS.items()
            },
        )
    metadata["history"] = table(
        [
            {
                "block": attempt.block,
                "time": f"{attempt.time:%Y-%m-%d %H:%M}",
                "outcome": attempt.outcome.value,
                "leader": _leader(attempt),
                "weights": ", ".join(f"{uid}: {share:.4f}" for uid, share in sorted(attempt.weights.items())),
                "seen": attempt.seen_block,
                "note": attempt.note,
            }
            for attempt in reversed(attempts[-SHOWN:])
        ]
    )
    good = last is None or last.outcome not in _SHOWN_AS["not set"]
    check = dg.AssetCheckResult(
        passed=good, check_name="are_set", severity=dg.AssetCheckSeverity.WARN, description=words
    )
    return dg.MaterializeResult(metadata=metadata, check_results=[check])


def _leader(attempt: Attempt) -> str:
    if attempt.leader is None:
        return "unknown"
    return attempt.leader if attempt.leader_uid is not None else f"{attempt.leader}, who is not on the subnet"
