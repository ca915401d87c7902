"""Real prompt pictures and real GLB files through a whole round: rendered or refused with a reason."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen404_dagster.competition.models import RESULTS, read_json
from gen404_dagster.resources.state_repo import StateRepository
from gpu_kernels import UnreadableModel, render_preview


def refusal_of(model: Path) -> str:
    try:
        render_preview(model.read_bytes())
    except UnreadableModel as refusal:
        return str(refusal)
    return ""


@pytest.mark.shared
def test_real_files_are_rendered_or_refused_with_their_reason_and_the_round_ends(shared: Path, tmp_path: Path) -> None:
    glbs = sorted((shared / "samples" / "glb").glob("*.glb"))
    command = [
        sys.executable, "-m", "gen404_dagster.cli", "simulate", "--miners", "2", "--workdir", str(tmp_path / "w"), "--json",
        "--prompts-from", str(shared / "samples" / "prompts"), "--miner-from", str(shared / "samples" / "glb"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    round_ = json.loads(done.stdout)["rounds"][0]
    real = next(h for h, entry in round_["submissions"].items() if entry["repo"].startswith("sim-real-files/"))
    with StateRepository(str(tmp_path / "w" / "remote.git"), tmp_path / "mirror.git") as repository:
        head = repository.head()
        results = read_json(RESULTS, head.read(f"rounds/0/{real}/submitted.json") or "")
        commit = next(c for c in head.log(100) if real[:10] in c.subject and "outputs" in c.subject)
        body = subprocess.run(
            ["git", "--git-dir", str(tmp_path / "w" / "remote.git"), "show", "-s", "--format=%b", commit.sha],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    assert len(results) == len(round_["prompts"]) == 4
    for stem, source in zip(round_["prompts"], glbs, strict=False):
        refusal = refusal_of(source)
        if refusal:
            assert results[stem].png is None
            assert results[stem].size == source.stat().st_size
            assert f"{stem}: {refusal}" in body
            continue
        stored = tmp_path / "w" / "data" / "store" / "rounds" / "0" / real / "submitted" / f"{stem}.png"
        with Image.open(io.BytesIO(stored.read_bytes())) as picture:
            assert np.array_equal(np.asarray(picture), render_preview(source.read_bytes()))
    assert round_["winner"] is not None
