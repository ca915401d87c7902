"""Replays for people: one table with a colour per cell, then every finding in a line.

Belongs here: rich and words. Does not: deciding what deviates.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gen404_dagster.replay.findings import Cell, Finding, Status
from gen404_dagster.replay.rounds import Replay, RoundReplay
from gen404_dagster.replay.what_if import Change, Ending

_COLOURS = {Status.DEVIATES: "red", Status.EXPLAINED: "yellow", Status.EXACT: "green", None: "dim"}
_MOST_LINES = 40
"""Deviations listed of one cell; the JSON has all."""


def show_replay(result: Replay, console: Console) -> None:
    """Rows are questions, columns are rounds: exact/total, coloured by status."""
    names = list(dict.fromkeys(cell.name for part in result.rounds for cell in part.cells))
    table = Table(
        "", *(f"round {part.number}" for part in result.rounds), title="Record and rules", title_justify="left"
    )
    for name in names:
        table.add_row(name, *(_told(part.cell(name)) for part in result.rounds))
    console.print(table)
    console.print("[green]exact[/]  [yellow]explained: evidence named below[/]  [red]deviates[/]")
    for part in (*result.rounds, result.competition):
        for name in [cell.name for cell in part.cells]:
            _show_findings(part, name, console)
    different = [path for part in (result.competition, *result.rounds) for path in part.different]
    total = sum(part.files for part in (result.competition, *result.rounds))
    console.print(f"{total - len(different)} of {total} state files are written again to the byte", highlight=False)
    for path in different:
        console.print(f"  different: {escape(path)}", highlight=False)


def _told(cell: Cell) -> str:
    if cell.total == 0:
        return "[dim]-[/]"
    return f"[{_COLOURS[cell.status]}]{cell.exact}/{cell.total}[/]"


def _show_findings(part: RoundReplay, name: str, console: Console) -> None:
    findings = sorted(part.cell(name).findings, key=lambda found: list(_COLOURS).index(found.status), reverse=False)
    ordered = [f for f in findings if f.status == Status.DEVIATES] + [
        f for f in findings if f.status != Status.DEVIATES
    ]
    for found in ordered[:_MOST_LINES]:
        console.print(_line(found), highlight=False, soft_wrap=True)
    if len(ordered) > _MOST_LINES:
        console.print(f"  ... and {len(ordered) - _MOST_LINES} more findings on {name}: --json lists all")


def _line(found: Finding) -> str:
    colour = _COLOURS[found.status]
    word = str(found.status) if found.status else "noticed"
    evidence = f" [dim](evidence: {escape(found.evidence)})[/]" if found.evidence else ""
    return f"[{colour}]{word:9}[/] {escape(found.file)}: {escape(found.what)}{evidence}"


def show_what_if(change: Change, endings: Sequence[Ending], console: Console) -> None:
    """Each round's end under the changed limits, the first decision that differs, and what the record cannot tell."""
    table = Table(
        "round", "recorded winner", "would be", title=f"With {', '.join(change.names)} set", title_justify="left"
    )
    colours = {"same": "green", "differs": "red", "unknown": "yellow"}
    for ending in endings:
        would = {"same": "the same", "unknown": "unknown"}.get(ending.outcome, ending.derived or "")
        table.add_row(str(ending.number), ending.recorded or "-", f"[{colours[ending.outcome]}]{would}[/]")
    console.print(table)
    for ending in endings:
        lines = [f"first difference: {ending.subject}: {ending.before} -> {ending.after}"] if ending.subject else []
        lines += [f"unknown: {reason}" for reason in ending.unknown[:_MOST_LINES]]
        lines += [ending.assumes] if ending.assumes else []
        for line in lines:
            console.print(f"round {ending.number}: {escape(line)}", highlight=False, soft_wrap=True)
