"""The judge's client against a real server: llama.cpp with a tiny vision model of random weights (`make test-vlm`).

The model knows nothing; its penalties mean nothing. What counts is the protocol: pictures in, a strict schema out,
errors as a real server words them, a server that dies. With OPENAI_BASE_URL (OPENAI_API_KEY, GEN404_JUDGE_MODEL) the
match is judged by that server instead; the other tests need one of their own.
"""

import asyncio
import functools
import http.server
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import GenerationResult
from gen404_dagster.errors import JudgeUnavailable, OperatorError
from gen404_dagster.resources.embedder import EfficientNetEmbedder
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import Judge, JudgeAnswer, OpenAIJudge, Picture, Question, Reply, make_judge
from gen404_dagster.resources.judge.answers import ANSWER_SCHEMA
from gen404_dagster.resources.judge.kept import NAMESPACE, KeptJudge
from gen404_dagster.resources.judge.match import Played, Player, Table
from gen404_dagster.resources.object_store import LocalObjectStore
from gen404_dagster.settings import Settings
from gen404_dagster.simulation.objects import imitation
from gen404_dagster.simulation.prompts import draw_object
from gpu_kernels import encode_png, render_preview
from tests.vlm.llama_server import KEY, MODEL, SOURCE, LlamaServer, program, running, write_model

pytestmark = [pytest.mark.vlm, pytest.mark.timeout(300)]

BASE = "http://store.test"
DUELS, SEED = 5, 2**32 - 1
SKILLS = {"left": 0.6, "right": 0.9}
QUESTIONS = 2 * DUELS


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """What a round shows the judge, drawn as a round draws it: prompts, and two miners' previews of each."""
    drawn = {f"prompt/{n:03}.png": draw_object(SEED, n) for n in range(DUELS)}
    for side, skill in SKILLS.items():
        for n in range(DUELS):
            drawn[f"{side}/{n:03}.png"] = encode_png(render_preview(imitation(SEED, n, skill).glb()))
    return drawn


def filled(folder: Path, pictures: dict[str, bytes]) -> LocalObjectStore:
    store = LocalObjectStore(folder, BASE)
    for name, data in pictures.items():
        store.put(name, data, "image/png")
    return store


@pytest.fixture
def store(tmp_path: Path, pictures: dict[str, bytes]) -> LocalObjectStore:
    return filled(tmp_path / "store", pictures)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LlamaServer]]:
    """Starts servers, which end with the module."""
    if program() is None or not SOURCE.is_dir():
        pytest.skip("needs llama-server: make test-vlm")
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder)
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(folder, folder / "server.log", **options))


@pytest.fixture(scope="module")
def server(start: Callable[..., LlamaServer]) -> LlamaServer:
    return start()


def judge_at(*servers: LlamaServer, **options: Any) -> OpenAIJudge:
    given = {"as_urls": False, "concurrency": 2, "timeout_seconds": 60.0, "max_tokens": 256, "waits": (0.05, 0.1)}
    model, key = options.pop("model", MODEL), options.pop("key", KEY)
    return OpenAIJudge([one.base_url for one in servers], [key] * len(servers), model, **{**given, **options})


class Stored:
    """The pictures of a store, by URL."""

    def __init__(self, store: LocalObjectStore) -> None:
        self._store = store

    async def prompt(self, url: str) -> bytes:
        return self._store.read(url.removeprefix(f"{BASE}/"))

    preview = prompt


def table() -> Table:
    def results(side: str) -> dict[str, GenerationResult]:
        return {f"{n:03}": GenerationResult(glb="g", png=f"{BASE}/{side}/{n:03}.png") for n in range(DUELS)}

    prompts = tuple(f"{BASE}/prompt/{n:03}.png" for n in range(DUELS))
    return Table("leader", "5A", prompts, SEED, 0.05, results("left"), results("right"))


def play(
    judge: Judge, store: LocalObjectStore, journal: Path, on_duel: Callable[[], None] = lambda: None
) -> tuple[Played, KeptJudge]:
    """The match, with answers kept in the journal and the store."""
    with Journal(journal, "repository") as opened:
        kept = KeptJudge(judge, opened, store, 0)

        async def story() -> Played:
            async with kept:
                return await Player(kept, Stored(store), Limits(), on_duel=on_duel).play(table())

        return asyncio.run(story()), kept


def questions(pictures: dict[str, bytes]) -> list[Question]:
    """The questions of the match, each prompt's in both orders."""
    asked = []
    for n in range(DUELS):
        prompt, left, right = (Picture.of(pictures[f"{name}/{n:03}.png"]) for name in ("prompt", *SKILLS))
        asked += [Question(prompt, left, right, SEED), Question(prompt, right, left, SEED)]
    return asked


def ask(judge: OpenAIJudge, *asked: Question) -> list[Reply]:
    async def all_of_them() -> list[Reply]:
        async with judge:
            return await asyncio.gather(*map(judge.ask, asked))

    return asyncio.run(all_of_them())


def strictly(raw: str) -> JudgeAnswer:
    """What a model said word for word, which the schema must have bound: no fences, nothing more, nothing less."""
    said = json.loads(raw)
    assert list(said) == ANSWER_SCHEMA["required"]
    return JudgeAnswer.model_validate(said)


# --- a match ---


def test_a_match_is_judged_and_every_answer_kept(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    store: LocalObjectStore,
    pictures: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """By the server of OPENAI_BASE_URL where it is set. Outcomes are computed anew from what was said, word for word."""
    if not os.environ.get("OPENAI_BASE_URL"):
        server = request.getfixturevalue("server")
        for name, value in {
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": KEY,
            "GEN404_JUDGE_MODEL": MODEL,
        }.items():
            monkeypatch.setenv(name, value)
    judge = make_judge(Settings(judge="openai", judge_images="data"), EfficientNetEmbedder())
    played, kept = play(judge, store, tmp_path / "journal.sqlite")
    took = played.judging
    assert (took.duels, took.questions, took.nonsense, kept.asked) == (DUELS, QUESTIONS, 0, QUESTIONS)
    assert took.prompt_tokens > QUESTIONS * 100
    assert took.completion_tokens >= QUESTIONS * 5
    assert all(seconds > 0 for seconds in took.seconds)

    penalties = []
    with Journal(tmp_path / "journal.sqlite", "repository") as journal:
        for question in questions(pictures):
            key = question.key(judge.identity)
            record = json.loads(store.read(f"{NAMESPACE}/{key[:2]}/{key}.json"))
            assert (record["judge"], record["seed"]) == (judge.identity, SEED)
            assert record["first"] == question.first.sha256
            reply = Reply.model_validate(record["reply"])
            assert journal.get(0, f"{NAMESPACE}/{key}", "") == record["reply"]
            assert reply.endpoint in judge.endpoints
            assert min(reply.prompt_tokens, reply.completion_tokens, reply.seconds) > 0
            said = strictly(reply.raw[-1])
            assert said == reply.answer
            penalties.append((said.penalty_1, said.penalty_2))
    winners = []
    for (left, right), (right_first, left_second) in zip(penalties[::2], penalties[1::2], strict=True):
        difference = (left + left_second) / 2 - (right + right_first) / 2
        winners.append("draw" if abs(difference) <= 1 else "right" if difference > 0 else "left")
    assert played.report
    assert [duel.winner.value for duel in played.report.duels] == winners
    assert played.margin == (winners.count("right") - winners.count("left")) / DUELS

    again, kept = play(judge, store, tmp_path / "journal.sqlite")
    assert (again, kept.asked, kept.remembered) == (played, 0, QUESTIONS)


def test_the_same_question_gets_the_same_answer_and_other_pictures_another(
    server: LlamaServer, pictures: dict[str, bytes]
) -> None:
    asked = questions(pictures)
    first, again = (ask(judge_at(server), *each) for each in (asked, asked[::-1]))
    assert [reply.raw for reply in first] == [reply.raw for reply in again[::-1]]
    assert all(reply.calls == 1 and strictly(reply.raw[0]) for reply in first)
    assert len({reply.raw for reply in first}) > DUELS


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder over HTTP. Yields its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join()


def test_pictures_as_urls_are_the_same_pictures(
    server: LlamaServer, store: LocalObjectStore, pictures: dict[str, bytes]
) -> None:
    with served(store.root) as address:
        prompt, left, right = (
            Picture.of(pictures[f"{name}/000.png"], f"{address}/{name}/000.png") for name in ("prompt", *SKILLS)
        )
        addressed = Question(prompt, left, right, SEED)
        by_url, by_data = (ask(judge_at(server, as_urls=as_urls), addressed)[0] for as_urls in (True, False))
    assert by_url.raw == by_data.raw
    assert by_url.prompt_tokens == by_data.prompt_tokens


@pytest.mark.parametrize("form", ["WEBP", "JPEG"])
def test_a_prompt_that_is_no_png_is_judged(server: LlamaServer, pictures: dict[str, bytes], form: str) -> None:
    """llama-server refuses WebP; what is sent is PNG then."""
    question = questions(pictures)[0]
    other = io.BytesIO()
    Image.open(io.BytesIO(question.prompt.data)).save(other, form)
    reply = ask(judge_at(server), Question(Picture.of(other.getvalue()), question.first, question.second, SEED))[0]
    assert strictly(reply.raw[0]) == reply.answer


# --- what goes wrong ---


def test_an_answer_that_is_cut_off_is_nonsense_and_asked_for_twice(
    server: LlamaServer, pictures: dict[str, bytes]
) -> None:
    reply = ask(judge_at(server, max_tokens=8), questions(pictures)[0])[0]
    assert (reply.answer, reply.calls, len(reply.raw)) == (None, 2, 2)
    assert "cut off at the limit of tokens (GEN404_JUDGE_MAX_TOKENS)" in reply.fault
    assert reply.completion_tokens == 16


def test_a_wrong_key_is_the_operators_mistake_and_not_shown(server: LlamaServer, pictures: dict[str, bytes]) -> None:
    with pytest.raises(OperatorError, match="HTTP 401, check OPENAI_API_KEY") as refused:
        ask(judge_at(server, key="sk-secret-but-wrong"), questions(pictures)[0])
    assert "sk-secret" not in str(refused.value)


def test_an_unknown_model_is_the_operators_mistake(
    start: Callable[..., LlamaServer], pictures: dict[str, bytes]
) -> None:
    with pytest.raises(OperatorError, match=r"check GEN404_JUDGE_MODEL.*other-vlm"):
        ask(judge_at(start(by_name=True), model="other-vlm"), questions(pictures)[0])


def test_a_context_that_is_too_small_is_said_in_words(
    start: Callable[..., LlamaServer], pictures: dict[str, bytes]
) -> None:
    with pytest.raises(OperatorError, match="context"):
        ask(judge_at(start(context=512, at_once=1)), questions(pictures)[0])


def test_a_server_killed_in_mid_match_leaves_it_open_and_the_next_run_asks_what_is_missing(
    start: Callable[..., LlamaServer], store: LocalObjectStore, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    server = start()
    with pytest.raises(JudgeUnavailable, match=server.base_url):
        play(judge_at(server), store, tmp_path / "journal.sqlite", on_duel=server.kill)
    known = sum(1 for _ in store.list(f"{NAMESPACE}/"))
    assert 2 <= known < QUESTIONS
    server.start()
    played, kept = play(judge_at(server), store, tmp_path / "journal.sqlite")
    assert (kept.asked, kept.remembered) == (QUESTIONS - known, known)
    undisturbed, _ = play(judge_at(server), filled(tmp_path / "other", pictures), tmp_path / "other.sqlite")
    assert played.report == undisturbed.report


def test_a_server_that_is_back_within_the_waits_costs_no_match(
    start: Callable[..., LlamaServer], store: LocalObjectStore, tmp_path: Path
) -> None:
    server = start()
    restarts: list[threading.Thread] = []

    def restart() -> None:
        if not restarts:
            server.kill()
            restarts.append(threading.Thread(target=server.start))
            restarts[0].start()

    played, kept = play(judge_at(server, waits=(3.0, 6.0)), store, tmp_path / "journal.sqlite", on_duel=restart)
    restarts[0].join()
    assert (played.judging.duels, played.judging.nonsense, kept.asked) == (DUELS, 0, QUESTIONS)
    assert played.judging.calls > QUESTIONS


def test_of_two_servers_one_dies_and_the_other_ends_the_match(
    server: LlamaServer, start: Callable[..., LlamaServer], store: LocalObjectStore, tmp_path: Path
) -> None:
    mortal = start()
    played, _ = play(judge_at(mortal, server), store, tmp_path / "journal.sqlite", on_duel=mortal.kill)
    assert (played.judging.duels, played.judging.nonsense) == (DUELS, 0)
    assert played.judging.calls > QUESTIONS
