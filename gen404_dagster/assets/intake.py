"""Intake: from the closed window to the round's seed, prompts and submissions, and the stage that follows."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from gen404_dagster.assets import checks
from gen404_dagster.assets.common import adopted, commit, described, is_adopted, round_number, round_spec
from gen404_dagster.assets.describe import table
from gen404_dagster.competition import leadership, models, paths
from gen404_dagster.competition.commitments import Collected, collect_submissions
from gen404_dagster.competition.models import LEADER, CompetitionStage, Hotkey, Seed, Stage, write_json, write_prompts
from gen404_dagster.competition.prompts import draw_prompts
from gen404_dagster.competition.stages import Do, Lane, Wait, next_step, token
from gen404_dagster.errors import Unavailable
from gen404_dagster.resources.chain import Head
from gen404_dagster.resources.configured import (
    TOKEN_TAG,
    CdnResource,
    ChainResource,
    EntropyResource,
    LaneResource,
    LimitsResource,
    StateRepositoryResource,
)
from gen404_dagster.resources.round_files import read_pool, read_previous_prompts, read_round
from gen404_dagster.resources.state_repo import Change, Snapshot, Step

GROUP = "intake"


@dg.multi_asset(
    name="schedule",
    specs=[
        round_spec(
            "schedule",
            GROUP,
            "The block window in which commitments count, and the block by which miners must have generated. "
            "Written by the previous round's finale (round 0's by hand); adopted here.",
            kinds={"git"},
        )
    ],
    check_specs=checks.specs_of("schedule"),
)
def schedule(context: dg.AssetExecutionContext, state: StateRepositoryResource, lane: LaneResource):  # type: ignore[no-untyped-def]
    repository = state.get()
    repository.head()
    yield from adopted(repository, round_number(context), "schedule")


@dg.multi_asset(
    name="opening",
    specs=[
        round_spec(
            "seed",
            GROUP,
            "The round's random seed in [0, 2^32), drawn from a cryptographic source when the window closes.",
            kinds={"git"},
            deps=["schedule"],
        ),
        round_spec(
            "prompts",
            GROUP,
            "The round's prompts: first the carry-over, drawn with the seed from the previous round, then new ones "
            "drawn from the pool.",
            kinds={"git"},
            deps=["schedule"],
        ),
        round_spec(
            "submissions",
            GROUP,
            "Valid commitments revealed in the window: the latest repo, commit and CDN of each hotkey, in order of the "
            "block of the latest commit.",
            kinds={"bittensor", "git"},
            deps=["schedule"],
        ),
    ],
    check_specs=checks.specs_of("seed", "prompts", "submissions"),
    pool="git",
)
def opening(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext,
    state: StateRepositoryResource,
    chain: ChainResource,
    entropy: EntropyResource,
    cdn: CdnResource,
    limits: LimitsResource,
    lane: LaneResource,
):
    """One commit: seed, prompts, submissions and the stage; or, without a valid submission, the leader's defence."""
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(repository, number, "seed", "prompts", "submissions")
        return
    refused: dict[str, dg.MetadataValue] = {}
    if read_round(repository.head(), number).submissions is None:
        revealed = chain.get().revealed()
        head = revealed.head  # the window is judged at the very block at which commitments were read
        seed = entropy.get().round_seed(number)
        most = limits.get().max_commitment_chars
        outcomes: list[Collected] = []

        def open_round(snapshot: Snapshot) -> Change | None:
            round_ = read_round(snapshot, number)
            plan = round_.schedule
            due = next_step(round_, head.block)[Lane.MAIN] if round_.state.current_round == number else None
            if plan is None or not isinstance(due, Do) or due.job != "open_round":
                return None
            collected = collect_submissions(
                revealed.entries, plan, round_.name, allow_http=cdn.allow_private_network, max_chars=most
            )
            outcomes.append(collected)
            return _opening(snapshot, number, seed, collected, head, limits.get().block_seconds)

        plan = read_round(repository.head(fetch=False), number).schedule
        opened = commit(context, repository, Step(number, "open", token(plan)), open_round)
        # Another pipeline may have opened it meanwhile: then it is adopted.
        if opened is None and read_round(repository.head(fetch=False), number).submissions is None:
            raise dg.Failure(f"round {number} is not to be opened at block {head.block}: its window has not closed")
        refused = _refusals(outcomes[-1]) if outcomes else {}
    for name in ("seed", "prompts", "submissions"):
        yield described(name, repository, number, refused if name == "submissions" else None)


def _opening(
    snapshot: Snapshot, number: int, seed: int, collected: Collected, head: Head, block_seconds: int
) -> Change:
    round_ = read_round(snapshot, number)
    config, plan = round_.config, round_.schedule
    assert plan is not None
    prompts = draw_prompts(
        seed,
        read_previous_prompts(snapshot, number),
        read_pool(snapshot),
        config.prompts_per_round,
        config.carryover_prompts,
    )
    files: dict[str, str | None] = {
        paths.seed(number): write_json(models.SEED, Seed(seed=seed)),
        paths.prompts(number): write_prompts(prompts),
        paths.submissions(number): write_json(models.SUBMISSIONS, collected.submissions),
    }
    count = len(collected.submissions)
    if count:
        eta = head.time + timedelta(seconds=(plan.generation_deadline_block - head.block) * block_seconds)
        stage = CompetitionStage(current_round=number, stage=Stage.MINER_GENERATION, next_stage_eta=eta)
    else:
        stage = CompetitionStage(current_round=number, stage=Stage.FINALIZING)
        winner = leadership.name_winner(LEADER, None, None, round_.leader)
        files[paths.winner(number)] = write_json(models.WINNER, winner)
    files[paths.STATE] = write_json(models.STATE, stage)
    lines = [f"Block {head.block}, seed {seed}, {len(prompts)} prompts."]
    lines += [f"Refused {hotkey}: {reason}" for hotkey, reason in sorted(collected.refused.items())[:50]]
    lines += [f"Ignored of {hotkey}: {reasons}" for hotkey, reasons in _ignored(collected)[:50]]
    lines += [f"Same payload: {', '.join(group)}" for group in collected.same_payload[:50]]
    if not count:
        lines.append("Nobody challenges: the leader defends.")
    return Change(
        files, f"Publish seed, {len(prompts)} prompts and {count} submissions for round {number}", "\n".join(lines)
    )


def _refusals(collected: Collected) -> dict[str, dg.MetadataValue]:
    rows = [{"hotkey": hotkey, "reason": reason} for hotkey, reason in sorted(collected.refused.items())]
    told: dict[str, dg.MetadataValue] = {"refused": dg.MetadataValue.int(len(rows)), "refusals": table(rows)}
    if collected.ignored:
        told["ignored"] = table([{"hotkey": hotkey, "reason": reasons} for hotkey, reasons in _ignored(collected)])
    if collected.same_payload:
        told["same_payload"] = table([{"hotkeys": ", ".join(group)} for group in collected.same_payload])
    return told


def _ignored(collected: Collected) -> list[tuple[Hotkey, str]]:
    """What did not count of hotkeys that have a submission all the same."""
    return [(hotkey, "; ".join(reasons)[:500]) for hotkey, reasons in sorted(collected.ignored.items())]


@dg.multi_asset(
    name="stage",
    specs=[
        round_spec(
            "stage",
            GROUP,
            "The stage of the round: to DOWNLOADING at the generation deadline, to DUELS when every submission has "
            "been processed.",
            kinds={"git"},
            deps=["submissions"],
        )
    ],
    check_specs=checks.specs_of("stage"),
    pool="git",
)
def stage(  # type: ignore[no-untyped-def]
    context: dg.AssetExecutionContext, state: StateRepositoryResource, chain: ChainResource, lane: LaneResource
):
    repository, number = state.get(), round_number(context)
    if is_adopted(context, repository):
        yield from adopted(repository, number, "stage")
        return
    head = chain.get().head()

    def advance(snapshot: Snapshot) -> Change | None:
        round_ = read_round(snapshot)
        due = next_step(round_, head.block)[Lane.MAIN]
        if round_.number != number or not isinstance(due, Do) or due.job != "advance":
            return None
        downloading = round_.state.stage == Stage.MINER_GENERATION
        following = CompetitionStage(current_round=number, stage=Stage.DOWNLOADING if downloading else Stage.DUELS)
        subject = "Begin downloading" if downloading else "Begin duels"
        return Change(
            {paths.STATE: write_json(models.STATE, following)},
            f"{subject} of round {number}",
            f"{due.why.capitalize()}.",
        )

    now = read_round(repository.head())
    advanced = commit(context, repository, Step(number, "advance", token(now.state)), advance)
    if advanced is None and TOKEN_TAG in context.run.tags:
        after = read_round(repository.head(fetch=False))
        still = next_step(after, head.block)[Lane.MAIN]
        # The sensor saw a later block through another node. To end well would count as a run without progress.
        if after.number == number and isinstance(still, Wait) and still.until is not None:
            raise Unavailable(f"the node that answered is only at block {head.block}: the stage ends at {still.until}")
    yield described("stage", repository, number)


@dg.multi_asset(
    name="source_audits",
    specs=[
        round_spec(
            "source_audits",
            "verification",
            "A reviewer's verdict on miners' source code, entered by hand; adopted here.",
            kinds={"git"},
            deps=["submissions"],
        )
    ],
)
def source_audits(
    context: dg.AssetExecutionContext, state: StateRepositoryResource, lane: LaneResource
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    repository = state.get()
    repository.head()
    yield from adopted(repository, round_number(context), "source_audits")
