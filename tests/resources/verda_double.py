"""Verda's API of container deployments on loopback: OAuth, create, status, list, delete, and its containers' router.

As api.verda.com/v1 documents it: errors are {code, message}; a container is reached under a path of its own, with an
inference key.
"""

import secrets
import time
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.resources.cloud_double import Cloud, Rented

CLIENT, SECRET, KEY = "verda-client", "verda-client-secret-0123", "verda-inference-key-4567"


class Verda(Cloud):
    tokens: set[str]
    lifetime = 3600

    def app(self) -> Any:
        self.tokens = set()
        base = "/v1/container-deployments"
        return Starlette(
            routes=[
                Route("/v1/oauth2/token", self._token, methods=["POST"]),
                Route(base, self._list, methods=["GET"]),
                Route(base, self._create, methods=["POST"]),
                Route(base + "/{name}/status", self._status, methods=["GET"]),
                Route(base + "/{name}", self._get, methods=["GET"]),
                Route(base + "/{name}", self._delete, methods=["DELETE"]),
            ]
        )

    async def _token(self, request: Request) -> Response:
        body = await request.json()
        client = body.get("grant_type") == "client_credentials" and (body["client_id"], body["client_secret"])
        if client != (CLIENT, SECRET):
            return _fault(401, "unauthorized_request", "Invalid client id or client secret")
        token = secrets.token_hex(8)
        self.tokens.add(token)
        return JSONResponse(
            {
                "access_token": token,
                "refresh_token": token,
                "scope": "fullAccess",
                "token_type": "Bearer",
                "expires_in": self.lifetime,
            }
        )

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return _fault(401, "unauthorized_request", "Access token is missing or invalid")
        if self.trouble(request.method, request.url.path):
            return Response("<html>Bad gateway</html>", 502)
        return None

    async def _create(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        body = await request.json()
        assert body["compute"]["name"] == "H200"
        assert (body["scaling"]["min_replica_count"], body["scaling"]["max_replica_count"]) == (1, 1)
        (container,) = body["containers"]
        assert container["exposed_port"] == 10006
        assert container["healthcheck"] == {"enabled": True, "port": 10006, "path": "/health"}
        if self.refuses():
            return _fault(503, "service_unavailable", "No capacity for H200")
        if any(pod.name == body["name"] for pod in self.alive):
            return _fault(400, "invalid_request", "Deployment name is already in use")
        pod = self.register(body["name"], container["image"])
        self.start(pod, IMAGE_PREFIX=f"/{pod.name}", IMAGE_AUTHORIZATION=f"Bearer {KEY}")
        if self.slow:
            time.sleep(self.slow)  # noqa: ASYNC251 - the whole API is slow
        return JSONResponse(self._told(pod), 201)

    def _list(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        return JSONResponse([self._told(pod) for pod in self.pods if self.shown(pod, in_list=True)])

    def _get(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        pod = self._known(request)
        return JSONResponse(self._told(pod)) if pod else _fault(404, "not_found", "Deployment not found")

    def _status(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        pod = self._known(request)
        if pod is None:
            return _fault(404, "not_found", "Deployment not found")
        return JSONResponse({"status": "unhealthy" if pod.error or pod.ended else "healthy"})

    def _delete(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        pod = self._known(request)
        if pod is None:
            return _fault(404, "not_found", "Deployment not found")
        self.delete(pod)
        return Response(status_code=204)

    def _known(self, request: Request) -> Rented | None:
        name = request.path_params["name"]
        return next((pod for pod in self.alive if pod.name == name and self.shown(pod)), None)

    def _told(self, pod: Rented) -> dict[str, Any]:
        return {
            "name": pod.name,
            "containers": [{"name": "container-0", "image": {"image": pod.image}, "exposed_port": 10006}],
            "compute": {"name": "H200", "size": 1},
            "container_registry_settings": {"is_private": False},
            "is_spot": False,
            "endpoint_base_url": f"http://127.0.0.1:{pod.port}/{pod.name}",
            "created_at": "2026-02-01T00:00:00+00:00",
        }


def _fault(status: int, code: str, message: str) -> Response:
    return JSONResponse({"code": code, "message": message}, status)
