"""What was played: margins from duels, duels without a judge from their own previews, the matrix in order of play.

Belongs here: everything that follows from reports, result files and verdicts. Does not: the judge's own verdicts and
words, which no rule can derive.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.duels import (
    decide_unjudged,
    margin_bound,
    margin_without_results,
    match_report,
    overtime_losses,
)
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import (
    LEADER,
    AuditOutcome,
    Duel,
    DuelWinner,
    Hotkey,
    MatchReport,
    MatchRow,
    Results,
    Stem,
)
from gen404_dagster.competition.timeline import (
    Pair,
    derive_timeline,
    exploratory_pairs,
    margins,
    next_matches,
    verdicts,
)
from gen404_dagster.replay.findings import Cell
from gen404_dagster.replay.record import Recorded

FORMER_ALLOWANCE = 0.10
"""Share of the prompts that could be overtime without loss until 14 February 2026; the configured one since."""

_JUDGE_FAILED = "Internal error"
_LOST_BY_TIME = "Generation time exceeded for"


def check_margins(round_: Recorded) -> Cell:
    """Score and margin of each match from its report, and the matrix row beside them."""
    cell = Cell("margins")
    for row in round_.state.matrix:
        path = round_.report_path(row.left, row.right)
        report = round_.report(row)
        if report is None:
            margin = margin_without_results(round_.played_by(row.left), round_.played_by(row.right))
            cell.expect(
                margin == row.margin,
                path,
                f"is missing, and the matrix says {row.margin:+}"
                if margin is None
                else f"without results {margin} follows",
                row.right,
            )
            continue
        derived = match_report(report.left, report.right, report.duels)
        faults = []
        if (report.left, report.right) != (row.left, row.right):
            faults.append(f"is a match of {report.left} and {report.right}, not of {row.left} and {row.right}")
        if report.score != derived.score:
            faults.append(f"score is {report.score}, its duels sum to {derived.score}")
        if report.margin != derived.margin:
            faults.append(f"margin is {report.margin}, its duels make {derived.margin}")
        if row.margin != derived.margin:
            faults.append(f"margin is {row.margin} in matches_matrix.csv, its duels make {derived.margin}")
        bound = margin_bound(report)
        if bound is not None and bound >= round_.state.config.win_margin:
            faults.append(f"duels were left out, although the margin could have reached {bound}")
        cell.expect(not faults, path, "; ".join(faults), row.right)
    return cell


# --- duels ---


@dataclass(frozen=True)
class _Allowance:
    share: float
    late: frozenset[Stem]


def check_duels(round_: Recorded) -> Cell:
    """One duel a prompt, sides as in the results files, outcomes without a judge as previews and times decide."""
    cell = Cell("duels")
    prompts = {models.stem_of(url): url for url in round_.state.prompts or ()}
    leader = round_.played_by(LEADER) or {}
    stems = round_.state.stems
    allowances = [
        _Allowance(share, frozenset(overtime_losses(stems, leader, _with_allowance(round_, share))))
        for share in dict.fromkeys((round_.limits.overtime_allowance, FORMER_ALLOWANCE))
    ]
    faults = {pair: _Faults(round_, report, prompts, leader, allowances) for pair, report in round_.reports.items()}
    earlier = _before_regeneration(round_, faults)
    if earlier:
        _explain_regeneration(round_, cell, faults, earlier, leader, allowances)
    current = [pair for pair in faults if pair not in earlier]
    former = _follow_allowance(round_, cell, [faults[pair] for pair in current], allowances)
    for position, pair in enumerate(current):
        _say(cell, round_.report_path(*pair), pair[1], faults[pair], 1 if position < former else 0)
    _note_failed_judge(round_, cell)
    return cell


def _with_allowance(round_: Recorded, share: float) -> Limits:
    return round_.limits.model_copy(update={"overtime_allowance": share})


class _Faults:
    """What does not follow in one report, apart by what it depends on."""

    def __init__(
        self,
        round_: Recorded,
        report: MatchReport,
        prompts: dict[Stem, str],
        leader: Results,
        allowances: Sequence[_Allowance],
    ) -> None:
        self.report = report
        self.own: list[str] = []
        """In the report itself, or against the prompts and the right side's results."""
        self.left: list[str] = []
        """Against the left side's results."""
        self.times: list[list[str]] = [[] for _ in allowances]
        """Overtime, by allowance."""
        right_results = round_.played_by(report.right) or {}
        left_results = leader if report.left == LEADER else round_.played_by(report.left) or {}
        timed = report.left == LEADER
        names = [duel.name for duel in report.duels]
        if names != sorted(names):
            self.own.append("duels are not sorted by name")
        if names != sorted(prompts):
            unlike = sorted(set(prompts) ^ set(names)) or sorted(n for n, count in Counter(names).items() if count > 1)
            self.own.append(f"duels are not one for each prompt of prompts.txt: {', '.join(unlike[:3]) or 'order'}")
        for duel in report.duels:
            self._check(duel, prompts, left_results, right_results, allowances if timed else ())

    def _check(
        self,
        duel: Duel,
        prompts: dict[Stem, str],
        left_results: Results,
        right_results: Results,
        allowances: Sequence[_Allowance],
    ) -> None:
        name = duel.name
        if prompts.get(name) != duel.prompt:
            self.own.append(f"{name}: prompt is {duel.prompt}, not in prompts.txt under this name")
        left, right = left_results.get(name), right_results.get(name)
        if (right.glb if right else None) != duel.right_glb or (right.png if right else None) != duel.right_png:
            self.own.append(f"{name}: right_glb or right_png is not in {self.report.right}'s submitted.json")
        if (left.glb if left else None) != duel.left_glb or (left.png if left else None) != duel.left_png:
            self.left.append(f"{name}: left_glb or left_png is not in {self.report.left}'s results")
        unseen = decide_unjudged(name, duel.left_png, duel.right_png, False, False)
        if unseen is not None:
            if unseen != (duel.winner, duel.issues):
                self.own.append(f"{name}: {_told(duel)}, but {unseen[1]!r} makes it {unseen[0]}")
            return
        late = lost_by_time(duel)
        if duel.issues.startswith("No preview"):
            self.own.append(f"{name}: {_told(duel)}, but both previews are there")
        elif late and duel.winner != DuelWinner.RIGHT:
            self.own.append(f"{name}: {_told(duel)}, but only left is timed: its overtime makes right win")
        elif not late and duel.issues == _JUDGE_FAILED and duel.winner != DuelWinner.DRAW:
            self.own.append(f"{name}: {_told(duel)}, but a judge that failed makes a draw")
        elif late and not allowances:
            self.own.append(f"{name}: {_told(duel)}, but submitted results have no time")
        for position, allowance in enumerate(allowances):
            if late != (name in allowance.late):
                said = "is not" if late else "is"
                self.times[position].append(
                    f"{name}: {_told(duel)}, but the leader {said} overtime with an allowance of {allowance.share:.0%}"
                )


def lost_by_time(duel: Duel) -> bool:
    """Whether the report says that the leader lost this duel by its generation time."""
    return duel.issues.startswith(_LOST_BY_TIME)


def _told(duel: Duel) -> str:
    return f"winner {duel.winner}, issues {duel.issues[:60]!r}"


def _say(cell: Cell, path: str, hotkey: Hotkey, faults: _Faults, allowance: int) -> None:
    found = faults.own + faults.left + faults.times[allowance]
    cell.follows(len(faults.report.duels) - min(len(found), len(faults.report.duels)))
    for fault in found:
        cell.deviate(path, fault, hotkey)


def _follow_allowance(
    round_: Recorded, cell: Cell, reports: Sequence[_Faults], allowances: Sequence[_Allowance]
) -> int:
    """How many of the first matches follow the former allowance: none if the configured one fits all of them.

    Believed only when all of the first matches follow it.
    """
    if len(allowances) < 2:
        return 0
    apart = [position for position, faults in enumerate(reports) if faults.times[0] and not faults.times[1]]
    former = apart[-1] + 1 if apart else 0
    if not apart or any(faults.times[1] for faults in reports[:former]):
        return 0
    proof = reports[apart[0]].report
    cell.explain(
        paths.results(round_.number, LEADER, "generated"),
        f"overtime follows the allowance of {allowances[1].share:.0%} of before 14 February 2026, not "
        f"{allowances[0].share:.0%}: {sum(len(reports[position].times[0]) for position in apart)} duels differ",
        evidence=round_.report_path(proof.left, proof.right),
    )
    return former


def _before_regeneration(round_: Recorded, faults: dict[Pair, _Faults]) -> list[Pair]:
    """Matches against the leader that were judged on results which were regenerated later.

    Believed only of the first matches in the matrix, two or more, that agree among themselves on what the leader had,
    and only when every later match has what the leader's file has now.
    """
    against = [pair for pair in faults if pair[0] == LEADER]
    apart = [pair for pair in against if faults[pair].left]
    if len(apart) < 2 or against[: len(apart)] != apart or len(apart) == len(against):
        return []
    seen = [_left_side(faults[pair].report) for pair in apart]
    return apart if all(side == seen[0] for side in seen) else []


def _left_side(report: MatchReport) -> dict[Stem, tuple[str | None, str | None]]:
    return {duel.name: (duel.left_glb, duel.left_png) for duel in report.duels}


def _explain_regeneration(
    round_: Recorded,
    cell: Cell,
    faults: dict[Pair, _Faults],
    earlier: list[Pair],
    leader: Results,
    allowances: Sequence[_Allowance],
) -> None:
    """The duels that do not follow from the leader's file of now, counted; the rest of these reports must."""
    base = f"/rounds/{round_.number}/{LEADER}/generated/"
    late = {duel.name for pair in earlier for duel in faults[pair].report.duels if lost_by_time(duel)}
    stale = outcomes = 0
    for pair in earlier:
        report, found, path = faults[pair].report, list(faults[pair].own), round_.report_path(*pair)
        for duel in report.duels:
            now = leader.get(duel.name)
            for url, suffix in ((duel.left_glb, "glb"), (duel.left_png, "png")):
                if url is not None and not url.endswith(f"{base}{duel.name}.{suffix}"):
                    found.append(f"{duel.name}: left_{suffix} is {url}, no address of the leader's")
            judged = bool(duel.left_png and duel.right_png)
            if judged and (duel.name in late) != lost_by_time(duel):
                found.append(
                    f"{duel.name}: {_told(duel)}, but the other matches of then say otherwise of the leader's time"
                )
            stale += (now.png if now else None) != duel.left_png
            by_file = decide_unjudged(
                duel.name, now.png if now else None, duel.right_png, duel.name in allowances[0].late, False
            )
            outcomes += by_file != decide_unjudged(duel.name, duel.left_png, duel.right_png, duel.name in late, False)
        own = min(len(found), len(report.duels))
        gone = sum((leader[d.name].png if d.name in leader else None) != d.left_png for d in report.duels)
        cell.follows(len(report.duels) - max(own, gone))
        for fault in found:
            cell.deviate(path, fault, pair[1])
    proof = next(pair for pair in reversed(list(faults)) if pair[0] == LEADER)
    cell.explain(
        paths.results(round_.number, LEADER, "generated"),
        f"was regenerated after the first {len(earlier)} matches were judged: in {stale} of their duels the leader's "
        f"preview is another than now ({outcomes} outcomes without a judge do not follow from the file, counting overtime with "
        f"{allowances[0].share:.0%}); they agree among themselves, and what was judged afterwards agrees with the file",
        evidence=round_.report_path(*proof),
        count=stale,
    )


def _note_failed_judge(round_: Recorded, cell: Cell) -> None:
    failed = Counter(
        pair for pair, report in round_.reports.items() for duel in report.duels if duel.issues == _JUDGE_FAILED
    )
    for pair, count in failed.items():
        cell.note(round_.report_path(*pair), f"{count} draws because the judge failed", pair[1], count)


# --- matrix ---


def check_matrix(round_: Recorded) -> Cell:
    """Every match that was due and no other, in the order in which the rules ask for them."""
    cell, state, path = Cell("matrix"), round_.state, paths.matrix(round_.number)
    rows = list(state.matrix)
    known = set(round_.order)
    for row in rows:
        strangers = [hotkey for hotkey in (row.left, row.right) if hotkey not in known and hotkey != LEADER]
        if strangers:
            cell.deviate(path, f"{row.left},{row.right}: {', '.join(strangers)} has no submission", row.right)
    doubled = [pair for pair, count in Counter((row.left, row.right) for row in rows).items() if count > 1]
    for left, right in doubled:
        cell.deviate(path, f"{left},{right} stands there more than once", right)
    if not cell.findings:
        _check_order(round_, cell, rows)
        _check_complete(round_, cell)
    _check_reports_without_row(round_, cell)
    return cell


def _check_order(round_: Recorded, cell: Cell, rows: list[MatchRow]) -> None:
    stop = first_out_of_order(round_, rows)
    if stop is None:
        cell.follows(len(rows))
        return
    again = _played_again(round_, rows)
    if again:
        cell.follows(len(rows) - len(again))
        for row in again:
            cell.explain(
                paths.matrix(round_.number),
                f"{row.left},{row.right} stands last: it was removed and played again on the leader's regenerated results",
                evidence=round_.report_path(row.left, row.right),
                hotkey=row.right,
            )
        return
    row = rows[stop]
    cell.follows(stop)
    cell.deviate(
        paths.matrix(round_.number),
        f"line {stop + 2}: {row.left},{row.right} was not due when it was played",
        row.right,
    )


def first_out_of_order(round_: Recorded, rows: Sequence[MatchRow]) -> int | None:
    """Position of the first row that was not due, None when all were.

    Which match is due depends on who had been rejected by then: generation verdicts came in the order in which they are
    recorded, source verdicts too, and each may have come at any moment.
    """
    state = round_.state
    generation = [h for h, a in (state.generation_audits or {}).items() if a.outcome == AuditOutcome.REJECTED]
    source = [audit.hotkey for audit in state.source_audits if audit.verdict == "failed"]
    win_margin = state.config.win_margin
    # A row that was lost is reported once, as missing: what was played after it is in order.
    played: models.Margins = dict.fromkeys(_lost(round_, rows), float("-inf"))

    def due(known: tuple[int, int]) -> Pair | None:
        rejected = {*generation[: known[0]], *source[: known[1]]}
        timeline = derive_timeline(round_.order, played, rejected, win_margin)
        return next(iter(next_matches(timeline, played)), None)

    # The fewest verdicts that explain the rows so far: whoever is known to have been rejected stays so.
    fronts = {(0, 0)}
    for position, row in enumerate(rows):
        reached: set[tuple[int, int]] = set()
        seen: set[tuple[int, int]] = set()
        todo = sorted(fronts)
        while todo:
            known = todo.pop(0)
            if known in seen or any(a <= known[0] and b <= known[1] for a, b in reached):
                continue
            seen.add(known)
            if due(known) == (row.left, row.right):
                reached.add(known)
                continue
            if known[0] < len(generation):
                todo.append((known[0] + 1, known[1]))
            if known[1] < len(source):
                todo.append((known[0], known[1] + 1))
        if not reached:
            return position
        fronts = reached
        played[row.left, row.right] = row.margin
    return None


def _lost(round_: Recorded, rows: Sequence[MatchRow]) -> tuple[Pair, ...]:
    """Matches that a finished round's winner depends on and that are not there."""
    if not round_.settled:
        return ()
    rejected = verdicts(round_.state.generation_audits or {}, round_.state.source_audits).rejected
    return derive_timeline(round_.order, margins(rows), rejected, round_.state.config.win_margin).missing


def _played_again(round_: Recorded, rows: list[MatchRow]) -> list[MatchRow]:
    """Matches at the end that were removed and played again: put back in their places, every row is in order.

    Believed only when their reports show the leader's results of now, and those of all matches before do not.
    """
    leader = round_.played_by(LEADER) or {}

    def on_results_of_now(row: MatchRow) -> bool:
        report = round_.report(row)
        return report is not None and all(
            (leader[d.name].glb, leader[d.name].png) == (d.left_glb, d.left_png)
            for d in report.duels
            if d.name in leader
        )

    against = [row for row in rows if row.left == LEADER]
    again: list[MatchRow] = []
    for row in reversed(rows):
        if row.left != LEADER or not on_results_of_now(row):
            break
        again.insert(0, row)
    if not again or len(again) == len(against) or any(map(on_results_of_now, against[: -len(again)])):
        return []
    restored = rows[: -len(again)]
    place = {hotkey: position for position, hotkey in enumerate(round_.order)}
    for row in again:
        after = (i for i, other in enumerate(restored) if other.left != LEADER or place[other.right] > place[row.right])
        restored.insert(next(after, len(restored)), row)
    return again if first_out_of_order(round_, restored) is None else []


def _check_complete(round_: Recorded, cell: Cell) -> None:
    """Nothing that the winner depends on is missing; pairs that nobody waited for may be."""
    if not round_.settled:
        return
    state, path = round_.state, paths.matrix(round_.number)
    played = margins(state.matrix)
    rejected = verdicts(state.generation_audits or {}, state.source_audits).rejected
    timeline = derive_timeline(round_.order, played, rejected, state.config.win_margin)
    for left, right in timeline.missing:
        cell.deviate(path, f"{left},{right} is missing: the winner depends on it", right)
    if timeline.finished:
        for left, right in exploratory_pairs(timeline.qualified, played):
            if round_.record.files.exists(round_.report_path(left, right)):
                cell.deviate(path, f"{left},{right} is missing, although its report is there", right)
            else:
                cell.note(path, f"{left},{right} was not played: the round was settled without it", right)


def _check_reports_without_row(round_: Recorded, cell: Cell) -> None:
    """A report whose match is not in the matrix: left by an earlier matrix, or its row was lost."""
    rows = {round_.report_path(row.left, row.right) for row in round_.state.matrix}
    prompts = {models.stem_of(url): url for url in round_.state.prompts or ()}
    missing = {text for found in cell.findings for text in (found.what,)}
    for hotkey in round_.order:
        folder = f"{paths.round_folder(round_.number)}/{hotkey}"
        for name in round_.record.files.names(folder):
            path = f"{folder}/{name}"
            if not name.startswith("duels_") or path in rows:
                continue
            report: MatchReport | None = round_.record.get(path)
            if report is None or any(text.startswith(f"{report.left},{report.right} is missing") for text in missing):
                continue
            faults = _Faults(round_, report, prompts, round_.played_by(LEADER) or {}, ())
            whole = match_report(report.left, report.right, report.duels) == report and not faults.own
            here = round_.report_path(report.left, report.right) == path and report.right == hotkey
            earlier = round_.order[: round_.order.index(hotkey)]
            if whole and here and report.left in earlier and not faults.left:
                cell.explain(
                    path,
                    f"{report.left},{hotkey} is not in the matrix: the report is of an earlier one, it is whole, and the "
                    "match is not due any more",
                    evidence=path,
                    hotkey=hotkey,
                )
            elif round_.settled:
                cell.deviate(path, "its match is not in matches_matrix.csv", hotkey)
