"""What `gen404 replay` says of an asset's files, as a check beside the others.

Belongs here: which cells of a replay are about which asset, and one replay a round for all of them. Does not: the
comparisons (`gen404_dagster.replay`).
"""

from collections import OrderedDict

from gen404_dagster.assets.describe import Recorded
from gen404_dagster.replay.record import Record
from gen404_dagster.replay.rounds import RoundReplay, replay_round
from gen404_dagster.settings import load_settings

CELLS = {
    "schedule": ("schedule",),
    "prompts": ("prompts",),
    "submissions": ("submissions",),
    "stage": ("files",),
    "leader_baseline": ("results",),
    "match_matrix": ("margins", "duels", "matrix"),
    "audit_requests": ("requests",),
    "builds": ("builds",),
    "generation_audits": ("generation audits",),
    "winner": ("winner",),
    "leader": ("leader",),
}
"""Cells of a round's replay by asset: what is recorded beside what follows."""

_MOST_WORDS = 3
_kept: OrderedDict[tuple[str, str, int], RoundReplay] = OrderedDict()


def replayed(at: Recorded) -> RoundReplay:
    """The round's replay, made once for the same files."""
    key = (at.repository.display, at.snapshot.fingerprint(), at.number)
    if key not in _kept:
        _kept[key] = replay_round(Record(at.snapshot), at.number, load_settings().limits)[0]
        while len(_kept) > 4:
            _kept.popitem(last=False)
    return _kept[key]


def follows(asset: str, at: Recorded) -> tuple[bool, str]:
    """Whether everything recorded of the asset follows or is explained, and a sentence that says so."""
    result = replayed(at)
    cells = [result.cell(name) for name in CELLS[asset]]
    exact, explained, deviating = (
        sum(counts) for counts in zip(*((c.exact, c.explained, c.deviating) for c in cells), strict=True)
    )
    said = sorted((f for cell in cells for f in cell.findings if f.status), key=lambda f: f.status != "deviates")
    words = "; ".join(f"{found.file}: {found.what}" for found in said[:_MOST_WORDS])
    more = f"; and {len(said) - _MOST_WORDS} more, see `gen404 replay`" if len(said) > _MOST_WORDS else ""
    counts = f"{exact} exact, {explained} explained, {deviating} deviate"
    return deviating == 0, f"{counts}{': ' if words else ''}{words}{more}"
