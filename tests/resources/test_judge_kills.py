"""kill -9 of a process that judges a match, at any point: what is in the journal is never asked again."""

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import Picture, Question
from gen404_dagster.resources.judge.wording import PROMPT_VERSION
from gen404_dagster.resources.object_store import LocalObjectStore
from tests.resources import judging_nursery
from tests.resources.vlm_server import VisionServer, serving

PROMPTS, CONCURRENCY = 16, 4
QUESTIONS = 2 * PROMPTS


def png(value: int, mark: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.full((24, 24, 3), value, np.uint8)
    pixels[0, 0] = mark  # no two prompts have the same pictures
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def fill(store: LocalObjectStore) -> dict[str, str]:
    """Pictures of a match that right wins where the prompt's number is even. Question key by what the server counts."""
    keys = {}
    for n in range(PROMPTS):
        near, far = png(180, n), png(120, n)
        prompt, left, right = png(190, n), far if n % 2 == 0 else near, near if n % 2 == 0 else far
        for side, data in (("prompt", prompt), ("left", left), ("right", right)):
            store.put(f"{side}/{n:03}.png", data, "image/png")
        for first, second in ((left, right), (right, left)):
            question = Question(Picture.of(prompt), Picture.of(first), Picture.of(second), 7)
            key = question.key(f"openai/tiny-vlm/prompt-{PROMPT_VERSION}/1024-tokens")
            keys[VisionServer.mark([prompt, first, second])] = key
    return keys


@contextmanager
def nursery(server: VisionServer, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, judging_nursery.__file__, server.base_url, str(folder), str(PROMPTS), str(CONCURRENCY)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    )
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(20)
        assert process.stdout
        process.stdout.close()


def judge_with_kills(tmp_path: Path, kills: list[int]) -> None:
    """Play a match that is killed whenever so many more questions have arrived, then to its end."""
    with serving(VisionServer("key")) as server, nursery(server, tmp_path) as process:
        assert process.stdin
        assert process.stdout
        server.seconds = 0.03
        keys = fill(LocalObjectStore(tmp_path / "store", judging_nursery.BASE))
        repeated = killed = 0
        for more in [*kills, None]:
            with Journal(tmp_path / "journal.sqlite", "repository") as journal:
                known = {mark for mark, key in keys.items() if journal.get(0, f"judge/{key}", "")}
            before, kills_before = Counter(server.arrived), killed
            process.stdin.write("play\n")
            pid = int(process.stdout.readline().split()[1])
            if more is not None:
                deadline = time.monotonic() + 120
                while server.arrived.total() < before.total() + more and time.monotonic() < deadline:
                    time.sleep(0.001)
                os.kill(pid, signal.SIGKILL)
                killed += 1
            said = process.stdout.readline().split()
            now = server.arrived - before
            assert not known & set(now), "a question whose answer is in the journal was asked again"
            lost = {mark for mark in before if mark not in known}  # in flight at some kill, by now not asked again
            assert len(lost) <= CONCURRENCY * kills_before, f"{len(lost)} questions were lost by {kills_before} kills"
            assert max(now.values(), default=1) == 1
            repeated += len(lost & set(now))
            if more is None:
                assert (said[0], float(said[1])) == ("margin", 0.0)
                assert process.stdout.readline().split() == ["ended", "0"]
            else:
                assert said == ["ended", str(int(signal.SIGKILL))]
        assert set(server.arrived) == set(keys)
        assert server.arrived.total() == QUESTIONS + repeated
        assert repeated <= CONCURRENCY * len(kills)


def test_a_killed_match_repeats_at_most_what_was_in_flight(tmp_path: Path) -> None:
    judge_with_kills(tmp_path, [1, 6, 9])


@pytest.mark.slow
def test_a_match_killed_at_many_moments_repeats_at_most_what_was_in_flight(tmp_path: Path) -> None:
    dice = random.Random(5)
    for attempt in range(12):
        judge_with_kills(tmp_path / str(attempt), [dice.randint(1, 7) for _ in range(5)])
