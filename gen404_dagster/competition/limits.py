"""Every number of the rules, with its default, in one typed place.

Belongs here: thresholds that decide outcomes and bounds on what a miner may send. Does not: addresses, credentials,
choices of parts (`gen404_dagster.settings`), or what the competition's own `config.json` says (`models.CompetitionConfig`).
"""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

ACCEPTABLE_DISTANCE: Mapping[str, float] = {
    "dinov3": 0.1,  # the public competition's: spec section 4
    "efficientnet": 0.03,  # measured on the embedded world's objects: docs/calibration.md
}
"""Largest cosine distance of submitted and regenerated preview, by the network that measures it."""


class Limits(BaseModel):
    """Limits of the competition. Defaults are those of the public competition unless the description says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Downloading
    download_concurrency: int = Field(10, ge=1, description="Downloads at once, shared by all miners.")
    download_host_concurrency: int = Field(4, ge=1, description="Downloads at once from one host.")
    download_attempts: int = Field(2, ge=1, description="Tries for one file.")
    download_retry_seconds: float = Field(3.0, ge=0, description="Pause between two tries of one file, in seconds.")
    download_jitter_seconds: float = Field(
        300.0,
        ge=0,
        description="A download starts after a random pause of up to so many seconds: CDNs are not hit at once.",
    )
    download_timeout_seconds: float = Field(600.0, gt=0, description="Longest time for one file, in seconds.")
    download_stall_seconds: float = Field(30.0, gt=0, description="Longest silence while a file arrives, in seconds.")
    download_least_rate: int = Field(
        16 * 1024,
        ge=0,
        description="Slowest rate of a file, over each download_stall_seconds, in bytes a second; a slower one is refused.",
    )
    max_file_bytes: int = Field(200 * 1024**2, ge=1, description="Largest 3D file, enforced while streaming, in bytes.")
    max_prompt_bytes: int = Field(32 * 1024**2, ge=1, description="Largest prompt picture, in bytes.")
    max_commitment_chars: int = Field(2048, ge=1, description="Longest commitment that is parsed, in characters.")
    render_concurrency: int = Field(2, ge=1, description="Previews rendered at once.")
    render_seconds: float = Field(
        60.0, gt=0, description="Longest time to read and draw one 3D file, in seconds; a longer one is refused."
    )
    render_memory_bytes: int = Field(
        4 * 1024**3,
        ge=512 * 1024**2,
        description="Most memory of a process that renders; a file that needs more is refused. Each of those at once "
        "may use it.",
    )

    # Duels
    judge_concurrency: int = Field(
        16,
        ge=1,
        description="Questions to one endpoint of the judge at once; halved at a 429 and restored step by step.",
    )
    draw_difference: float = Field(1.0, ge=0, description="A duel is a draw when the penalties differ by at most this.")
    duel_overtime_seconds: float = Field(
        180.0, gt=0, description="A generation longer than this is overtime in a duel, in seconds."
    )
    overtime_allowance: float = Field(
        0.05, ge=0, le=1, description="Share of the prompts that may be overtime without loss."
    )
    critical_margin: float = Field(
        0.05, ge=0, description="No critical prompts when the margin reaches win_margin plus this."
    )

    # Verification
    acceptable_distance: float = Field(
        ACCEPTABLE_DISTANCE["dinov3"],
        ge=0,
        le=2,
        description="Largest cosine distance of submitted and regenerated preview, under the configured embedder. Unset: "
        "the embedder's own, 0.1 for dinov3 and 0.03 for efficientnet.",
    )
    generation_median_seconds: float = Field(
        90.0, gt=0, description="Largest trimmed median generation time, in seconds."
    )
    generation_overtime_seconds: float = Field(
        180.0, gt=0, description="A generation longer than this is a mismatch, in seconds."
    )
    median_trim: int = Field(
        6,
        ge=0,
        description="Times cut from each end before the median; at most (n - 1) // 2, so that small rounds keep one.",
    )
    max_mismatches: int = Field(6, ge=0, description="Non-critical mismatches that are tolerated.")
    max_critical_mismatches: int = Field(1, ge=0, description="Critical mismatches that are tolerated.")
    audits_at_once: int = Field(4, ge=1, description="Miners audited at once.")
    pods_to_start: int = Field(2, ge=1, description="Pods a miner's audit starts with.")
    pods_at_once: int = Field(4, ge=1, description="Pods of one miner at once.")
    pod_attempts: int = Field(6, ge=1, description="Pods tried for one miner in all.")
    pod_start_interval_seconds: float = Field(
        30.0, ge=0, description="Pause between two pod starts of one miner, in seconds."
    )
    pod_deploy_retry_seconds: float = Field(
        120.0, ge=0, description="Pause before the next provider after a failed deployment."
    )
    pod_deploy_attempts: int = Field(720, ge=1, description="Deployment tries of one pod over all providers.")
    pod_visible_seconds: float = Field(1800.0, gt=0, description="A pod must be visible within this time, in seconds.")
    pod_healthy_seconds: float = Field(3600.0, gt=0, description="A pod must be healthy within this time, in seconds.")
    pod_prompts_in_flight: int = Field(4, ge=1, description="Prompts in flight on one pod, of which one generates.")
    prompt_attempts: int = Field(3, ge=1, description="Generations tried for one prompt.")
    prompt_lock_seconds: float = Field(
        600.0, gt=0, description="A prompt's lock by a pod expires after this time, in seconds."
    )
    bad_pod_failures: int = Field(8, ge=1, description="Failures plus overtimes that make a pod bad.")
    bad_pod_median_seconds: float = Field(
        120.0, gt=0, description="Rolling median over the last 8 that makes a pod bad, in seconds."
    )
    build_timeout_seconds: float = Field(
        3 * 3600.0, gt=0, description="A build that takes longer has timed out, in seconds."
    )
    build_poll_seconds: float = Field(30.0, gt=0, description="Pause between two looks at the builds, in seconds.")

    # Leadership
    leader_change_wait_minutes: float = Field(
        25.0, ge=0, description="Weights wait when the next leader is at most so near, in minutes."
    )
    weights_interval_minutes: float = Field(30.0, gt=0, description="Weights are set so often, in minutes.")
    weights_retry_least_minutes: float = Field(
        4.0, gt=0, description="Shortest pause after weights could not be set, in minutes."
    )
    weights_retry_most_minutes: float = Field(
        6.0, gt=0, description="Longest pause after weights could not be set, in minutes."
    )
    weights_confirm_blocks: int = Field(
        3, ge=1, description="An accepted setting of weights must show within so many blocks."
    )
    block_seconds: int = Field(12, ge=1, description="Time between two blocks, in seconds.")
