"""An OpenAI-compatible server on loopback that really looks: it decodes (and fetches) every picture it is shown.

It answers by the pictures: a candidate's penalty is how far its mean colour is from the prompt's. What it does wrong is
scripted: `plan` holds one behaviour a request, then it behaves.
"""

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


class VisionServer:
    """`asked`: bodies of the questions; `shown`: per question its pictures; `times`: when each arrived."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.plan: list[str] = []
        self.pictures: dict[str, bytes] = {}
        self.asked: list[dict[str, Any]] = []
        self.shown: list[list[tuple[str, tuple[int, int]]]] = []
        self.times: list[float] = []
        self.root = ""
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/pictures/{name}", self._picture),
            ]
        )

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    async def _picture(self, request: Request) -> Response:
        return Response(self.pictures[request.path_params["name"]], media_type="image/png")

    async def _complete(self, request: Request) -> Response:
        self.times.append(time.monotonic())
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
            case "busy":
                return JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After": detail})
            case "hang":
                await asyncio.sleep(float(detail))
            case "page":
                return PlainTextResponse("<html>a proxy's page</html>", media_type="text/html")
            case "broken":
                return Response(b'{"choices": [', media_type="application/json")
            case "error":
                return JSONResponse({"error": "not now"})
        pictures = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
        answer = self._penalties(await asyncio.gather(*map(self._open, pictures)))
        text = json.dumps(answer)
        texts = {
            "fenced": f"Here it is:\n```json\n{text}\n```",
            "thinking": f'<think>Is it {{"penalty_1": 9}}? No.</think>\n<answer><|begin_of_box|>{text}<|end_of_box|></answer>',
            "endless": f"<think>First, {text} ...",
            "prose": "The first one is nicer.\nMuch nicer.",
            "outside": json.dumps(answer | {"penalty_2": 11}),
            "fraction": json.dumps(answer | {"penalty_2": 2.5}),
            "true": json.dumps(answer | {"penalty_2": True}),
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
        return JSONResponse(
            {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        )

    async def _open(self, url: str) -> tuple[str, Image.Image]:
        if url.startswith("data:image/"):
            data = base64.b64decode(url.partition("base64,")[2], validate=True)
            kind = url[:15]
        else:
            async with httpx.AsyncClient() as client:
                data = (await client.get(url)).raise_for_status().content
            kind = "url"
        picture = Image.open(io.BytesIO(data))
        picture.load()
        return kind, picture

    def _penalties(self, pictures: list[tuple[str, Image.Image]]) -> dict[str, Any]:
        self.shown.append([(kind, picture.size) for kind, picture in pictures])
        means = [np.asarray(picture.convert("RGB"), float).mean(axis=(0, 1)) for _, picture in pictures]
        first, second = (min(10, round(float(np.abs(mean - means[0]).mean()) / 10)) for mean in means[1:])
        return {"penalty_1": first, "penalty_2": second, "issues": "First model is paler."}


@contextmanager
def serving(server: VisionServer) -> Iterator[VisionServer]:
    config = uvicorn.Config(
        server.app, port=0, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=1
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
