"""At most so many at once, in order, for as long as they are wanted: `pods.rota`, in virtual time."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.pods.rota import work_off
from tests.virtual_time import run_virtually


class Works:
    """Pieces that take so many seconds each; `log` has what happened when."""

    def __init__(self, seconds: dict[str, float], wanted: Callable[["Works"], Sequence[str]] | None = None) -> None:
        self.seconds, self.log, self.busy, self.peak = seconds, [], 0, 0
        self.log: list[str]
        self._wanted = wanted or (lambda works: list(works.seconds))

    async def wanted(self) -> Sequence[str]:
        return self._wanted(self)

    async def work(self, key: str) -> None:
        self.busy += 1
        self.peak = max(self.peak, self.busy)
        self.log.append(f"{key} begins at {self.now:g}")
        try:
            await asyncio.sleep(self.seconds[key])
            if key.startswith("down"):
                raise Unavailable(key)
            if key.startswith("wrong"):
                raise OperatorError(key)
            self.log.append(f"{key} ends at {self.now:g}")
        except asyncio.CancelledError:
            self.log.append(f"{key} is called off at {self.now:g}")
            raise
        finally:
            self.busy -= 1

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def run(self, at_once: int = 2) -> float:
        return run_virtually(work_off(self.wanted, self.work, at_once))[1]


def test_a_place_that_gets_free_is_taken_at_once() -> None:
    works = Works({"a": 100, "b": 10, "c": 10, "d": 10})
    assert works.run(at_once=2) == 100
    assert works.peak == 2
    assert works.log == [
        "a begins at 0", "b begins at 0", "b ends at 10", "c begins at 10", "c ends at 20", "d begins at 20",
        "d ends at 30", "a ends at 100",
    ]  # fmt: skip


def test_what_becomes_wanted_meanwhile_is_begun_at_the_next_look() -> None:
    works = Works({"a": 100, "b": 10}, lambda works: ["a"] if works.now < 35 else ["a", "b"])
    works.run()
    assert "b begins at 60" in works.log


def test_what_is_no_longer_wanted_is_called_off() -> None:
    works = Works({"a": 100, "b": 10}, lambda works: ["a", "b"] if works.now < 15 else [])
    assert works.run() == 40
    assert works.log[-1] == "a is called off at 40"


def test_an_unavailable_piece_lets_the_others_end_and_is_raised_then() -> None:
    works = Works({"down": 5, "b": 50, "c": 10})
    with pytest.raises(Unavailable, match="down"):
        works.run()
    assert works.log == ["down begins at 0", "b begins at 0", "b ends at 50"], "nothing new was begun"


def test_a_mistake_ends_all() -> None:
    works = Works({"wrong": 5, "b": 50})
    with pytest.raises(OperatorError, match="wrong"):
        works.run()
    assert works.log[-1] == "b is called off at 5"


def test_a_look_that_fails_does_not_end_what_runs() -> None:
    def wanted(works: Works) -> Sequence[str]:
        if 0 < works.now < 70:
            raise Unavailable("no answer")
        return ["a"]

    works = Works({"a": 100}, wanted)
    assert works.run() == 100
    with pytest.raises(Unavailable, match="no answer"):
        Works({}, lambda works: (_ for _ in ()).throw(Unavailable("no answer"))).run()


def test_a_piece_that_is_still_wanted_after_its_end_is_not_repeated() -> None:
    works = Works({"a": 1})
    works.run()
    assert works.log == ["a begins at 0", "a ends at 1"]
