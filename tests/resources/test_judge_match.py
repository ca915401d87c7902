"""Matches: many are judged at a time, each ends in its turn, and one that cannot be won may be left early."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import pytest

from gen404_dagster.competition import duels as rules
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import DuelWinner, GenerationResult, Results
from gen404_dagster.errors import JudgeUnavailable
from gen404_dagster.resources.judge import JudgeAnswer, Question, Reply
from gen404_dagster.resources.judge.match import Ahead, Played, Player, Table
from tests.virtual_time import run_virtually

T = TypeVar("T")
LEADER, PAIRS = "leader", [("leader", f"5{letter}") for letter in "ABCDEF"]


def run(story: Coroutine[Any, Any, T]) -> T:
    return run_virtually(story)[0]


class Scripted:
    """A judge who takes `at_once` questions at a time and prefers what the picture's bytes say is better.

    A preview is b"side:prompt:points"; penalties are its points. `asked`: marks in the order in which they came.
    """

    reads_urls = False
    endpoints = ()

    def __init__(self, at_once: int = 4, seconds: Callable[[Question], float] = lambda question: 0.01) -> None:
        self.at_once, self.seconds = at_once, seconds
        self.identity = "scripted"
        self.asked: list[str] = []
        self.busy = self.peak = self.done = 0
        self.fail: Callable[[Question], Exception | str | None] = lambda question: None

    async def __aenter__(self) -> Self:
        self._slots = asyncio.Semaphore(self.at_once)
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def ask(self, question: Question) -> Reply:
        async with self._slots:
            self.busy += 1
            self.peak = max(self.peak, self.busy)
            self.asked.append(question.second.data.decode())
            try:
                await asyncio.sleep(self.seconds(question))
            finally:
                self.busy -= 1
            fault = self.fail(question)
            if isinstance(fault, Exception):
                raise fault
            if fault:
                return Reply(answer=None, fault=fault, raw=("?", "?"), calls=2)
            self.done += 1
            first, second = (int(each.data.rsplit(b":")[-1]) for each in (question.first, question.second))
            return Reply(answer=JudgeAnswer(penalty_1=first, penalty_2=second, issues="as told"), prompt_tokens=10)


class Told:
    """Pictures whose bytes are their address."""

    async def prompt(self, url: str) -> bytes:
        return url.encode()

    async def preview(self, url: str) -> bytes:
        return url.encode()


def table(right: str, outcomes: str, left: str = LEADER, win_margin: float = 0.05) -> Table:
    """A match of one prompt a letter: r and l for who wins, d a draw, x where right has no preview."""
    points = {"r": (9, 1), "l": (1, 9), "d": (4, 5), "x": (4, None)}

    def side(which: int, name: str) -> Results:
        return {
            f"{n:03}": GenerationResult(png=None if points[o][which] is None else f"{name}:{n:03}:{points[o][which]}")
            for n, o in enumerate(outcomes)
        }

    prompts = tuple(f"https://p.test/{n:03}.png" for n in range(len(outcomes)))
    return Table(left, right, prompts, 7, win_margin, side(0, left), side(1, right))


def play(judge: Scripted, *tables: Table, **options: Any) -> list[Played]:
    """Matches one after the other."""

    async def story() -> list[Played]:
        async with judge:
            player = Player(judge, Told(), Limits(), **options)
            return [await player.play(each) for each in tables]

    return run(story())


def winners(played: Played) -> str:
    assert played.report
    return "".join(duel.winner[0] for duel in played.report.duels)


def test_a_match_is_what_both_orders_say_of_each_prompt() -> None:
    judge = Scripted()
    (played,) = play(judge, table("5A", "rrldx"))
    assert winners(played) == "rrldl"
    assert played.report
    assert played.margin == played.report.margin == 0.0
    assert len(judge.asked) == 8
    assert (played.judging.duels, played.judging.draws, played.judging.questions, played.judging.prompt_tokens) == (
        4,
        1,
        8,
        80,
    )


def test_nonsense_is_a_draw_marked_as_such_and_counted() -> None:
    judge = Scripted()
    judge.fail = lambda question: "its answer is empty" if question.prompt.data.endswith(b"001.png") else None
    (played,) = play(judge, table("5A", "rrr"))
    assert winners(played) == "rdr"
    assert played.report
    assert played.report.duels[1].issues == "No valid answer: its answer is empty"
    assert (played.judging.nonsense, played.judging.calls) == (2, 8)


def test_repeats_take_the_median_and_bear_one_that_is_nonsense() -> None:
    judge = Scripted()
    odd = {0: 3, 1: 9, 2: 3}

    class Wavering(Scripted):
        async def ask(self, question: Question) -> Reply:
            reply = await super().ask(question)
            if question.repeat == 3:
                return Reply(answer=None, fault="empty", raw=("",))
            left_first = question.first.data.startswith(b"leader")
            left, right = odd[question.repeat], 5
            pair = (left, right) if left_first else (right, left)
            return reply.model_copy(update={"answer": JudgeAnswer(penalty_1=pair[0], penalty_2=pair[1], issues="i")})

    judge = Wavering()
    (once,) = play(judge, table("5A", "d"))
    (thrice,) = play(judge, table("5A", "d"), repeats=3)
    (four,) = play(judge, table("5A", "d"), repeats=4)
    assert [winners(each) for each in (once, thrice, four)] == ["l", "l", "l"]
    assert four.judging.questions == 8
    assert four.judging.nonsense == 2


# --- several matches at a time ---


async def play_all(
    judge: Scripted, tables: dict[tuple[str, str], Table], note: Callable[[str], None] = lambda right: None
) -> list[tuple[str, float]]:
    """As a run plays them: the first is due, committed, and the rest derived again."""
    done: list[tuple[str, float]] = []
    async with judge:
        ahead = Ahead(Player(judge, Told(), Limits()))

        async def table_of(pair: tuple[str, str]) -> Table:
            return tables[pair]

        try:
            while due := [pair for pair in tables if pair[1] not in dict(done)]:
                each, played = await ahead.first(due, table_of)
                note(each.right)
                await asyncio.sleep(0.03)  # a commit
                done.append((each.right, played.margin))
        finally:
            await ahead.drop()
    return done


def test_matches_end_in_canonical_order_and_the_judge_stays_busy() -> None:
    """Six small matches, with a commit after each: as fast as the judge allows, not as one after the other."""
    tables = {pair: table(pair[1], "rld" * 3) for pair in PAIRS}
    judge = Scripted(at_once=32, seconds=lambda question: 0.1)
    done, took = run_virtually(play_all(judge, tables))
    assert [right for right, _ in done] == [right for _, right in PAIRS]
    assert judge.peak == 32
    ideal = 0.1 * (6 * 9 * 2 / 32)
    assert took < 6 * (0.1 + 0.03), f"{took:.2f} s: no faster than one match after the other ({ideal:.2f} s is ideal)"


def test_the_earliest_match_is_asked_first() -> None:
    tables = {pair: table(pair[1], "rr") for pair in PAIRS}
    judge = Scripted(at_once=2)
    run(play_all(judge, tables))
    rights = [name for mark in judge.asked if (name := mark.split(":")[0]) != LEADER]
    assert rights == sorted(rights)


def test_only_as_many_matches_are_begun_as_keep_the_judge_busy() -> None:
    begun: set[str] = set()
    judge = Scripted(at_once=4, seconds=lambda question: begun.add(question.second.data.decode()[:2]) or 0.01)  # type: ignore[func-returns-value]
    tables = {pair: table(pair[1], "rrrr") for pair in PAIRS}
    seen: list[int] = []
    run(play_all(judge, tables, lambda right: seen.append(len(begun - {"le"}))))
    assert seen[0] <= 3


def test_what_is_not_due_any_more_is_dropped_and_changed_results_are_played_anew() -> None:
    async def story() -> tuple[list[str], list[str]]:
        judge = Scripted(at_once=8, seconds=lambda question: 0.05)
        tables = {pair: table(pair[1], "rr") for pair in PAIRS[:4]}
        async with judge:
            ahead = Ahead(Player(judge, Told(), Limits()))

            async def table_of(pair: tuple[str, str]) -> Table:
                return tables[pair]

            order = [(await ahead.first(list(tables), table_of))[0].right]
            tables[PAIRS[1]] = table("5B", "ll")  # regenerated in the meantime
            due = [PAIRS[1], PAIRS[3]]  # C was rejected
            each, played = await ahead.first(due, table_of)
            order += [each.right, winners(played)]
            each, played = await ahead.first(due[1:], table_of)
            order += [each.right, winners(played)]
            await ahead.drop()
            return order, judge.asked

    order, _ = run(story())
    assert order == ["5A", "5B", "ll", "5D", "rr"]


def test_a_match_that_fails_fails_in_its_turn() -> None:
    tables = {pair: table(pair[1], "rr") for pair in PAIRS[:3]}
    judge = Scripted(at_once=16, seconds=lambda question: 0.01 if b"5B" in question.second.data else 0.1)
    judge.fail = lambda question: (
        JudgeUnavailable("down") if b"5B" in question.first.data + question.second.data else None
    )
    done: list[str] = []
    with pytest.raises(JudgeUnavailable):
        run(play_all(judge, tables, done.append))
    assert done == ["5A"]


def test_at_the_end_what_is_at_work_is_waited_for_and_no_more_is_begun() -> None:
    async def story() -> tuple[int, int]:
        judge = Scripted(at_once=4, seconds=lambda question: 0.05)
        async with judge:
            player = Player(judge, Told(), Limits())
            ahead = Ahead(player)

            async def table_of(pair: tuple[str, str]) -> Table:
                return table(pair[1], "rrrr")

            await ahead.first(PAIRS[:3], table_of)
            await player.close()
            at_close = len(judge.asked)
            assert judge.busy == 0
            await ahead.drop()
            return at_close, judge.done

    asked, answered = run(story())
    assert asked == answered
    assert 8 <= asked < 24


# --- early exit ---


def test_an_early_exit_leaves_what_cannot_matter_and_marks_the_margin_as_a_bound() -> None:
    judge = Scripted(at_once=2)
    (played,) = play(judge, table("5A", "llllllrrrr", win_margin=0.05), early_exit=True)
    assert played.report
    # After five losses the best is (5 - 5) / 10.
    assert winners(played) == "lllll" + "sssss"
    assert {duel.issues for duel in played.report.duels[5:]} == {"Not judged: win_margin 0.05 was out of reach"}
    assert played.margin == -0.5
    assert rules.margin_bound(played.report) == 0.0
    assert rules.match_report("leader", "5A", played.report.duels) == played.report
    assert (played.judging.duels, played.judging.left_out) == (5, 5)
    assert len(judge.asked) <= 2 * 7


def test_a_match_that_is_won_is_played_to_its_end() -> None:
    won = table("5A", "rrrrrrrrll")
    judge = Scripted()
    assert play(judge, won, early_exit=True) == play(Scripted(), won)
    assert len(judge.asked) == 20


def test_where_an_early_exit_falls_does_not_depend_on_the_order_of_answers() -> None:
    outcomes = "lrlllrldlrlldrll"
    forwards, backwards = (
        Scripted(at_once=16, seconds=lambda question, sign=sign: 0.05 + sign * 0.002 * int(question.prompt.data[-7:-4]))  # type: ignore[misc]
        for sign in (1, -1)
    )
    one, other = (play(judge, table("5A", outcomes), early_exit=True)[0] for judge in (forwards, backwards))
    assert one.report == other.report
    assert "s" in winners(one)


def test_missing_previews_can_put_a_match_out_of_reach_before_anything_is_asked() -> None:
    judge = Scripted()
    (played,) = play(judge, table("5A", "xxxxxxrrr"), early_exit=True)
    assert judge.asked == []
    assert played.report
    assert sum(duel.winner == DuelWinner.SKIPPED for duel in played.report.duels) == 3
    assert played.margin < 0.05
