"""How a round ended: the winner, the leader's transition, and where the competition stands.

Belongs here: `winner.json`, `leader.json`, `state.json` against what follows from the rest of the record.
"""

from datetime import datetime, timedelta
from itertools import pairwise

from gen404_dagster.competition import paths
from gen404_dagster.competition.leadership import name_winner, transition
from gen404_dagster.competition.models import CompetitionStage, LeaderTransition, Stage, StateModel, Winner
from gen404_dagster.replay.findings import Cell
from gen404_dagster.replay.opening import days_moved, expected_image
from gen404_dagster.replay.record import Record, Recorded


def differences(recorded: StateModel, derived: StateModel) -> str:
    """Fields that differ, in words."""
    names = [name for name in type(recorded).model_fields if getattr(recorded, name) != getattr(derived, name)]
    return "; ".join(f"{name} is {getattr(recorded, name)!r}, {getattr(derived, name)!r} follows" for name in names)


def derive_winner(round_: Recorded) -> Winner | None:
    """Who wins by submissions, matrix and audits; None while a match that decides it is missing."""
    timeline = round_.state.standing().timeline
    if not timeline.finished:
        return None
    winner, state = timeline.leader, round_.state
    submission = (state.submissions or {}).get(winner)
    return name_winner(winner, submission, (state.builds or {}).get(winner), state.leader)


def check_winner(round_: Recorded) -> Cell:
    """The last local leader of the timeline, approved by both audits; or the defending leader."""
    cell, path = Cell("winner"), paths.winner(round_.number)
    recorded = round_.state.winner
    if recorded is None:
        if round_.settled:
            cell.deviate(path, "is missing although the stage has moved on")
        return cell
    derived = derive_winner(round_)
    if derived is None:
        missing = round_.state.standing().timeline.missing
        cell.deviate(path, f"does not follow: {', '.join(missing[0])} and {len(missing) - 1} more matches are missing")
        return cell
    if not _accept(round_, cell, recorded, derived):
        cell.deviate(path, differences(recorded, derived), recorded.winner_hotkey)
    now = round_.state.standing()
    for hotkey in (*now.awaiting_generation, *now.awaiting_source):
        if hotkey in {reign.leader for reign in now.timeline.reigns}:
            cell.deviate(path, f"{hotkey} leads the timeline, but not both audits of it passed", hotkey)
    return cell


def _accept(round_: Recorded, cell: Cell, recorded: Winner, derived: Winner) -> bool:
    if recorded == derived:
        cell.follows()
        return True
    hotkey = derived.winner_hotkey
    image = expected_image(round_, hotkey)
    by_hand = derived.model_copy(update={"docker_image": image})
    ran = paths.results(round_.number, hotkey, "generated")
    if derived.docker_image is None and image and recorded == by_hand and round_.results(hotkey, "generated"):
        cell.explain(
            paths.winner(round_.number),
            "docker_image is not in builds.json, but named as the round's others are, and it was run",
            evidence=ran,
            hotkey=hotkey,
        )
        return True
    return False


def check_leader(round_: Recorded) -> Cell:
    """The transition that the winner makes: a new leader with weight 1, or a decayed weight, from the next window on."""
    cell, state = Cell("leader"), round_.state
    following, winner = round_.next_schedule, state.winner
    ended = state.state.stage == Stage.FINISHED and state.number == state.state.current_round
    if winner is None or state.schedule is None or (following is None and not ended):
        return cell
    before = [entry for entry in state.leaders if entry.effective_block <= state.schedule.latest_reveal_block]
    appended = state.leaders[len(before)] if len(state.leaders) > len(before) else None
    block = following.latest_reveal_block if following else (appended.effective_block if appended else 0)
    derived = transition(winner, before[-1] if before else None, state.config, block)
    if derived is None:
        early = appended is not None and appended.effective_block <= block
        cell.expect(not early, paths.LEADERS, f"entry {len(before) + 1}: nothing changes in round {round_.number}")
    elif appended is None:
        cell.deviate(paths.LEADERS, f"the transition of round {round_.number} is missing", derived.hotkey)
    else:
        cell.expect(
            appended == derived,
            paths.LEADERS,
            f"entry {len(before) + 1} (round {round_.number}): {differences(appended, derived)}, by weight_decay "
            f"{state.config.weight_decay:g} and weight_floor {state.config.weight_floor:g}",
            appended.hotkey,
        )
    return cell


def check_competition(record: Record, rounds: list[Recorded]) -> Cell:
    """`state.json` against the rounds there are, and `leader.json` as a whole."""
    cell = Cell("competition")
    if not rounds:
        return cell
    state, last = rounds[-1].state.state, rounds[-1]
    _check_leaders(cell, list(last.state.leaders), rounds)
    _check_duration(cell, rounds)
    scheduled = [round_.number for round_ in rounds if round_.state.schedule is not None]
    if scheduled:
        cell.expect(
            state.current_round == scheduled[-1],
            paths.STATE,
            f"current_round is {state.current_round}, the last schedule is of round {scheduled[-1]}",
        )
    current = next((round_ for round_ in rounds if round_.number == state.current_round), None)
    if current is not None:
        allowed = _stages(current)
        cell.expect(
            state.stage == Stage.PAUSED or state.stage in allowed,
            paths.STATE,
            f"stage is {state.stage}, the files of round {current.number} say {' or '.join(allowed)}",
        )
        _check_eta(cell, state, current, rounds)
    return cell


def _check_duration(cell: Cell, rounds: list[Recorded]) -> None:
    """A start may be moved on now and then; if every one was, the configured duration is not what was played."""
    moved = [days_moved(round_)[1] for round_ in rounds if _has_predecessor(round_)]
    if len(moved) > 2:
        what = f"round_duration_days is {rounds[-1].state.config.round_duration_days}, every round is {min(moved)} days longer"
        cell.expect(min(moved) <= 0, paths.CONFIG, what)


def _check_leaders(cell: Cell, leaders: list[LeaderTransition], rounds: list[Recorded]) -> None:
    for number, (one, other) in enumerate(pairwise(leaders), start=2):
        right = one.effective_block < other.effective_block
        cell.expect(right, paths.LEADERS, f"entry {number}: effective_block {other.effective_block} does not increase")
    windows = {r.state.schedule.latest_reveal_block for r in rounds if r.state.schedule is not None}
    first = min(windows, default=0)
    ended = rounds[-1].state.state.stage == Stage.FINISHED
    for number, entry in enumerate(leaders, start=1):
        last_of_all = ended and number == len(leaders)
        if entry.effective_block > first and entry.effective_block not in windows and not last_of_all:
            cell.deviate(
                paths.LEADERS,
                f"entry {number}: effective_block {entry.effective_block} closes no round's window",
                entry.hotkey,
            )


def _stages(round_: Recorded) -> list[Stage]:
    """Stages that agree with the files of the current round."""
    state = round_.state
    if state.winner is not None:
        return [Stage.FINALIZING, Stage.FINISHED]
    if state.submissions is None:
        return [Stage.OPEN]
    if state.matrix or state.requests:
        return [Stage.DUELS]
    if state.undownloaded:
        return [Stage.MINER_GENERATION, Stage.DOWNLOADING] if not state.submitted else [Stage.DOWNLOADING]
    return [Stage.DOWNLOADING, Stage.DUELS]


def _check_eta(cell: Cell, state: CompetitionStage, current: Recorded, rounds: list[Recorded]) -> None:
    eta = state.next_stage_eta
    if state.stage not in (Stage.OPEN, Stage.MINER_GENERATION):
        if state.stage != Stage.PAUSED:
            cell.expect(
                eta is None, paths.STATE, f"next_stage_eta is {eta}, but the stage {state.stage} ends when it is done"
            )
        return
    if eta is None:
        cell.deviate(paths.STATE, f"next_stage_eta is missing in the stage {state.stage}")
        return
    if state.stage == Stage.MINER_GENERATION or rounds[0].number:
        return  # computed from a block whose time is not recorded; or the first round is not looked at
    config = current.state.config
    days = sum(
        config.round_duration_days + max(0, days_moved(r)[1])
        for r in rounds
        if _has_predecessor(r) and r.number <= current.number
    )
    start = datetime.combine(config.first_evaluation_date, config.round_start_time, eta.tzinfo) + timedelta(days=days)
    from_blocks = eta.microsecond != 0 and abs(eta - start) < timedelta(hours=2)
    cell.expect(
        eta == start or from_blocks,
        paths.STATE,
        f"next_stage_eta is {eta}; round {current.number} closes at {start} by first_evaluation_date and round_start_time",
    )


def _has_predecessor(round_: Recorded) -> bool:
    return round_.state.schedule is not None and round_.previous_schedule is not None
