"""The result of a round comes from the pictures: change who is good at it, and the result changes with them."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gen404_dagster.resources.embedder import EfficientNetEmbedder
from gen404_dagster.resources.judge import EmbeddedJudge, Question, Reply
from tests.simulations import Played


def simulate(workdir: Path, *options: str) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "gen404_dagster.cli",
        "simulate",
        "--seed",
        "11",
        "--workdir",
        str(workdir),
        "--json",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)["rounds"][0]
    assert isinstance(result, dict)
    return result


def roles(result: dict[str, Any]) -> dict[str, str]:
    """Roles by hotkey: the cast names its repositories `sim-<role>/...`."""
    return {hotkey: entry["repo"].split("/")[0].removeprefix("sim-") for hotkey, entry in result["submissions"].items()}


SMALL = ("--miners", "3", "--prompts", "4")


def test_the_cheater_leads_is_rejected_and_the_honest_best_wins(undisturbed: tuple[Played, Played]) -> None:
    result = undisturbed[0].result["rounds"][0]
    role = roles(result)
    margins = {(role.get(left, left), role[right]): margin for left, right, margin in result["matrix"]}
    assert margins["cheater", "best"] < 0.05, "the best did not beat the cheater's files"
    assert {role[hotkey]: outcome for hotkey, outcome in result["audits"].items()}["cheater"] == "rejected"
    assert role[result["winner"]] == "best"
    assert role[result["leader"]["hotkey"]] == "best"


def test_the_cheater_wins_when_its_image_is_as_good_as_what_it_submitted(tmp_path: Path) -> None:
    result = simulate(tmp_path, *SMALL, "--skill", "cheater=1:1")
    role = roles(result)
    assert role[result["winner"]] == "cheater"
    assert set(result["audits"].values()) == {"passed"}


def test_swapping_two_miners_skills_swaps_their_places(tmp_path: Path) -> None:
    result = simulate(tmp_path, *SMALL, "--skill", "best=0.62", "--skill", "weaker=0.92")
    role = roles(result)
    margins = {(role.get(left, left), role[right]): margin for left, right, margin in result["matrix"]}
    assert role[result["winner"]] == "weaker"
    assert margins["weaker", "best"] < 0.05


class Listening(EmbeddedJudge):
    """The embedded judge, writing down what it is asked."""

    def __init__(self) -> None:
        super().__init__(EfficientNetEmbedder())
        self.heard: list[Question] = []

    async def ask(self, question: Question) -> Reply:
        self.heard.append(question)
        return await super().ask(question)


def test_the_judge_gets_nothing_but_png_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real round is opened, fetched and rendered; its matches are judged by a judge that listens."""
    from rich.console import Console

    from gen404_dagster import simulate as simulation
    from gen404_dagster.resources import configured
    from gen404_dagster.simulation.parameters import WorldParameters

    judge = Listening()
    monkeypatch.setattr(configured, "make_judge", lambda settings, embedder: judge)
    monkeypatch.setattr(configured, "_embedded_judges", {})
    monkeypatch.setattr(simulation.os, "environ", simulation.os.environ.copy())
    simulation.simulate(tmp_path, WorldParameters(seed=11, miners=2, prompts=2), 1, Console(stderr=True, quiet=True))
    assert judge.heard
    for question in judge.heard:
        known = {
            field: getattr(question, field)
            for field in question.__dataclass_fields__
            if field not in ("seed", "repeat")
        }
        assert set(known) == {"prompt", "first", "second"}
        for picture in known.values():
            assert set(picture.__dataclass_fields__) == {"data", "url", "sha256"}
            assert picture.url is None
            with Image.open(io.BytesIO(picture.data)) as opened:
                assert opened.format == "PNG"
                assert opened.size in {(512, 512), (1041, 1041)}
