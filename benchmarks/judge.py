"""How busy the judge keeps a server: a whole match against one that takes so many questions at once and so long each.

    python benchmarks/judge.py [--prompts 128] [--at-once 64] [--seconds 2] [--endpoints 1] [--pixels 1041]

The server is a process of its own; it decodes every picture that it has not seen, then takes its time. Ideal: questions
/ (at once x endpoints) x seconds. Prints the ratio for pictures as URLs and as data; exit code 1 when the first is over
1.3. Belongs here: throughput of the client with its journal and store. Does not: what a model does.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import math
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import GenerationResult
from gen404_dagster.resources.journal import Journal
from gen404_dagster.resources.judge import OpenAIJudge
from gen404_dagster.resources.judge.kept import KeptJudge
from gen404_dagster.resources.judge.match import Player, Table
from gen404_dagster.resources.object_store import LocalObjectStore

ANSWER = '{"penalty_1": 2, "penalty_2": 5, "issues": "The second one lacks its handle."}'
LIMIT = 1.3


def serve(at_once: int, seconds: float, ready: Connection) -> None:
    """An OpenAI-compatible server that refuses more questions than it can take at once."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    busy, seen = 0, set[str]()

    def look(url: str) -> None:
        mark = hashlib.sha256(url.encode()).hexdigest()
        if mark in seen or not url.startswith("data:"):
            return
        with Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))) as picture:
            picture.load()
        seen.add(mark)

    async def complete(request: Request) -> JSONResponse:
        nonlocal busy
        if busy >= at_once:
            return JSONResponse({"error": {"message": "busy"}}, 429)
        busy += 1
        try:
            began = time.monotonic()
            body = await request.json()
            for part in body["messages"][1]["content"]:
                if part["type"] == "image_url":
                    await asyncio.to_thread(look, part["image_url"]["url"])
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        finally:
            busy -= 1
        message = {"role": "assistant", "content": ANSWER}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 3000, "completion_tokens": 40, "total_tokens": 3040}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return JSONResponse({**head, "choices": choices, "usage": usage})

    app = Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 (it has no event)
            await asyncio.sleep(0.01)
        ready.send(server.servers[0].sockets[0].getsockname()[1])
        await serving

    asyncio.run(run())


@contextmanager
def servers(count: int, at_once: int, seconds: float) -> Iterator[list[str]]:
    context = multiprocessing.get_context("spawn")
    running, urls = [], []
    try:
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(at_once, seconds, there), daemon=True)
            process.start()
            running.append(process)
            urls.append(f"http://127.0.0.1:{here.recv()}/v1")
        yield urls
    finally:
        for process in running:
            process.kill()
            process.join()


class Drawn:
    """Previews of one object with another mark each: as large in bytes as rendered ones."""

    def __init__(self, pixels: int) -> None:
        y, x = np.mgrid[0:pixels, 0:pixels] / pixels
        shade = np.sin(9 * x) * np.cos(7 * y) * 60
        self._pixels = np.clip(np.stack([150 + shade, 120 + shade, 90 - shade], axis=2), 0, 255).astype(np.uint8)
        self._made: dict[str, bytes] = {}

    def make(self, url: str) -> bytes:
        if url not in self._made:
            marked = self._pixels.copy()
            marked[:8, :8] = np.frombuffer(hashlib.sha256(url.encode()).digest() * 6, np.uint8).reshape(8, 8, 3)
            buffer = io.BytesIO()
            Image.fromarray(marked).save(buffer, "PNG", compress_level=1)
            self._made[url] = buffer.getvalue()
        return self._made[url]

    async def prompt(self, url: str) -> bytes:
        return self._made[url]

    async def preview(self, url: str) -> bytes:
        return self._made[url]


def measure(urls: list[str], options: argparse.Namespace, pictures: Drawn, as_urls: bool) -> float:
    """Seconds of one match, all questions asked."""
    stems = [f"{n:04}" for n in range(options.prompts)]
    results: list[dict[str, Any]] = [
        {stem: GenerationResult(png=f"https://store.test/{side}/{stem}.png") for stem in stems} for side in "ab"
    ]
    prompts = tuple(f"https://prompts.test/{stem}.png" for stem in stems)
    for url in (*prompts, *(result.png for side in results for result in side.values())):
        pictures.make(url)
    judge = OpenAIJudge(
        urls, ["key"] * len(urls), "benchmark", as_urls=as_urls, concurrency=options.at_once, timeout_seconds=120
    )

    async def play(folder: Path) -> float:
        with Journal(folder / "journal.sqlite", "benchmark") as journal:
            kept = KeptJudge(judge, journal, LocalObjectStore(folder / "store", "https://store.test"), 0)
            began = time.monotonic()
            async with kept:
                played = await Player(kept, pictures, Limits()).play(Table("leader", "5A", prompts, 1, 0.05, *results))
            assert played.judging.questions == 2 * options.prompts
            return time.monotonic() - began

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(play(Path(folder)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--endpoints", type=int, default=1)
    parser.add_argument("--pixels", type=int, default=1041)
    options = parser.parse_args()
    import openai.resources.chat.completions  # noqa: F401 (its import is no part of judging)

    pictures = Drawn(options.pixels)
    ideal = math.ceil(2 * options.prompts / (options.at_once * options.endpoints)) * options.seconds
    ratios = {}
    for way in ("url", "data"):
        with servers(options.endpoints, options.at_once, options.seconds) as urls:
            took = measure(urls, options, pictures, way == "url")
        ratios[way] = took / ideal
        size = sum(map(len, pictures._made.values())) / len(pictures._made) / 1e6
        note = "" if way == "url" else f"  ({size:.2f} MB a picture, sent and decoded on this machine)"
        print(f"judge, pictures as {way:4}: {took:6.2f} s, ideal {ideal:.2f} s, ratio {took / ideal:.3f}{note}")
    return int(ratios["url"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
