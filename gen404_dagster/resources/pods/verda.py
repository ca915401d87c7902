"""Pods rented at Verda: container deployments, through the verda SDK as it is.

Belongs here: what of Verda's API a pod is, and what its errors mean. Does not: which provider is tried when, how long a
pod may take (`fleet`). Seen in verda 1.25.0: it blocks without a timeout, so each call has a daemon thread that we stop
waiting for; its errors carry a code, not a status; names are unique; requests to a container need an inference key.
https://docs.verda.com
"""

import asyncio
import builtins
import contextlib
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.pods.protocol import IMAGE_PORT, Endpoint

if TYPE_CHECKING:
    from verda.containers import ContainersService, Deployment

T = TypeVar("T")

CALL_SECONDS = 60.0
"""Longest wait for one answer of the API, in seconds."""
CALLS_AT_ONCE = 16
"""Calls that may be under way, those included that nobody waits for any more."""
DELETE_TRIES = 5
LOOKS_FOR_LOST = 3
"""Looks for a deployment whose answer never came: a new one may be missing at first."""
PAUSE_SECONDS = 2.0
"""Pause between two looks, in seconds."""
CONCURRENCY = 8
"""Requests that the router lets through to one pod at once: prompts in flight, and looks at its health."""
REFUSED = {"unauthorized_request", "forbidden_action"}
MISSING = {"not_found"}


class VerdaPods:
    """Provider of Verda's container deployments, one replica each."""

    def __init__(
        self,
        client_id: str,
        client_secret: str,
        inference_key: str,
        compute: str,
        gpus: int = 1,
        base_url: str = "",
    ) -> None:
        """`compute`: a name of its serverless compute resources, as H200, of which a pod gets `gpus`."""
        required = {
            "VERDA_CLIENT_ID": client_id,
            "VERDA_CLIENT_SECRET": client_secret,
            "VERDA_INFERENCE_KEY": inference_key,
        }
        for variable, value in required.items():
            if not value:
                raise OperatorError(f"{variable} is not set: GPU_PROVIDERS names verda")
        self._secrets = tuple(required.values())
        self._compute, self._gpus, self._base_url = compute, gpus, base_url.rstrip("/")
        self._containers: ContainersService | None = None
        self._lost: set[str] = set()  # pods whose deployment ended without an answer
        self._making = threading.Lock()
        self._free = threading.BoundedSemaphore(CALLS_AT_ONCE)

    @property
    def name(self) -> str:
        return "verda"

    async def deploy(self, pod: str, image: str) -> None:
        from verda.containers import (
            ComputeResource,
            Container,
            Deployment,
            HealthcheckSettings,
            QueueLoadScalingTrigger,
            ScalingOptions,
            ScalingPolicy,
            ScalingTriggers,
            UtilizationScalingTrigger,
        )

        off = UtilizationScalingTrigger(enabled=False)
        deployment = Deployment(
            name=pod,
            containers=[
                Container(
                    image=image,
                    exposed_port=IMAGE_PORT,
                    healthcheck=HealthcheckSettings(enabled=True, port=IMAGE_PORT, path="/health"),
                )
            ],
            compute=ComputeResource(name=self._compute, size=self._gpus),
            scaling=ScalingOptions(
                min_replica_count=1,
                max_replica_count=1,
                scale_down_policy=ScalingPolicy(delay_seconds=3600),
                scale_up_policy=ScalingPolicy(delay_seconds=0),
                queue_message_ttl_seconds=3600,
                concurrent_requests_per_replica=CONCURRENCY,
                scaling_triggers=ScalingTriggers(
                    queue_load=QueueLoadScalingTrigger(threshold=CONCURRENCY), cpu_utilization=off, gpu_utilization=off
                ),
            ),
        )
        self._lost.add(pod)
        await self._call(lambda containers: containers.create_deployment(deployment))
        self._lost.discard(pod)

    async def visible(self, pod: str) -> bool:
        status = await self._call(lambda containers: containers.get_deployment_status(pod), missing=None)
        return status is not None and status != "quota_reached"  # without room, for all it exists

    async def endpoint(self, pod: str) -> Endpoint | None:
        found = await self._deployment(pod)
        if found is None or not found.endpoint_base_url:
            return None
        return Endpoint(found.endpoint_base_url.rstrip("/"), {"Authorization": f"Bearer {self._secrets[2]}"})

    async def delete(self, pod: str) -> None:
        """Delete until the API says that the deployment does not exist: it may lag or lie."""
        quiet = 0
        for left in reversed(range(DELETE_TRIES)):
            await self._call(lambda containers: containers.delete_deployment(pod), missing=None)
            quiet = quiet + 1 if await self._deployment(pod) is None else 0
            if quiet and (pod not in self._lost or quiet >= LOOKS_FOR_LOST):
                self._lost.discard(pod)
                return
            if left:
                await asyncio.sleep(PAUSE_SECONDS)
        raise Unavailable(f"verda does not delete {pod}")

    async def list(self, prefix: str) -> builtins.list[str]:
        deployments = await self._call(lambda containers: containers.get_deployments())
        return [found.name for found in deployments if found.name.startswith(prefix)]

    async def _deployment(self, pod: str) -> "Deployment | None":
        return await self._call(lambda containers: containers.get_deployment_by_name(pod), missing=None)

    async def _call(self, call: "Callable[[ContainersService], T]", missing: Any = ...) -> T:
        """An answer of the API, its errors as ours. `missing`: the answer when there is no such deployment."""
        import requests
        from verda.exceptions import APIException

        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await self._in_thread(lambda: call(self._service()))
        except APIException as error:
            if error.code in REFUSED:
                raise OperatorError(
                    f"verda refuses VERDA_CLIENT_ID and VERDA_CLIENT_SECRET ({error.code}): set valid ones"
                ) from None
            if error.code in MISSING and missing is not ...:
                return missing
            raise Unavailable(f"verda: {self._safe(f'{error.code} {error.message}')}") from None
        except (requests.RequestException, TimeoutError, OSError, ValueError, KeyError, TypeError) as error:
            reason = "no answer" if isinstance(error, TimeoutError) else self._safe(str(error)) or type(error).__name__
            raise Unavailable(f"verda: {reason}") from None

    def _service(self) -> "ContainersService":
        """The SDK's client, which asks for a token when it is made. In a thread."""
        from verda import VerdaClient

        with self._making:
            if self._containers is None:
                address = {"base_url": self._base_url} if self._base_url else {}
                self._containers = VerdaClient(self._secrets[0], self._secrets[1], **address).containers
            return self._containers

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Not asyncio.to_thread: its executor waits at the end of the event loop for calls that never return.
        if not self._free.acquire(blocking=False):
            raise Unavailable(f"verda: {CALLS_AT_ONCE} calls still wait for an answer")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: Exception | None) -> None:
            if done.cancelled():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result, error = None, None
            try:
                result = work()
            except Exception as caught:
                error = caught
            finally:
                self._free.release()
            with contextlib.suppress(RuntimeError):  # the loop has ended without us
                loop.call_soon_threadsafe(settle, result, error)

        threading.Thread(target=run, name="verda", daemon=True).start()
        return await done

    def _safe(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return re.sub(r"\s+", " ", text).strip()[:200]
