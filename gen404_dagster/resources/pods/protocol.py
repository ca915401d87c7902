"""What a provider of pods offers, and how pods are named.

Belongs here: the protocol that every provider fulfils, the names by which a regeneration finds exactly its own pods,
and the sweep of leftovers. Does not: any provider (`local`), what pods are used for (`fleet`).
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gen404_dagster.competition.models import Hotkey
from gen404_dagster.errors import Gen404Error, OperatorError, Unavailable

logger = logging.getLogger(__name__)

IMAGE_PORT = 10006
"""Port on which an image serves `GET /health` and `POST /generate`."""
DELETE_SECONDS = 120.0
"""Longest wait for a provider to delete or list pods, in seconds."""
DELETE_TRIES = 6
DELETE_PAUSE_SECONDS = 5.0
"""Pause after the first try to delete a pod, in seconds; it doubles with each. Until then the pod keeps its place."""


@dataclass(frozen=True)
class Endpoint:
    """Where an image answers, and what a request must carry to be let through. The headers are secret."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class PodProvider(Protocol):
    """A place where pods run. Every method may raise Unavailable: the provider has no room, or does not answer; and
    OperatorError, naming the variable, when it refuses our credentials. Each ends within a minute or two."""

    @property
    def name(self) -> str:
        """The provider's name in logs and settings."""
        ...

    async def deploy(self, pod: str, image: str) -> None:
        """Ask for a pod that serves `image`. Raises MinerFault when the image itself is refused.

        Whatever it raises, the pod may have been made: the caller deletes it.
        """
        ...

    async def visible(self, pod: str) -> bool:
        """Whether the pod exists. Raises MinerFault when its image cannot run, or ended by itself."""
        ...

    async def endpoint(self, pod: str) -> Endpoint | None:
        """Where the image answers; None until it has an address."""
        ...

    async def delete(self, pod: str) -> None:
        """End the pod, and every other one of this name. A pod that does not exist is no error.

        Returns only when the provider says that it is gone.
        """
        ...

    async def list(self, prefix: str) -> list[str]:
        """Names of this account's pods that start with `prefix`."""
        ...


def instance_of(repository: str) -> str:
    """Names a pipeline by its state repository, so that another pipeline's pods are never touched."""
    return hashlib.sha256(repository.encode()).hexdigest()[:8]


def pod_prefix(instance: str, round_number: int, hotkey: Hotkey | None = None) -> str:
    """Start of the names of a round's pods, or of one miner's. It ends in a dash: round 1 never matches round 10.

    `instance` tells pipelines apart that share an account: lower-case letters and digits, at most 16.
    """
    if not re.fullmatch(r"[a-z0-9]{1,16}", instance):
        raise OperatorError(f"instance {instance!r} must be 1 to 16 lower-case letters and digits")
    prefix = f"gen404-{instance}-{round_number}-"
    return prefix if hotkey is None else f"{prefix}{re.sub(r'[^a-z0-9]', '', hotkey.lower())[:10]}-"


async def what_answers(providers: Sequence[PodProvider], instance: str) -> str:
    """Each provider with the number of this pipeline's pods there. Raises the first one's fault."""
    found = [f"{provider.name}: {len(await provider.list(f'gen404-{instance}-'))} pods" for provider in providers]
    return ", ".join(found)


async def delete_pod(provider: PodProvider, pod: str) -> bool:
    """End a pod whatever it takes; False (and a log line) when the provider does not do it."""
    for attempt in range(DELETE_TRIES):
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                await provider.delete(pod)
            return True
        except (Gen404Error, TimeoutError) as error:
            if attempt == DELETE_TRIES - 1 or isinstance(error, OperatorError):
                logger.error("pod %s could not be deleted at %s: %s", pod, provider.name, error or "no answer")
                return False
            await asyncio.sleep(DELETE_PAUSE_SECONDS * 2**attempt)
    return False


async def sweep(providers: Sequence[PodProvider], prefix: str) -> list[str]:
    """Delete every pod whose name starts with `prefix`, at every provider; names of the deleted.

    Raises Unavailable when some provider could not be cleaned, after the others were.
    """
    if not prefix.endswith("-"):
        raise OperatorError(f"prefix {prefix!r} must end in a dash, or it would match other rounds' pods")
    deleted: list[str] = []
    faults: list[str] = []
    for provider in dict.fromkeys(providers):
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                pods = await provider.list(prefix)
        except (Gen404Error, TimeoutError) as error:
            faults.append(f"{provider.name}: {error or 'no answer'}")
            continue
        for pod in pods:
            if not pod.startswith(prefix):
                continue
            if await delete_pod(provider, pod):
                deleted.append(pod)
            else:
                faults.append(f"{provider.name}: {pod} is still there")
    if faults:
        raise Unavailable(f"leftover pods of {prefix}*: {'; '.join(faults)}")
    return deleted
