"""`gen404 backfill`: rounds of the past become partitions, and each of their assets adopts its recorded file.

Belongs here: which rounds and miners Dagster does not know yet, the runs that adopt them, what came of it. Does not:
what an asset shows (`assets.describe`), adopting beside a live pipeline (`sensors.adoption`).

Adopting is done by runs of the very assets, marked to only read: history then has runs, lineage, steps and checks like
a live round. Four rounds of 24 to 45 miners: 10 runs, 25 to 30 s on two busy cores; as events without runs it would
be 4 to 5 s, as the sensor adopts beside a live pipeline.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gen404_dagster.assets.describe import DESCRIPTIONS, Recorded, description
from gen404_dagster.assets.insights import INSIGHTS
from gen404_dagster.competition import paths
from gen404_dagster.definitions import build_defs
from gen404_dagster.driver import failure_of
from gen404_dagster.errors import OperatorError, StateFileError
from gen404_dagster.partitions import miner_key, round_miners, rounds
from gen404_dagster.replay.command import limits_for
from gen404_dagster.resources.configured import ADOPT_TAG, build_resources
from gen404_dagster.resources.recorded_files import default_branch
from gen404_dagster.resources.recorded_folder import is_recorded_folder
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.state_repo import Snapshot, StateRepository
from gen404_dagster.settings import Settings, load_settings
from gen404_dagster.simulate import INSTANCE_CONFIG

_QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_OF_MINERS = ("downloads", "renders")


@dataclass
class RoundBackfill:
    """What became of one round. `partitions`: keys that were new. `checks`: words of those that do not hold."""

    partitions: int = 0
    assets: list[str] = field(default_factory=list)
    miners: int = 0
    passed: int = 0
    checks: dict[str, str] = field(default_factory=dict)
    fault: str = ""


@dataclass
class Backfill:
    """What a backfill did. It is the first time that changes something; a second one finds nothing to do."""

    rounds: dict[int, RoundBackfill] = field(default_factory=dict)
    insights: list[str] = field(default_factory=list)
    fault: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {"complete": self.complete, **asdict(self)}

    @property
    def complete(self) -> bool:
        return not self.fault and not any(one.fault for one in self.rounds.values())


def parse_rounds(text: str) -> tuple[int, int | None]:
    """`A-B`, `A`, `A-`: first and last round, None for the newest. Raises OperatorError."""
    first, dash, last = text.partition("-")
    try:
        low = int(first)
        high = (int(last) if last else None) if dash else low
    except ValueError:
        raise OperatorError(f"--rounds is A-B, A- or A, not {text!r}") from None
    if low < 0 or (high is not None and high < low):
        raise OperatorError(f"--rounds {text} names no round: say the lower number first")
    return low, high


def instance_folder(chosen: Path | None) -> Path:
    """Dagster's directory: as chosen, else DAGSTER_HOME, else one beside the other caches."""
    return (chosen or Path(os.environ.get("DAGSTER_HOME") or ".gen404/history/dagster")).absolute()


def settings_of(state_repo: str) -> Settings:
    """The environment's settings for another record: its default branch, and the limits it was played with.

    The limits go to the environment, where the checks of every run find them.
    """
    limits = limits_for(state_repo)
    played = limits.model_dump(exclude_defaults=True) | {"acceptable_distance": limits.acceptable_distance}
    for name, value in played.items():
        os.environ[f"GEN404_LIMITS__{name.upper()}"] = str(value)
    settings = load_settings(state_repo=state_repo)
    if "state_branch" in settings.model_fields_set or is_recorded_folder(state_repo):
        return settings
    return load_settings(state_repo=state_repo, state_branch=default_branch(state_repo))


def run_backfill(
    settings: Settings,
    home: Path,
    first: int = 0,
    last: int | None = None,
    show: Callable[[int, str], None] = lambda number, what: None,
) -> Backfill:
    """Backfill the recorded rounds `first` to `last` of the settings' state repository into the instance at `home`."""
    began, done = time.monotonic(), Backfill()
    with _alone(home), dg.DagsterInstance.from_config(str(home)) as instance:
        repository = build_resources(settings)["state"].get()  # type: ignore[attr-defined]
        work = _Work(build_defs(settings), instance, repository, repository.head())
        numbers = work.recorded_rounds(first, last)
        for number in numbers:
            done.rounds[number] = RoundBackfill()
        work.register(done.rounds)
        for number, result in done.rounds.items():
            if not result.fault:
                show(number, "adopting")
                try:
                    work.adopt(number, result)
                except StateFileError as error:
                    result.fault = str(error)
        new = any(one.assets or one.miners for one in done.rounds.values())
        missing = [name for name in INSIGHTS if new or not instance.get_latest_materialization_event(dg.AssetKey(name))]
        if missing:
            show(numbers[-1], "computing insights over all rounds")
            done.insights, done.fault = work.compute(missing)
    done.seconds = round(time.monotonic() - began, 2)
    return done


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(INSTANCE_CONFIG.read_text())
    try:
        with FileLock(home / "backfill.lock").acquire(timeout=0):
            yield
    except Timeout:
        raise OperatorError(f"another backfill works on {home}: wait for it, or choose another --instance") from None


@dataclass(frozen=True)
class _Work:
    defs: dg.Definitions
    instance: dg.DagsterInstance
    repository: StateRepository
    snapshot: Snapshot

    def recorded_rounds(self, first: int, last: int | None) -> list[int]:
        current = read_round(self.snapshot).number
        chosen = range(first, min(current if last is None else last, current) + 1)
        found = [number for number in chosen if self.snapshot.exists(paths.round_folder(number))]
        if not found:
            raise OperatorError(f"{self.repository.display} records no such round; its newest is round {current}")
        return found

    def register(self, results: Mapping[int, RoundBackfill]) -> None:
        """Add the keys that are missing: all rounds in one call, and all miners in order of submission in another."""
        known = {name: set(self.instance.get_dynamic_partitions(name)) for name in ("round", "round_miner")}
        new_rounds, new_miners = [], []
        for number, result in results.items():
            try:
                entries = read_round(self.snapshot, number).submissions or {}
            except StateFileError as error:
                result.fault = str(error)
                continue
            miners = [
                key for key in (miner_key(number, hotkey) for hotkey in entries) if key not in known["round_miner"]
            ]
            new_miners += miners
            if str(number) not in known["round"]:
                new_rounds.append(str(number))
            result.partitions = len(miners) + (str(number) not in known["round"])
        if new_rounds:
            self.instance.add_dynamic_partitions(rounds.name or "", new_rounds)
        if new_miners:
            self.instance.add_dynamic_partitions(round_miners.name or "", new_miners)

    def adopt(self, number: int, result: RoundBackfill) -> None:
        """Materialize what is recorded of a round and has no materialization: miners first, as in a live round."""
        at = Recorded(self.repository, self.snapshot, number)
        for keys, names in self._missing_miners(at):
            tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
            if self._run(names, result, tags=tags):
                result.miners += len(keys)
        missing = [name for name in DESCRIPTIONS if not self._is_known(name, str(number)) and description(name, at)]
        if missing and self._run(self._with_siblings(missing), result, partition_key=str(number)):
            result.assets = missing

    def compute(self, names: Sequence[str]) -> tuple[list[str], str]:
        result = RoundBackfill()
        return (list(names), "") if self._run(names, result) else ([], result.fault)

    def _is_known(self, name: str, key: str) -> bool:
        return key in self.instance.get_materialized_partitions(dg.AssetKey(name))

    def _missing_miners(self, at: Recorded) -> list[tuple[list[str], tuple[str, ...]]]:
        """Ranges of miners, each with the assets that they lack: one range when a round is new."""
        if not at.round.over:
            return []
        done = {name: self.instance.get_materialized_partitions(dg.AssetKey(name)) for name in _OF_MINERS}
        mine = {miner_key(at.number, hotkey) for hotkey in at.round.submissions or {}}
        ranges: list[tuple[list[str], tuple[str, ...]]] = []
        lacked_before: tuple[str, ...] = ()
        for key in self.instance.get_dynamic_partitions(round_miners.name or ""):
            lacks = tuple(name for name in _OF_MINERS if key not in done[name]) if key in mine else ()
            if lacks and lacks == lacked_before:
                ranges[-1][0].append(key)
            elif lacks:
                ranges.append(([key], lacks))
            lacked_before = lacks
        return ranges

    def _with_siblings(self, names: Iterable[str]) -> list[str]:
        """Assets that one step makes together are selected together."""
        together = (self.defs.resolve_assets_def(name).keys for name in names)
        return sorted({key.to_user_string() for keys in together for key in keys})

    def _run(
        self,
        names: Sequence[str],
        result: RoundBackfill,
        partition_key: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> bool:
        run = self.defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(name) for name in names],
            partition_key=partition_key,
            tags={ADOPT_TAG: "history", **(tags or {})},
            run_config=_QUIET,
            raise_on_error=False,
        )
        for check in run.get_asset_check_evaluations():
            if check.passed:
                result.passed += 1
            else:
                result.checks[f"{check.asset_key.to_user_string()}: {check.check_name}"] = check.description or ""
        if not run.success:
            result.fault = failure_of(self.instance, run.run_id)
        return run.success


def show_backfill(result: Backfill, state_repo: str, home: Path, console: Console) -> None:
    """What was adopted, the checks that do not hold, and how to look at it."""
    table = Table("round", "new partitions", "assets", "miners", "checks", title="Adopted", title_justify="left")
    for number, one in result.rounds.items():
        checks = f"{one.passed} hold" + (f", {len(one.checks)} do not" if one.checks else "")
        table.add_row(str(number), str(one.partitions), str(len(one.assets)), str(one.miners), one.fault or checks)
    console.print(table)
    for number, one in result.rounds.items():
        for name, words in one.checks.items():
            console.print(Text(f"round {number}, {name}: {words}", style="yellow"))
    if result.fault:
        console.print(Text(f"insights: {result.fault}", style="red"))
    insights = f", {len(result.insights)} insights over all rounds" if result.insights else ""
    console.print(f"{result.seconds:.1f} s{insights}", highlight=False)
    command = (
        f"GEN404_STATE_REPO={shlex.quote(_absolute(state_repo))} DAGSTER_HOME={shlex.quote(str(home))} dagster dev"
    )
    console.print(Text(f"Dagster UI    {command} -m gen404_dagster.definitions"), soft_wrap=True)


def _absolute(state_repo: str) -> str:
    return str(Path(state_repo).absolute()) if Path(state_repo).exists() else state_repo
