"""From a seed to a round's prompts.

Source: spec section "Prompts"; the carry-over part is proven on recorded rounds by tests/competition/test_history.py.
"""

import random
from collections.abc import Sequence


def draw_prompts(
    seed: int, previous: Sequence[str] | None, pool: Sequence[str], prompts_per_round: int, carryover_prompts: int
) -> list[str]:
    """The round's prompt URLs: the carry-over first, then new ones out of the whole pool.

    `previous` is the previous round's prompts, None in round 0. Carry-over is not excluded from the pool: a repeat is
    possible, as in the public competition. A source that holds no more than is wanted is taken whole, in its order.
    The carry-over never exceeds the round.
    """
    rng = random.Random(seed)
    carried = _sample(rng, previous or (), min(carryover_prompts, prompts_per_round))
    return carried + _sample(rng, pool, prompts_per_round - len(carried))


def _sample(rng: random.Random, source: Sequence[str], count: int) -> list[str]:
    if count <= 0:
        return []
    return list(source) if len(source) <= count else rng.sample(list(source), count)
