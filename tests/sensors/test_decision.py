"""One run per lane, attempts that count, pauses that grow: `sensors.decision` alone."""

import pytest

from gen404_dagster.competition.stages import Do, Lane, Wait
from gen404_dagster.sensors.decision import Hold, Launch, PastRun, decide, pause_after

DUE = Do("judge", "abc", "2 matches are due")


def only(
    due: Do | Wait, busy: str | None = None, past: list[PastRun] | None = None, now: float = 1000.0
) -> Launch | Hold:
    answers = decide({Lane.DUELS: due}, {Lane.DUELS: busy} if busy else {}, {Lane.DUELS: past or []}, now)
    assert len(answers) == 1
    return answers[0]


def test_due_work_is_launched_once_and_not_while_its_lane_is_busy() -> None:
    assert only(DUE) == Launch(Lane.DUELS, DUE, attempt=0)
    held = only(DUE, busy="12345678-run")
    assert isinstance(held, Hold)
    assert "12345678" in held.why


def test_waiting_names_reason_and_block() -> None:
    assert only(Wait("miners generate", 600)) == Hold(Lane.DUELS, "miners generate", 600)


def test_a_fruitless_success_is_tried_again_three_times_then_waits_for_an_operator() -> None:
    for runs in range(3):
        answer = only(DUE, past=[PastRun(True, 0.0)] * runs)
        assert answer == Launch(Lane.DUELS, DUE, attempt=runs)
    stuck = only(DUE, past=[PastRun(True, 0.0)] * 3)
    assert isinstance(stuck, Hold)
    assert stuck.retry_in is None
    assert "3 times without progress" in stuck.why


def test_a_failure_is_tried_again_after_growing_pauses_without_a_last_try() -> None:
    assert isinstance(only(DUE, past=[PastRun(False, 990.0)], now=1000.0), Hold)
    assert isinstance(only(DUE, past=[PastRun(False, 984.0)], now=1000.0), Launch)
    hundred = [PastRun(False, float(n)) for n in range(100)]
    assert isinstance(only(DUE, past=hundred, now=99 + 1799.0), Hold)
    assert only(DUE, past=hundred, now=99 + 1801.0) == Launch(Lane.DUELS, DUE, attempt=100)


@pytest.mark.parametrize(("failures", "seconds"), [(1, 15), (2, 30), (3, 60), (8, 1800), (500, 1800)])
def test_pauses_double_up_to_half_an_hour(failures: int, seconds: float) -> None:
    assert pause_after(failures) == seconds


def test_lanes_are_decided_side_by_side() -> None:
    answers = decide({Lane.MAIN: Wait("x"), Lane.DUELS: DUE, Lane.PODS: DUE}, {Lane.PODS: "run"}, {}, 0.0)
    assert [type(answer) for answer in answers] == [Hold, Launch, Hold]
