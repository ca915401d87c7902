"""An OpenAI-compatible server on loopback that really looks: it decodes (and fetches) every picture it is shown.

It answers by the pictures: a candidate's penalty is how far its mean colour is from the prompt's. What it does wrong is
scripted: `plan` holds one behaviour a request, then it behaves. It may take time, and refuse more than it can at once.
"""

import asyncio
import base64
import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Load:
    """Questions under way since a `reset`; a client that gives up leaves its own under way."""

    busy: int = 0
    peak: int = 0


class VisionServer:
    """`asked`: bodies of the questions; `shown`: per question its pictures; `times`: when each arrived.

    `seconds` an answer takes; `most` questions at once, 429 for more; `peak`: most that it had at once; `arrived`: how
    often each question came, by the `mark` of its pictures in order.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.root = ""
        self._routes = Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/pictures/{name}", self._picture),
            ]
        )
        self.reset()

    def reset(self) -> None:
        self.load = Load()
        self.seconds = 0.0
        self.most: int | None = None
        self.clients: set[object] = set()
        self.arrived: Counter[str] = Counter()
        self.plan: list[str] = []
        self.pictures: dict[str, bytes] = {}
        self.asked: list[dict[str, Any]] = []
        self.shown: list[list[tuple[str, tuple[int, int]]]] = []
        self.times: list[float] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Lets an answer reach the connection itself, to hang up."""
        await self._routes({**scope, "transport": send.__self__.transport}, receive, send)

    @property
    def peak(self) -> int:
        return self.load.peak

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    async def _picture(self, request: Request) -> Response:
        return Response(self.pictures[request.path_params["name"]], media_type="image/png")

    async def _complete(self, request: Request) -> Response:
        self.times.append(time.monotonic())
        self.clients.add(request.client)
        load = self.load
        if self.most is not None and load.busy >= self.most:
            return JSONResponse({"error": {"message": "too many"}}, 429)
        load.busy += 1
        load.peak = max(load.peak, load.busy)
        try:
            return await self._answer(request, load)
        finally:
            load.busy -= 1

    async def _answer(self, request: Request, load: "Load") -> Response:
        if request.headers.get("authorization") != f"Bearer {self.key}":
            sent = request.headers.get("authorization")
            return JSONResponse({"error": {"message": f"Incorrect API key provided: {sent}"}}, 401)
        body = await request.json()
        self.asked.append(body)
        behaviour = self.plan.pop(0) if self.plan else "good"
        kind, _, detail = behaviour.partition(" ")
        match kind:
            case "status":
                return JSONResponse({"error": {"message": f"Bearer {self.key} made it fail"}}, int(detail))
            case "blocked":
                return JSONResponse({"error": {"message": "see our policy", "code": detail}}, 400)
            case "busy":
                return JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After": detail})
            case "later":
                return JSONResponse({"error": {"message": "loading"}}, 503, {"Retry-After": detail})
            case "reset" | "half":
                return _Rude(b"" if kind == "reset" else b'{"choices": [{"index": 0, "mess')
            case "trickle":
                return StreamingResponse(_slowly(float(detail)), media_type="application/json")
            case "hang":
                await asyncio.sleep(float(detail))
                if load is not self.load:
                    return Response()  # nobody waits any more: what is counted is another test's
            case "page":
                return PlainTextResponse("<html>a proxy's page</html>", media_type="text/html")
            case "broken":
                return Response(b'{"choices": [', media_type="application/json")
            case "abyss":
                return Response(b'{"choices": ' + b"[" * 100_000, media_type="application/json")
            case "error":
                return JSONResponse({"error": "not now"})
        pictures = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
        opened = await asyncio.gather(*map(self._open, pictures))
        self.arrived[self.mark([data for _, data, _ in opened])] += 1
        await asyncio.sleep(self.seconds)
        answer = self._penalties([(kind, picture) for kind, _, picture in opened])
        text = json.dumps(answer)
        texts = {
            "fenced": f"Here it is:\n```json\n{text}\n```",
            "thinking": f'<think>Is it {{"penalty_1": 9}}? No.</think>\n<answer><|begin_of_box|>{text}<|end_of_box|></answer>',
            "endless": f"<think>First, {text} ...",
            "prose": "The first one is nicer.\nMuch nicer.",
            "outside": json.dumps(answer | {"penalty_2": 11}),
            "fraction": json.dumps(answer | {"penalty_2": 2.5}),
            "true": json.dumps(answer | {"penalty_2": True}),
            "nan": '{"penalty_1": NaN, "penalty_2": 1, "issues": ""}',
            "words": json.dumps(answer | {"penalty_2": "seven"}),
            "list": json.dumps([answer]).replace("{", "[").replace("}", "]"),
            "null": json.dumps(answer | {"issues": None}),
            "negative": json.dumps(answer | {"penalty_2": -1}),
            "partial": json.dumps({"penalty_1": 1}),
            "deep": '{"penalty_1":' + "[" * 50_000 + "}",
            "long": json.dumps(answer | {"issues": "bad\n\x1b[31m" + "x" * 5000}),
            "empty": "",
        }
        choice = {
            "index": 0,
            "finish_reason": {"cut": "length", "filtered": "content_filter"}.get(kind, "stop"),
            "message": {
                "role": "assistant",
                "content": texts.get(kind, text),
                "refusal": "I would rather not" if kind == "refusal" else None,
            },
        }
        usage = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return JSONResponse({**head, "choices": [choice], "usage": usage})

    @staticmethod
    def mark(pictures: Sequence[bytes]) -> str:
        return hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in pictures)).hexdigest()

    async def _open(self, url: str) -> tuple[str, bytes, Image.Image]:
        if url.startswith("data:image/"):
            data = base64.b64decode(url.partition("base64,")[2], validate=True)
            kind = url[:15]
        else:
            async with httpx.AsyncClient() as client:
                data = (await client.get(url)).raise_for_status().content
            kind = "url"
        picture = Image.open(io.BytesIO(data))
        picture.load()
        return kind, data, picture

    def _penalties(self, pictures: list[tuple[str, Image.Image]]) -> dict[str, Any]:
        self.shown.append([(kind, picture.size) for kind, picture in pictures])
        means = [np.asarray(picture.convert("RGB"), float).mean(axis=(0, 1)) for _, picture in pictures]
        first, second = (min(10, round(float(np.abs(mean - means[0]).mean()) / 10)) for mean in means[1:])
        return {"penalty_1": first, "penalty_2": second, "issues": "First model is paler."}


class _Rude(Response):
    """Announces a body, sends the given part of it, and hangs up."""

    def __init__(self, part: bytes) -> None:
        super().__init__()
        self._part = part

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._part:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self._part, "more_body": True})
            await asyncio.sleep(0.01)
        scope["transport"].abort()


async def _slowly(seconds: float) -> AsyncIterator[bytes]:
    """A body that is always on its way."""
    for _ in range(int(seconds / 0.05)):
        yield b" "
        await asyncio.sleep(0.05)


@contextmanager
def serving(server: VisionServer, port: int = 0) -> Iterator[VisionServer]:
    config = uvicorn.Config(
        server.app,
        port=port,
        interface="asgi3",
        log_level="critical",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not running.started and time.monotonic() < deadline:
        time.sleep(0.01)
    server.root = f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        running.should_exit = True
        thread.join(10)
