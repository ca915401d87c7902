"""The chain: finalized block, revealed commitments, the subnet, and the weights that a validator sets.

Belongs here: asking a chain and distrusting what answers. Does not: what commitments and weights mean
(`competition.commitments`, `competition.leadership`), when they are asked for (sensors).
"""

from gen404_dagster.resources.chain.protocol import Chain, Head, Revelations, Sent, Subnet, Validator
from gen404_dagster.resources.chain.simulated import SimulatedChain, SimulatedValidator, get_from_world

__all__ = [
    "Chain",
    "Head",
    "Revelations",
    "Sent",
    "SimulatedChain",
    "SimulatedValidator",
    "Subnet",
    "Validator",
    "get_from_world",
]
