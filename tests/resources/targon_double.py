"""Targon's API of workloads on loopback: register, deploy, state, list by pages, delete. `docs.targon.com`, API v2."""

import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.resources.cloud_double import Cloud, Rented

KEY = "targon-secret-key-0123456789"
PAGE = 2


class Targon(Cloud):
    def app(self) -> Any:
        base = "/tha/v2/workloads"
        return Starlette(
            routes=[
                Route(base, self._list, methods=["GET"]),
                Route(base, self._register, methods=["POST"]),
                Route(base + "/{uid}/deploy", self._deploy, methods=["POST"]),
                Route(base + "/{uid}/state", self._state, methods=["GET"]),
                Route(base + "/{uid}", self._delete, methods=["DELETE"]),
            ]
        )

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "invalid api key"}, 401)
        if self.trouble(request.method, request.url.path):
            return JSONResponse({"error": f"upstream failed for {KEY}"}, 500)
        return None

    async def _body(self, request: Request) -> dict[str, Any]:
        body: dict[str, Any] = await request.json()
        return body

    async def _register(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await self._body(request)
        assert body["type"] == "SERVERLESS"
        assert body["ports"] == [{"port": 10006, "protocol": "TCP"}]
        assert (body["serverless_config"]["min_replicas"], body["serverless_config"]["max_replicas"]) == (1, 1)
        assert body["resource_name"] == "h200-small"
        pod = self.register(body["name"], body["image"])
        return JSONResponse({"uid": pod.uid, "name": pod.name, "state": {"status": "registered"}}, 201)

    def _deploy(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        pod = self._known(request)
        if pod is None:
            return JSONResponse({"error": "not found"}, 404)
        if self.refuses():
            return JSONResponse({"error": "no capacity for h200-small"}, 503)
        self.start(pod)
        if self.slow:
            time.sleep(self.slow)
        return JSONResponse({"uid": pod.uid, "name": pod.name, "state": self._told(pod)})

    def _state(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        pod = self._known(request)
        if pod is None or not self.shown(pod):
            return JSONResponse({"error": "not found"}, 404)
        return JSONResponse({"uid": pod.uid, "workload_type": "SERVERLESS", **self._told(pod)})

    def _list(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        assert request.query_params["type"] == "SERVERLESS"
        shown = [pod for pod in self.pods if self.shown(pod, in_list=True)]
        start = int(request.query_params.get("cursor", 0))
        items = [{"uid": pod.uid, "name": pod.name, "state": self._told(pod)} for pod in shown[start : start + PAGE]]
        more = str(start + PAGE) if start + PAGE < len(shown) else None
        return JSONResponse({"items": items, "next_cursor": more})

    def _delete(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        pod = self._known(request)
        if pod is None or pod.deleted is not None:
            return JSONResponse({"error": "not found"}, 404)
        self.delete(pod)
        return JSONResponse({"uid": pod.uid})

    def _known(self, request: Request) -> Rented | None:
        return next((pod for pod in self.pods if pod.uid == request.path_params["uid"]), None)

    def _told(self, pod: Rented) -> dict[str, Any]:
        url = {"port": 10006, "url": f"http://127.0.0.1:{pod.port}"}
        if pod.error or pod.ended:
            return {"status": "error", "message": pod.error or "container exited", "urls": [url]}
        status = "registered" if pod.process is None else "running"
        return {"status": status, "message": "", "urls": [url] if pod.process else [], "ready_replicas": 1}
