"""From a commit of the state repository to the typed state of a round. Reading only."""

from collections.abc import Callable
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import Hotkey, Results
from gen404_dagster.competition.stages import RoundState
from gen404_dagster.errors import StateFileError
from gen404_dagster.resources.state_repo import Snapshot

T = TypeVar("T")


def read_round(snapshot: Snapshot, number: int | None = None) -> RoundState:
    """A round (default: the current one). Raises StateFileError naming the file that is missing or wrong."""
    state = _required(snapshot, paths.STATE, models.STATE)
    number = state.current_round if number is None else number
    prompts = _parsed(snapshot, paths.prompts(number), models.read_prompts)
    seed = _json(snapshot, paths.seed(number), models.SEED)
    submissions = _json(snapshot, paths.submissions(number), models.SUBMISSIONS)
    requests = _json(snapshot, paths.audit_requests(number), models.AUDIT_REQUESTS)
    source_audits = _json(snapshot, paths.source_audits(number), models.SOURCE_AUDITS)
    stage_commit = snapshot.last_commit(paths.STATE)
    return RoundState(
        number=number,
        config=_required(snapshot, paths.CONFIG, models.CONFIG),
        state=state,
        leaders=tuple(_parsed(snapshot, paths.LEADERS, models.read_leaders) or ()),
        schedule=read_schedule(snapshot, number),
        seed=seed.seed if seed else None,
        prompts=None if prompts is None else tuple(prompts),
        submissions=submissions,
        builds=_json(snapshot, paths.builds(number), models.BUILDS),
        requests=tuple(requests or ()),
        generation_audits=_json(snapshot, paths.generation_audits(number), models.GENERATION_AUDITS),
        source_audits=tuple(source_audits or ()),
        matrix=tuple(_parsed(snapshot, paths.matrix(number), models.read_matrix) or ()),
        winner=_json(snapshot, paths.winner(number), models.WINNER),
        stage_entered=stage_commit.sha if stage_commit else "",
        submitted=frozenset(
            hotkey for hotkey in submissions or {} if snapshot.exists(paths.results(number, hotkey, "submitted"))
        ),
        baseline=read_results(snapshot, number, models.LEADER, "generated"),
    )


def read_schedule(snapshot: Snapshot, number: int) -> models.Schedule | None:
    return _json(snapshot, paths.schedule(number), models.SCHEDULE)


def read_pool(snapshot: Snapshot) -> list[str]:
    return _parsed(snapshot, paths.PROMPT_POOL, models.read_prompts) or []


def read_previous_prompts(snapshot: Snapshot, number: int) -> list[str] | None:
    return _parsed(snapshot, paths.prompts(number - 1), models.read_prompts) if number > 0 else None


def read_results(snapshot: Snapshot, number: int, hotkey: Hotkey, kind: paths.Kind) -> Results | None:
    return _json(snapshot, paths.results(number, hotkey, kind), models.RESULTS)


def read_pod_stats(snapshot: Snapshot, number: int, hotkey: Hotkey) -> models.PodReport | None:
    return _json(snapshot, paths.pod_stats(number, hotkey), models.POD_STATS)


def read_match(snapshot: Snapshot, number: int, left: Hotkey, right: Hotkey) -> models.MatchReport | None:
    return _json(snapshot, paths.match_report(number, left, right), models.MATCH_REPORT)


def _required(snapshot: Snapshot, path: str, adapter: TypeAdapter[T]) -> T:
    value = _json(snapshot, path, adapter)
    if value is None:
        raise StateFileError(f"{path} is missing in the state repository: is GEN404_STATE_REPO a competition's?")
    return value


def _json(snapshot: Snapshot, path: str, adapter: TypeAdapter[T]) -> T | None:
    return _parsed(snapshot, path, lambda text: models.read_json(adapter, text))


def _parsed(snapshot: Snapshot, path: str, parse: Callable[[str], T]) -> T | None:
    text = snapshot.read(path)
    if text is None:
        return None
    try:
        return parse(text)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise StateFileError(f"{path}{': ' + where if where else ''}: {fault['msg']}") from error
    except ValueError as error:
        raise StateFileError(f"{path}: {error}") from error
