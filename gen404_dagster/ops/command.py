"""`gen404 ops ...`: the operator's actions on the command line. Each says what it would do with --dry-run."""

import json
from typing import Annotated

import typer

ops = typer.Typer(no_args_is_help=True, help="An operator's intervention; each action has --dry-run.")

StateRepo = Annotated[str, typer.Argument(help="The state repository or its record: a folder, or git by path or URL.")]
RoundOption = Annotated[int, typer.Option("--round", min=0, help="Round.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@ops.command()
def rejudge(
    state_repo: StateRepo,
    number: RoundOption,
    left: Annotated[str, typer.Option(help="Defender: `leader` or a hotkey, or how it begins.")],
    right: Annotated[str, typer.Option(help="Challenger: a hotkey, or how it begins.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Show what another judgement says; the record stays.")
    ] = False,
    take: Annotated[
        int, typer.Option(min=1, help="Another number asks everything anew; the same one goes on where it was left.")
    ] = 1,
    dry_run: DryRun = False,
    as_json: JsonFlag = False,
) -> None:
    """Judge a recorded match again, without replacing it, and show what changes.

    Kept answers are not used; the new ones are kept apart, so that a killed command goes on.

    Example: `gen404 ops rejudge STATE_REPO --round 3 --left leader --right 5ABC --compare`
    """
    from gen404_dagster.errors import OperatorError
    from gen404_dagster.ops.rejudge import plan_rejudging, rejudge_match, show_plan, show_rejudged

    if not compare:
        raise OperatorError("rejudge replaces nothing, it shows what another judgement says: add --compare")
    if dry_run:
        plan = plan_rejudging(state_repo, number, left, right)
        print(json.dumps(plan, indent=2)) if as_json else show_plan(plan)
        return
    result = rejudge_match(state_repo, number, left, right, take)
    print(json.dumps(result, indent=2)) if as_json else show_rejudged(result)
