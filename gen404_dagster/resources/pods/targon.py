"""Pods rented at Targon: serverless workloads, through targon-sdk as it is.

Belongs here: what of Targon's API a pod is, and what its errors mean. Does not: which provider is tried when, how long
a pod may take (`fleet`). Seen in targon-sdk 1.0.0: a deployment is two requests (register, deploy), so that a failed one
can leave a workload; names are not unique, uids are; its list reads one page. https://docs.targon.com
"""

import asyncio
import builtins
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.pods.protocol import IMAGE_PORT, Endpoint

if TYPE_CHECKING:
    from targon.client.serverless import AsyncServerlessClient, WorkloadStateResponse

T = TypeVar("T")

CALL_SECONDS = 60.0
"""Longest wait for one answer of the API, in seconds."""
DELETE_TRIES = 5
LOOKS_FOR_LOST = 3
"""Looks at the list for a workload whose uid we never learned: a new one may be missing there at first."""
PAUSE_SECONDS = 2.0
"""Pause between two looks, in seconds."""
CONCURRENCY = 8
"""Requests that the router lets through to one pod at once: prompts in flight, and looks at its health."""
_PAGES = 100
_OVER = {"deleted", "deleting"}


class TargonPods:
    """Provider of Targon's serverless workloads, one replica each."""

    def __init__(self, api_key: str, resource: str, base_url: str = "") -> None:
        """`resource`: a name of the inventory, as h200-small (one GPU). `base_url` empty: the SDK's own."""
        if not api_key:
            raise OperatorError("TARGON_API_KEY is not set: GPU_PROVIDERS names targon")
        self._api_key, self._resource, self._base_url = api_key, resource, base_url.rstrip("/")
        self._uids: defaultdict[str, set[str]] = defaultdict(set)  # of each pod, as far as we were told
        self._lost: set[str] = set()  # pods whose deployment ended without a uid

    @property
    def name(self) -> str:
        return "targon"

    async def deploy(self, pod: str, image: str) -> None:
        from targon.client.serverless import (
            AutoScalingConfig,
            ContainerConfig,
            CreateServerlessResourceRequest,
            NetworkConfig,
            PortConfig,
        )

        request = CreateServerlessResourceRequest(
            name=pod,
            container=ContainerConfig(image=image),
            resource_name=self._resource,
            network=NetworkConfig(port=PortConfig(port=IMAGE_PORT), visibility="external"),
            scaling=AutoScalingConfig(
                min_replicas=1,
                max_replicas=1,
                container_concurrency=CONCURRENCY,
                target_concurrency=CONCURRENCY,
            ),
        )
        self._lost.add(pod)
        async with self._api() as api:
            made = await self._call(api.deploy_container(request))
        self._lost.discard(pod)
        self._uids[pod].add(made.uid)

    async def visible(self, pod: str) -> bool:
        state = await self._state(pod)
        if state is None:
            return False
        if _status(state) == "error":
            raise MinerFault(f"workload failed: {self._safe(str(state.message)) or 'no reason given'}")
        return _status(state) not in _OVER

    async def endpoint(self, pod: str) -> Endpoint | None:
        state = await self._state(pod)
        urls = {} if state is None else {found.port: found.url for found in state.urls if found.url}
        url = urls.get(IMAGE_PORT) or next(iter(urls.values()), "")
        return Endpoint(url.rstrip("/")) if url else None

    async def delete(self, pod: str) -> None:
        """Delete until the API says of every workload of this name that it does not exist: its list may lag or lie."""
        gone: set[str] = set()
        quiet = 0
        async with self._api() as api:
            for left in reversed(range(DELETE_TRIES)):
                listed = {uid for uid, name in await self._workloads(api) if name == pod}
                there = (listed | self._uids[pod]) - gone
                for uid in there:
                    if await self._delete(api, uid):
                        gone.add(uid)
                quiet = 0 if there else quiet + 1
                if there <= gone and (pod not in self._lost or quiet >= LOOKS_FOR_LOST):
                    self._uids.pop(pod, None)
                    self._lost.discard(pod)
                    return
                if left:
                    await asyncio.sleep(PAUSE_SECONDS)
        raise Unavailable(f"targon does not delete {pod}")

    async def list(self, prefix: str) -> builtins.list[str]:
        async with self._api() as api:
            return list(dict.fromkeys(name for _, name in await self._workloads(api) if name.startswith(prefix)))

    async def _delete(self, api: "AsyncServerlessClient", uid: str) -> bool:
        """Ask to delete a workload; True when it does not exist any more."""
        await self._call(api.delete_container(uid), missing={})
        state = await self._call(api.get_state(uid), missing=None)
        return state is None or _status(state) in _OVER

    async def _state(self, pod: str) -> "WorkloadStateResponse | None":
        async with self._api() as api:
            if not self._uids[pod]:
                self._uids[pod] |= {uid for uid, name in await self._workloads(api) if name == pod}
            uid = max(self._uids[pod], default=None)
            return None if uid is None else await self._call(api.get_state(uid), missing=None)

    async def _workloads(self, api: "AsyncServerlessClient") -> builtins.list[tuple[str, str]]:
        """Uid and name of every workload that is not deleted. The SDK's `list_container` reads the first page only."""
        from targon.client.constants import WORKLOADS_ENDPOINT

        found: list[tuple[str, str]] = []
        query = {"type": "SERVERLESS", "limit": "100"}
        for _ in range(_PAGES):
            page = await self._call(api._async_get(WORKLOADS_ENDPOINT, params=query))
            if not isinstance(page, dict) or not isinstance(page.get("items"), list):
                raise Unavailable("targon answered its list of workloads with something else")
            for item in page["items"]:
                state: Any = item.get("state") or {}
                if item.get("uid") and str(state.get("status", "")).lower() not in _OVER:
                    found.append((str(item["uid"]), str(item.get("name") or "")))
            cursor = page.get("next_cursor")
            if not cursor or not page["items"]:
                return found
            query["cursor"] = str(cursor)
        raise Unavailable(f"targon lists more than {_PAGES} pages of workloads")

    @asynccontextmanager
    async def _api(self) -> AsyncIterator["AsyncServerlessClient"]:
        # A client of its own for each use: its session belongs to one event loop, we outlive several.
        from targon.client.client import Client

        async with Client(api_key=self._api_key, timeout=math.ceil(CALL_SECONDS)) as client:
            api = client.async_serverless
            if self._base_url:
                api.base_url = self._base_url
            yield api

    async def _call(self, answer: Awaitable[T], missing: Any = ...) -> T:
        """An answer of the API, its errors as ours. `missing`: the answer when there is no such workload."""
        import aiohttp
        from targon.core.exceptions import APIError, TargonError

        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await answer
        except APIError as error:
            if error.status_code in (401, 403):
                raise OperatorError(f"targon refuses TARGON_API_KEY ({error.status_code}): set a valid key") from None
            if error.status_code == 404 and missing is not ...:
                return missing
            raise Unavailable(f"targon: {error.status_code} {self._safe(error.message)}") from None
        except (
            TargonError,
            aiohttp.ClientError,
            TimeoutError,
            OSError,
            ValueError,
            TypeError,
            AttributeError,
        ) as error:
            reason = "no answer" if isinstance(error, TimeoutError) else self._safe(str(error)) or type(error).__name__
            raise Unavailable(f"targon: {reason}") from None

    def _safe(self, text: str) -> str:
        return re.sub(r"\s+", " ", text.replace(self._api_key, "***")).strip()[:200]


def _status(state: "WorkloadStateResponse") -> str:
    """registered, provisioning, running, error, suspended, deleted."""
    return str(state.status).lower()
