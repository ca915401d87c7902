"""Insight from all recorded rounds: unpartitioned assets, each a table as a CSV file and a plot.

Belongs here: reading every round, tables to `GEN404_DATA/insights`, plots. Does not: what is computed
(`competition.insights`).
"""

import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import dagster as dg

from gen404_dagster.assets import plots
from gen404_dagster.assets.common import CODE_VERSION, OWNERS
from gen404_dagster.assets.describe import Metadata, table
from gen404_dagster.assets.judging import read_judging
from gen404_dagster.competition import insights as rules
from gen404_dagster.competition import paths
from gen404_dagster.competition.insights import PlayedRound, Row
from gen404_dagster.competition.models import LEADER, MatchRow, Results
from gen404_dagster.competition.stages import RoundState
from gen404_dagster.errors import StateFileError
from gen404_dagster.resources.configured import JournalResource, StateRepositoryResource
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.round_files import read_match, read_results, read_round
from gen404_dagster.resources.state_repo import Snapshot

T = TypeVar("T")

GROUP = "insights"
_EDGES = [-1.0, -0.8, -0.6, -0.4, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
_OUTCOMES = {
    "won": "#2e7d32", "qualified": "#81c784", "usable": "#90a4ae", "unusable": "#d7ccc8", "rejected": "#e57373",
}  # fmt: skip


def read_rounds(snapshot: Snapshot, journal: Journal) -> tuple[list[PlayedRound], dict[str, str]]:
    """Every round with a folder, and the files that cannot be read with their faults: one costs only itself."""
    faults: dict[str, str] = {}
    found = []
    for number in range(read_round(snapshot).number + 1):
        if snapshot.exists(paths.round_folder(number)):
            try:
                found.append(replace(_read(snapshot, number, faults), judging=read_judging(journal, number)))
            except StateFileError as error:
                faults[f"round {number}"] = str(error)
    return found, faults


def _read(snapshot: Snapshot, number: int, faults: dict[str, str]) -> PlayedRound:
    state = read_round(snapshot, number)

    def results(kind: paths.Kind, hotkeys: Sequence[str]) -> dict[str, Results]:
        read = {hotkey: tolerant(read_results, hotkey, kind) for hotkey in hotkeys}
        return {hotkey: one for hotkey, one in read.items() if one is not None}

    def tolerant(read: Callable[..., T | None], *what: str) -> T | None:
        try:
            return read(snapshot, number, *what)
        except StateFileError as error:
            faults[f"round {number}, {' '.join(what)}"] = str(error)
            return None

    reports = [tolerant(read_match, row.left, row.right) for row in _last_played(state)]
    miners = list(state.submissions or {})
    return PlayedRound(
        state,
        tuple(report for report in reports if report is not None),
        results("submitted", miners),
        results("generated", [LEADER, *miners]),
    )


def _last_played(state: RoundState) -> list[MatchRow]:
    """Rows of the matrix, of a match that was played again only the last: there is one report."""
    return list({(row.left, row.right): row for row in state.matrix}.values())


def _funnel(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    steps = ("submitted", "usable", "qualified", "audited", "passed", "new_leader")
    series = {step: [_number(row, step) for row in rows] for step in steps}
    return {
        "rounds": dg.MetadataValue.int(len(rows)),
        "new_leaders": dg.MetadataValue.int(int(sum(series["new_leader"]))),
        "submissions": dg.MetadataValue.int(int(sum(series["submitted"]))),
        "plot": plots.bars("From submission to the lead", [f"round {row['round']}" for row in rows], series),
    }


def _margins(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    values = [_number(row, "margin") for row in rows]
    series = {
        name: list(map(float, rules.histogram([_number(r, "margin") for r in rows if r["against_leader"] is is_leader], _EDGES)))
        for name, is_leader in (("v. leader", True), ("challengers", False))
    }  # fmt: skip
    close = sum(abs(value - one.state.config.win_margin) < 0.02 for one in rounds for value in _of_round(rows, one))
    return {
        "matches": dg.MetadataValue.int(len(rows)),
        "won": dg.MetadataValue.int(sum(bool(row["won"]) for row in rows)),
        "within_0.02_of_the_limit": dg.MetadataValue.int(close),
        **({"median_margin": dg.MetadataValue.float(rules.quantile(sorted(values), 0.5))} if values else {}),
        "plot": plots.bars("Margins: matches from this edge on", [f"{edge:+g}" for edge in _EDGES[:-1]], series),
    }


def _of_round(rows: Sequence[Row], one: PlayedRound) -> list[float]:
    return [_number(row, "margin") for row in rows if row["round"] == one.number]


def _times(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    names = ("median", "slowest_tenth", "slowest")
    series = {name: [_number(row, name) for row in rows] for name in names}
    labels = [f"{row['round']} {str(row['hotkey'])[:8]}" for row in rows]
    return {
        "images_run": dg.MetadataValue.int(len(rows)),
        **({"slowest_seconds": dg.MetadataValue.float(max(series["slowest"]))} if rows else {}),
        "plot": plots.bars("Seconds a prompt", labels, series),
    }


def _draws(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    judged, draws = (sum(_number(row, name) for row in rows) for name in ("judged", "draws"))
    edges = [step / 10 for step in range(11)]
    series = {
        f"round {one.number}": list(
            map(float, rules.histogram([_number(r, "draw_rate") for r in rows if r["round"] == one.number], edges))
        )
        for one in rounds
        if one.reports
    }
    return {
        "judged_duels": dg.MetadataValue.int(int(judged)),
        "draws": dg.MetadataValue.int(int(draws)),
        "draw_rate": dg.MetadataValue.float(round(draws / judged, 4) if judged else 0.0),
        "plot": plots.bars("Prompts by their share of draws", [f"{edge:.0%}" for edge in edges[:-1]], series),
    }


def _hotkeys(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    times = Counter(str(row["hotkey"]) for row in rows)
    cells = {(str(row["hotkey"]), str(row["round"])): str(row["outcome"]) for row in rows}
    columns = [str(one.number) for one in rounds if one.state.submissions]
    return {
        "hotkeys": dg.MetadataValue.int(len(times)),
        "in_several_rounds": dg.MetadataValue.int(sum(count > 1 for count in times.values())),
        "plot": plots.grid("How far each hotkey came, by round", list(times), columns, cells, _OUTCOMES),
    }


def _bias(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    total = {name: sum(int(_number(row, name)) for row in rows) for name in ("judged", "left", "right", "draws")}
    equal = [row for row in rows if row["matches"] == "between challengers"]
    left, right = (sum(int(_number(row, name)) for row in equal) for name in ("left", "right"))
    labels = [f"{row['round']} {'leader' if 'leader' in str(row['matches']) else 'others'}" for row in rows]
    series = {name: [_number(row, f"{name}_rate") for row in rows] for name in ("left", "right", "draw")}
    return {
        **{name: dg.MetadataValue.int(value) for name, value in total.items()},
        "between_challengers_left": dg.MetadataValue.int(left),
        "between_challengers_right": dg.MetadataValue.int(right),
        "between_challengers_p_value": dg.MetadataValue.float(rules.sign_test(left, right)),
        "plot": plots.bars("Share of judged duels won by each side", labels, series),
    }


def _judging(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    labels = [f"round {row['round']}" for row in rows]

    def plot(title: str, **names: str) -> dg.MarkdownMetadataValue:
        return plots.bars(title, labels, {shown: [_number(row, name) for row in rows] for shown, name in names.items()})

    found: Metadata = {
        name: dg.MetadataValue.int(int(sum(_number(row, name) for row in rows)))
        for name in ("questions", "calls", "prompt_tokens", "completion_tokens", "nonsense")
    }
    if any("cost" in row for row in rows):
        found["cost"] = dg.MetadataValue.float(round(sum(_number(row, "cost") for row in rows), 4))
        found["plot_cost"] = plot("Cost of judging", cost="cost")
    return {
        **found,
        "plot": plot("Share of judged duels", draws="draw_rate", disagree="disagreement"),
        "plot_latency": plot("Seconds an answer", p50="seconds_p50", p90="seconds_p90", p99="seconds_p99"),
        "plot_calls": plot("Questions and calls", questions="questions", calls="calls"),
    }


def _repeated(rounds: Sequence[PlayedRound], rows: Sequence[Row]) -> Metadata:
    carried = rules.carried_prompts(rounds)
    same = sum(bool(row["same"]) for row in rows)
    pairs = sorted({(int(_number(r, "earlier_round")), int(_number(r, "later_round"))) for r in rows})
    labels = [f"{a} to {b}" for a, b in pairs]
    series = {
        name: [float(sum(r["same"] is value and (r["earlier_round"], r["later_round"]) == pair for r in rows)) for pair in pairs]
        for name, value in (("same", True), ("different", False))
    }  # fmt: skip
    return {
        "carried_prompts": dg.MetadataValue.int(sum(int(_number(row, "prompts")) for row in carried)),
        "pairs_judged_again": dg.MetadataValue.int(len(rows)),
        "same_verdict": dg.MetadataValue.int(same),
        "different_verdict": dg.MetadataValue.int(len(rows) - same),
        "carried": table(carried),
        "plot": plots.bars("The same pair on the same prompt, a round later", labels, series),
    }


def _number(row: Row, name: str) -> float:
    return float(row[name] or 0)


@dataclass(frozen=True)
class Insight:
    """A table over all rounds and how its page sums it up."""

    compute: Callable[[Sequence[PlayedRound]], list[Row]]
    summary: Callable[[Sequence[PlayedRound], Sequence[Row]], Metadata]
    deps: tuple[str, ...]
    description: str


INSIGHTS: Mapping[str, Insight] = {
    "round_funnel": Insight(
        rules.funnel, _funnel, ("renders", "match_matrix", "generation_audits", "winner"),
        "Per round: how many submitted, had a preview, beat the leader by the margin, were audited, passed, and led.",
    ),
    "margin_distribution": Insight(
        rules.match_margins, _margins, ("match_matrix",),
        "Margins of all matches, against the leader and between challengers; how many stand close to the limit.",
    ),
    "image_times": Insight(
        rules.generation_times, _times, ("leader_baseline", "generation_audits"),
        "How long a prompt takes on each image that was run: the leader's baseline and the audited miners'.",
    ),
    "prompt_draws": Insight(
        rules.prompt_draws, _draws, ("match_matrix",),
        "Per prompt of a round: how often the judge could not tell the sides apart, the most drawn prompts first.",
    ),
    "hotkey_history": Insight(
        rules.hotkeys, _hotkeys, ("submissions", "match_matrix", "winner"),
        "Who took part in which rounds and how far each came: unusable, usable, qualified, rejected or won.",
    ),
    "position_bias": Insight(
        rules.position_bias, _bias, ("match_matrix",),
        "How often the judge prefers the left or the right side, and draws. The left side defends: only matches "
        "between challengers, with a sign test, tell of a bias by position.",
    ),
    "judging": Insight(
        rules.judging, _judging, ("match_matrix",),
        "What judging took, by round: questions, calls, tokens, seconds an answer, draws, disagreement between the two "
        "orders, and cost where GEN404_JUDGE_PROMPT_PRICE is set. Only rounds that this pipeline judged.",
    ),
    "repeated_prompts": Insight(
        rules.repeated_prompts, _repeated, ("prompts", "match_matrix"),
        "Prompts carried over between rounds: did the same two miners get the same verdict on the same prompt again.",
    ),
}  # fmt: skip


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A table, whole or as it was before."""
    import pandas as pd  # type: ignore[import-untyped]

    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        pd.DataFrame.from_records(list(rows)).to_csv(fresh, index=False)
        os.replace(fresh, path)  # noqa: PTH105
    finally:
        fresh.unlink(missing_ok=True)


def _insight_asset(name: str, insight: Insight) -> dg.AssetsDefinition:
    @dg.asset(
        name=name,
        group_name=GROUP,
        deps=list(insight.deps),
        description=insight.description,
        kinds={"pandas", "csv"},
        owners=OWNERS,
        code_version=CODE_VERSION,
    )
    def asset(state: StateRepositoryResource, journal: JournalResource) -> dg.MaterializeResult[None]:
        rounds, faults = _all_rounds(state, journal.get())
        rows = insight.compute(rounds)
        path = journal.folder / "insights" / f"{name}.csv"
        write_csv(path, rows)
        metadata: Metadata = {"rows": dg.MetadataValue.int(len(rows)), **insight.summary(rounds, rows)}
        if faults:
            metadata["unreadable"] = table([{"what": what, "fault": fault} for what, fault in faults.items()])
        return dg.MaterializeResult(
            metadata={**metadata, "table": table(rows), "file": dg.MetadataValue.path(str(path))}
        )

    return asset


_last_read: dict[tuple[str, str], tuple[list[PlayedRound], dict[str, str]]] = {}


def _all_rounds(state: StateRepositoryResource, journal: Journal) -> tuple[list[PlayedRound], dict[str, str]]:
    """Read once for all insights of a process that look at the same commit."""
    repository = state.get()
    snapshot = repository.head()
    key = (repository.display, snapshot.fingerprint())
    if key not in _last_read:
        _last_read.clear()
        _last_read[key] = read_rounds(snapshot, journal)
    return _last_read[key]


ASSETS = [_insight_asset(name, insight) for name, insight in INSIGHTS.items()]
