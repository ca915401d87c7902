"""Judges: the embedded one is fair and always the same, the real one survives what servers and models do."""

import asyncio
import io
from collections.abc import Coroutine
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import SecretStr

from gen404_dagster.competition.duels import decide_by_penalties
from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.embedder import EfficientNetEmbedder
from gen404_dagster.resources.judge import (
    DuelJudgement,
    EmbeddedJudge,
    JudgeAnswer,
    OpenAIJudge,
    Picture,
    Question,
    judge_duel,
    make_judge,
)
from gen404_dagster.resources.pictures import UnreadablePicture
from gen404_dagster.settings import Settings

T = TypeVar("T")
SEED = 2**32 - 1
KEY = "sk-nobody-must-read-this"


def run(awaitable: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(awaitable)


def png(values: np.ndarray | Image.Image) -> bytes:
    buffer = io.BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def view(size: int, colour: tuple[int, int, int], height: float = 0.5, turn: float = 0.0) -> Image.Image:
    """A lamp: a foot, a pole, a shade. `turn` moves its cord."""
    picture = Image.new("RGB", (size, size), "white")
    draw, s = ImageDraw.Draw(picture), size
    top = 0.8 * s - height * s
    draw.rectangle((0.48 * s, top, 0.52 * s, 0.8 * s), fill=(60, 60, 60))
    draw.ellipse((0.35 * s, 0.76 * s, 0.65 * s, 0.84 * s), fill=(90, 70, 40))
    draw.polygon([(0.3 * s, top + 0.15 * s), (0.7 * s, top + 0.15 * s), (0.6 * s, top), (0.4 * s, top)], fill=colour)
    x = (0.5 + 0.1 * np.cos(turn)) * s
    draw.line((x, top + 0.15 * s, x, top + 0.25 * s), fill=(200, 30, 30), width=max(2, size // 100))
    return picture


def preview(colour: tuple[int, int, int] = (240, 180, 40), height: float = 0.5) -> bytes:
    grid = Image.new("RGB", (1041, 1041), "black")
    for number in range(4):
        grid.paste(view(518, colour, height, 0.4 + 1.6 * number), (523 * (number % 2), 523 * (number // 2)))
    return png(grid)


PROMPT = png(view(512, (240, 180, 40), turn=0.4))
GOOD, PALE, OTHER = preview(), preview((60, 90, 230)), preview((60, 90, 230), height=0.15)
BLANK_GRID = np.full((1041, 1041, 3), 255, np.uint8)
BLANK_GRID[518:523] = BLANK_GRID[:, 518:523] = 0
BLANK = png(BLANK_GRID)


def duel(judge: Any, left: bytes, right: bytes, prompt: bytes = PROMPT) -> DuelJudgement:
    return run(judge_duel(judge, Picture.of(prompt), Picture.of(left), Picture.of(right), SEED))


def answer(judge: Any, question: Question) -> JudgeAnswer:
    reply = run(judge.ask(question))
    assert reply.answer is not None
    return reply.answer


def question(prompt: bytes = PROMPT, first: bytes = GOOD, second: bytes = PALE) -> Question:
    return Question(Picture.of(prompt), Picture.of(first), Picture.of(second), SEED)


# --- embedded ---


@pytest.fixture(scope="module")
def embedder() -> EfficientNetEmbedder:
    return EfficientNetEmbedder()


@pytest.fixture(scope="module")
def embedded(embedder: EfficientNetEmbedder) -> EmbeddedJudge:
    return EmbeddedJudge(embedder)


def test_the_better_model_wins_on_either_side_with_the_same_penalties(embedded: EmbeddedJudge) -> None:
    one, other = duel(embedded, GOOD, OTHER), duel(embedded, OTHER, GOOD)
    assert one.left_penalty + 2 <= one.right_penalty
    assert (one.left_penalty, one.right_penalty) == (other.right_penalty, other.left_penalty)


def test_a_question_with_sides_swapped_gets_the_swapped_answer(embedded: EmbeddedJudge) -> None:
    for first in (GOOD, PALE, OTHER, BLANK):
        for second in (GOOD, PALE, OTHER, BLANK):
            straight = answer(embedded, question(PROMPT, first, second))
            swapped = answer(embedded, question(PROMPT, second, first))
            assert (straight.penalty_1, straight.penalty_2) == (swapped.penalty_2, swapped.penalty_1)


def test_identical_and_indistinguishable_models_draw(embedded: EmbeddedJudge) -> None:
    almost = preview((238, 181, 42), height=0.502)
    for other in (GOOD, almost):
        judged = duel(embedded, GOOD, other)
        assert decide_by_penalties(judged.left_penalty, judged.right_penalty, Limits()) == "draw"


@pytest.mark.parametrize("other", [GOOD, OTHER], ids=["good", "poor"])
def test_a_blank_preview_gets_the_full_penalty_and_loses(embedded: EmbeddedJudge, other: bytes) -> None:
    judged = duel(embedded, BLANK, other)
    assert judged.left_penalty == 10
    assert judged.right_penalty <= 8
    assert judged.issues.startswith("First: nothing is visible.")


def test_two_blank_previews_draw(embedded: EmbeddedJudge) -> None:
    judged = duel(embedded, BLANK, BLANK)
    assert (judged.left_penalty, judged.right_penalty) == (10, 10)


def test_issues_say_what_differs(embedded: EmbeddedJudge) -> None:
    same, recoloured = answer(embedded, question()).issues.split(" Second: ")
    assert same == "First: details, colours and shape match."
    assert "colours differ" in recoloured
    assert "shape matches" in recoloured


def test_answers_are_the_same_for_everyone_who_has_the_pictures(
    embedded: EmbeddedJudge, embedder: EfficientNetEmbedder
) -> None:
    fresh = EmbeddedJudge(EfficientNetEmbedder())
    asked = question(PROMPT, PALE, OTHER)
    elsewhere = Question(
        Picture.of(PROMPT, "http://127.0.0.1:9/p.png"), Picture.of(PALE, "http://127.0.0.1:9/l.png"), asked.second, 1
    )
    assert answer(embedded, asked) == answer(fresh, elsewhere)
    assert embedded.identity == fresh.identity == EmbeddedJudge(embedder).identity
    assert embedder.model.revision in embedded.identity


def test_many_duels_at_once_look_at_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    class Counting(EfficientNetEmbedder):
        def embed_pictures(self, pictures: Any) -> Any:
            looked.append(len(pictures))
            return super().embed_pictures(pictures)

    judge = EmbeddedJudge(Counting())

    async def play() -> list[DuelJudgement]:
        asked = [
            judge_duel(judge, Picture.of(PROMPT), Picture.of(GOOD), Picture.of(other), SEED)
            for other in (PALE, OTHER) * 4
        ]
        return await asyncio.gather(*asked)

    judged = run(play())
    assert sorted(looked) == [1, 4, 4, 4]
    assert judged[0].answers == judged[2].answers
    # The judge is kept between matches, each of which has an event loop of its own.
    assert [each.answers for each in run(play())] == [each.answers for each in judged]
    assert sorted(looked) == [1, 4, 4, 4]


@pytest.mark.parametrize(("place", "role"), [(0, "prompt picture"), (1, "first preview"), (2, "second preview")])
def test_bytes_that_are_no_picture_are_named(embedded: EmbeddedJudge, place: int, role: str) -> None:
    pictures = [PROMPT, GOOD, PALE]
    pictures[place] = b"glTF"
    with pytest.raises(UnreadablePicture, match=f"the {role}: not a picture"):
        run(embedded.ask(question(*pictures)))


def test_a_prompt_on_a_studio_background_judges_like_one_on_white(embedded: EmbeddedJudge) -> None:
    lamp = np.asarray(view(512, (240, 180, 40), turn=0.4)).astype(float)
    shade = np.repeat((np.linspace(120, 215, 512)[:, None] + np.linspace(-15, 15, 512))[..., None], 3, axis=2)
    photo = png(np.where((lamp == 255).all(axis=2, keepdims=True), shade, lamp).astype(np.uint8))
    assert duel(embedded, GOOD, OTHER, photo).left_penalty + 2 <= duel(embedded, GOOD, OTHER, photo).right_penalty
    assert duel(embedded, BLANK, GOOD, photo).right_penalty <= 4


def test_skill_decides_duels_of_the_embedded_world(embedded: EmbeddedJudge) -> None:
    """A slice of docs/calibration.md: clear differences win, equal skill with other noise draws."""
    from gen404_dagster.simulation.making import make_model
    from gen404_dagster.simulation.prompts import draw_object
    from gpu_kernels import encode_png, render_preview

    def made(stem: int, skill: float, miner: str) -> bytes:
        return encode_png(render_preview(make_model(3, miner, skill, 11, str(stem), "submitted", index=stem).glb()))

    for stem in range(3):
        prompt = draw_object(3, stem)
        best, weaker, base = (made(stem, skill, "a") for skill in (0.92, 0.62, 0.35))
        for left, right, expected in (
            (weaker, best, "right"),
            (base, weaker, "right"),
            (best, base, "left"),
            (best, made(stem, 0.92, "b"), "draw"),
        ):
            judged = duel(embedded, left, right, prompt)
            assert decide_by_penalties(judged.left_penalty, judged.right_penalty, Limits()) == expected, judged


# --- choice ---


def settings(**values: object) -> Settings:
    given = {"judge": "openai", "openai_base_url": "http://vlm.test:8000/v1/", "openai_api_key": SecretStr(KEY)}
    return Settings(**(given | values))  # type: ignore[arg-type]


def test_settings_choose_the_judge(embedder: EfficientNetEmbedder) -> None:
    assert isinstance(make_judge(Settings(judge="embedded"), embedder), EmbeddedJudge)
    judge = make_judge(settings(judge_model="m"), embedder)
    assert judge.identity == "openai/m/prompt-1/1024-tokens"


@pytest.mark.parametrize(
    ("images", "cdn_url", "as_urls"),
    [
        ("auto", "", False),
        ("auto", "http://127.0.0.1:8404/store", False),
        ("auto", "http://[::1]/store", False),
        ("auto", "http://localhost:1", False),
        ("auto", "https://cdn.test/x", True),
        ("url", "http://127.0.0.1:1", True),
        ("data", "https://cdn.test/x", False),
    ],
)
def test_pictures_go_as_data_when_only_this_machine_can_read_them(
    embedder: EfficientNetEmbedder, images: str, cdn_url: str, as_urls: bool
) -> None:
    judge = make_judge(settings(judge_images=images, cdn_url=cdn_url), embedder)
    address = run(judge._address(Picture.of(GOOD, "https://cdn.test/x.png")))  # type: ignore[attr-defined]
    assert (address == "https://cdn.test/x.png") is as_urls


@pytest.mark.parametrize(
    "address",
    [
        "",
        "vlm.test",
        "ftp://vlm.test",
        "http://user:word@vlm.test/v1",
        "http://a/v1?k=1",
        "http://[::1/v1",
        "http://a:70000/v1",
        "http://a:port/v1",
        "http://a/\x01v1",
    ],
)
def test_an_unusable_address_is_refused_by_name(embedder: EfficientNetEmbedder, address: str) -> None:
    with pytest.raises(OperatorError, match="OPENAI_BASE_URL") as refused:
        make_judge(settings(openai_base_url=address), embedder)
    assert "word" not in str(refused.value)


@pytest.mark.parametrize("key", ["sk-word\nsk-other", "sk-w\x00rd", "sk-wörd"])
def test_a_key_that_no_header_carries_is_refused_unseen(embedder: EfficientNetEmbedder, key: str) -> None:
    with pytest.raises(OperatorError, match="OPENAI_API_KEY holds a line break") as refused:
        make_judge(settings(openai_api_key=SecretStr(key)), embedder)
    assert "sk-" not in str(refused.value)


def test_a_key_is_sent_as_it_is(embedder: EfficientNetEmbedder) -> None:
    judge = make_judge(settings(openai_api_key=SecretStr(" YWJjZGVm/w/ ")), embedder)
    assert isinstance(judge, OpenAIJudge)
    assert judge._client("http://vlm.test:8000/v1").api_key == "YWJjZGVm/w/"


def test_several_endpoints_share_a_key_or_have_one_each(embedder: EfficientNetEmbedder) -> None:
    two = "http://a.test/v1, http://b.test/v1/"
    for keys in ("one", "one,two"):
        judge = make_judge(settings(openai_base_url=two, openai_api_key=SecretStr(keys)), embedder)
        assert isinstance(judge, OpenAIJudge)
        assert judge.endpoints == ("http://a.test/v1", "http://b.test/v1")
        assert judge.at_once == 32
    with pytest.raises(OperatorError, match="OPENAI_API_KEY holds 3 keys for 2 addresses"):
        make_judge(settings(openai_base_url=two, openai_api_key=SecretStr("x,y,z")), embedder)
    with pytest.raises(OperatorError, match="twice"):
        make_judge(settings(openai_base_url="http://a.test/v1,http://a.test/v1/"), embedder)
    with pytest.raises(OperatorError, match="credentials"):
        make_judge(settings(openai_base_url="http://a.test/v1,http://k:v@b.test/v1"), embedder)
