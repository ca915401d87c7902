"""What judging took, kept per match in the journal and shown on the page of the matches.

Belongs here: where the counts of a match are kept, and their metadata. Does not: counting (`competition.judging`).
The counts are of this pipeline's own work: a round that was played elsewhere has none.
"""

import dagster as dg
from pydantic import ValidationError

from gen404_dagster.assets.describe import Metadata, table
from gen404_dagster.competition.judging import MatchJudging, Row, facts, summed
from gen404_dagster.resources.journal import Journal

_UNIT = "judged/"


def keep_judging(journal: Journal, number: int, judging: MatchJudging) -> None:
    journal.put(number, f"{_UNIT}{judging.left}/{judging.right}", "", judging.model_dump(mode="json"))


def read_judging(journal: Journal, number: int) -> list[MatchJudging]:
    """Matches of a round in which the judge was asked, in the order in which they were played."""
    found = []
    for value in journal.units(number, _UNIT).values():
        try:
            found.append(MatchJudging.model_validate(value))
        except ValidationError:  # of an earlier version
            continue
    return [one for one in found if one.questions]


def judging_metadata(journal: Journal, number: int) -> Metadata:
    """Calls, tokens, latency, draws and disagreement: scalars of the round, and a table of its matches."""
    matches = read_judging(journal, number)
    if not matches:
        return {}
    rows = [{"left": one.left[:10], "right": one.right[:10], **_rounded(facts(one))} for one in matches]
    found: Metadata = {}
    for name, value in _rounded(facts(summed(matches))).items():
        if isinstance(value, int):
            found[f"judge_{name}"] = dg.MetadataValue.int(value)
        elif isinstance(value, float):
            found[f"judge_{name}"] = dg.MetadataValue.float(value)
    return {**found, "judging": table(rows)}


def _rounded(row: Row) -> Row:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
