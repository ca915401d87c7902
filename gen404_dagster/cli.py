"""`gen404 ...`: the command line. Each command is thin: it puts parts together and prints.

Errors of ours end in one line and exit code 1; heavy packages are imported by the command that needs them.
"""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from gen404_dagster.errors import Gen404Error, OperatorError
from gen404_dagster.ops.command import ops
from gen404_dagster.settings import load_settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="The 404-GEN competition (Bittensor subnet 17) as a Dagster pipeline. Start with `gen404 simulate`.",
)

app.add_typer(ops, name="ops")

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
WorkdirOption = Annotated[Path, typer.Option(help="Folder of the embedded world and everything made in it.")]
SeedOption = Annotated[int, typer.Option(help="The world and every round's seed follow from it.")]
MinersOption = Annotated[int, typer.Option(min=0, max=64, help="How many of the cast take part.")]
PromptsOption = Annotated[int, typer.Option(min=0, max=512, help="Prompts in a round.")]
PromptsFrom = Annotated[Path | None, typer.Option(help="Take real pictures of this folder as the pool of prompts.")]
MinerFrom = Annotated[Path | None, typer.Option(help="Add a miner whose CDN serves the GLB files of this folder.")]
SkillOption = Annotated[
    list[str] | None,
    typer.Option(help="ROLE=SUBMITTED or ROLE=SUBMITTED:IMAGE, each 0 to 1, e.g. best=0.6 or cheater=1:1. Repeatable."),
]


def _parameters(
    seed: int, miners: int, prompts: int, prompts_from: Path | None, miner_from: Path | None, skill: list[str] | None
) -> Any:
    from gen404_dagster.simulation.parameters import WorldParameters, parse_skills

    return WorldParameters(
        seed=seed,
        miners=miners,
        prompts=prompts,
        prompts_from=str(prompts_from) if prompts_from else None,
        miner_from=str(miner_from) if miner_from else None,
        skills=parse_skills(skill or []),
    )


@app.command()
def simulate(
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds to play.")] = 1,
    miners: MinersOption = 9,
    prompts: PromptsOption = 12,
    seed: SeedOption = 404,
    workdir: WorkdirOption = Path(".gen404/simulation"),
    prompts_from: PromptsFrom = None,
    miner_from: MinerFrom = None,
    skill: SkillOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Play whole rounds in the embedded world, as fast as the work allows.

    The same sensor and assets as in production, with the clock jumping. Killed at any moment, the same command goes on;
    a finished workdir shows its result again.

    Example: `gen404 simulate --rounds 3 --seed 7 --workdir /tmp/sim`
    """
    from gen404_dagster.simulate import cast_names, show_result
    from gen404_dagster.simulate import simulate as play

    console = Console(stderr=as_json)
    parameters = _parameters(seed, miners, prompts, prompts_from, miner_from, skill)
    result = play(workdir, parameters, rounds, console)
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        show_result(workdir.absolute(), load_settings(), rounds, cast_names(workdir), console)


@app.command()
def world(
    workdir: WorkdirOption = Path(".gen404/world"),
    miners: MinersOption = 9,
    prompts: PromptsOption = 12,
    seed: SeedOption = 404,
    prompts_from: PromptsFrom = None,
    miner_from: MinerFrom = None,
    skill: SkillOption = None,
    blocks_per_second: Annotated[float, typer.Option(min=0, help="Speed of the chain; 0: it stands still.")] = 0.0,
) -> None:
    """Run the embedded world: chain, prompt pictures, miners' CDNs, build registry and object store on one port.

    Example: `gen404 world --workdir /tmp/world --blocks-per-second 10`
    """
    from gen404_dagster.simulation.launch import serve_world

    serve_world(workdir, _parameters(seed, miners, prompts, prompts_from, miner_from, skill), blocks_per_second)


@app.command()
def ui(
    workdir: WorkdirOption = Path(".gen404/ui"),
    miners: MinersOption = 9,
    prompts: PromptsOption = 12,
    seed: SeedOption = 404,
    blocks_per_second: Annotated[
        float | None, typer.Option(min=0, help="Speed of the chain. Default: 60, and 0 on a simulated workdir.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the Dagster UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address that the Dagster UI listens on.")] = "127.0.0.1",
) -> None:
    """Open the Dagster UI on an embedded world whose blocks advance by themselves: the round plays without a click.

    On a workdir of `gen404 simulate` it shows what was played, with the chain standing still.

    Example: `gen404 ui --workdir .gen404/simulation`
    """
    from gen404_dagster.simulate import open_ui

    raise typer.Exit(
        open_ui(workdir, _parameters(seed, miners, prompts, None, None, None), blocks_per_second, host, port)
    )


@app.command()
def stack(
    workdir: WorkdirOption = Path(".gen404/stack"),
    miners: MinersOption = 5,
    prompts: PromptsOption = 6,
    seed: SeedOption = 404,
    keep: Annotated[bool, typer.Option(help="Go on after the round, until Ctrl-C.")] = False,
    deploy: Annotated[Path, typer.Option(help="Folder of docker-compose.yaml.")] = Path("deploy"),
) -> None:
    """Start what the compose file starts, without docker, and let its daemon play a round of the embedded world.

    PostgreSQL, SeaweedFS, code server, webserver and daemon, and the state repository over a socket. It ends when the
    round has ended, and so does every process; the same command plays the next round.

    Example: `gen404 stack --keep`
    """
    from gen404_dagster.stack import play

    play(workdir, deploy, _parameters(seed, miners, prompts, None, None, None), keep, Console())


@app.command()
def render(
    files: Annotated[
        list[Path], typer.Argument(help="GLB, PLY and SPZ files, and folders that hold such files.", exists=True)
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="PNG file, or a folder for several. Default: beside each file."),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Renderer backend. Default: GEN404_RENDER_BACKEND.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Files rendered at once. Default: one a core.")] = None,
    skip_existing: Annotated[bool, typer.Option(help="Leave pictures that are newer than their file.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Render 2x2 previews, exactly as a round does: within its limits, in processes of their own.

    Examples: `gen404 render model.glb -o preview.png`, `gen404 render models/ more.spz -o previews/ --jobs 4`
    """
    from gen404_dagster.batch import plan, render_files

    pictures = plan(files, output)
    done = render_files(pictures, load_settings(), backend, jobs, skip_existing, quiet=as_json)
    if as_json:
        print(json.dumps([picture.as_json() for picture in done], indent=2))
    for picture in done:
        if picture.refused is not None:
            print(f"{picture.file}: refused: {picture.refused}", file=sys.stderr)
    raise typer.Exit(1 if any(picture.refused is not None for picture in done) else 0)


@app.command()
def distance(
    first: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.", exists=True)],
    second: Annotated[Path, typer.Argument(help="A picture, or a folder of pictures.", exists=True)],
    as_json: JsonFlag = False,
) -> None:
    """Cosine distance of two pictures' embeddings, 0 same, 2 opposite, and whether an audit would accept it.

    Of two folders, pictures of the same name without extension are compared.

    Examples: `gen404 distance submitted.png regenerated.png`, `gen404 distance submitted/ regenerated/ --json`
    """
    from gen404_dagster.distances import compare_folders, compare_pictures

    if first.is_dir() != second.is_dir():
        raise OperatorError(f"{first} and {second}: name two pictures or two folders")
    compare = compare_folders if first.is_dir() else compare_pictures
    raise typer.Exit(0 if compare(load_settings(), first, second, as_json) else 1)


def _of_pictures(work: Any) -> Any:
    try:
        return work()
    except ValueError as error:
        raise OperatorError(str(error)) from error


@app.command()
def judge(
    prompt: Annotated[Path, typer.Argument(help="The prompt picture.", exists=True, dir_okay=False)],
    left: Annotated[Path, typer.Argument(help="Preview of the defender.", exists=True, dir_okay=False)],
    right: Annotated[Path, typer.Argument(help="Preview of the challenger.", exists=True, dir_okay=False)],
    seed: Annotated[int, typer.Option(help="Seed that the judge is given.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Judge one duel, as the configured judge decides it.

    Example: `gen404 judge prompt.png left.png right.png --json`
    """
    from gen404_dagster.competition.duels import decide_by_penalties
    from gen404_dagster.resources.embedder import make_embedder
    from gen404_dagster.resources.judge import DuelJudgement, Picture, judge_duel, make_judge

    settings = load_settings()
    chosen = make_judge(settings, make_embedder(settings))
    asked, first, second = (Picture.of(path.read_bytes()) for path in (prompt, left, right))

    async def ask() -> DuelJudgement:
        async with chosen:
            return await judge_duel(chosen, asked, first, second, seed, settings.judge_repeats)

    judged = _of_pictures(lambda: asyncio.run(ask()))
    winner = decide_by_penalties(judged.left_penalty, judged.right_penalty, settings.limits)
    result = {
        "winner": str(winner),
        "left_penalty": judged.left_penalty,
        "right_penalty": judged.right_penalty,
        "issues": judged.issues,
    }
    if as_json:
        print(json.dumps(result))
    else:
        print(f"{winner}: penalties {judged.left_penalty:g} (left), {judged.right_penalty:g} (right). {judged.issues}")


@app.command()
def commitments(
    dump: Annotated[Path, typer.Argument(help="JSON: {hotkey: [[block, text or 0x-hex], ...]}", exists=True)],
    first: Annotated[int, typer.Option("--from", help="First block of the window.")] = 0,
    last: Annotated[int, typer.Option("--to", help="Last block of the window.")] = 2**62,
    round_name: Annotated[str, typer.Option("--round", help="Name of the round, as submissions carry it.")] = "dump-0",
    as_json: JsonFlag = False,
) -> None:
    """Read a dump of revealed commitments as a round does: submissions, and why the rest is refused.

    Example: `gen404 commitments dump.json --from 100 --to 200 --json`
    """
    from gen404_dagster.competition.commitments import collect_submissions
    from gen404_dagster.competition.models import Schedule
    from gen404_dagster.resources.dump import read_dump

    settings = load_settings()
    revealed, unreadable = read_dump(dump.read_bytes())
    window = Schedule(earliest_reveal_block=first, latest_reveal_block=last, generation_deadline_block=last)
    collected = collect_submissions(
        revealed,
        window,
        round_name,
        allow_http=settings.allow_private_network,
        max_chars=settings.limits.max_commitment_chars,
    )
    refused = {
        hotkey: "; ".join(filter(None, (why, unreadable.get(hotkey)))) for hotkey, why in collected.refused.items()
    }
    submissions = {hotkey: entry.model_dump(mode="json") for hotkey, entry in collected.submissions.items()}
    faults = {
        hotkey: "; ".join(filter(None, (*collected.ignored.get(hotkey, ()), unreadable.get(hotkey))))
        for hotkey in submissions
    }
    ignored = {hotkey: why for hotkey, why in faults.items() if why}
    if as_json:
        print(json.dumps({"submissions": submissions, "refused": refused, "ignored": ignored}, indent=2))
        return
    table = Table(
        "hotkey", "block", "repo", "commit", "cdn", title=f"{len(submissions)} submissions", title_justify="left"
    )
    for hotkey, entry in collected.submissions.items():
        table.add_row(hotkey, str(entry.revealed_at_block), entry.repo, entry.commit[:10], entry.cdn_url)
    Console(markup=False).print(table)
    for hotkey, reason in refused.items():
        print(f"refused {hotkey.encode('unicode_escape').decode()}: {reason}")
    for hotkey, reason in ignored.items():
        print(f"ignored of {hotkey}: {reason}")
    for group in collected.same_payload:
        print(f"same payload: {', '.join(group)}")


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="Address of a file.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to put it. Default: the name in the URL.")
    ] = None,
) -> None:
    """Fetch a file through the guarded downloader, as a round does.

    Example: `gen404 fetch https://cdn.example.org/model.glb -o model.glb`
    """
    from gen404_dagster.resources.cdn import download_file

    settings = load_settings()
    target = output or Path(url.rstrip("/").rsplit("/", 1)[-1] or "download")
    limits = settings.limits.model_copy(update={"download_jitter_seconds": 0.0})
    stored = download_file(url, target, limits, settings.allow_private_network)
    print(f"{target}  {stored.size} bytes  sha256 {stored.sha256}")


@app.command()
def backfill(
    state_repo: Annotated[str, typer.Argument(help="A git repository by path or URL, or a plain folder of its files.")],
    rounds: Annotated[str, typer.Option(help="Rounds A-B, A- or A.")] = "0-",
    instance: Annotated[
        Path | None, typer.Option(help="Dagster's directory. Default: DAGSTER_HOME, else .gen404/history/dagster.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Register recorded rounds in Dagster, and materialize their assets from history.

    Each asset adopts its recorded file: nothing is computed again, committed or fetched. A second time changes nothing.

    Example: `gen404 backfill ../shared/history/competition-1 --rounds 0-3`
    """
    from gen404_dagster.backfill import instance_folder, parse_rounds, run_backfill, settings_of, show_backfill

    console, home = Console(stderr=as_json), instance_folder(instance)
    first, last = parse_rounds(rounds)
    with console.status("Reading the record") as status:
        result = run_backfill(
            settings_of(state_repo),
            home,
            first,
            last,
            lambda number, what: status.update(f"Round {number}: {what}"),
        )
    if as_json:
        print(json.dumps(result.as_json(), indent=2))
    else:
        show_backfill(result, state_repo, home, console)
    raise typer.Exit(0 if result.complete else 1)


@app.command()
def replay(
    state_repo: Annotated[str, typer.Argument(help="The record: a folder, or a git repository by path or URL.")],
    rounds: Annotated[str | None, typer.Option(help="Rounds A-B, or one. Default: all there are.")] = None,
    at: Annotated[str | None, typer.Option(help="Read a git repository as it was at this commit.")] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="LIMIT=VALUE: show which rounds would have ended differently under it. Repeatable."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Derive recorded rounds again from their own inputs and compare with the record; exit code 1 if anything deviates.

    What does not follow from the rules is either explained, naming the file that proves it, or deviates.

    Examples: `gen404 replay ../shared/history/competition-1`, `gen404 replay STATE_REPO --set win_margin=0.03`
    """
    from gen404_dagster.replay.command import run_replay

    raise typer.Exit(0 if run_replay(state_repo, rounds, at, changes or [], as_json) else 1)


@app.command()
def doctor(
    only: Annotated[
        list[str] | None, typer.Option(help="Check only parts whose names begin so, e.g. judge. Repeatable.")
    ] = None,
    notify: Annotated[bool, typer.Option("--notify", help="Send a test message to each address.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Use each configured part once, for real, and say what works, what is missing and what to change.

    It writes, fetches and deletes a probe object, pushes and deletes a probe branch, has a drawn duel judged, reads a
    block and the commitments, lists pods. Exit code 1 when a round would stop.

    Examples: `GEN404_ENV_FILE=.gen404/simulation/gen404.env gen404 doctor`, `gen404 doctor --only judge --only pods`
    """
    from gen404_dagster.doctor import choose, examine
    from gen404_dagster.doctor.checks import checks

    try:
        chosen = choose(checks(load_settings(), notify), only or [])
    except ValueError as error:
        raise OperatorError(str(error)) from error
    with Console(stderr=True).status("") as status:
        findings = examine(chosen, lambda waiting: status.update(f"Waiting for {', '.join(waiting)}"))
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        table = Table("part", "state", "s", Column("detail", overflow="fold"))
        for finding in findings:
            style = "green" if finding.good else "red" if finding.needed else "dim"
            state = "ok" if finding.good else "wrong" if finding.needed else "note"
            table.add_row(finding.part, f"[{style}]{state}[/]", f"{finding.seconds:.1f}", escape(finding.detail))
        Console().print(table)
    sys.stdout.flush()
    # A check that hangs in a library must not keep this process: it is left where it is.
    os._exit(0 if all(finding.good or not finding.needed for finding in findings) else 1)


def main() -> None:
    """Console script: one-line errors, exit code 0 only on success."""
    if shutil.which("git") is None:
        _fail("git is not installed: `apt install git`")
    try:
        app()
    except Gen404Error as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str) -> None:
    print(f"gen404: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
