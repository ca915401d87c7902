"""Replies are kept: in the journal and, written once, in the object store; what is known is not asked."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Self

import pytest

from gen404_dagster.errors import Unavailable
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import DuelJudgement, JudgeAnswer, Picture, Question, Reply, judge_duel
from gen404_dagster.resources.judge.kept import KeptJudge, object_key
from gen404_dagster.resources.object_store import LocalObjectStore

LEFT, RIGHT, PROMPT = (Picture.of(data) for data in (b"left", b"right", b"prompt"))


class Counting:
    """A judge whose answers differ each time: 1, 2, 3 points for the first model."""

    reads_urls, endpoints, at_once = False, (), 4

    def __init__(self, identity: str = "counting-1") -> None:
        self.identity, self.asked = identity, 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ask(self, question: Question) -> Reply:
        self.asked += 1
        await asyncio.sleep(0)
        said = JudgeAnswer(penalty_1=self.asked, penalty_2=0, issues="")
        return Reply(answer=said, raw=(said.model_dump_json(),), endpoint="here", prompt_tokens=7, seconds=0.5)


class Shelf:
    """A journal and a store, and judges that keep their replies there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = LocalObjectStore(folder / "store", "http://127.0.0.1:1")

    def journal(self, name: str = "journal") -> Journal:
        return Journal(self.folder / f"{name}.sqlite", "repository")

    def kept(self, inner: Counting, journal: str = "journal", namespace: str = "judge") -> KeptJudge:
        return KeptJudge(inner, self.journal(journal), self.store, 3, namespace)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def penalty(kept: KeptJudge, question: Question) -> int:
    reply = asyncio.run(kept.ask(question))
    assert reply.answer
    return reply.answer.penalty_1


def test_a_question_is_asked_once_and_read_from_the_journal_ever_after(shelf: Shelf) -> None:
    inner = Counting()
    kept = shelf.kept(inner)
    question = Question(PROMPT, LEFT, RIGHT, 5)
    assert [penalty(kept, question) for _ in range(3)] == [1, 1, 1]
    assert penalty(shelf.kept(inner), question) == 1
    assert (inner.asked, kept.asked, kept.remembered) == (1, 1, 2)


@pytest.mark.parametrize(
    "other",
    [
        Question(PROMPT, RIGHT, LEFT, 5),
        Question(LEFT, LEFT, RIGHT, 5),
        Question(PROMPT, LEFT, PROMPT, 5),
        Question(PROMPT, LEFT, RIGHT, 6),
        Question(PROMPT, LEFT, RIGHT, 5, repeat=1),
    ],
    ids=["order", "prompt", "picture", "seed", "repeat"],
)
def test_another_picture_order_seed_or_repeat_is_another_question(shelf: Shelf, other: Question) -> None:
    kept = shelf.kept(Counting())
    assert penalty(kept, Question(PROMPT, LEFT, RIGHT, 5)) == 1
    assert penalty(kept, other) == 2


def test_another_model_or_prompt_version_is_asked_anew_but_another_address_of_the_same_pictures_is_not(
    shelf: Shelf,
) -> None:
    inner = Counting()
    kept = shelf.kept(inner)
    assert penalty(kept, Question(PROMPT, LEFT, RIGHT, 5)) == 1
    assert penalty(kept, Question(PROMPT, Picture.of(b"left", "https://elsewhere.test/l.png"), RIGHT, 5)) == 1
    inner.identity = "counting-2"
    assert penalty(kept, Question(PROMPT, LEFT, RIGHT, 5)) == 2


def test_a_lost_journal_costs_no_question(shelf: Shelf) -> None:
    question = Question(PROMPT, LEFT, RIGHT, 5)
    penalty(shelf.kept(Counting(), "first"), question)
    inner = Counting()
    kept = shelf.kept(inner, "second")
    assert [penalty(kept, question), penalty(kept, question)] == [1, 1]
    assert (inner.asked, kept.remembered) == (0, 2)


def test_the_object_says_what_was_asked_and_all_that_was_told(shelf: Shelf) -> None:
    question = Question(PROMPT, LEFT, RIGHT, 5)
    asyncio.run(shelf.kept(Counting()).ask(question))
    (name,) = shelf.store.list("judge/")
    assert name == object_key("judge", question.key("counting-1"))
    record = json.loads(shelf.store.read(name))
    assert {k: record[k] for k in ("judge", "prompt", "first", "second", "seed", "repeat")} == {
        "judge": "counting-1",
        "prompt": PROMPT.sha256,
        "first": LEFT.sha256,
        "second": RIGHT.sha256,
        "seed": 5,
        "repeat": 0,
    }
    assert record["reply"]["raw"] == ['{"penalty_1":1,"penalty_2":0,"issues":""}']
    assert (record["reply"]["prompt_tokens"], record["reply"]["seconds"], record["reply"]["endpoint"]) == (
        7,
        0.5,
        "here",
    )
    assert record["time"].endswith("+00:00")


def other_key(record: bytes) -> bytes:
    return json.dumps({**json.loads(record), "key": "0" * 64}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff\xfe",
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b'"penalty_1": 1', b'"penalty_1": 11'),
        other_key,
    ],
    ids=["half", "empty", "bytes", "deep", "bounds", "another"],
)
def test_a_damaged_object_is_reported_asked_again_and_replaced(
    shelf: Shelf, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    question = Question(PROMPT, LEFT, RIGHT, 5)
    asyncio.run(shelf.kept(Counting(), "first").ask(question))
    (name,) = shelf.store.list("judge/")
    shelf.store.put(name, damage(shelf.store.read(name)), "application/json", overwrite=True)  # type: ignore[operator]
    inner = Counting()
    caplog.set_level(logging.WARNING)
    assert penalty(shelf.kept(inner, "second"), question) == 1
    assert inner.asked == 1
    assert "no answer of the judge" in caplog.text
    assert penalty(shelf.kept(Counting(), "third"), question) == 1
    assert json.loads(shelf.store.read(name))["key"] == question.key("counting-1")


def test_of_two_runs_that_ask_at_a_time_the_first_stored_reply_counts(shelf: Shelf) -> None:
    """A second pipeline asks while the first has not stored yet; both end with the same reply, also in their journals."""
    question = Question(PROMPT, LEFT, RIGHT, 5)
    inner = Counting()
    first, second = shelf.kept(inner, "first"), shelf.kept(inner, "second")

    async def both() -> list[Reply]:
        return await asyncio.gather(first.ask(question), second.ask(question))

    one, other = asyncio.run(both())
    assert inner.asked == 2
    assert one == other
    key = question.key("counting-1")
    assert first.journalled(key) == second.journalled(key) == (one, True)


def away(*_: object, **__: object) -> None:
    raise Unavailable("the store is away")


def ask_without_a_store(kept: KeptJudge, shelf: Shelf, question: Question) -> None:
    with pytest.MonkeyPatch.context() as outage:
        outage.setattr(shelf.store, "put", away)
        with pytest.raises(Unavailable, match="is away"):
            penalty(kept, question)


def test_what_the_store_did_not_take_is_stored_later_without_being_asked_again(shelf: Shelf) -> None:
    question = Question(PROMPT, LEFT, RIGHT, 5)
    inner = Counting()
    ask_without_a_store(shelf.kept(inner), shelf, question)
    assert list(shelf.store.list("judge/")) == []
    again = shelf.kept(inner)
    assert [penalty(again, question), penalty(again, question)] == [1, 1]
    assert (inner.asked, again.asked, again.remembered) == (1, 0, 2)
    lost = shelf.kept(inner, "lost")
    assert (penalty(lost, question), lost.asked) == (1, 0)


def test_an_answer_that_was_not_stored_yields_to_one_that_was(shelf: Shelf) -> None:
    question = Question(PROMPT, LEFT, RIGHT, 5)
    inner = Counting()
    ask_without_a_store(shelf.kept(inner, "first"), shelf, question)
    assert penalty(shelf.kept(inner, "second"), question) == 2
    assert penalty(shelf.kept(inner, "first"), question) == 2


def test_copies_are_asked_about_once(shelf: Shelf) -> None:
    """Two miners with the same file: their duel is one question in both orders, and so are their duels with others."""
    inner = Counting()
    kept = shelf.kept(inner)

    async def duels() -> list[DuelJudgement]:
        return await asyncio.gather(*[judge_duel(kept, PROMPT, LEFT, LEFT, 5) for _ in range(3)])

    assert {judged.left_penalty - judged.right_penalty for judged in asyncio.run(duels())} == {0.0}
    assert (inner.asked, kept.asked, kept.remembered) == (1, 1, 5)


def test_a_namespace_does_not_know_the_answers_of_another(shelf: Shelf) -> None:
    inner = Counting()
    question = Question(PROMPT, LEFT, RIGHT, 5)
    assert penalty(shelf.kept(inner), question) == 1
    assert penalty(shelf.kept(inner, namespace="judge-again/1"), question) == 2
    assert penalty(shelf.kept(inner, namespace="judge-again/1"), question) == 2
    assert penalty(shelf.kept(inner), question) == 1
