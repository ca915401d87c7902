"""How a round opened: schedule, prompts, submissions, builds.

Belongs here: comparing these files with the rules and with one another. Does not: what miners made (`outputs`).
"""

from collections import Counter

from gen404_dagster.competition import models, paths
from gen404_dagster.competition.leadership import generation_blocks
from gen404_dagster.competition.models import BuildStatus, stem_of
from gen404_dagster.competition.prompts import draw_prompts
from gen404_dagster.replay.findings import Cell
from gen404_dagster.replay.record import Recorded

BLOCKS_A_DAY = 86400 // 12
LATE_BLOCKS = 600
"""A window closes up to so many blocks early by the clock: real blocks take a little more than 12 seconds."""
FIRST_LATE_BLOCKS = BLOCKS_A_DAY // 2
"""The first window was laid out by hand; the next one is counted from the start that is nearest to its end."""


def check_schedule(round_: Recorded) -> Cell:
    """Blocks follow from the schedule before, the days between rounds and the minutes to generate."""
    cell, path, schedule = Cell("schedule"), paths.schedule(round_.number), round_.state.schedule
    if schedule is None:
        if round_.number <= round_.state.state.current_round:
            cell.deviate(path, "is missing")
        return cell
    config, previous = round_.state.config, round_.previous_schedule
    deadline = schedule.latest_reveal_block + generation_blocks(config, round_.limits.block_seconds)
    cell.expect(
        schedule.generation_deadline_block == deadline,
        path,
        f"generation_deadline_block is {schedule.generation_deadline_block}, "
        f"generation_stage_minutes {config.generation_stage_minutes} after latest_reveal_block is {deadline}",
    )
    if previous is None:
        _check_first_schedule(round_, cell)
        return cell
    earliest = previous.latest_reveal_block + 1
    cell.expect(
        schedule.earliest_reveal_block == earliest,
        path,
        f"earliest_reveal_block is {schedule.earliest_reveal_block}, the block after round {round_.number - 1}'s window is "
        f"{earliest}",
    )
    late, moved = days_moved(round_)
    allowed = FIRST_LATE_BLOCKS if round_.number == 1 else LATE_BLOCKS
    right = moved >= 0 and -allowed // 10 <= late <= allowed
    if right and moved > 0:
        cell.explain(
            path,
            f"latest_reveal_block is {moved} days later than {config.round_duration_days} days after round "
            f"{round_.number - 1}: it was settled too late for the start before",
            evidence=path,
        )
    else:
        cell.expect(
            right,
            path,
            f"latest_reveal_block is {schedule.latest_reveal_block - previous.latest_reveal_block} blocks after round "
            f"{round_.number - 1}'s, round_duration_days {config.round_duration_days} are {config.round_duration_days * BLOCKS_A_DAY}",
        )
    return cell


def _check_first_schedule(round_: Recorded, cell: Cell) -> None:
    """Nothing comes before it: its start agrees with the first leader's, its beginning is 0 or typed by hand."""
    path, schedule, leaders = paths.schedule(round_.number), round_.state.schedule, round_.state.leaders
    assert schedule is not None
    agrees = not leaders or leaders[0].effective_block <= schedule.latest_reveal_block
    cell.expect(
        agrees,
        path,
        f"latest_reveal_block is {schedule.latest_reveal_block}, before the first leader in leader.json leads",
    )
    by_hand = bool(leaders) and leaders[0].effective_block == schedule.latest_reveal_block
    if schedule.earliest_reveal_block == 0:
        cell.follows()
    elif agrees and by_hand and schedule.earliest_reveal_block <= schedule.latest_reveal_block:
        cell.explain(
            path,
            "typed by hand, as no round came before: latest_reveal_block is where the first leader in leader.json begins",
            evidence=paths.LEADERS,
        )
    else:
        cell.deviate(path, f"earliest_reveal_block is {schedule.earliest_reveal_block}, the first round begins at 0")


def days_moved(round_: Recorded) -> tuple[int, int]:
    """Blocks by which the window closes early, and whole days that its start was moved on."""
    schedule, previous = round_.state.schedule, round_.previous_schedule
    assert schedule is not None
    assert previous is not None
    over = schedule.latest_reveal_block - previous.latest_reveal_block
    over -= round_.state.config.round_duration_days * BLOCKS_A_DAY
    moved = round(over / BLOCKS_A_DAY)
    return moved * BLOCKS_A_DAY - over, moved


def carry_over(round_: Recorded) -> tuple[list[str], list[str]] | None:
    """The prompts taken over from the round before, derived and recorded; None where there is nothing to derive."""
    state = round_.state
    if state.prompts is None or state.seed is None or round_.previous_prompts is None:
        return None
    count = state.config.carryover_prompts
    derived = draw_prompts(state.seed, round_.previous_prompts, (), count, count)
    return derived, list(state.prompts[: len(derived)])


def check_prompts(round_: Recorded) -> Cell:
    """Carry-over first, drawn with the seed; then new ones out of the pool, where the record has it."""
    cell, state, path = Cell("prompts"), round_.state, paths.prompts(round_.number)
    if state.prompts is None or state.seed is None:
        if round_.played:
            missing = path if state.prompts is None else paths.seed(round_.number)
            cell.deviate(missing, "is missing although the round was opened")
        return cell
    pairs = carry_over(round_)
    carried = 0
    if pairs is not None:
        derived, recorded = pairs
        carried = len(derived)
        wrong = [i for i, url in enumerate(derived) if i >= len(recorded) or recorded[i] != url]
        cell.follows(len(derived) - len(wrong))
        if wrong:
            cell.deviate(
                path,
                f"{len(wrong)} of the first {len(derived)} prompts (carryover_prompts) do not follow from seed {state.seed} in seed.json and round "
                f"{round_.number - 1}'s prompts, the first in line {wrong[0] + 1}: {stem_of(derived[wrong[0]])} follows",
            )
        cell.expect(
            not _carried_more(round_, carried),
            path,
            f"line {carried + 1} is carried over too, carryover_prompts in config.json ends before it",
        )
    pool = round_.record.get(paths.PROMPT_POOL)
    wanted = state.config.prompts_per_round
    if pool:
        drawn = draw_prompts(state.seed, round_.previous_prompts, pool, wanted, state.config.carryover_prompts)
        wrong = [i for i in range(carried, len(drawn)) if list(state.prompts[i : i + 1]) != drawn[i : i + 1]]
        cell.expect(
            not wrong,
            path,
            f"{len(wrong)} new prompts do not follow from seed {state.seed} in seed.json and the pool"
            + (f", the first in line {wrong[0] + 1}" if wrong else ""),
        )
        wanted = len(drawn)
    cell.expect(
        len(state.prompts) == wanted, path, f"has {len(state.prompts)} prompts, prompts_per_round says {wanted}"
    )
    for stem, count in Counter(state.stems).items():
        if count > 1:
            cell.note(path, f"{stem} stands {count} times among the prompts")
    return cell


def _carried_more(round_: Recorded, carried: int) -> bool:
    """Whether the draw from the round before goes on in the record: more was carried over than configured."""
    state, previous = round_.state, round_.previous_prompts or ()
    if carried >= len(state.prompts or ()) or carried >= len(previous) or round_.record.get(paths.PROMPT_POOL):
        return False
    longer = draw_prompts(state.seed or 0, previous, (), carried + 1, carried + 1)
    return longer == list((state.prompts or ())[: carried + 1])


def check_submissions(round_: Recorded) -> Cell:
    """In order of their blocks, within the window, under the round's name."""
    cell, state, path = Cell("submissions"), round_.state, paths.submissions(round_.number)
    if state.submissions is None:
        if round_.played:
            cell.deviate(path, "is missing although the round was opened")
        return cell
    before = 0
    for hotkey, entry in state.submissions.items():
        faults = []
        if entry.round != state.name:
            faults.append(f"round is {entry.round!r}, name in config.json makes it {state.name!r}")
        if entry.revealed_at_block < before:
            faults.append(f"revealed_at_block {entry.revealed_at_block} stands after {before}")
        window = state.schedule
        if window and not window.earliest_reveal_block <= entry.revealed_at_block <= window.latest_reveal_block:
            faults.append(f"revealed_at_block {entry.revealed_at_block} lies outside the window of schedule.json")
        before = max(before, entry.revealed_at_block)
        cell.expect(not faults, path, f"{hotkey}: {'; '.join(faults)}", hotkey)
    return cell


def check_builds(round_: Recorded) -> Cell:
    """Builds repeat the submissions; tag and image name follow from them."""
    cell, state, path = Cell("builds"), round_.state, paths.builds(round_.number)
    if state.builds is None or state.submissions is None:
        if round_.settled and state.submissions and state.generation_audits:
            cell.deviate(path, "is missing although images were run")
        return cell
    if list(state.builds) != list(state.submissions):
        apart = [a for a, b in zip(state.builds, state.submissions, strict=False) if a != b]
        apart += [h for h in state.submissions if h not in state.builds]
        hotkey = apart[0] if apart else next((h for h in state.builds if h not in state.submissions), None)
        unlike = [
            *(h for h in state.submissions if h not in state.builds),
            *(h for h in state.builds if h not in state.submissions),
        ]
        cell.deviate(
            path, f"hotkeys are not those of submissions.json in their order: {', '.join(unlike) or hotkey}", hotkey
        )
    forms = Counter(_image_form(h, b) for h, b in state.builds.items() if b.docker_image)
    form = forms.most_common(1)[0][0] if forms else ""
    for hotkey, build in state.builds.items():
        faults = []
        submission = state.submissions.get(hotkey)
        if submission is not None:
            for name in ("repo", "commit", "revealed_at_block"):
                ours, theirs = getattr(submission, name), getattr(build, name)
                if ours != theirs:
                    faults.append(f"{name} is {theirs}, in submissions.json {ours}")
        tag = f"{(submission or build).commit[:7]}-{state.name}"
        if build.tag != tag:
            faults.append(f"tag is {build.tag!r}, not {tag!r}")
        if (build.status == BuildStatus.SUCCESS) != (build.docker_image is not None):
            faults.append(f"status {build.status} with docker_image {build.docker_image}")
        elif build.docker_image is not None and _image_form(hotkey, build) != form:
            faults.append(f"docker_image {build.docker_image} has not the form of the others, {form}")
        cell.expect(not faults, path, f"{hotkey}: {'; '.join(faults)}", hotkey)
    return cell


def _image_form(hotkey: models.Hotkey, build: models.Build) -> str:
    """The template behind an image's name: hotkey and tag replaced by their names."""
    image = build.docker_image or ""
    return image.replace(hotkey[:10].lower(), "{hotkey}").replace(build.tag.lower(), "{tag}")


def expected_image(round_: Recorded, hotkey: models.Hotkey) -> str | None:
    """Name that an image has by the form of the round's other images; None when there are none to learn it from."""
    builds = round_.state.builds or {}
    forms = Counter(_image_form(h, b) for h, b in builds.items() if b.docker_image and h != hotkey)
    if not forms or hotkey not in builds:
        return None
    return (
        forms.most_common(1)[0][0].replace("{hotkey}", hotkey[:10].lower()).replace("{tag}", builds[hotkey].tag.lower())
    )
