"""Re-deriving a competition's history and comparing it with the record: what `gen404 replay` says.

Belongs here: pure comparisons, one module per part of a round, over the rules of `competition`. Does not: rules of its
own, nor anything that writes to a state repository or to Dagster.
"""

from gen404_dagster.replay.rounds import Replay, RoundReplay, replay, replay_round

__all__ = ["Replay", "RoundReplay", "replay", "replay_round"]
