"""The OpenAI-compatible judge against a server that decodes what it is sent, and does everything wrong that it can."""

import asyncio
import io
import logging
import socket
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from gen404_dagster.errors import JudgeUnavailable, OperatorError
from gen404_dagster.resources.judge import (
    ANSWER_SCHEMA,
    DuelJudgement,
    JudgeAnswer,
    OpenAIJudge,
    Picture,
    Question,
    Reply,
    judge_duel,
)
from gen404_dagster.resources.judge.endpoints import Endpoints
from tests.resources.vlm_server import VisionServer, serving

T = TypeVar("T")
SEED = 2**32 - 1
KEY = "sk-nobody-must-read-this"


def run(awaitable: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(awaitable)


def png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def ask(judge: OpenAIJudge, *questions: Question) -> list[Reply]:
    """Replies to questions that are asked at once."""

    async def all_of_them() -> list[Reply]:
        async with judge:
            return await asyncio.gather(*map(judge.ask, questions))

    return run(all_of_them())


def answer(judge: OpenAIJudge, question: Question) -> JudgeAnswer | None:
    return ask(judge, question)[0].answer


def duel(judge: OpenAIJudge, left: bytes, right: bytes, prompt: bytes) -> DuelJudgement:
    async def judged() -> DuelJudgement:
        async with judge:
            return await judge_duel(judge, Picture.of(prompt), Picture.of(left), Picture.of(right), SEED)

    return run(judged())


LIKE, UNLIKE = (png(np.full((64, 64, 3), value, np.uint8)) for value in (180, 120))
PLAIN_PROMPT = png(np.full((48, 48, 3), 190, np.uint8))


@pytest.fixture(scope="module")
def running() -> Iterator[VisionServer]:
    with serving(VisionServer(KEY)) as server:
        yield server


@pytest.fixture
def server(running: VisionServer) -> VisionServer:
    running.reset()
    return running


@pytest.fixture
def judge_of(server: VisionServer) -> Callable[..., OpenAIJudge]:
    def make(**options: Any) -> OpenAIJudge:
        given = {"as_urls": False, "timeout_seconds": 30.0, "waits": (0.01, 0.03)} | options
        urls = given.pop("base_urls", [server.base_url])
        return OpenAIJudge(urls, [given.pop("key", KEY)] * len(urls), "tiny-vlm", **given)

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
    assert answer(judge_of(max_tokens=77), asked()) == EXPECTED
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
    assert answer(judge_of(as_urls=True), question) == EXPECTED
    assert [kind for kind, _ in server.shown[0]] == ["url", "url", "data:image/png;"]
    assert answer(judge_of(as_urls=False), question) == EXPECTED
    assert {kind for kind, _ in server.shown[1]} == {"data:image/png;"}


def test_webp_prompts_are_sent_as_png_and_jpeg_as_jpeg(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    for kind, sent in (("WEBP", "data:image/png;"), ("JPEG", "data:image/jpeg")):
        buffer = io.BytesIO()
        Image.new("RGB", (48, 48), (190, 190, 190)).save(buffer, kind)
        prompt = Picture.of(buffer.getvalue())
        answer(judge_of(), Question(prompt, Picture.of(LIKE), Picture.of(UNLIKE), 1))
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
    assert answer(judge_of(), asked()) == EXPECTED
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("outside", "out of bounds: penalty_2"),
        ("fraction", "out of bounds: penalty_2"),
        ("true", "out of bounds: penalty_2"),
        ("negative", "out of bounds: penalty_2"),
        ("words", "out of bounds: penalty_2"),
        ("nan", "out of bounds: penalty_1"),
        ("null", "out of bounds: issues"),
        ("list", "no JSON object"),
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
    assert answer(judge_of(), asked()) == EXPECTED
    server.plan = [wrong, wrong]
    (reply,) = ask(judge_of(), asked())
    assert reply.answer is None
    assert said in reply.fault
    assert (len(reply.raw), reply.calls, reply.completion_tokens) == (2, 2, 40)
    assert len(server.asked) == 4


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_question_blocked_for_its_pictures_is_refused_and_no_outage(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], code: str
) -> None:
    server.plan = [f"blocked {code}", "good"]
    assert answer(judge_of(), asked()) == EXPECTED
    server.plan = [f"blocked {code}"] * 2
    (reply,) = ask(judge_of(), asked())
    assert (reply.answer, reply.fault, reply.calls) == (None, "tiny-vlm: it refused to answer", 2)


def test_long_issues_are_cut_and_made_printable(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["long"]
    issues = answer(judge_of(), asked()).issues
    assert issues.startswith("bad [31mxxx")
    assert len(issues) == 1000


@pytest.mark.parametrize(
    "trouble",
    [
        "status 500",
        "status 503",
        "status 408",
        "status 429",
        "page",
        "broken",
        "abyss",
        "error",
        "reset",
        "half",
        "trickle 3",
    ],
)
def test_a_server_in_trouble_is_asked_three_times(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], trouble: str
) -> None:
    patience = {"timeout_seconds": 1.0} if trouble.startswith("trickle") else {}
    server.plan = [trouble, trouble]
    (reply,) = ask(judge_of(**patience), asked())
    assert (reply.answer, reply.calls) == (EXPECTED, 3)
    assert len(server.asked) == 3
    server.plan = [trouble] * 3
    with pytest.raises(JudgeUnavailable, match=r"tiny-vlm at http://127.*3 tries"):
        answer(judge_of(**patience), asked())
    assert len(server.asked) == 6


def test_retry_after_is_respected_and_bounded(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["busy 0.4"]
    assert answer(judge_of(waits=(0.0, 0.0)), asked()) == EXPECTED
    assert server.times[1] - server.times[0] >= 0.4
    server.plan = ["busy 86400"]
    assert answer(judge_of(longest_wait=0.2), asked()) == EXPECTED
    assert 0.2 <= server.times[3] - server.times[2] < 60
    server.plan = ["busy Wed, 21 Oct 2099 07:28:00 GMT", "busy soon", "good"]
    assert answer(judge_of(longest_wait=0.2), asked()) == EXPECTED
    assert 0.2 <= server.times[5] - server.times[4] < 60


def test_a_short_retry_after_does_not_use_up_the_tries_in_a_moment(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.plan = ["busy 0", "busy 0.01"]
    assert answer(judge_of(waits=(0.3, 0.6)), asked()) == EXPECTED
    first, second = np.diff(server.times)
    assert first >= 0.27
    assert second >= 0.54


def test_waits_grow_between_tries(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["status 502", "status 502"]
    answer(judge_of(waits=(0.1, 1.2)), asked())
    first, second = np.diff(server.times)
    assert 0.09 <= first < second
    assert second >= 1.08


def test_a_hanging_server_is_left_after_the_timeout(server: VisionServer, judge_of: Callable[..., OpenAIJudge]) -> None:
    server.plan = ["hang 20", "good"]
    assert answer(judge_of(timeout_seconds=1.0), asked()) == EXPECTED
    server.plan = ["hang 20"] * 3
    with pytest.raises(JudgeUnavailable, match=r"no answer within 0\.3 s \(3 tries\)"):
        answer(judge_of(timeout_seconds=0.3), asked())


def test_a_refused_connection_is_an_unavailable_judge(judge_of: Callable[..., OpenAIJudge]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(JudgeUnavailable, match="no connection"):
            answer(judge_of(base_urls=[address]), asked())


@pytest.mark.parametrize(("status", "hint"), [(400, "takes pictures"), (403, "OPENAI_API_KEY"), (404, "JUDGE_MODEL")])
def test_a_refused_question_is_the_operators_to_mend_and_not_repeated(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], status: int, hint: str
) -> None:
    server.plan = [f"status {status}"]
    with pytest.raises(OperatorError, match=f"HTTP {status}.*{hint}"):
        answer(judge_of(), asked())
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
            answer(judge, asked())
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


def test_a_reply_says_what_was_said_what_it_took_and_who_answered(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.seconds = 0.1
    server.plan = ["status 500", "prose"]
    (reply,) = ask(judge_of(), asked())
    assert reply.answer == EXPECTED
    assert reply.raw[0] == "The first one is nicer.\nMuch nicer."
    assert '"penalty_2": 7' in reply.raw[1]
    assert (reply.prompt_tokens, reply.completion_tokens, reply.calls) == (2000, 40, 3)
    assert reply.endpoint == server.base_url
    assert 0.2 <= reply.seconds < 30


def test_a_judge_is_asked_inside_of_its_session_and_may_be_entered_again(
    judge_of: Callable[..., OpenAIJudge],
) -> None:
    judge = judge_of()
    assert answer(judge, asked()) == answer(judge, asked()) == EXPECTED
    with pytest.raises(RuntimeError, match="outside"):
        run(judge.ask(asked()))


# --- load and health ---


def many(count: int) -> list[Question]:
    return [Question(asked().prompt, asked().first, asked().second, SEED, repeat) for repeat in range(count)]


@pytest.fixture(scope="module")
def other_running() -> Iterator[VisionServer]:
    with serving(VisionServer(KEY)) as server:
        yield server


@pytest.fixture
def other(other_running: VisionServer) -> VisionServer:
    other_running.reset()
    return other_running


@pytest.fixture
def refused_address() -> Iterator[Callable[[], str]]:
    """Addresses at which nobody listens, nor can before the test ends."""
    with ExitStack() as stack:

        def take() -> str:
            taken = stack.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        yield take


def test_questions_keep_their_connections_and_their_limit(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.seconds = 0.4
    ask(judge_of(concurrency=4), *many(12))
    assert server.peak == 4
    assert len(server.clients) == 4


def test_the_least_busy_endpoint_is_asked(
    server: VisionServer, other: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.seconds, other.seconds = 2.0, 0.1
    replies = ask(judge_of(base_urls=[server.base_url, other.base_url], concurrency=3), *many(30))
    assert (server.peak, other.peak) == (3, 3)
    assert len(other.asked) > 2 * len(server.asked) > 0
    assert {reply.endpoint for reply in replies} == {server.base_url, other.base_url}


def test_a_dead_endpoint_costs_no_wait_while_another_answers(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge], refused_address: Callable[[], str]
) -> None:
    judge = judge_of(base_urls=[refused_address(), server.base_url], waits=(5.0, 5.0), concurrency=4)
    replies = ask(judge, *many(20))
    assert all(reply.answer == EXPECTED for reply in replies)
    assert sum(reply.calls for reply in replies) <= 20 + 8  # it is rested after what was under way


def test_a_sick_endpoint_is_probed_again_and_used_when_it_is_well(
    server: VisionServer, other: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.plan = ["status 500"] * 3
    server.seconds = other.seconds = 0.02
    judge = judge_of(base_urls=[server.base_url, other.base_url], waits=(0.2, 0.4), concurrency=2)
    replies = ask(judge, *many(60))
    assert all(reply.answer == EXPECTED for reply in replies)
    assert len(server.asked) > 10
    pauses = np.diff(server.times)
    assert pauses.max() >= 0.15


def test_when_every_endpoint_stays_down_the_judge_is_unavailable_for_all(
    judge_of: Callable[..., OpenAIJudge], refused_address: Callable[[], str]
) -> None:
    dead = [refused_address(), refused_address()]
    with pytest.raises(JudgeUnavailable, match="no connection") as caught:
        ask(judge_of(base_urls=dead, concurrency=8), *many(40))
    assert KEY not in str(caught.value)


def test_a_429_halves_the_limit_and_answers_restore_it(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    """A server that takes 4 at once is asked by a judge that began with 16: nothing fails, and it stays busy."""
    server.most, server.seconds = 4, 0.02
    replies = ask(judge_of(concurrency=16, waits=(0.05, 0.1)), *many(120))
    assert all(reply.answer == EXPECTED for reply in replies)
    refused = len(server.times) - len(server.asked)
    assert 12 <= refused < 80
    assert server.peak == 4


def test_a_limit_halves_once_a_burst_and_grows_by_one_a_round() -> None:
    async def story() -> list[float]:
        endpoints = Endpoints(["http://a"], 16, (1.0,), 1.0)
        (one,) = endpoints.all
        leases = [await endpoints.take() for _ in range(16)]
        for lease in leases:
            endpoints.throttled(lease, None)
            endpoints.give_back(lease)
        limits = [one.limit]
        for _ in range(8):  # a round of answers at the limit of 8
            lease = await endpoints.take()
            endpoints.answered(lease)
            endpoints.give_back(lease)
        limits.append(one.limit)
        for _ in range(1000):
            lease = await endpoints.take()
            endpoints.answered(lease)
            endpoints.give_back(lease)
        return [*limits, one.limit]

    halved, grown, restored = run(story())
    assert halved == 8.0
    assert 8.9 <= grown <= 9.1
    assert restored == 16.0


def test_a_busy_server_that_never_answers_is_unavailable(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.most = 0
    with pytest.raises(JudgeUnavailable, match="HTTP 429"):
        ask(judge_of(), *many(8))


def test_a_question_that_is_given_up_leaves_its_place(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    async def story() -> Reply:
        async with judge_of(concurrency=1) as judge:
            server.plan = ["hang 30"]
            first = asyncio.create_task(judge.ask(many(1)[0]))
            second = asyncio.create_task(judge.ask(many(2)[1]))
            while not server.asked:  # noqa: ASYNC110 - the server has a thread of its own
                await asyncio.sleep(0.02)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return await second

    assert run(asyncio.wait_for(story(), 20)).answer == EXPECTED


def test_a_loading_server_is_asked_again_when_it_says(
    server: VisionServer, judge_of: Callable[..., OpenAIJudge]
) -> None:
    server.plan = ["later 0.3"]
    assert answer(judge_of(waits=(0.0, 0.0)), asked()) == EXPECTED
    assert server.times[1] - server.times[0] >= 0.3
