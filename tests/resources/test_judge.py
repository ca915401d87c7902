"""Judges: the embedded one is fair and always the same, the real one survives what servers and models do."""

import asyncio
import io
import logging
import socket
import traceback
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import SecretStr

from gen404_dagster.competition.duels import decide_by_penalties
from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import JudgeUnavailable, OperatorError, Unavailable
from gen404_dagster.resources.embedder import EfficientNetEmbedder
from gen404_dagster.resources.judge import (
    ANSWER_SCHEMA,
    DuelJudgement,
    EmbeddedJudge,
    JudgeAnswer,
    JudgeNonsense,
    OpenAIJudge,
    Picture,
    Question,
    judge_duel,
    make_judge,
)
from gen404_dagster.resources.pictures import UnreadablePicture
from gen404_dagster.settings import Settings
from tests.resources.vlm_server import VisionServer, serving

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
            straight = run(embedded.ask(question(PROMPT, first, second)))
            swapped = run(embedded.ask(question(PROMPT, second, first)))
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
    same, recoloured = run(embedded.ask(question())).issues.split(" Second: ")
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
    assert run(embedded.ask(asked)) == run(fresh.ask(elsewhere))
    assert embedded.identity == fresh.identity == EmbeddedJudge(embedder).identity
    assert embedder.revision in embedded.identity


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
    assert judged[0] == judged[2]
    # The judge is kept between matches, each of which has an event loop of its own.
    assert run(play()) == judged
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


# --- OpenAI-compatible ---

LIKE, UNLIKE = (png(np.full((64, 64, 3), value, np.uint8)) for value in (180, 120))
PLAIN_PROMPT = png(np.full((48, 48, 3), 190, np.uint8))


@pytest.fixture(scope="module")
def running() -> Iterator[VisionServer]:
    with serving(VisionServer(KEY)) as server:
        yield server


@pytest.fixture
def server(running: VisionServer) -> VisionServer:
    running.plan, running.asked, running.shown, running.times = [], [], [], []
    return running


@pytest.fixture
def judge_of(server: VisionServer) -> Callable[..., OpenAIJudge]:
    def make(**options: Any) -> OpenAIJudge:
        given = {"as_urls": False, "timeout_seconds": 5.0, "waits": (0.01, 0.03)} | options
        return OpenAIJudge(given.pop("base_url", server.base_url), given.pop("key", KEY), "tiny-vlm", **given)

    return make


def asked(**urls: str) -> Question:
    return Question(
        Picture.of(PLAIN_PROMPT, urls.get("prompt")),
        Picture.of(LIKE, urls.get("first")),
        Picture.of(UNLIKE, urls.get("second")),
        SEED,
    )


EXPECTED = JudgeAnswer(penalty_1=1, penalty_2=7, issues="First model is paler.")


def test_a_question_carries_three_pictures_schema_temperature_and_seed(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    assert run(judge_of(max_tokens=77).ask(asked())) == EXPECTED
    assert server.shown == [
        [("data:image/png;", (48, 48)), ("data:image/png;", (64, 64)), ("data:image/png;", (64, 64))]
    ]
    body = server.asked[0]
    assert {name: body[name] for name in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "tiny-vlm",
        "temperature": 0.0,
        "seed": SEED,
        "max_tokens": 77,
    }
    form = body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["strict"] is True
    assert form["json_schema"]["schema"] == ANSWER_SCHEMA
    assert form["json_schema"]["schema"]["properties"]["penalty_2"] == {"type": "integer", "minimum": 0, "maximum": 10}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_pictures_go_as_urls_where_they_have_one(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.pictures = {"p.png": PLAIN_PROMPT, "l.png": LIKE}
    question = asked(prompt=f"{server.root}/pictures/p.png", first=f"{server.root}/pictures/l.png")
    assert run(judge_of(as_urls=True).ask(question)) == EXPECTED
    assert [kind for kind, _ in server.shown[0]] == ["url", "url", "data:image/png;"]
    assert run(judge_of(as_urls=False).ask(question)) == EXPECTED
    assert {kind for kind, _ in server.shown[1]} == {"data:image/png;"}


def test_webp_prompts_are_sent_as_png_and_jpeg_as_jpeg(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    for kind, sent in (("WEBP", "data:image/png;"), ("JPEG", "data:image/jpeg")):
        buffer = io.BytesIO()
        Image.new("RGB", (48, 48), (190, 190, 190)).save(buffer, kind)
        prompt = Picture.of(buffer.getvalue())
        run(judge_of().ask(Question(prompt, Picture.of(LIKE), Picture.of(UNLIKE), 1)))
        assert server.shown[-1][0] == (sent, (48, 48))


def test_a_duel_asks_both_orders_and_averages_per_side(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    judged = duel(judge_of(), LIKE, UNLIKE, PLAIN_PROMPT)
    assert (judged.left_penalty, judged.right_penalty) == (1.0, 7.0)
    assert [(a.penalty_1, a.penalty_2) for a in judged.answers] == [(1, 7), (7, 1)]
    first, second = (
        [part["image_url"]["url"] for part in body["messages"][1]["content"][3:6:2]] for body in server.asked
    )
    assert first == second[::-1]


@pytest.mark.parametrize("wrapping", ["fenced", "thinking"])
def test_wrapped_answers_are_read(server: VisionServer, judge_of: Callable[..., OpenAIJudge], wrapping: str) -> None:
    server.plan = [wrapping]
    assert run(judge_of().ask(asked())) == EXPECTED
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("outside", "out of bounds: penalty_2"),
        ("fraction", "out of bounds: penalty_2"),
        ("true", "out of bounds: penalty_2"),
        ("partial", "out of bounds: penalty_2"),
        ("prose", "no JSON object: 'The first one is nicer. Much nicer.'"),
        ("deep", "not JSON"),
        ("empty", "empty"),
        ("endless", "thoughts have no end"),
        ("cut", "cut off"),
        ("filtered", "refused"),
        ("refusal", "refused"),
    ],
)
def test_nonsense_is_asked_again_once_and_then_told_from_silence(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], wrong: str, said: str
) -> None:
    server.plan = [wrong, "good"]
    assert run(judge_of().ask(asked())) == EXPECTED
    server.plan = [wrong, wrong]
    with pytest.raises(JudgeNonsense, match=said) as nonsense:
        run(judge_of().ask(asked()))
    assert not isinstance(nonsense.value, Unavailable)
    assert len(server.asked) == 4


def test_long_issues_are_cut_and_made_printable(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["long"]
    issues = run(judge_of().ask(asked())).issues
    assert issues.startswith("bad [31mxxx")
    assert len(issues) == 1000


@pytest.mark.parametrize("trouble", ["status 500", "status 503", "status 429", "page", "broken", "error"])
def test_a_server_in_trouble_is_asked_three_times(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], trouble: str
) -> None:
    server.plan = [trouble, trouble]
    assert run(judge_of().ask(asked())) == EXPECTED
    assert len(server.asked) == 3
    server.plan = [trouble] * 3
    with pytest.raises(JudgeUnavailable, match=r"tiny-vlm at http://127.*3 tries"):
        run(judge_of().ask(asked()))
    assert len(server.asked) == 6


def test_retry_after_is_respected_and_bounded(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["busy 0.4"]
    assert run(judge_of(waits=(0.0, 0.0)).ask(asked())) == EXPECTED
    assert 0.4 <= server.times[1] - server.times[0] < 3
    server.plan = ["busy 86400"]
    assert run(judge_of(longest_wait=0.2).ask(asked())) == EXPECTED
    assert 0.2 <= server.times[3] - server.times[2] < 3
    server.plan = ["busy Wed, 21 Oct 2099 07:28:00 GMT", "busy soon", "good"]
    assert run(judge_of(longest_wait=0.2).ask(asked())) == EXPECTED
    assert 0.2 <= server.times[5] - server.times[4] < 3


def test_waits_grow_between_tries(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["status 502", "status 502"]
    run(judge_of(waits=(0.2, 0.6)).ask(asked()))
    first, second = np.diff(server.times)
    assert 0.18 <= first < second
    assert second >= 0.54


def test_a_hanging_server_is_left_after_the_timeout(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["hang 2", "good"]
    assert run(judge_of(timeout_seconds=0.5).ask(asked())) == EXPECTED
    server.plan = ["hang 2"] * 3
    with pytest.raises(JudgeUnavailable, match=r"no answer within 0\.3 s \(3 tries\)"):
        run(judge_of(timeout_seconds=0.3).ask(asked()))


def test_a_refused_connection_is_an_unavailable_judge(judge_of: Callable[..., OpenAIJudge]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(JudgeUnavailable, match="no connection"):
            run(judge_of(base_url=address).ask(asked()))


@pytest.mark.parametrize(("status", "hint"), [(400, "takes pictures"), (403, "OPENAI_API_KEY"), (404, "JUDGE_MODEL")])
def test_a_refused_question_is_the_operators_to_mend_and_not_repeated(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], status: int, hint: str
) -> None:
    server.plan = [f"status {status}"]
    with pytest.raises(OperatorError, match=f"HTTP {status}.*{hint}"):
        run(judge_of().ask(asked()))
    assert len(server.asked) == 1


def test_the_key_is_in_no_error_no_log_and_not_in_the_identity(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = "sk-another-secret"
    server.plan = ["status 500"] * 3
    texts = []
    for judge, error in ((judge_of(key=wrong), OperatorError), (judge_of(), JudgeUnavailable)):
        with pytest.raises(error) as caught:
            run(judge.ask(asked()))
        texts += ["".join(traceback.format_exception(caught.value)), repr(caught.value), judge.identity]
    said = "\n".join([*texts, caplog.text])
    assert "HTTP 401" in said
    assert "HTTP 500" in said
    for key in (wrong, KEY):
        assert key not in said


def test_one_failing_question_ends_the_duel_and_the_other_question(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.plan = ["hang 3", "status 404"]
    with pytest.raises(OperatorError):
        duel(judge_of(), LIKE, UNLIKE, PLAIN_PROMPT)


# --- choice ---


def settings(**values: object) -> Settings:
    given = {"judge": "openai", "openai_base_url": "http://vlm.test:8000/v1/", "openai_api_key": SecretStr(KEY)}
    return Settings(**(given | values))  # type: ignore[arg-type]


def test_settings_choose_the_judge(embedder: EfficientNetEmbedder) -> None:
    assert isinstance(make_judge(Settings(judge="embedded"), embedder), EmbeddedJudge)
    judge = make_judge(settings(judge_model="m"), embedder)
    assert judge.identity == "openai/m/prompt-1/http://vlm.test:8000/v1"


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
    address = run(judge._address(Picture.of(LIKE, "https://cdn.test/x.png")))  # type: ignore[attr-defined]
    assert (address == "https://cdn.test/x.png") is as_urls


@pytest.mark.parametrize(
    "address", ["", "vlm.test", "ftp://vlm.test", "http://user:word@vlm.test/v1", "http://a/v1?k=1"]
)
def test_an_unusable_address_is_refused_by_name(embedder: EfficientNetEmbedder, address: str) -> None:
    with pytest.raises(OperatorError, match="OPENAI_BASE_URL") as refused:
        make_judge(settings(openai_base_url=address), embedder)
    assert "word" not in str(refused.value)
