"""Two sensors that tell people: new commits and failed runs go into the outbox, and the outbox to every address.

Thin: what is news is `competition.news`, what waits is `resources.outbox`, sending is `resources.notifier`. Neither
sensor launches anything, and nothing waits for them: an address that is down costs its own messages.
"""

from collections.abc import Iterator, Sequence

import dagster as dg
from dagster import RunsFilter
from dagster._utils.error import SerializableErrorInfo

from gen404_dagster.competition.news import FailedRun, FileChange, Kind, News, failure_news, is_news, news_of, plain
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.configured import TOKEN_TAG, NotifierResource, StateRepositoryResource
from gen404_dagster.resources.notifier import deliver
from gen404_dagster.resources.outbox import Outbox
from gen404_dagster.resources.state_repo import CommitInfo, Snapshot, StateRepository

MOST_COMMITS = 1000
"""Commits told in one look; a round has some hundred."""


def news_since(repository: StateRepository, head: Snapshot, told: str) -> Iterator[tuple[str, News]]:
    """News of the commits after `told`, oldest first, each with a name of its own."""
    log = head.log(MOST_COMMITS + 1)
    new = [commit.sha for commit in log]
    if told not in new:
        words = (
            f"Commit {told[:10]}, the last one told, is not among the last {MOST_COMMITS} of the branch: it was rewritten, "
            f"or much has happened since. Messages go on from {head.commit[:10]}."
        )
        yield f"gap/{told}", News(Kind.FAILURE, "Some of the state repository's history was not told", words)
        return
    known: dict[str, str | None] = {}
    begin = Snapshot(repository, told)
    for commit in reversed(log[: new.index(told)]):
        at, changes = Snapshot(repository, commit.sha), []
        for path in filter(is_news, commit.files):
            # Against what was last told, whichever branch of a merge that stood on.
            text = at.read(path)
            changes.append(FileChange(path, known[path] if path in known else begin.read(path), text))
            known[path] = text
        for position, news in enumerate(news_of(changes)):
            source = _source(repository, commit)
            yield f"{commit.sha}/{position}", News(news.kind, news.title, f"{news.text}\n{source}".strip())


def _source(repository: StateRepository, commit: CommitInfo) -> str:
    where = repository.commit_link(commit.sha) or f"Commit {commit.sha[:10]}"
    return where if commit.step else f"{where}, by hand: {plain(commit.author, 60)}"


def queue_news(repository: StateRepository, outbox: Outbox, targets: Sequence[str], kinds: Sequence[Kind]) -> str:
    """Queue what is new in the state repository; the commit that is told now. The first look begins at the head.

    Commits that still wait for the network are told once the remote has them: until then they may change their names.
    """
    head, told = repository.head(), outbox.told(repository.display)
    if not head.commit:  # a plain folder of files
        return ""
    waiting = repository.waiting()
    if waiting:
        past = [commit.sha for commit in head.log(len(waiting) + 1)]
        head = Snapshot(repository, past[-1])
    if head.commit != told:
        news = [] if told is None else list(news_since(repository, head, told))
        outbox.add([one for one in news if one[1].kind in kinds], targets, (repository.display, head.commit))
    return head.commit


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells the addresses of GEN404_NOTIFY what is new in the state repository, and which runs failed.",
)
def notifications(
    context: dg.SensorEvaluationContext, state: StateRepositoryResource, notifier: NotifierResource
) -> dg.SkipReason:
    lines = []
    try:
        sender, outbox = notifier.get(), notifier.outbox()
        targets = [target.name for target in sender.targets]
        outbox.keep_only(targets)
        try:
            context.update_cursor(queue_news(state.get(), outbox, targets, notifier.chosen()))
        except (Unavailable, OperatorError) as error:
            lines.append(str(error))
        lines += deliver(sender, outbox)
    except (Unavailable, OperatorError) as error:
        lines.append(str(error))
    return dg.SkipReason("; ".join(lines) or "nothing new to tell")


@dg.run_failure_sensor(
    name="failed_runs",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Puts failed runs, with what to do, among the messages that the sensor notifications sends.",
)
def failed_runs(context: dg.RunFailureSensorContext, notifier: NotifierResource) -> None:
    if Kind.FAILURE not in notifier.chosen():
        return
    news = failure_news(_failed_run(context))
    if news is not None:
        link = notifier.run_link(context.dagster_run.run_id) or f"Run {context.dagster_run.run_id}"
        told = News(news.kind, news.title, f"{news.text}\n{link}")
        targets = [target.name for target in notifier.get().targets]
        notifier.outbox().add([(context.dagster_run.run_id, told)], targets)


def _failed_run(context: dg.RunFailureSensorContext) -> FailedRun:
    run = context.dagster_run
    work = run.tags.get(TOKEN_TAG)
    times = 1
    if work:
        alike = RunsFilter(tags={TOKEN_TAG: work}, statuses=[dg.DagsterRunStatus.FAILURE])
        times = max(1, context.instance.get_runs_count(alike))
    errors = [event.step_failure_data.error for event in context.get_step_failure_events()]
    fault, words = _root(errors[0]) if errors and errors[0] else ("", context.failure_event.message or "")
    first = run.tags.get("dagster/asset_partition_range_start")
    partition = run.tags.get("dagster/partition") or (f"round {first.partition('|')[0]}" if first else "")
    return FailedRun(run.job_name, partition, fault, words, times, again=work is not None)


def _root(error: SerializableErrorInfo) -> tuple[str, str]:
    """Whose fault an error is, and its first line: that of the first of our own errors behind Dagster's.

    Assets refuse work that is not due with Dagster's own `Failure`: an operator launched it.
    """
    ours = {"unavailable": _names(Unavailable), "operator": {*_names(OperatorError), "Failure"}}
    link: SerializableErrorInfo | None = error
    last = error
    while link is not None:
        for fault, names in ours.items():
            if link.cls_name in names:
                return fault, _first_line(link)
        last, link = link, link.cause
    return "", f"{last.cls_name}: {_first_line(last)}"


def _names(branch: type[Exception]) -> set[str]:
    return {branch.__name__, *(name for below in branch.__subclasses__() for name in _names(below))}


def _first_line(error: SerializableErrorInfo) -> str:
    """Without the name of its class, which Dagster puts before it."""
    line = next((line for line in error.message.splitlines() if line.strip()), "")
    before, colon, after = line.partition(": ")
    return after if colon and before.rpartition(".")[2] == error.cls_name else line
