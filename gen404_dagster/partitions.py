"""How the pipeline is cut: `round` (key: the number) and `round_miner` (key: "7|5ABC...", flat).

Both are dynamic: rounds appear when they are scheduled, miners when a round opens. Flat miner keys rather than a
round x hotkey product, which would show every hotkey as missing in every round that it did not enter.
https://docs.dagster.io/guides/build/partitions-and-backfills/partitioning-assets
"""

import dagster as dg

from gen404_dagster.competition.models import Hotkey

rounds = dg.DynamicPartitionsDefinition(name="round")
round_miners = dg.DynamicPartitionsDefinition(name="round_miner")


def across(asset: str) -> dg.AssetDep:
    """A dependency between assets of rounds and of miners: lineage, without partitions that belong together.

    Dagster would take both keys for the same and refuse a backfill, because round "7" is no miner; a mapping of our own
    would be unknown to the UI and the daemon.
    """
    return dg.AssetDep(asset, partition_mapping=dg.SpecificPartitionsPartitionMapping([]))


def miner_key(number: int, hotkey: Hotkey) -> str:
    return f"{number}|{hotkey}"


def split_miner_key(key: str) -> tuple[int, Hotkey]:
    number, _, hotkey = key.partition("|")
    return int(number), hotkey
