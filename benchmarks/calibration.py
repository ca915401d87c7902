"""What the embedded judge and the embedder tell apart, measured on the embedded world's own objects.

Prints the tables and writes them to docs/calibration.md:

    python benchmarks/calibration.py [--objects 40] [--pictures FOLDER] [-o docs/calibration.md]

Belongs here: pairs of skills and their rates, distances and the limit that parts them. Does not: how fast anything is.
Equal arguments on one machine give equal tables.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from gen404_dagster.competition.duels import decide_by_penalties
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import DuelWinner
from gen404_dagster.resources.embedder import EfficientNetEmbedder
from gen404_dagster.resources.judge import EmbeddedJudge, Picture, judge_duel
from gen404_dagster.simulation.making import Occasion, make_model
from gen404_dagster.simulation.prompts import draw_object, real_pictures
from gpu_kernels import encode_png, render_preview

# (left, right) skills, from far apart to equal: the cast's own first.
PAIRS = (
    (0.35, 1.0), (0.35, 0.92), (0.35, 0.62), (0.35, 0.5), (0.5, 0.62), (0.62, 0.7), (0.7, 0.78), (0.78, 0.8),
    (0.62, 0.92), (0.8, 0.92), (0.92, 0.97), (0.92, 1.0), (0.35, 0.35), (0.62, 0.62), (0.92, 0.92), (1.0, 1.0),
)  # fmt: skip
HONEST = (0.35, 0.5, 0.62, 0.7, 0.8, 0.92, 0.97, 1.0)
CHEATS = ((1.0, 0.8), (1.0, 0.62), (1.0, 0.5), (1.0, 0.35))


@dataclass(frozen=True)
class Bench:
    """The prompts of one kind and what is made from them."""

    seed: int
    objects: int
    pictures: tuple[bytes, ...] = ()
    embedder: EfficientNetEmbedder = field(default_factory=EfficientNetEmbedder)

    @property
    def stems(self) -> range:
        return range(len(self.pictures) or self.objects)

    @lru_cache(maxsize=4096)  # noqa: B019 - one bench lives as long as the process
    def prompt(self, stem: int) -> bytes:
        return self.pictures[stem] if self.pictures else draw_object(self.seed, stem)

    @lru_cache(maxsize=4096)  # noqa: B019
    def preview(self, stem: int, hotkey: str, skill: float, occasion: Occasion) -> bytes:
        round_seed = 7_000 + stem % 5  # some rounds: the direction of errors belongs to (object, round)
        index = None if self.pictures else stem
        picture = self.pictures[stem] if self.pictures else b""
        model = make_model(self.seed, hotkey, skill, round_seed, str(stem), occasion, index=index, picture=picture)
        return encode_png(render_preview(model.glb()))


async def duels(bench: Bench, judge: EmbeddedJudge, left: float, right: float) -> Counter[DuelWinner]:
    """Outcomes of one match between two skills."""
    outcomes: Counter[DuelWinner] = Counter()
    for stem in bench.stems:
        judged = await judge_duel(
            judge,
            Picture.of(bench.prompt(stem)),
            Picture.of(bench.preview(stem, "left", left, "submitted")),
            Picture.of(bench.preview(stem, "right", right, "submitted")),
            seed=0,
        )
        outcomes[decide_by_penalties(judged.left_penalty, judged.right_penalty, Limits())] += 1
    return outcomes


def judge_table(bench: Bench) -> Iterator[str]:
    judge = EmbeddedJudge(bench.embedder)
    yield "| left's skill | right's skill | right wins | draw | left wins | margin |"
    yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
    for left, right in PAIRS:
        found = asyncio.run(duels(bench, judge, left, right))
        count = sum(found.values())
        won, drawn, lost = (found[side] / count for side in (DuelWinner.RIGHT, DuelWinner.DRAW, DuelWinner.LEFT))
        yield f"| {left} | {right} | {won:.0%} | {drawn:.0%} | {lost:.0%} | {won - lost:+.2f} |"


Distances = dict[str, list[float]]


def distances(bench: Bench) -> tuple[Distances, Distances, list[float]]:
    """Distances of honest regenerations, of cheaters' (by skills), and of different objects."""

    def apart(stem: int, submitted: float, made: float) -> float:
        first = bench.preview(stem, "right", submitted, "submitted")
        return bench.embedder.distance(first, bench.preview(stem, "right", made, "regenerated")).value

    honest = {f"skill {skill}": [apart(stem, skill, skill) for stem in bench.stems] for skill in HONEST}
    cheats = {
        f"submitted {shown}, image makes {made}": [apart(stem, shown, made) for stem in bench.stems]
        for shown, made in CHEATS
    }
    others = [
        bench.embedder.distance(
            bench.preview(stem, "right", 1.0, "submitted"),
            bench.preview((stem + step) % len(bench.stems), "right", 1.0, "submitted"),
        ).value
        for step in (1, 5)
        for stem in bench.stems
        if step % len(bench.stems)
    ]
    return honest, cheats, others


def distance_table(honest: Distances, cheats: Distances, others: Sequence[float], limit: float) -> Iterator[str]:
    yield f"| pair | least | median | 95 % | most | over {limit:g} |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    named = {f"honest, {name}": values for name, values in honest.items()}
    named |= {f"cheater, {name}": values for name, values in cheats.items()}
    for name, values in {**named, "different objects": list(others)}.items():
        least, median, high, most = np.quantile(values, [0, 0.5, 0.95, 1])
        over = np.mean(np.array(values) > limit)
        yield f"| {name} | {least:.4f} | {median:.4f} | {high:.4f} | {most:.4f} | {over:.0%} |"


def recommended(honest: Distances, cheats: Distances) -> float:
    """A limit between all honest regenerations and the cast's cheater: the geometric middle of the two, to one digit."""
    most_honest = max(max(values) for values in honest.values())
    cheater = float(np.quantile(cheats["submitted 1.0, image makes 0.35"], 0.05))
    return float(f"{np.sqrt(most_honest * cheater):.1g}")


def report(arguments: argparse.Namespace) -> Iterator[str]:
    bench = Bench(arguments.seed, arguments.objects)
    honest, cheats, others = distances(bench)
    limit = recommended(honest, cheats)
    yield "# Calibration of the embedded judge and the embedder"
    yield ""
    yield "Generated by `python benchmarks/calibration.py`. Everything is measured on the embedded world's own objects:"
    yield f"{arguments.objects} procedural objects of simulation {arguments.seed}, in five rounds."
    yield ""
    yield "## The embedded judge"
    yield ""
    yield f"Judge `{EmbeddedJudge(bench.embedder).identity}`. Two questions a duel, sides swapped; penalties one apart are a"
    yield "draw. The margin is what a match over these prompts would have."
    yield ""
    yield from judge_table(bench)
    yield ""
    yield "## Distances of previews"
    yield ""
    yield f"Embedder `{bench.embedder.model.revision}`: cosine distance of the whole 2x2 grids. Honest: what the same miner submits"
    yield "and its image makes again, with other noise. Cheater: what it submits its image does not make."
    yield ""
    yield from distance_table(honest, cheats, others, limit)
    yield ""
    yield f"**Recommended limit in the embedded world (`competition.limits.ACCEPTABLE_DISTANCE`): {limit:g}**, the geometric middle between the"
    yield "largest honest distance and the nearest twentieth of the cheater whose image has skill 0.35. The public 0.1 belongs to"
    yield "another network (DINOv3) and to real generators."
    if arguments.pictures:
        pictures = tuple(path.read_bytes() for path in real_pictures(arguments.pictures))
        real = Bench(arguments.seed, 0, pictures, bench.embedder)
        yield ""
        yield "## Real prompt pictures"
        yield ""
        yield f"The same for {len(pictures)} real pictures, which the world's miners rebuild as reliefs."
        yield ""
        yield from judge_table(real)
        yield ""
        yield from distance_table(*distances(real), limit)


def main() -> int:
    parser = argparse.ArgumentParser(description="Calibrate the embedded judge and the embedder.")
    parser.add_argument("--objects", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="folder of real prompt pictures to measure as well")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent.parent / "docs" / "calibration.md")
    arguments = parser.parse_args()
    lines = []
    for line in report(arguments):
        print(line, flush=True)
        lines.append(line)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
