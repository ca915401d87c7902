"""`gen404 simulate`: a world, the pipeline, a fast clock; and what came of it.

Belongs here: putting the embedded world and the driver together, the live screen, the result read back from git.
Does not: rules, decisions, the world itself.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
from filelock import FileLock, Timeout
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gen404_dagster.assets.describe import places
from gen404_dagster.assets.outputs import file_faults
from gen404_dagster.competition import paths
from gen404_dagster.driver import Driver, EventLog
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.state_repo import Snapshot, StateRepository
from gen404_dagster.settings import Settings, load_settings
from gen404_dagster.simulation.cast import Cast
from gen404_dagster.simulation.launch import World, pipeline_environment, start_world
from gen404_dagster.simulation.parameters import Workdir, WorldParameters, WorldRecord, read_record, write_atomic

INSTANCE_CONFIG = Path(__file__).with_name("dagster.yaml")
END_SECONDS = 30.0
"""Longest wait for the Dagster UI to end after an interrupt, in seconds."""


def simulate(workdir: Path, parameters: WorldParameters, rounds: int, console: Console) -> dict[str, Any]:
    """Play `rounds` rounds in `workdir`, or go on where a killed simulation was; the result of a finished one again."""
    workdir = workdir.absolute()
    with _alone(workdir):
        _same_rounds(workdir, rounds)
        with start_world(workdir, parameters) as world:
            settings = prepare(workdir, world.url)
            finished = workdir / "result.json"
            if not finished.exists():
                scaled = settings.limits.model_dump(exclude_defaults=True)
                words = ", ".join(f"{name} {value:g}" for name, value in scaled.items())
                console.print(f"   limits {words} (of this simulation; docs/configuration.md has all)", style="dim")
                _play(workdir, world, settings, rounds, console)
            result = read_result(settings, rounds)
            write_atomic(finished, json.dumps(result, indent=2))
            return result


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(workdir / "simulate.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise OperatorError(
            f"another simulation plays in {workdir}: wait for it, or choose another --workdir"
        ) from None


def _same_rounds(workdir: Path, rounds: int) -> None:
    path = workdir / "simulation.json"
    if not path.exists():
        write_atomic(path, json.dumps({"rounds": rounds}))
    known = json.loads(path.read_text())["rounds"]
    if known != rounds:
        raise OperatorError(
            f"{workdir} holds a simulation of {known} rounds: say --rounds {known}, or another --workdir"
        )


def prepare(workdir: Path, url: str) -> Settings:
    """Environment, settings file and Dagster instance of a simulated pipeline."""
    environment = pipeline_environment(workdir, url)
    write_atomic(workdir / "gen404.env", "".join(f"{name}={_quoted(value)}\n" for name, value in environment.items()))
    home = workdir / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    write_atomic(home / "dagster.yaml", INSTANCE_CONFIG.read_text())
    os.environ.update(environment)
    return load_settings()


def _quoted(value: str) -> str:
    return f"'{value}'" if any(character in value for character in ' #"') else value


def _play(workdir: Path, world: World, settings: Settings, rounds: int, console: Console) -> None:
    screen = Screen(console)
    log = EventLog(workdir / "simulation.log", screen.event)
    with dg.DagsterInstance.from_config(str(workdir / "dagster")) as instance:
        driver = Driver(settings, instance, log, resume=log.unfinished_lane())
        driver.resources["renderer"].get().start()  # type: ignore[attr-defined]
        with screen.watching(driver):
            driver.play(rounds, world.advance, world.review_sources)


class Screen:
    """Live progress on a terminal, plain lines elsewhere."""

    _WORDS: Mapping[str, str] = {
        "start": "cyan", "end": "green", "failed": "bold red", "clock": "yellow", "reviewed": "magenta", "buried": "red",
    }  # fmt: skip

    def __init__(self, console: Console) -> None:
        self._console = console
        self._driver: Driver | None = None
        self._now = ""

    def event(self, event: str, detail: str) -> None:
        self._now = detail if event == "start" else ""
        self._console.print(Text.assemble((f"{event:>9} ", self._WORDS.get(event, "white")), detail), highlight=False)

    @contextmanager
    def watching(self, driver: Driver) -> Iterator[None]:
        self._driver = driver
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True):
            yield

    def _render(self) -> RenderableType:
        if self._driver is None or not self._now:
            return Text("")
        journal = self._driver.resources["journal"].get()  # type: ignore[attr-defined]
        number = read_round(self._driver.repository.head(fetch=False)).number
        grid = Table.grid(padding=(0, 1))
        for unit, value in journal.units(number, "progress/").items():
            if value["total"] and value["done"] < value["total"]:
                bar = ProgressBar(total=value["total"], completed=value["done"], width=30)
                grid.add_row(unit.removeprefix("progress/"), bar, f"{value['done']}/{value['total']}", value["note"])
        return Group(Text(f"          {self._now}", style="dim"), grid)


def read_result(settings: Settings, rounds: int) -> dict[str, Any]:
    """What came of it, from the state repository alone."""
    with StateRepository(
        settings.state_repo, settings.data.absolute() / "state.git", settings.state_branch
    ) as repository:
        snapshot = repository.head()
        return {"rounds": [_round_result(snapshot, number) for number in range(rounds) if _ended(snapshot, number)]}


def _ended(snapshot: Snapshot, number: int) -> bool:
    state = read_round(snapshot).state
    return state.current_round > number or (state.current_round == number and state.stage == "finished")


def _round_result(snapshot: Snapshot, number: int) -> dict[str, Any]:
    round_ = read_round(snapshot, number)
    following = read_round(snapshot, number + 1) if snapshot.exists(paths.schedule(number + 1)) else None
    leader = following.leader if following else (round_.leaders[-1] if round_.leaders else None)
    audits = {hotkey: str(audit.outcome) for hotkey, audit in (round_.generation_audits or {}).items()}
    return {
        "round": number,
        "seed": round_.seed,
        "prompts": list(round_.stems),
        "submissions": {h: entry.model_dump(mode="json") for h, entry in (round_.submissions or {}).items()},
        "winner": round_.winner.winner_hotkey if round_.winner else None,
        "matrix": [[row.left, row.right, row.margin] for row in round_.matrix],
        "audits": audits,
        "leader": leader.model_dump(mode="json", include={"hotkey", "weight", "effective_block"}) if leader else None,
    }


def open_ui(workdir: Path, parameters: WorldParameters, blocks_per_second: float | None, host: str, port: int) -> int:
    """Run `dagster dev` on an embedded world until it is interrupted; its exit code."""
    workdir = workdir.absolute()
    played = (workdir / "simulation.json").exists()
    if (workdir / "world.json").exists():
        parameters = _record(workdir).parameters  # what is there is shown
    speed = blocks_per_second if blocks_per_second is not None else (0.0 if played else 60.0)
    with _alone(workdir), start_world(workdir, parameters, speed) as world:
        prepare(workdir, world.url)
        here = Path("workspace.yaml").absolute()
        where = ["-w", str(here)] if here.exists() else ["-m", "gen404_dagster.definitions"]
        command = [str(Path(sys.executable).with_name("dagster")), "dev", *where, "-h", host, "-p", str(port)]
        environment = os.environ | {"GEN404_ENV_FILE": str(workdir / "gen404.env")}
        return _until_interrupted(command, environment, workdir)


def _until_interrupted(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> int:
    """Run a command until it ends, or until this process gets SIGINT or SIGTERM; nothing of it is left then.

    The command has a session of its own: Ctrl-C comes here alone and is passed on once.
    """
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.default_int_handler)
    process = subprocess.Popen(command, env=environment, cwd=folder, start_new_session=True)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        # A second interrupt, or no end in time, ends it at once: a killed run is started again.
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def cast_names(workdir: Path) -> dict[str, str]:
    """Roles by hotkey, for people: the pipeline never reads the cast."""
    return {hotkey: miner.name for hotkey, miner in Cast(_record(workdir).parameters, 0).miners.items()}


def _record(workdir: Path) -> WorldRecord:
    record = read_record(Workdir(workdir))
    if record is None:
        raise OperatorError(f"{workdir} holds no world: run `gen404 simulate --workdir {workdir}` first")
    return record


def show_result(workdir: Path, settings: Settings, rounds: int, names: Mapping[str, str], console: Console) -> None:
    """The table at the end, where the previews lie, and how to open the UI."""
    with StateRepository(
        settings.state_repo, settings.data.absolute() / "state.git", settings.state_branch
    ) as repository:
        snapshot = repository.head()
        for number in range(rounds):
            if _ended(snapshot, number):
                console.print(_places_table(snapshot, number, names))
                _print_faults(snapshot, number, names, settings, console)
        console.print(f"Previews      {settings.data / 'store' / 'rounds'}")
        console.print(f"State         git --git-dir {settings.state_repo} log --oneline {settings.state_branch}")
        console.print(f"Dagster UI    gen404 ui --workdir {workdir}", highlight=False)


def _print_faults(
    snapshot: Snapshot, number: int, names: Mapping[str, str], settings: Settings, console: Console
) -> None:
    """Which files were refused, and why; equal reasons of a miner in one line."""
    with Journal(settings.data.absolute() / "journal.sqlite", settings.state_repo) as journal:
        for hotkey in read_round(snapshot, number).submissions or {}:
            reasons = Counter(file_faults(journal, number, hotkey).values())
            for reason, count in reasons.most_common(8):
                who = names.get(hotkey, hotkey[:10])
                console.print(
                    f"[dim]{who}: {count} file{'s' * (count > 1)} without preview:[/] {escape(reason)}", highlight=False
                )


def _places_table(snapshot: Snapshot, number: int, names: Mapping[str, str]) -> Table:
    round_ = read_round(snapshot, number)
    winner = round_.winner.winner_hotkey if round_.winner else "nobody"
    title = (
        f"Round {number}: {'the leader defends' if winner == 'leader' else f'{names.get(winner, winner[:10])} wins'}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("place", "miner", "role", "qualified", "margin", "audit"):
        table.add_column(column, justify="right" if column in ("place", "margin") else "left")
    for row in places(round_, round_.standing()):
        hotkey, margin = str(row["miner"]), row["margin"]
        table.add_row(
            str(row["place"]),
            hotkey[:10],
            names.get(hotkey, ""),
            str(row["qualified"]),
            "" if margin is None else f"{margin:+.4f}",
            str(row["audit"]),
            style="bold green" if hotkey == winner else ("red" if row["place"] == "rejected" else ""),
        )
    return table
