"""What people are told of a competition: from changed state files, and from failed runs, to a few lines of text.

Belongs here: which changes are news, their words, and what of miners' strings may stand in a message. Does not: reading
commits (`sensors.notifications`), waiting and sending (`resources.outbox`, `resources.notifier`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.models import LEADER, AuditOutcome, Hotkey, LeaderTransition, Stage

MOST_NAME_CHARS = 80
MOST_REASON_CHARS = 300


class Kind(StrEnum):
    STAGE = "stage"
    WINNER = "winner"
    VERDICT = "verdict"
    FAILURE = "failure"


@dataclass(frozen=True)
class News:
    """One message. `title` is one line; both are plain text, safe wherever they are shown."""

    kind: Kind
    title: str
    text: str


@dataclass(frozen=True)
class FileChange:
    """Text of a state file before and after a commit; None: there is no such file."""

    path: str
    before: str | None
    after: str | None


# What chat services take for mark-up, mentions or links: none of it is needed to name a miner or a reason.
_UNSAFE = re.compile(r"[^ A-Za-z0-9.,:;!?'\"()+=%/_-]")
_LINK = re.compile(r":(?=//)")


def plain(text: str, most_chars: int = MOST_REASON_CHARS) -> str:
    """A stranger's string for a message: printable ASCII on one line, bounded, without mentions, mark-up and links.

    What cannot stand there becomes a question mark; `://` is taken apart, so that nothing turns into a link.
    """
    line = " ".join(text[: 4 * most_chars].split())
    safe = _LINK.sub(": ", _UNSAFE.sub("?", line))
    return safe if len(safe) <= most_chars else safe[: most_chars - 3] + "..."


def is_news(path: str) -> bool:
    """Whether a state file's changes are told."""
    return path in (paths.STATE, paths.LEADERS) or _ROUND_FILE.fullmatch(path) is not None


def news_of(changes: Sequence[FileChange]) -> list[News]:
    """News of one commit, in the order in which people want to read it. A file that cannot be read is news too."""
    found: list[News] = []
    for change in sorted(changes, key=lambda change: _ORDER.index(change.path.rpartition("/")[2])):
        try:
            found += _news_of_file(change)
        except (ValidationError, ValueError) as error:
            fault = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            found.append(
                News(
                    Kind.FAILURE,
                    f"{change.path} cannot be read",
                    f"{plain(fault)}. Correct the file in the state repository: the round waits for it.",
                )
            )
    return found


_ORDER = ("winner.json", "generation_audits.json", "source_audit.json", "leader.json", "state.json")
_ROUND_FILE = re.compile(r"rounds/(\d{1,9})/(winner|generation_audits|source_audit)\.json")


def _news_of_file(change: FileChange) -> Iterator[News]:
    if change.path == paths.STATE:
        yield from _stage(_parsed(models.STATE, change.before), _parsed(models.STATE, change.after))
    elif change.path == paths.LEADERS:
        before = models.read_leaders(change.before) if change.before else []
        for entry in models.read_leaders(change.after) if change.after else []:
            if entry not in before:
                yield _leader(entry)
    elif (found := _ROUND_FILE.fullmatch(change.path)) is not None:
        number = int(found[1])
        if found[2] == "winner":
            yield from _winner(number, _parsed(models.WINNER, change.before), _parsed(models.WINNER, change.after))
        elif found[2] == "generation_audits":
            audits = _parsed(models.GENERATION_AUDITS, change.before), _parsed(models.GENERATION_AUDITS, change.after)
            yield from _generation_audits(number, *audits)
        else:
            known = _parsed(models.SOURCE_AUDITS, change.before) or []
            for verdict in _parsed(models.SOURCE_AUDITS, change.after) or []:
                if verdict not in known:
                    yield News(
                        Kind.VERDICT,
                        f"Round {number}: source audit {verdict.verdict}",
                        f"{named(verdict.hotkey)}{_because(verdict.reason)}",
                    )


def _parsed(adapter: TypeAdapter[models.T], text: str | None) -> models.T | None:
    return None if text is None else models.read_json(adapter, text)


_STAGE_WORDS: Mapping[Stage, str] = {
    Stage.OPEN: "Miners may reveal their commitments.",
    Stage.MINER_GENERATION: "The window has closed; seed, prompts and submissions are committed. Miners generate.",
    Stage.DOWNLOADING: "Submitted files are fetched and rendered.",
    Stage.DUELS: "Matches are played, and leaders of the timeline are verified.",
    Stage.FINALIZING: "The winner is known; leader and next schedule follow.",
    Stage.FINISHED: "The competition is over.",
    Stage.PAUSED: "Nothing goes on until somebody sets the stage in state.json.",
}


def _stage(before: models.CompetitionStage | None, after: models.CompetitionStage | None) -> Iterator[News]:
    if after is None:
        yield News(Kind.FAILURE, "state.json was removed", "Restore it in the state repository: nothing goes on.")
    elif before is None or (before.current_round, before.stage) != (after.current_round, after.stage):
        came = f" (from {before.stage})" if before is not None and before.current_round == after.current_round else ""
        eta = f" Until about {after.next_stage_eta:%Y-%m-%d %H:%M} UTC." if after.next_stage_eta else ""
        title = f"Round {after.current_round}: {after.stage}{came}"
        yield News(Kind.STAGE, title, _STAGE_WORDS[after.stage] + eta)


def _winner(number: int, before: models.Winner | None, after: models.Winner | None) -> Iterator[News]:
    if after is None:
        yield News(Kind.WINNER, f"Round {number}: the winner is withdrawn", "winner.json was removed.")
    elif after != before:
        who = "the leader defends" if after.winner_hotkey == LEADER else f"{named(after.winner_hotkey)} wins"
        yield News(Kind.WINNER, f"Round {number}: {who}", _image(after.repo, after.commit))


def _leader(entry: LeaderTransition) -> News:
    text = f"Weight {entry.weight:.4g} from block {entry.effective_block}. {_image(entry.repo, entry.commit)}"
    return News(Kind.WINNER, f"Next leader: {named(entry.hotkey)}", text)


def _generation_audits(number: int, before: models.Audits | None, after: models.Audits | None) -> Iterator[News]:
    for hotkey, audit in (after or {}).items():
        known = (before or {}).get(hotkey)
        if audit.outcome == AuditOutcome.PENDING or (known is not None and known.outcome == audit.outcome):
            continue
        checked = f"{audit.checked_prompts} prompts checked"
        if audit.generation_time is not None:
            checked += f", {audit.generation_time:.1f} s each"
        then = (
            f" It counts together with a reviewer's verdict in rounds/{number}/source_audit.json."
            if audit.outcome == AuditOutcome.PASSED
            else ""
        )
        yield News(
            Kind.VERDICT,
            f"Round {number}: generation audit {audit.outcome}",
            f"{named(hotkey)}{_because(audit.reason)} {checked}.{then}",
        )


@dataclass(frozen=True)
class FailedRun:
    """A run that failed. `fault`: whose fault its error names; `times`: how often this same work has failed by now."""

    job: str
    partition: str
    fault: str  # "unavailable", "operator" or "" (a fault of the program)
    error: str
    times: int
    again: bool  # whether a sensor launches its work again


def failure_news(run: FailedRun) -> News | None:
    """What to say of a failed run. None: the same work has failed before, and its next message is not due.

    Told are the first failure and then each that doubles their number (2nd, 4th, 8th), so that an outage of a night
    is a handful of messages.
    """
    if run.times & (run.times - 1):
        return None
    where = f" ({plain(run.partition, MOST_NAME_CHARS)})" if run.partition else ""
    often = f", {run.times} times now" if run.times > 1 else ""
    by_hand = f"open the run and choose Re-execute, or launch {plain(run.job, MOST_NAME_CHARS)}{where}"
    todo = {
        ("unavailable", True): "Nothing to do: it is tried again by itself. If it goes on, run `gen404 doctor`.",
        ("unavailable", False): f"When `gen404 doctor` finds everything well, {by_hand}.",
        ("operator", True): "Change what the error names; it is then started again by itself.",
        ("operator", False): f"Change what the error names, then {by_hand}.",
        ("", True): "Look at the run's log. It is tried again by itself with growing pauses.",
        ("", False): f"Look at the run's log, then {by_hand}.",
    }[run.fault, run.again]
    title = f"{plain(run.job, MOST_NAME_CHARS)}{where} failed{often}"
    return News(Kind.FAILURE, title, f"{plain(run.error) or 'It left no error: its process ended.'}\n{todo}")


def named(hotkey: Hotkey) -> str:
    return "the leader" if hotkey == LEADER else plain(hotkey, MOST_NAME_CHARS)


def _image(repo: str | None, commit: str | None) -> str:
    return f"{plain(repo, MOST_NAME_CHARS)} at {plain((commit or '')[:10])}" if repo else ""


def _because(reason: str) -> str:
    return f": {plain(reason)}." if reason else "."
