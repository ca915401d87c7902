"""Recorded files without a materialization: what Dagster does not know yet, although git does.

After a lost Dagster directory, a kill between a push and its event, or a file that a human wrote, the next look adopts
the file as a materialization with the same metadata and checks that its asset would have given it.
"""

from collections.abc import Iterator, Mapping

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from gen404_dagster.assets import checks
from gen404_dagster.assets.describe import DESCRIPTIONS, Recorded, description, miner_results
from gen404_dagster.competition.stages import Lane
from gen404_dagster.partitions import miner_key, round_miners, rounds
from gen404_dagster.resources.configured import LANE_OF_ASSET
from gen404_dagster.resources.state_repo import Snapshot, StateRepository

Event = dg.AssetMaterialization | dg.AssetCheckEvaluation
ROUNDS_PER_LOOK = 5
"""Rounds adopted in one look, so that a first start on years of rounds stays responsive."""


def missing_partitions(instance: dg.DagsterInstance, snapshot: Snapshot, current: int) -> dict[str, list[str]]:
    """Partition keys to add: every round up to the current one, and the miners of each, in order of submission."""
    from gen404_dagster.resources.round_files import read_round

    known = set(instance.get_dynamic_partitions(rounds.name or ""))
    new_rounds = [str(number) for number in range(current + 1) if str(number) not in known]
    known_miners = instance.get_dynamic_partitions(round_miners.name or "")
    with_miners = {key.partition("|")[0] for key in known_miners}
    new_miners = []
    for number in range(current + 1):
        if str(number) not in with_miners:
            new_miners += [miner_key(number, hotkey) for hotkey in read_round(snapshot, number).submissions or {}]
    return {rounds.name or "": new_rounds, round_miners.name or "": new_miners}


def unknown_to_dagster(
    instance: dg.DagsterInstance, repository: StateRepository, snapshot: Snapshot, current: int, busy: set[Lane]
) -> Iterator[Event]:
    """Events for recorded files that have no materialization. Lanes of the current round that work are left alone."""
    done = {name: instance.get_materialized_partitions(dg.AssetKey(name)) for name in DESCRIPTIONS}
    looked = 0
    for number in range(current, -1, -1):
        at = Recorded(repository, snapshot, number)
        missing = [
            name
            for name, keys in done.items()
            if str(number) not in keys and not (number == current and LANE_OF_ASSET.get(name, Lane.MAIN) in busy)
        ]
        if not missing:
            continue
        found = False
        for name in missing:
            metadata = description(name, at)
            if metadata is not None:
                found = True
                yield dg.AssetMaterialization(
                    name, partition=str(number), description="adopted from git", metadata=metadata
                )
                yield from (as_evaluation(check.evaluate(at), check) for check in checks.CHECKS if check.asset == name)
        looked += found
        if looked >= ROUNDS_PER_LOOK:
            return
    yield from _miners(instance, repository, snapshot, current, busy)


def _miners(
    instance: dg.DagsterInstance, repository: StateRepository, snapshot: Snapshot, current: int, busy: set[Lane]
) -> Iterator[Event]:
    done = {name: instance.get_materialized_partitions(dg.AssetKey(name)) for name in ("downloads", "renders")}
    for number in range(current, -1, -1):
        if number == current and Lane.MAIN in busy:
            continue
        at = Recorded(repository, snapshot, number)
        for hotkey in at.round.submissions or {}:
            key = miner_key(number, hotkey)
            missing = [name for name, keys in done.items() if key not in keys]
            if missing and hotkey in at.round.submitted:
                metadata = miner_results(at, hotkey)
                for name in missing:
                    yield dg.AssetMaterialization(
                        name, partition=key, description="adopted from git", metadata=metadata
                    )


def passed_since(instance: dg.DagsterInstance, repository: StateRepository, snapshot: Snapshot) -> Iterator[Event]:
    """Checks that failed when they were last looked at, and hold now: a timeline settles after its last match."""
    keys = {dg.AssetCheckKey(dg.AssetKey(check.asset), check.name): check for check in checks.CHECKS}
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(keys))
    for key, record in latest.items():
        evaluation = record.evaluation if record.status == AssetCheckExecutionRecordStatus.FAILED else None
        number = evaluation.metadata.get("round") if evaluation else None
        if isinstance(number, dg.IntMetadataValue) and number.value is not None:
            at, asset = Recorded(repository, snapshot, number.value), key.asset_key.to_user_string()
            result, metadata = keys[key].evaluate(at), description(asset, at)
            if result.passed and metadata is not None:
                partition = str(number.value)
                known_before = _latest_metadata(instance, asset, partition)  # with what only the run knew
                yield dg.AssetMaterialization(
                    asset,
                    partition=partition,
                    description=f"{key.name} holds now",
                    metadata={**known_before, **metadata},
                )
                # Dagster shows checks of the latest materialization only: all of the asset's are given again.
                yield from (as_evaluation(check.evaluate(at), check) for check in checks.CHECKS if check.asset == asset)


def _latest_metadata(instance: dg.DagsterInstance, asset: str, partition: str) -> Mapping[str, dg.MetadataValue]:
    only = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    for record in instance.fetch_materializations(only, limit=1).records:
        materialization = record.asset_materialization
        return materialization.metadata if materialization else {}
    return {}


def as_evaluation(result: dg.AssetCheckResult, check: checks.Check) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(check.asset),
        check_name=check.name,
        passed=bool(result.passed),
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        blocking=check.blocking,
    )
