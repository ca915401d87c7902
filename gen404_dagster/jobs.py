"""One job per step of a round; each holds one lane (`competition.stages.LANE_OF_JOB`)."""

import dagster as dg

ASSETS_OF_JOB = {
    "open_round": ("seed", "prompts", "submissions"),
    "advance": ("stage",),
    "baseline": ("leader_baseline",),
    "download": ("downloads", "renders"),
    "render": ("renders",),
    "judge": ("match_matrix", "audit_requests"),
    "verify": ("builds", "generation_audits"),
    "crown": ("winner",),
    "finalize": ("leader", "next_schedule"),
}

_DESCRIPTIONS = {
    "open_round": "The window has closed: publish seed, prompts and submissions.",
    "advance": "Move the stage on.",
    "baseline": "Regenerate the round's prompts with the leader's image.",
    "download": "Fetch miners' files and render their previews.",
    "render": "Render missing or stale previews of stored files.",
    "judge": "Play the matches that are missing and ask for the audits they call for.",
    "verify": "Look up builds and audit whoever was asked for.",
    "crown": "Name the winner of a settled timeline.",
    "finalize": "Write the next leader and the next schedule.",
}

jobs = [
    dg.define_asset_job(name, selection=dg.AssetSelection.assets(*assets), description=_DESCRIPTIONS[name])
    for name, assets in ASSETS_OF_JOB.items()
]
