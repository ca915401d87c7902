"""What an asset's page shows, from the state repository alone.

Belongs here: recorded files -> metadata, so that a live round, an adopted round and a re-materialized one look alike.
Does not: what only the run knows (reasons of refusals, tokens spent): the asset adds that to its own materialization.
Headline numbers come first as scalars, because Dagster plots them and hides markdown behind a click.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import dagster as dg

from gen404_dagster.assets.pictures import gallery, heat_map
from gen404_dagster.competition import duels, paths, timeline
from gen404_dagster.competition.leadership import active_leader
from gen404_dagster.competition.models import LEADER, Hotkey, MatchRow, Results, Stage
from gen404_dagster.competition.stages import RoundState
from gen404_dagster.competition.timeline import Standing
from gen404_dagster.errors import StateFileError
from gen404_dagster.resources.round_files import read_match, read_pod_stats, read_results, read_round, read_schedule
from gen404_dagster.resources.state_repo import Snapshot, StateRepository

Metadata = dict[str, dg.MetadataValue]
_MOST_ROWS = 20


@dataclass(frozen=True)
class Recorded:
    """A round as a commit of the state repository has it."""

    repository: StateRepository
    snapshot: Snapshot
    number: int

    @cached_property
    def round(self) -> RoundState:
        return read_round(self.snapshot, self.number)

    @cached_property
    def standing(self) -> Standing:
        return self.round.standing()

    def has(self, path: str) -> bool:
        return self.snapshot.exists(path)


def recorded(repository: StateRepository, number: int, *, fetch: bool = True) -> Recorded:
    return Recorded(repository, repository.head(fetch=fetch), number)


def table(rows: Sequence[Mapping[str, object]]) -> dg.TableMetadataValue:
    """A table of at most 20 rows (the UI prints each); the file has the rest."""
    shown = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in rows[:_MOST_ROWS]]
    columns = list(rows[0]) if rows else ["nothing"]
    schema = dg.TableSchema(columns=[dg.TableColumn(name, _column_type(rows, name)) for name in columns])
    return dg.MetadataValue.table(records=shown, schema=schema)


def _cell(value: object) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else ("" if value is None else str(value))


def _column_type(rows: Sequence[Mapping[str, object]], name: str) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    if values and all(isinstance(value, bool) for value in values):
        return "bool"
    if values and all(isinstance(value, int) for value in values):
        return "int"
    return "float" if values and all(isinstance(value, (int, float)) for value in values) else "string"


def commit_of(at: Recorded, path: str) -> Metadata:
    """The commit that last wrote a file: its time, subject and, where the remote has pages, a link."""
    commit = at.snapshot.last_commit(path)
    if commit is None:
        return {"file": dg.MetadataValue.text(path)}
    link = at.repository.commit_link(commit.sha)
    return {
        "file": dg.MetadataValue.text(path),
        "commit": dg.MetadataValue.url(link) if link else dg.MetadataValue.text(commit.sha),
        "committed_at": dg.MetadataValue.timestamp(commit.time),
        "commit_subject": dg.MetadataValue.text(commit.subject),
    }


def timeline_in_words(round_: RoundState, now: Standing) -> str:
    """The chain of leaders as a list of sentences."""
    known = timeline.verdicts(round_.generation_audits or {}, round_.source_audits)
    audits = round_.generation_audits or {}
    sources = {audit.hotkey: audit for audit in round_.source_audits}
    lines = []
    played = timeline.margins(round_.matrix)
    for hotkey in round_.submissions or {}:
        if hotkey in known.rejected:
            reasons = [audits[hotkey].reason] if hotkey in audits and audits[hotkey].outcome == "rejected" else []
            if hotkey in sources and sources[hotkey].verdict == "failed":
                reasons.append(f"source audit: {sources[hotkey].reason}")
            lines.append(f"- ~~{hotkey[:10]}~~ was rejected: {'; '.join(reasons)}")
    missing = len([pair for pair in now.timeline.missing if pair[0] == LEADER])
    beaten = [h for h in round_.submissions or {} if played.get((LEADER, h), 0.0) < round_.config.win_margin]
    if missing:
        lines.append(f"- {missing} miners have still to play the leader")
    else:
        lines.append(f"- {len(now.timeline.qualified)} qualified against the leader, {len(beaten)} did not")
    for reign in now.timeline.reigns:
        state = "approved" if reign.leader in known.approved else "audit outstanding"
        lines.append(
            f"- **{reign.leader[:10]}** took the lead from {reign.defeated[:10]} by {reign.margin:+.4f} ({state})"
        )
    if now.timeline.finished and not now.timeline.reigns:
        lines.append("- nobody beat the leader by the margin: the leader defends")
    if not now.timeline.finished and not missing:
        lines += [f"- next: {right[:10]} against {left[:10]}" for left, right in now.timeline.missing]
    lines.append("- **settled**" if now.settled else "- not settled yet")
    return "\n".join(lines)


def places(round_: RoundState, now: Standing) -> list[dict[str, str | float | None]]:
    """Result table: miner, qualified, margin against the leader, audit, place; the winner first."""
    played = timeline.margins(round_.matrix)
    known = timeline.verdicts(round_.generation_audits or {}, round_.source_audits)
    audits = round_.generation_audits or {}
    sources = {audit.hotkey: audit for audit in round_.source_audits}
    chain = [reign.leader for reign in reversed(now.timeline.reigns)]

    def rank(hotkey: Hotkey) -> tuple[int, float]:
        if hotkey in chain:
            return chain.index(hotkey), 0.0
        rejected, qualified = hotkey in known.rejected, hotkey in now.timeline.qualified
        return 1000 + (2000 if rejected else 0) + (0 if qualified else 1000), -played.get((LEADER, hotkey), -999.0)

    rows: list[dict[str, str | float | None]] = []
    place = 0
    for hotkey in sorted(round_.submissions or {}, key=rank):
        margin = played.get((LEADER, hotkey))
        words = []
        if hotkey in audits:
            words.append(f"{audits[hotkey].outcome}" + (f": {audits[hotkey].reason}" if audits[hotkey].reason else ""))
        if hotkey in sources:
            words.append(f"source {sources[hotkey].verdict}: {sources[hotkey].reason}")
        place += hotkey not in known.rejected
        rows.append(
            {
                "miner": hotkey,
                "qualified": "yes" if margin is not None and margin >= round_.config.win_margin else "no",
                "margin": margin,
                "audit": "; ".join(words),
                "place": "rejected" if hotkey in known.rejected else str(place),
            }
        )
    return rows


def _schedule(at: Recorded) -> Metadata | None:
    return _described_schedule(at, at.number)


def _described_schedule(at: Recorded, number: int) -> Metadata | None:
    plan = read_schedule(at.snapshot, number)
    if plan is None:
        return None
    return {
        "earliest_reveal_block": dg.MetadataValue.int(plan.earliest_reveal_block),
        "latest_reveal_block": dg.MetadataValue.int(plan.latest_reveal_block),
        "generation_deadline_block": dg.MetadataValue.int(plan.generation_deadline_block),
        "window_blocks": dg.MetadataValue.int(plan.latest_reveal_block - plan.earliest_reveal_block + 1),
        "generation_blocks": dg.MetadataValue.int(plan.generation_deadline_block - plan.latest_reveal_block),
        **commit_of(at, paths.schedule(number)),
    }


def _seed(at: Recorded) -> Metadata | None:
    if at.round.seed is None:
        return None
    return {"seed": dg.MetadataValue.int(at.round.seed), **commit_of(at, paths.seed(at.number))}


def _prompts(at: Recorded) -> Metadata | None:
    if at.round.prompts is None:
        return None
    previous = at.snapshot.read(paths.prompts(at.number - 1)) if at.number else None
    carried = set(at.round.prompts) & set((previous or "").splitlines())
    return {
        "prompts": dg.MetadataValue.int(len(at.round.prompts)),
        "carried_over": dg.MetadataValue.int(len(carried)),
        "repeated": dg.MetadataValue.int(len(at.round.prompts) - len(set(at.round.prompts))),
        "list": table([{"position": i, "prompt": url} for i, url in enumerate(at.round.prompts)]),
        **commit_of(at, paths.prompts(at.number)),
    }


def _submissions(at: Recorded) -> Metadata | None:
    entries = at.round.submissions
    if entries is None:
        return None
    rows = [
        {"hotkey": h, "block": s.revealed_at_block, "repo": s.repo, "commit": s.commit[:10], "cdn": s.cdn_url}
        for h, s in entries.items()
    ]
    return {
        "submissions": dg.MetadataValue.int(len(entries)),
        "list": table(rows),
        **commit_of(at, paths.submissions(at.number)),
    }


def _stage(at: Recorded) -> Metadata | None:
    if at.round.submissions is None:
        return None
    past = at.round.state.current_round > at.number
    stage = Stage.FINISHED if past else at.round.state.stage
    eta = None if past else at.round.state.next_stage_eta
    return {
        "stage": dg.MetadataValue.text(str(stage)),
        "next_stage_eta": dg.MetadataValue.text(eta.isoformat() if eta else "none"),
        **({} if past else commit_of(at, paths.STATE)),
    }


def result_counts(results: Results) -> Metadata:
    """Counts and times of one folder of results."""
    times = sorted(r.generation_time for r in results.values() if r.glb and r.generation_time)
    counts: Metadata = {
        "prompts": dg.MetadataValue.int(len(results)),
        "files": dg.MetadataValue.int(sum(r.glb is not None for r in results.values())),
        "previews": dg.MetadataValue.int(sum(r.png is not None for r in results.values())),
        "megabytes": dg.MetadataValue.float(round(sum(r.size for r in results.values()) / 1e6, 3)),
    }
    if times:
        counts["median_generation_seconds"] = dg.MetadataValue.float(times[len(times) // 2])
    return counts


def _result_table(results: Results) -> dg.TableMetadataValue:
    regenerated = any(r.attempts or r.generation_time for r in results.values())
    rows = []
    for stem, r in results.items():
        made = {"seconds": round(r.generation_time, 2), "attempts": r.attempts, "distance": round(r.distance, 5)}
        row: dict[str, object] = {"prompt": stem[:16], "bytes": r.size, **(made if regenerated else {})}
        rows.append(row | {"png": r.png or "", "glb": r.glb or ""})
    return table(rows)


def _leader_baseline(at: Recorded) -> Metadata | None:
    if at.round.baseline is None or at.round.baseline_missing:
        return None
    leader = at.round.leader
    path = paths.results(at.number, LEADER, "generated")
    pods = read_pod_stats(at.snapshot, at.number, LEADER) or {}
    return {
        **result_counts(at.round.baseline),
        "image": dg.MetadataValue.text(leader.docker if leader else "none"),
        "pods": dg.MetadataValue.int(len(pods)),
        "links": links(at.round.baseline),
        "results": _result_table(at.round.baseline),
        **commit_of(at, path),
    }


def miner_results(at: Recorded, hotkey: Hotkey) -> Metadata | None:
    """A miner's downloads and previews as `submitted.json` has them."""
    results = read_results(at.snapshot, at.number, hotkey, "submitted")
    if results is None:
        return None
    return {
        **result_counts(results),
        "links": links(results),
        "results": _result_table(results),
        **commit_of(at, paths.results(at.number, hotkey, "submitted")),
    }


def recorded_results(at: Recorded, hotkey: Hotkey) -> Results:
    """A miner's results; none where the file is missing or cannot be read."""
    try:
        return read_results(at.snapshot, at.number, hotkey, "submitted") or {}
    except StateFileError:
        return {}


def recorded_miner(at: Recorded, hotkey: Hotkey) -> Metadata:
    """`miner_results`, or why there is nothing to show: one miner's file stops no other's."""
    try:
        found = miner_results(at, hotkey)
    except StateFileError as error:
        return {"unreadable": dg.MetadataValue.text(str(error))}
    return found or {"recorded": dg.MetadataValue.text(f"nothing of this miner in round {at.number}")}


def links(results: Results) -> dg.MarkdownMetadataValue:
    """Recorded 3D files and previews as links, for a person to follow: nothing is fetched from them."""
    lines = []
    for stem, result in list(results.items())[:_MOST_ROWS]:
        both = [_link("3D file", result.glb), _link("preview", result.png)]
        lines.append(f"- `{stem[:16]}` " + (" · ".join(link for link in both if link) or "no file"))
    if len(results) > _MOST_ROWS:
        lines.append(f"- and {len(results) - _MOST_ROWS} more in the file")
    return dg.MetadataValue.md("\n".join(lines))


def _link(label: str, url: str | None) -> str:
    if url is None or not url.startswith(("http://", "https://")):
        return url or ""
    return f"[{label}](<{url.translate(_NO_MARKDOWN)}>)"


_NO_MARKDOWN = {ord("<"): "%3C", ord(">"): "%3E", ord("\n"): "", ord("\r"): ""}


def stored_gallery(name: str, pictures: Sequence[tuple[str, bytes | None]]) -> Metadata:
    """Pictures of a page; none when the store has none of them, as of a round that was played elsewhere."""
    return {name: gallery(pictures)} if any(data is not None for _, data in pictures) else {}


def _match_row(at: Recorded, row: MatchRow) -> dict[str, str | float | bool | None]:
    """A match with the interval of its margin; `close`: the interval holds win_margin. "at most": it was left early."""
    try:
        report = read_match(at.snapshot, at.number, row.left, row.right)
    except StateFileError:
        report = None
    interval = duels.margin_interval(report) if report else None
    bound = duels.margin_bound(report) if report else None
    words = f"{interval[0]:+.3f} to {interval[1]:+.3f}" if interval else ""
    return {
        "left": row.left[:10],
        "right": row.right[:10],
        "margin": round(row.margin, 4),
        "won": row.margin >= at.round.config.win_margin,
        "interval": words if bound is None else f"at most {bound:+.3f}",
        "close": report is not None and duels.is_close(report, at.round.config.win_margin),
    }


def _match_matrix(at: Recorded) -> Metadata | None:
    path = paths.matrix(at.number)
    if not at.has(path):
        return None
    now, order = at.standing, [LEADER, *(at.round.submissions or {})]
    played = timeline.margins(at.round.matrix)
    rows = [_match_row(at, row) for row in at.round.matrix]
    close = [row for row in rows if row["close"]]
    return {
        "matches": dg.MetadataValue.int(len(at.round.matrix)),
        "close_matches": dg.MetadataValue.int(len(close)),
        "qualified": dg.MetadataValue.int(len(now.timeline.qualified)),
        "local_leaders": dg.MetadataValue.int(len(now.timeline.reigns)),
        "missing_matches": dg.MetadataValue.int(len(now.matches)),
        "leads": dg.MetadataValue.text(now.timeline.leader),
        "timeline": dg.MetadataValue.md(timeline_in_words(at.round, now)),
        "heat_map": heat_map(order, played, {}),
        "matrix": table(rows),
        **({"close": table(close)} if close else {}),
        **commit_of(at, path),
    }


def _audit_requests(at: Recorded) -> Metadata | None:
    path = paths.audit_requests(at.number)
    if not at.has(path):
        return None
    rows = [{"hotkey": r.hotkey, "critical_prompts": len(r.critical_prompts)} for r in at.round.requests]
    return {"requests": dg.MetadataValue.int(len(rows)), "list": table(rows), **commit_of(at, path)}


def _builds(at: Recorded) -> Metadata | None:
    builds = at.round.builds
    if builds is None:
        return None
    counts = {
        status: sum(b.status == status for b in builds.values()) for status in {b.status for b in builds.values()}
    }
    rows = [{"hotkey": h, "status": str(b.status), "image": b.docker_image, "tag": b.tag} for h, b in builds.items()]
    return {
        "builds": dg.MetadataValue.int(len(builds)),
        **{str(status): dg.MetadataValue.int(count) for status, count in sorted(counts.items())},
        "list": table(rows),
        **commit_of(at, paths.builds(at.number)),
    }


def _generation_audits(at: Recorded) -> Metadata | None:
    audits = at.round.generation_audits
    if audits is None:
        return None
    rows = [
        {
            "hotkey": hotkey,
            "outcome": str(a.outcome),
            "checked": a.checked_prompts,
            "failed": a.failed_prompts,
            "critical": a.failed_critical,
            "median_seconds": None if a.generation_time is None else round(a.generation_time, 2),
            "reason": a.reason,
        }
        for hotkey, a in audits.items()
    ]
    return {
        "audits": dg.MetadataValue.int(len(audits)),
        "passed": dg.MetadataValue.int(sum(a.outcome == "passed" for a in audits.values())),
        "rejected": dg.MetadataValue.int(sum(a.outcome == "rejected" for a in audits.values())),
        "list": table(rows),
        **commit_of(at, paths.generation_audits(at.number)),
    }


def _source_audits(at: Recorded) -> Metadata | None:
    path = paths.source_audits(at.number)
    if not at.has(path):
        return None
    rows = [{"hotkey": a.hotkey, "verdict": a.verdict, "reason": a.reason} for a in at.round.source_audits]
    return {
        "audits": dg.MetadataValue.int(len(rows)),
        "failed": dg.MetadataValue.int(sum(a.verdict == "failed" for a in at.round.source_audits)),
        "list": table(rows),
        **commit_of(at, path),
    }


def _winner(at: Recorded) -> Metadata | None:
    winner = at.round.winner
    if winner is None:
        return None
    return {
        "winner": dg.MetadataValue.text(winner.winner_hotkey),
        "defended": dg.MetadataValue.bool(winner.winner_hotkey == LEADER),
        "repo": dg.MetadataValue.text(winner.repo or "none"),
        "repo_commit": dg.MetadataValue.text(winner.commit or "none"),
        "docker_image": dg.MetadataValue.text(winner.docker_image or "none"),
        "timeline": dg.MetadataValue.md(timeline_in_words(at.round, at.standing)),
        "places": table([_place(row) for row in places(at.round, at.standing)]),
        **commit_of(at, paths.winner(at.number)),
    }


def _place(row: Mapping[str, object]) -> dict[str, object]:
    return {"place": row["place"], **row, "miner": str(row["miner"])[:10]}


def _leader(at: Recorded) -> Metadata | None:
    if not at.round.over or not at.round.leaders:
        return None
    following = read_schedule(at.snapshot, at.number + 1)
    leaders = at.round.leaders
    after = active_leader(leaders, following.latest_reveal_block) if following else leaders[-1]
    if after is None:
        return None
    return {
        "weight": dg.MetadataValue.float(after.weight),
        "effective_block": dg.MetadataValue.int(after.effective_block),
        "hotkey": dg.MetadataValue.text(after.hotkey),
        "repo": dg.MetadataValue.text(after.repo),
        "docker": dg.MetadataValue.text(after.docker),
        "history": table(
            [{"hotkey": t.hotkey, "weight": t.weight, "from_block": t.effective_block} for t in at.round.leaders[::-1]]
        ),
        **commit_of(at, paths.LEADERS),
    }


def _next_schedule(at: Recorded) -> Metadata | None:
    if not at.round.over:
        return None
    described = _described_schedule(at, at.number + 1)
    if described is None:
        return {"competition": dg.MetadataValue.text("finished")} if at.round.state.stage == Stage.FINISHED else None
    return {"next_round": dg.MetadataValue.int(at.number + 1), **described}


DESCRIPTIONS: dict[str, Callable[[Recorded], Metadata | None]] = {
    "schedule": _schedule,
    "seed": _seed,
    "prompts": _prompts,
    "submissions": _submissions,
    "source_audits": _source_audits,
    "stage": _stage,
    "leader_baseline": _leader_baseline,
    "match_matrix": _match_matrix,
    "audit_requests": _audit_requests,
    "builds": _builds,
    "generation_audits": _generation_audits,
    "winner": _winner,
    "leader": _leader,
    "next_schedule": _next_schedule,
}
"""Description of each round asset: None where the repository does not have it."""


def description(name: str, at: Recorded) -> Metadata | None:
    """What the page of a round asset shows; None while its round has not come to it.

    A round that is over has come to everything: what it ended without is said so, and is not missing.
    """
    found = DESCRIPTIONS[name](at)
    if found is None and at.round.over and at.has(paths.round_folder(at.number)):
        return {"recorded": dg.MetadataValue.text(f"nothing: round {at.number} ended without it")}
    return found
