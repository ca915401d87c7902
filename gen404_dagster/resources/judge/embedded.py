"""A perceptual judge that needs no server: embeddings and pixels.

Belongs here: how a preview differs from a prompt picture, and which penalties that is worth. Does not: the network
(`resources.embedder`), cutting pictures into views and objects (`resources.pictures`).
"""

import asyncio
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Self

import numpy as np

from gen404_dagster.resources.embedder import Embedder, Vectors
from gen404_dagster.resources.judge.protocol import WORST, JudgeAnswer, Picture, Question, Reply
from gen404_dagster.resources.pictures import RGB, Array, UnreadablePicture, cut_out, decode, lab, resized, views

CROP_SIDE = 224  # pixels of a cropped view, as the network takes it
PIXEL_SIDE = 32  # pixels of a view for colours and outlines: coarse, so that a shift by a pixel costs nothing

# Weights of one view's differences, and of how little the views look like the prompt on average (its back, its sides).
LOOK, COLOUR, OUTLINE, ALL_ROUND = 1.0, 0.6, 0.3, 0.4
PER_DIFFERENCE = 20.0  # penalty points per unit of difference between the two: 0.075 is the least that decides
PER_DISTANCE = 8.0  # penalty points per unit of the better one's distance: other objects are at 1.2 and more
REMEMBERED = 1024  # pictures, of about 85 KB


@dataclass(frozen=True)
class Look:
    """What is compared of a picture. V views that show something: 4 of a preview, 1 of a prompt, 0 of nothing."""

    vectors: Vectors  # [V, D] unit
    colours: Array  # [V, S, S, 3] L*a*b*
    masks: Array  # [V, S, S] 0..1


@dataclass(frozen=True)
class Difference:
    """How a candidate's best view differs from the prompt, each from 0, and `distance`, which adds them up."""

    distance: float
    look: float
    colour: float
    outline: float


class EmbeddedJudge:
    """A perceptual judge that is always the same: embeddings, colours and outlines of the best-matching view.

    Every view is cropped to its object. Differences of quality that nobody sees give equal penalties or penalties one
    apart: a draw. docs/calibration.md has its win and draw rates.
    """

    VERSION = "1"
    reads_urls = False

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._lock = Lock()
        # One picture is looked at by one thread only; others wait and find it done.
        self._working = [Lock() for _ in range(64)]

    @property
    def identity(self) -> str:
        return f"embedded-{self.VERSION}/{self._embedder.model.revision}"

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ()

    @property
    def at_once(self) -> int:
        return max(2, os.cpu_count() or 2)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ask(self, question: Question) -> Reply:
        began = time.monotonic()
        answer = await asyncio.to_thread(self._answer, question)
        return Reply(answer=answer, raw=(answer.model_dump_json(),), seconds=round(time.monotonic() - began, 6))

    def _answer(self, question: Question) -> JudgeAnswer:
        prompt = self._look("the prompt picture", question.prompt)
        first = self.difference(prompt, self._look("the first preview", question.first))
        second = self.difference(prompt, self._look("the second preview", question.second))
        penalties = _penalties(first, second)
        return JudgeAnswer(
            penalty_1=penalties[0],
            penalty_2=penalties[1],
            issues=f"First: {_in_words(first)}. Second: {_in_words(second)}.",
        )

    def measure(self, prompt: bytes, preview: bytes) -> Difference | None:
        """How a preview differs from a prompt picture; None when it shows nothing."""
        return self.difference(
            self._look("the prompt picture", Picture.of(prompt)), self._look("the preview", Picture.of(preview))
        )

    @staticmethod
    def difference(prompt: Look, candidate: Look) -> Difference | None:
        """The best view's differences; None when no view shows anything."""
        if not len(candidate.vectors):
            return None
        if not len(prompt.vectors):
            return Difference(distance=2.0, look=1.0, colour=1.0, outline=1.0)
        look = 1.0 - candidate.vectors.astype(np.float64) @ prompt.vectors[0].astype(np.float64)
        either = np.maximum(candidate.masks, prompt.masks[0]).astype(np.float64)
        both = np.minimum(candidate.masks, prompt.masks[0]).astype(np.float64)
        area = np.maximum(either.sum(axis=(1, 2)), 1.0)
        apart = np.minimum(np.linalg.norm(candidate.colours - prompt.colours[0], axis=3), 100.0) / 100.0
        colour = (apart * either).sum(axis=(1, 2)) / area
        outline = 1.0 - both.sum(axis=(1, 2)) / area
        views_apart = LOOK * look + COLOUR * colour + OUTLINE * outline
        best = int(views_apart.argmin())
        return Difference(
            distance=float(views_apart[best] + ALL_ROUND * look.mean()),
            look=float(look[best]),
            colour=float(colour[best]),
            outline=float(outline[best]),
        )

    def _look(self, role: str, picture: Picture) -> Look:
        with self._working[int(picture.sha256[:4], 16) % len(self._working)]:
            with self._lock:
                known = self._looks.get(picture.sha256)
                if known is not None:
                    self._looks.move_to_end(picture.sha256)
                    return known
            try:
                seen = self._seen(decode(picture.data))
            except UnreadablePicture as error:
                raise UnreadablePicture(f"{role}: {error}") from error
            with self._lock:
                self._looks[picture.sha256] = seen
                while len(self._looks) > REMEMBERED:
                    self._looks.popitem(last=False)
            return seen

    def _seen(self, picture: RGB) -> Look:
        cuts = [cut for cut in (cut_out(view, CROP_SIDE) for view in views(picture)) if not cut.empty]
        small = [resized(cut.picture, PIXEL_SIDE, PIXEL_SIDE) for cut in cuts]
        step = CROP_SIDE // PIXEL_SIDE
        masks = [cut.mask.reshape(PIXEL_SIDE, step, PIXEL_SIDE, step).mean(axis=(1, 3)) for cut in cuts]
        return Look(
            vectors=self._embedder.embed_pictures([cut.picture for cut in cuts]),
            colours=np.array([lab(view) for view in small], np.float32),
            masks=np.array(masks, np.float32),
        )


def _penalties(first: Difference | None, second: Difference | None) -> tuple[int, int]:
    """Penalties of two candidates; None shows nothing.

    The gap follows the difference of both, wherever on the scale they are: rounding each alone would let equal
    differences decide here and not there.
    """
    if first is None or second is None:
        return tuple(WORST if each is None else min(_base(each), WORST - 2) for each in (first, second))  # type: ignore[return-value]
    gap = min(WORST, round(PER_DIFFERENCE * abs(first.distance - second.distance)))
    better = min(_base(min(first, second, key=lambda each: each.distance)), WORST - gap)
    return (better, better + gap) if first.distance <= second.distance else (better + gap, better)


def _base(difference: Difference) -> int:
    return min(WORST, round(PER_DISTANCE * difference.distance))


def _in_words(difference: Difference | None) -> str:
    if difference is None:
        return "nothing is visible"
    parts = {
        "details": (difference.look, 0.12, 0.3),
        "colours": (difference.colour, 0.1, 0.25),
        "shape": (difference.outline, 0.12, 0.3),
    }
    said = {
        name: "match" if value < small else "differ slightly" if value < large else "differ"
        for name, (value, small, large) in parts.items()
    }
    if len(set(said.values())) == 1:
        return f"details, colours and shape {said['details']}"
    return ", ".join(f"{name} {_singular(verb) if name == 'shape' else verb}" for name, verb in said.items())


def _singular(verb: str) -> str:
    word, _, rest = verb.partition(" ")
    return " ".join(filter(None, ["matches" if word == "match" else "differs", rest]))
