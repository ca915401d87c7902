"""The code location as a whole: it loads, each asset is fit to be looked at, and nothing heavy is imported."""

import subprocess
import sys

import dagster as dg
import pytest

from gen404_dagster.assets.checks import CHECKS
from gen404_dagster.assets.insights import INSIGHTS
from gen404_dagster.competition.stages import LANE_OF_JOB
from gen404_dagster.definitions import build_defs
from gen404_dagster.jobs import ASSETS_OF_JOB
from gen404_dagster.settings import Settings

GROUPS = {
    "intake": {"schedule", "seed", "prompts", "submissions", "stage"},
    "outputs": {"downloads", "renders", "leader_baseline"},
    "duels": {"match_matrix", "audit_requests"},
    "verification": {"source_audits", "builds", "generation_audits"},
    "finale": {"winner", "leader", "next_schedule"},
    "weights": {"weights"},
    "insights": set(INSIGHTS),
}


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_defs(Settings())


def specs(defs: dg.Definitions) -> list[dg.AssetSpec]:
    return list(defs.resolve_all_asset_specs())


def test_the_code_location_loads(defs: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(defs)


def test_groups_hold_the_assets_of_their_stage(defs: dg.Definitions) -> None:
    found: dict[str, set[str]] = {}
    for spec in specs(defs):
        found.setdefault(spec.group_name or "", set()).add(spec.key.to_user_string())
    assert found == GROUPS


def test_every_asset_says_what_it_is(defs: dg.Definitions) -> None:
    for spec in specs(defs):
        name = spec.key.to_user_string()
        assert spec.description, name
        assert len(spec.description or "") > 40, name
        assert spec.owners, name
        assert spec.kinds, name
        assert spec.code_version, name
        if spec.group_name in ("insights", "weights"):
            assert spec.partitions_def is None, name
            continue
        assert spec.partitions_def is not None, name
        expected = "round_miner" if name in ("downloads", "renders") else "round"
        assert isinstance(spec.partitions_def, dg.DynamicPartitionsDefinition)
        assert spec.partitions_def.name == expected


def test_every_job_has_a_lane_and_makes_what_it_says(defs: dg.Definitions) -> None:
    assert set(ASSETS_OF_JOB) == set(LANE_OF_JOB)
    for name, assets in ASSETS_OF_JOB.items():
        keys = defs.resolve_job_def(name).asset_layer.executable_asset_keys
        assert {key.to_user_string() for key in keys} == set(assets)


def test_every_asset_but_the_adopted_ones_and_insights_is_made_by_a_job(defs: dg.Definitions) -> None:
    made = {asset for assets in ASSETS_OF_JOB.values() for asset in assets}
    assert {spec.key.to_user_string() for spec in specs(defs)} - made == {
        "schedule",
        "source_audits",
        "weights",
        *INSIGHTS,
    }


def test_checks_belong_to_assets_and_explain_themselves() -> None:
    known = set().union(*GROUPS.values())
    assert len({(check.asset, check.name) for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.asset in known
        assert check.description.endswith(".")


def test_loading_the_code_location_imports_nothing_heavy() -> None:
    """Every run imports it."""
    code = (
        "import sys; from gen404_dagster.definitions import build_defs; from gen404_dagster.settings import Settings;"
        "build_defs(Settings()); print([m for m in "
        "('torch','numba','pandas','openai','transformers','bittensor','efficientnet_lite_pytorch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
    assert "Warning" not in done.stderr


def test_rules_and_kernels_import_nothing_of_ours_above_them() -> None:
    code = (
        "import sys, pkgutil, importlib, gen404_dagster.competition as c, gpu_kernels;"
        "[importlib.import_module(m.name) for m in pkgutil.iter_modules(c.__path__, 'gen404_dagster.competition.')];"
        "print([m for m in sys.modules if m.split('.')[0] in ('dagster','httpx','git') or "
        "(m.startswith('gen404_dagster.') and not m.startswith('gen404_dagster.competition'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
