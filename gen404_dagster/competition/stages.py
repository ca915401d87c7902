"""What happens next: a pure function of (git state, finalized block), per lane.

Belongs here: the stage machine, i.e. which job is due on which lane of the current round, or what it waits for.
Does not: doing it (assets), starting it (sensors), attempts and liveness (sensors).
Source: spec section 2 and DESIGN section 3.
"""

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from pydantic import TypeAdapter

from gen404_dagster.competition.leadership import active_leader
from gen404_dagster.competition.models import (
    AuditRequest,
    Block,
    Builds,
    BuildStatus,
    CompetitionConfig,
    CompetitionStage,
    GenerationAudit,
    Hotkey,
    LeaderTransition,
    MatchRow,
    Results,
    Schedule,
    SourceAudit,
    Stage,
    Stem,
    Submissions,
    Winner,
    stem_of,
)
from gen404_dagster.competition.timeline import Standing, standing


class Lane(StrEnum):
    """Lanes of a round run side by side; a lane runs one job at a time."""

    MAIN = "main"
    DUELS = "duels"
    PODS = "pods"


LANE_OF_JOB = {
    "open_round": Lane.MAIN,
    "advance": Lane.MAIN,
    "download": Lane.MAIN,
    "render": Lane.MAIN,
    "crown": Lane.MAIN,
    "finalize": Lane.MAIN,
    "judge": Lane.DUELS,
    "baseline": Lane.PODS,
    "verify": Lane.PODS,
}


@dataclass(frozen=True)
class RoundState:
    """One round as the state repository has it. None: the file does not exist.

    `stage_entered` identifies the commit that last wrote state.json: a stage that an operator goes back to is new work.
    """

    number: int
    config: CompetitionConfig
    state: CompetitionStage
    leaders: tuple[LeaderTransition, ...]
    schedule: Schedule | None = None
    seed: int | None = None
    prompts: tuple[str, ...] | None = None
    submissions: Submissions | None = None
    builds: Builds | None = None
    requests: tuple[AuditRequest, ...] = ()
    generation_audits: Mapping[Hotkey, GenerationAudit] | None = None
    source_audits: tuple[SourceAudit, ...] = ()
    matrix: tuple[MatchRow, ...] = ()
    winner: Winner | None = None
    stage_entered: str = ""
    submitted: frozenset[Hotkey] = frozenset()
    baseline: Results | None = None

    @property
    def name(self) -> str:
        return f"{self.config.name}-{self.number}"

    @property
    def over(self) -> bool:
        """Whether nothing of this round changes any more."""
        return self.state.current_round > self.number or (
            self.state.current_round == self.number and self.state.stage == Stage.FINISHED
        )

    @property
    def stems(self) -> tuple[Stem, ...]:
        return tuple(stem_of(url) for url in self.prompts or ())

    @property
    def leader(self) -> LeaderTransition | None:
        """Who defends this round: the active leader when its window closes."""
        if self.schedule is None:
            return self.leaders[-1] if self.leaders else None
        return active_leader(self.leaders, self.schedule.latest_reveal_block)

    @property
    def baseline_missing(self) -> tuple[Stem, ...]:
        """Prompts that the leader's image has not regenerated yet. None are missing when nobody leads."""
        if self.leader is None:
            return ()
        return tuple(stem for stem in dict.fromkeys(self.stems) if stem not in (self.baseline or {}))

    @property
    def undownloaded(self) -> tuple[Hotkey, ...]:
        return tuple(hotkey for hotkey in self.submissions or {} if hotkey not in self.submitted)

    def standing(self) -> Standing:
        return standing(
            list(self.submissions or {}),
            self.matrix,
            self.requests,
            self.generation_audits or {},
            self.source_audits,
            self.config.win_margin,
        )


@dataclass(frozen=True)
class Do:
    """Launch `job` for the round. `token` hashes what the job reads: the same token is the same piece of work."""

    job: str
    token: str
    why: str
    hotkeys: tuple[Hotkey, ...] = ()


@dataclass(frozen=True)
class Wait:
    """Nothing to do: why, and the block that changes it (None: no block does)."""

    why: str
    until: Block | None = None


Decision: TypeAlias = Do | Wait


def next_step(round_: RoundState, block: Block) -> dict[Lane, Decision]:
    """What to do on each lane of the current round at a finalized block."""
    return {
        Lane.MAIN: _main(round_, block),
        Lane.DUELS: _duels(round_),
        Lane.PODS: _pods(round_),
    }


def token(*read: object) -> str:
    """Hash of what a step reads: 16 hex digits, equal in every process. No sets: their order is not."""
    digest = hashlib.sha256()
    for value in read:
        if isinstance(value, Set):
            raise TypeError("a set has no order that is equal in every process: pass a tuple")
        part = TypeAdapter(type(value)).dump_json(value) if value is not None else b"null"
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:16]


def _main(round_: RoundState, block: Block) -> Decision:
    stage, schedule = round_.state.stage, round_.schedule
    if stage == Stage.PAUSED:
        return Wait("paused by an operator: set the stage in state.json to go on")
    if stage == Stage.FINISHED:
        return Wait("the competition is finished")
    if schedule is None:
        return Wait(f"rounds/{round_.number}/schedule.json is missing: write it to go on")
    if stage == Stage.OPEN:
        if block < schedule.latest_reveal_block:
            return Wait("miners may reveal commitments", schedule.latest_reveal_block)
        return Do(
            "open_round", token(round_.number, round_.stage_entered, schedule), "the window of commitments has closed"
        )
    if stage == Stage.FINALIZING:
        if round_.winner is None:
            return Wait(f"rounds/{round_.number}/winner.json is missing: restore it, or set the stage back to duels")
        return Do(
            "finalize", token(round_.number, round_.stage_entered, round_.winner, round_.leaders), "a winner is known"
        )
    opening = {"seed.json": round_.seed, "prompts.txt": round_.prompts, "submissions.json": round_.submissions}
    lost = [name for name, content in opening.items() if content is None]
    if lost:
        return Wait(f"rounds/{round_.number}/{lost[0]} is missing: restore it to go on")
    if stage == Stage.MINER_GENERATION:
        if block < schedule.generation_deadline_block:
            return Wait("miners generate", schedule.generation_deadline_block)
        return Do("advance", token(round_.number, round_.stage_entered, stage), "the generation deadline has passed")
    if stage == Stage.DOWNLOADING:
        missing = round_.undownloaded
        if missing:
            return Do(
                "download",
                token(round_.number, round_.stage_entered, missing),
                f"{len(missing)} submissions to fetch",
                missing,
            )
        return Do("advance", token(round_.number, round_.stage_entered, stage), "every submission has been processed")
    now = round_.standing()
    # Who removes the leader's results while matches stand means to play some of them again: no winner before that.
    if now.complete and not (round_.matrix and round_.baseline_missing):
        read = (round_.matrix, tuple((round_.generation_audits or {}).values()), round_.source_audits)
        return Do("crown", token(round_.number, round_.stage_entered, *read), "the timeline is settled and verified")
    return Wait(_what_is_missing(round_, now))


def _what_is_missing(round_: RoundState, now: Standing) -> str:
    parts = []
    if round_.baseline_missing:
        parts.append(f"the leader's baseline (prompts missing: {len(round_.baseline_missing)})")
    if now.matches:
        parts.append(f"matches (now due: {len(now.matches)})")
    if now.awaiting_generation:
        parts.append(f"generation audits of {', '.join(now.awaiting_generation)}")
    human = [hotkey for hotkey in now.awaiting_source if hotkey not in now.awaiting_generation]
    if human:
        parts.append(f"a reviewer's verdict in rounds/{round_.number}/source_audit.json on {', '.join(human)}")
    return "waits for " + ("; ".join(parts) or "audit requests")


def _duels(round_: RoundState) -> Decision:
    if round_.state.stage != Stage.DUELS:
        return Wait("no duels in this stage")
    if round_.baseline_missing:
        return Wait("no match before the leader's baseline is complete")
    now = round_.standing()
    if now.matches or now.requests:
        why = f"matches due: {len(now.matches)}, audit requests due: {len(now.requests)}"
        read = (now.matches, tuple(reign.leader for reign in now.requests), now.timeline.reigns)
        return Do("judge", token(round_.number, round_.stage_entered, *read), why)
    return Wait("every match that is known to matter is played")


# `not_found` is written only when the build run has ended.
_FINAL_BUILD = {BuildStatus.SUCCESS, BuildStatus.FAILURE, BuildStatus.TIMED_OUT, BuildStatus.NOT_FOUND}


def builds_settled(round_: RoundState) -> bool:
    """Every submission has a build that will not change any more."""
    builds = round_.builds or {}
    return all(hotkey in builds and builds[hotkey].status in _FINAL_BUILD for hotkey in round_.submissions or {})


def _pods(round_: RoundState) -> Decision:
    if round_.state.stage not in (Stage.MINER_GENERATION, Stage.DOWNLOADING, Stage.DUELS):
        return Wait("no images run in this stage")
    missing = round_.baseline_missing
    if missing:
        why = f"the leader's image has {len(missing)} prompts to regenerate"
        return Do("baseline", token(round_.number, round_.stage_entered, missing, round_.leader), why)
    if round_.state.stage != Stage.DUELS:
        return Wait("the leader's baseline is complete")
    pending = round_.standing().awaiting_generation
    if pending or not builds_settled(round_):
        why = f"{len(pending)} audits to run" if pending else "builds to look up"
        read = (pending, tuple((round_.builds or {}).items()))
        return Do("verify", token(round_.number, round_.stage_entered, *read), why)
    return Wait("no audit is requested")
