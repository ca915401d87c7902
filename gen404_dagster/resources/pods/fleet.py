"""The engine that regenerates a round's prompts on a miner's image, on pods of any provider.

Belongs here: the life of pods (deploy, warm up, work, delete), requests to images and what they cost in time. Does not:
which prompt comes next and which pod is bad (`competition.assignment`), the verdict (`competition.audits`), what is done
with a 3D file (the caller's `accept`). Everything an image answers is hostile: bounded in bytes and in time.
"""

import asyncio
import itertools
import logging
import math
import ssl
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import IO, Any

import httpx

from gen404_dagster.competition import assignment
from gen404_dagster.competition.assignment import Assignment, PodRecord
from gen404_dagster.competition.audits import hopeless, prompts_to_check, succeeded
from gen404_dagster.competition.limits import Limits
from gen404_dagster.competition.models import GenerationResult, Hotkey, PodReport, PodStats, Results, Stem
from gen404_dagster.errors import MinerFault, OperatorError, Unavailable
from gen404_dagster.resources.pods.arrivals import Arrival, Arrivals
from gen404_dagster.resources.pods.protocol import Endpoint, PodProvider, delete_pod, pod_prefix, sweep

logger = logging.getLogger(__name__)

POLL_SECONDS = 15.0
"""Longest pause between two looks at a pod that starts, in seconds."""
HEALTH_SECONDS = 10.0
"""Longest wait for an answer to `GET /health`, in seconds."""
HEALTH_TRIES = 3
"""Looks at a pod's health, after it broke a connection, before it is taken for dead."""
LOST_LOOKS = 3
"""Looks in a row at which a provider must not know a pod any more before it is taken for lost: its list may lag."""
LOCK_MARGIN_SECONDS = 1.0
"""A prompt stays locked so much longer than a request for it may last, in seconds: it is never at two pods at once."""
ACCEPT_TRIES = 5
"""Tries to store, render and measure one file before the regeneration stops as Unavailable; the pause between them
begins with `download_retry_seconds` and doubles."""
IN_MEMORY_BYTES = 4 * 1024**2
"""A file that arrives is kept on disk beyond so many bytes, in bytes."""
PIECES_AT_A_TURN = 64
"""Pieces of a file that are read before others have a turn: a read of tiny pieces would hold up whoever is timed."""


@dataclass(frozen=True)
class RegenerationJob:
    """What is regenerated. `submitted` None: the leader's baseline, nothing to compare with and no early stop."""

    instance: str
    round: int
    hotkey: Hotkey
    image: str
    seed: int
    prompts: Sequence[Stem]
    critical: Sequence[Stem] = ()
    submitted: Results | None = None

    @property
    def prefix(self) -> str:
        """Start of the names of exactly this job's pods."""
        return pod_prefix(self.instance, self.round, self.hotkey)

    @property
    def stems(self) -> list[Stem]:
        """Prompts to regenerate, in the round's order: of a miner those with a valid submission."""
        return list(self.prompts) if self.submitted is None else prompts_to_check(self.prompts, self.submitted)


@dataclass(frozen=True)
class Accepted:
    """What became of a 3D file. `png` None: the renderer refused it. `distance` None: not measured.

    Render before storing: a file that is refused must not replace the stored file of a better, earlier attempt.
    """

    glb: str | None
    png: str | None
    distance: float | None = None


@dataclass(frozen=True)
class Regeneration:
    """What came of a job. `deployed` False: no pod of the image ever became healthy."""

    results: Results  # in the round's order; after an early stop only what was finished
    pods: PodReport  # in the order in which the pods ended; of pods that never worked only the reason
    deployed: bool
    stopped_early: bool


PromptPicture = Callable[[Stem], Awaitable[bytes]]
Accept = Callable[[Stem, bytes], Awaitable[Accepted]]
Checkpoint = Callable[[Stem, GenerationResult, PodStats], None]
Progress = Callable[[int, int], None]


async def regenerate(
    job: RegenerationJob,
    providers: Sequence[PodProvider],
    limits: Limits,
    *,
    prompt_picture: PromptPicture,
    accept: Accept,
    checkpoint: Checkpoint = lambda stem, result, pod: None,
    progress: Progress = lambda done, total: None,
    resumed: Mapping[Stem, GenerationResult] | None = None,
    resumed_pods: PodReport | None = None,
    arrivals: Arrivals | None = None,
    clock: Callable[[], float] = time.monotonic,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Regeneration:
    """Generate every prompt of the job on pods of its image, as often as the rules want it.

    `checkpoint` gets a prompt's best result so far, with the attempts it took, after each attempt; given back as
    `resumed`, it is not generated again. Raises Unavailable when something of ours failed (no provider has room, a
    distance cannot be measured): that is never the miner's fault. `arrivals` keeps files until they are measured: those
    that an earlier run could not measure come first, without a pod. No pod is left, whatever happens. `clock` and
    `transport`: time and network, for tests that play hours in a second.
    """
    if not providers:
        raise OperatorError("no provider of pods is configured: set GPU_PROVIDERS")
    fleet = _Fleet(job, providers, limits, prompt_picture, accept, checkpoint, progress, arrivals, clock, transport)
    fleet.resume(resumed or {}, resumed_pods or {})
    return await fleet.run()


@dataclass(eq=False)
class _Pod:
    """A pod at work. `staging`: one prompt waits ready; `generating`: one request waits for its headers."""

    provider: PodProvider
    record: PodRecord
    endpoint: Endpoint
    staging: asyncio.Lock = field(default_factory=asyncio.Lock)
    generating: asyncio.Lock = field(default_factory=asyncio.Lock)
    workers: set[asyncio.Task[None]] = field(default_factory=set)
    collecting: set[asyncio.Task[None]] = field(default_factory=set)  # no longer wait for headers
    over: str | None = None  # why it takes no more prompts
    bad: bool = False

    @property
    def name(self) -> str:
        return self.record.pod_id

    def end(self, reason: str, bad: bool = False) -> None:
        """Take no more prompts. Files that already arrive are still collected."""
        if self.over is not None:
            return
        self.over, self.bad = reason, bad
        for worker in self.workers - self.collecting:
            if worker is not asyncio.current_task():
                worker.cancel()


class _RequestFailed(Exception):
    """The image did not answer a request with a file. `broken`: perhaps nobody did, or another: the pod may be dead."""

    def __init__(self, reason: str, broken: bool = False, sent: bool = True) -> None:
        super().__init__(reason)
        self.broken = broken
        self.sent = sent


class _Fleet:
    def __init__(
        self,
        job: RegenerationJob,
        providers: Sequence[PodProvider],
        limits: Limits,
        prompt_picture: PromptPicture,
        accept: Accept,
        checkpoint: Checkpoint,
        progress: Progress,
        arrivals: Arrivals | None,
        clock: Callable[[], float],
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.job, self.providers, self.limits, self.clock, self.transport = job, providers, limits, clock, transport
        self.prompt_picture, self.accept, self.checkpoint, self.progress = prompt_picture, accept, checkpoint, progress
        self.arrivals = arrivals
        self.prompts = Assignment(job.stems, limits, {})
        self.report: PodReport = {}
        self.next_index = 0
        self.started = 0
        self.attempts_left = limits.pod_attempts
        self.pods: dict[str, _Pod] = {}  # healthy ones
        self.deployed = False
        self.no_room = ""  # why a provider gave no pod, or took one away
        self.change = asyncio.Event()
        self.pictures: dict[Stem, bytes] = {}
        self.picture_locks: defaultdict[Stem, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.accept_locks: defaultdict[Stem, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.accepting = asyncio.Semaphore(limits.render_concurrency)

    def resume(self, results: Mapping[Stem, GenerationResult], pods: PodReport) -> None:
        """Go on where an earlier run ended: its results stand, its bad pods count, its names are not used again."""
        self.prompts = Assignment(self.job.stems, self.limits, results)
        self.deployed = bool(results)
        reason = assignment.STOPPED
        for name, stats in pods.items():
            self.report[name] = stats.model_copy(update={"termination_reason": stats.termination_reason or reason})
            self.attempts_left -= stats.marked_bad
            index = name.rsplit("-", 1)[-1]
            if index.isdecimal():
                self.next_index = max(self.next_index, int(index) + 1)
        self.attempts_left = max(1, self.attempts_left)

    # The whole fleet

    async def run(self) -> Regeneration:
        tasks: set[asyncio.Task[None]] = set()
        try:
            await self._measure_arrivals()
            if not self._finished:
                await self._sweep()  # what a killed run left behind
                await self._supervise(tasks)
        finally:
            await _uninterrupted(self._end(tasks))
        stopped_early = self._hopeless
        if self.prompts.open_prompts() and not stopped_early and self.no_room:
            raise Unavailable(f"no pod for {self.job.hotkey}: {self.no_room}")
        results = self.prompts.final if stopped_early else self.prompts.results
        return Regeneration(
            results={stem: results[stem] for stem in self.prompts.prompts if stem in results},
            pods=self.report,
            deployed=self.deployed or not self.prompts.prompts,
            stopped_early=stopped_early,
        )

    async def _supervise(self, tasks: set[asyncio.Task[None]]) -> None:
        """Start pods while there is work for one more, until everything is done or no pod can help any more."""
        next_start = self.clock()
        while not self._finished:
            pause = None
            if self._wants_pod(len(tasks)):
                pause = next_start - self.clock()
                if pause <= 0:
                    tasks.add(asyncio.create_task(self._live(self.next_index)))
                    self.next_index += 1
                    self.started += 1
                    self.attempts_left -= 1
                    next_start = self.clock() + self.limits.pod_start_interval_seconds
                    continue
            elif not tasks:
                return
            change = asyncio.create_task(self.change.wait())
            try:
                done, _ = await asyncio.wait({*tasks, change}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()
            for task in done & tasks:
                tasks.discard(task)
                task.result()

    def _wants_pod(self, live: int) -> bool:
        """Two to start, more once the image proved healthy: while prompts wait that the pods at work cannot take."""
        limits = self.limits
        waiting = len(self.prompts.waiting(self.clock()))
        if not self.attempts_left or not waiting or live >= limits.pods_at_once:
            return False
        if self.started < limits.pods_to_start or (live < min(limits.pods_to_start, waiting) and not self.pods):
            return True
        if not self.deployed:
            return False
        if waiting > live * limits.pod_prompts_in_flight:
            return True
        starting = live - len(self.pods)
        return not starting and not any(self._useful(pod) for pod in self.pods.values())

    def _useful(self, pod: _Pod) -> bool:
        """Whether the pod may take one of the prompts that wait."""
        retries = pod.record.takes_retries()
        return pod.over is None and any(
            self.prompts.may_take(pod.name, retries, stem) for stem in self.prompts.waiting(self.clock())
        )

    @property
    def _hopeless(self) -> bool:
        return self.job.submitted is not None and hopeless(self.prompts.final, self.job.critical, self.limits)

    @property
    def _finished(self) -> bool:
        return not self.prompts.open_prompts() or self._hopeless

    async def _end(self, tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._sweep()  # deployments that were under way when they were cancelled

    async def _sweep(self) -> None:
        try:
            await sweep(self.providers, self.job.prefix)
        except Unavailable as error:
            logger.error("%s; the next sweep deletes them", error)

    async def _changed(self, timeout: float | None = None) -> None:
        """Wait until a prompt or a pod changed, or for `timeout` seconds."""
        change = self.change
        try:
            async with asyncio.timeout(timeout):
                await change.wait()
        except TimeoutError:
            pass

    def _notify(self) -> None:
        self.change.set()
        self.change = asyncio.Event()

    # One pod

    async def _live(self, index: int) -> None:
        """Deploy a pod, let it warm up, work on it, delete it."""
        name = f"{self.job.prefix}{index}"
        record = PodRecord(name)
        try:
            provider = await self._deploy(name, index)
            try:
                pod = _Pod(provider, record, await self._warm_up(provider, name))
                self.pods[name] = pod
                self.deployed = True
                self._notify()
                reason = assignment.STOPPED
                try:
                    await self._work_on(pod)
                    reason = assignment.NO_WORK
                finally:
                    del self.pods[name]
                    if self._hopeless:
                        reason = assignment.MISMATCH_LIMIT
                    self.report[name] = record.stats(pod.over or reason, pod.bad)
            finally:
                await _uninterrupted(delete_pod(provider, name))
        except _PodFailed as failed:
            logger.warning("pod %s: %s", name, failed)
            self.report[name] = record.stats(str(failed))
        finally:
            self._notify()

    async def _deploy(self, name: str, index: int) -> PodProvider:
        """Find a provider that gives the pod: each failed deployment moves on to the next one, after a pause."""
        limits = self.limits
        reason = ""
        for attempt in range(limits.pod_deploy_attempts):
            if attempt:
                await asyncio.sleep(limits.pod_deploy_retry_seconds)
            provider = self.providers[(index + attempt) % len(self.providers)]
            visible = False
            try:
                async with asyncio.timeout(limits.pod_visible_seconds):
                    await provider.deploy(name, self.job.image)
                visible = await self._until(partial(provider.visible, name), limits.pod_visible_seconds)
                if visible:
                    return provider
                reason = f"not visible at {provider.name} within {limits.pod_visible_seconds:g}s"
            except MinerFault as fault:
                raise _PodFailed(f"{provider.name}: {fault}") from fault
            except (Unavailable, TimeoutError) as error:
                reason = f"{provider.name}: {error or 'no answer'}"
            finally:
                if not visible:
                    await _uninterrupted(delete_pod(provider, name))
            logger.info("pod %s: %s", name, reason)
        self.no_room = reason  # nobody even tried the image: no fault of the miner's
        raise _PodFailed(reason)

    async def _warm_up(self, provider: PodProvider, name: str) -> Endpoint:
        """Wait until the image is healthy; a pod that ended, or takes too long, has failed and is not tried again."""
        endpoint: Endpoint | None = None
        client: httpx.AsyncClient | None = None
        lost = 0

        async def healthy() -> bool:
            nonlocal endpoint, client, lost
            lost = 0 if await provider.visible(name) else lost + 1
            if lost == LOST_LOOKS:
                self.no_room = f"{provider.name} lost {name}"
                raise _PodFailed(f"vanished from {provider.name} before it was healthy")
            if endpoint is None:
                endpoint = await provider.endpoint(name)
                client = await clients.enter_async_context(self._client(endpoint)) if endpoint else None
            return client is not None and await self._is_healthy(client)

        try:
            async with AsyncExitStack() as clients:
                if await self._until(healthy, self.limits.pod_healthy_seconds) and endpoint is not None:
                    return endpoint
        except MinerFault as fault:
            raise _PodFailed(f"{provider.name}: {fault}") from fault
        raise _PodFailed(f"not healthy within {self.limits.pod_healthy_seconds:g}s")

    async def _until(self, condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
        """Poll a condition. A provider that does not answer is asked again."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        if await condition():
                            return True
                    except Unavailable as error:
                        logger.info("%s: %s", self.job.prefix, error)
                    await asyncio.sleep(min(POLL_SECONDS, seconds / 100))
        except TimeoutError:
            return False

    async def _is_healthy(self, client: httpx.AsyncClient) -> bool:
        try:
            async with asyncio.timeout(HEALTH_SECONDS), client.stream("GET", "/health") as response:
                return response.status_code == httpx.codes.OK
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError):
            return False

    async def _is_dead(self, pod: _Pod, client: httpx.AsyncClient) -> bool:
        lost = 0
        for left in reversed(range(HEALTH_TRIES)):
            if await self._is_healthy(client):
                return False
            try:
                async with asyncio.timeout(HEALTH_SECONDS):
                    lost += not await pod.provider.visible(pod.name)
            except MinerFault:
                return True
            except (Unavailable, TimeoutError):
                pass  # the provider's trouble says nothing about the pod
            if left:
                await asyncio.sleep(min(POLL_SECONDS, self.limits.pod_healthy_seconds / 100))
        if lost == HEALTH_TRIES:
            self.no_room = f"{pod.provider.name} lost {pod.name}"
        return True

    def _client(self, endpoint: Endpoint) -> httpx.AsyncClient:
        # A new connection for each request: a kept one that the image closes would look like a failure. No proxy: times
        # are measured. Redirects are not followed. Every wait has a bound of its own outside.
        return httpx.AsyncClient(
            base_url=endpoint.url,
            timeout=None,
            limits=httpx.Limits(max_keepalive_connections=0),
            headers={"Accept-Encoding": "identity", **endpoint.headers},
            trust_env=False,
            verify=_tls(),
            transport=self.transport,
        )

    async def _work_on(self, pod: _Pod) -> None:
        """Several prompts in flight: one generates, one waits ready, the others arrive or are rendered."""
        async with self._client(pod.endpoint) as client:
            for _ in range(self.limits.pod_prompts_in_flight):
                pod.workers.add(asyncio.create_task(self._work(pod, client)))
            try:
                done, _ = await asyncio.wait(pod.workers, return_when=asyncio.FIRST_EXCEPTION)
            finally:
                for worker in pod.workers:
                    worker.cancel()
                await asyncio.gather(*pod.workers, return_exceptions=True)
            for worker in done:
                if not worker.cancelled():
                    worker.result()

    # One prompt

    async def _work(self, pod: _Pod, client: httpx.AsyncClient) -> None:
        while pod.over is None:
            async with pod.staging:
                stem = await self._next(pod)
                if stem is None:
                    return
                try:
                    picture = await self._picture(stem)
                    await pod.generating.acquire()
                except BaseException:
                    self.prompts.release(pod.name, stem)
                    raise
            await self._generate(pod, client, stem, picture)

    async def _next(self, pod: _Pod) -> Stem | None:
        """Take a prompt for the pod; wait while others work on all it could take. None: nothing is left for it."""
        while pod.over is None:
            now = self.clock()
            retries = pod.record.takes_retries()
            stem = self.prompts.take(pod.name, retries, now)
            if stem is not None:
                return stem
            if not self.prompts.has_work(pod.name, retries):
                return None
            expiry = self.prompts.next_expiry(now)
            await self._changed(None if expiry is None else expiry - now)
        return None

    async def _picture(self, stem: Stem) -> bytes:
        async with self.picture_locks[stem]:
            if stem not in self.pictures:
                self.pictures[stem] = await self.prompt_picture(stem)
            return self.pictures[stem]

    async def _generate(self, pod: _Pod, client: httpx.AsyncClient, stem: Stem, picture: bytes) -> None:
        """One attempt: request, file, preview, record. Called with the pod's generating lock, which it gives back."""
        worker = asyncio.current_task()
        assert worker is not None
        fresh = stem not in self.prompts.results
        try:
            try:
                if pod.over is not None or not self._hold(pod, stem):
                    return
                request = client.build_request(
                    "POST",
                    "/generate",
                    files={"prompt_image_file": _upload(stem, picture)},
                    data={"seed": str(self.job.seed)},
                )
                sent = self.clock()
                response = await self._send(client, request)
                seconds = self.clock() - sent
                pod.collecting.add(worker)
            except _RequestFailed as failed:
                # Nothing more is sent meanwhile: a pod that may be dead must not cost other prompts an attempt.
                await self._failed(pod, client, stem, failed, fresh)
                return
            finally:
                pod.generating.release()
            self._hold(pod, stem)
            with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES) as file:
                await self._collect(response, file)
                self._hold(pod, stem)
                await self._judge(pod, stem, file, seconds, fresh)
        except _RequestFailed as failed:
            await self._failed(pod, client, stem, failed, fresh)
        finally:
            pod.collecting.discard(worker)
            self.prompts.release(pod.name, stem)
            if self.prompts.is_done(stem):
                self.pictures.pop(stem, None)
            self._notify()

    async def _failed(
        self, pod: _Pod, client: httpx.AsyncClient, stem: Stem, failed: _RequestFailed, fresh: bool
    ) -> None:
        """Count a failed attempt, and end the pod when it is dead."""
        worker = asyncio.current_task()
        assert worker is not None
        pod.collecting.add(worker)  # the attempt counts, whoever ends the pod meanwhile
        logger.info("pod %s, prompt %s: %s", pod.name, stem, failed)
        dead = failed.broken and await self._is_dead(pod, client)
        if failed.sent or not dead:  # a pod that is gone never saw the request: that costs no attempt
            self._record(pod, stem, GenerationResult(), None, fresh)
        if dead:
            pod.end("does not answer")

    def _hold(self, pod: _Pod, stem: Stem) -> bool:
        """Lock the prompt for the next wait: for headers, for the file, for its preview. False: the pod has lost it."""
        return self.prompts.renew(pod.name, stem, self.clock() + LOCK_MARGIN_SECONDS)

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        """Send a request and wait for the response's headers."""
        limit = self.limits.prompt_lock_seconds
        try:
            async with asyncio.timeout(limit):
                response = await client.send(request, stream=True)
                if response.status_code != httpx.codes.OK:
                    await response.aclose()
        except TimeoutError as error:
            raise _RequestFailed(f"no answer within {limit:g}s", broken=True) from error
        except httpx.ConnectError as error:
            raise _RequestFailed("connection refused", broken=True, sent=False) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _RequestFailed(f"connection broke: {type(error).__name__}", broken=True) from error
        if response.status_code != httpx.codes.OK:  # perhaps the provider's router, whose pod is gone
            raise _RequestFailed(f"HTTP {response.status_code}", broken=True)
        return response

    async def _collect(self, response: httpx.Response, file: IO[bytes]) -> None:
        """Read a response's file, bounded in bytes, silence and time."""
        limits = self.limits
        size = 0
        try:
            # No longer than the prompt is locked: the file's time comes after that of the headers.
            seconds = min(limits.download_timeout_seconds, limits.prompt_lock_seconds)
            async with asyncio.timeout(seconds), _closing(response):
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise _RequestFailed("compressed response")
                announced = response.headers.get("content-length", "")
                if announced.isdecimal() and int(announced[:20]) > limits.max_file_bytes:
                    raise _RequestFailed(f"file of more than {limits.max_file_bytes} bytes")
                chunks = aiter(response.aiter_raw())
                for pieces in itertools.count(1):
                    if pieces % PIECES_AT_A_TURN == 0:
                        await asyncio.sleep(0)
                    async with asyncio.timeout(limits.download_stall_seconds):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        break
                    size += len(chunk)
                    if size > limits.max_file_bytes:
                        raise _RequestFailed(f"file of more than {limits.max_file_bytes} bytes")
                    file.write(chunk)
        except TimeoutError as error:
            raise _RequestFailed("file did not arrive in time") from error
        except httpx.HTTPError as error:
            raise _RequestFailed(f"file broke off: {type(error).__name__}", broken=True) from error
        except OSError as error:
            raise Unavailable(f"no room for a temporary file: {error}") from error
        if not size:
            raise _RequestFailed("empty file")

    async def _judge(self, pod: _Pod, stem: Stem, file: IO[bytes], seconds: float, fresh: bool) -> None:
        """Store, render and measure a file, unless the prompt has a better result already."""
        before = self.prompts.results.get(stem)
        arrival = Arrival(stem, pod.name, seconds, before.attempts if before else 0)
        if self.arrivals:
            await asyncio.to_thread(self.arrivals.keep, arrival, file)
        async with self.accept_locks[stem], self.accepting:
            if self._is_beaten(stem, seconds):
                # Not stored: it would replace the better one. The pod's time counts all the same.
                self._record(pod, stem, GenerationResult(), seconds, fresh)
            else:
                file.seek(0)
                result = await self._measured(stem, file.read(), seconds)
                self._record(pod, stem, result, seconds if succeeded(result) else None, fresh)
        if self.arrivals:
            self.arrivals.drop(arrival)

    async def _measure_arrivals(self) -> None:
        """Measure what an earlier run could not. The statistics of its pods end with that run."""
        if self.arrivals is None:
            return
        for path in self.arrivals.pending():
            found = await asyncio.to_thread(self.arrivals.read, path)
            if found is None:
                continue
            arrival, glb = found
            stem, best = arrival.stem, self.prompts.results.get(arrival.stem)
            counted = arrival.attempts != (best.attempts if best else 0)  # killed after its checkpoint
            if stem in self.prompts.prompts and not counted and not self._is_beaten(stem, arrival.seconds):
                result = await self._measured(stem, glb, arrival.seconds)
                standing = self.prompts.record(arrival.pod, stem, result)
                if arrival.pod not in self.report:
                    self.report[arrival.pod] = PodRecord(arrival.pod).stats(assignment.STOPPED)
                if standing is not None:
                    self.checkpoint(stem, standing, self.report[arrival.pod])
                self.deployed = True
            self.arrivals.drop(arrival)

    def _is_beaten(self, stem: Stem, seconds: float) -> bool:
        """Whether a file that took so long cannot improve its prompt's result."""
        best = self.prompts.results.get(stem)
        return self.prompts.is_done(stem) or (best is not None and succeeded(best) and best.generation_time <= seconds)

    async def _measured(self, stem: Stem, glb: bytes, seconds: float) -> GenerationResult:
        """What came of a file; without preview, and without time, when the renderer refused it."""
        accepted = await self._accepted(stem, glb)
        if accepted.png is None:
            return GenerationResult(glb=accepted.glb, size=len(glb))
        return GenerationResult(
            glb=accepted.glb,
            png=accepted.png,
            generation_time=seconds,
            size=len(glb),
            distance=accepted.distance or 0.0,
        )

    async def _accepted(self, stem: Stem, glb: bytes) -> Accepted:
        """The caller's `accept`, tried again when something of ours fails: a file is never taken unmeasured."""
        pause, reason = self.limits.download_retry_seconds, ""
        for left in reversed(range(ACCEPT_TRIES)):
            try:
                accepted = await self.accept(stem, glb)
                measured = accepted.distance is not None and math.isfinite(accepted.distance)
                if accepted.png is None or self.job.submitted is None or measured:
                    return accepted
                reason = "it is no number"
            except MinerFault as fault:
                logger.info("%s on %s: %s", self.job.hotkey, stem, fault)
                return Accepted(None, None)
            except Unavailable as error:
                reason = str(error)
            logger.warning("%s on %s is not measured yet: %s", self.job.hotkey, stem, reason)
            if left:
                await asyncio.sleep(pause)
                pause *= 2
        raise Unavailable(f"distance of {self.job.hotkey} on {stem} could not be measured: {reason}")

    def _record(self, pod: _Pod, stem: Stem, result: GenerationResult, seconds: float | None, fresh: bool) -> None:
        best = self.prompts.results.get(stem)
        original = best.generation_time if best and succeeded(best) else None
        pod.record.add(seconds, original, fresh, self.limits)
        fault = pod.record.fault(self.limits)
        if fault is not None:
            logger.warning("pod %s is bad: %s", pod.name, fault)
            pod.end(fault, bad=True)
        standing = self.prompts.record(pod.name, stem, result)
        if standing is not None:
            self.checkpoint(stem, standing, pod.record.stats(pod.over, pod.bad))
            self.progress(len(self.prompts.final), len(self.prompts.prompts))


class _PodFailed(Exception):
    """A pod never got to work. The message is its termination reason."""


@cache
def _tls() -> ssl.SSLContext:
    """One for all clients: building it takes longer than a request."""
    return httpx.create_ssl_context(trust_env=False)


def _upload(stem: Stem, picture: bytes) -> tuple[str, bytes, str]:
    """File name, bytes and media type of a prompt's picture."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((kind for magic, kind in kinds.items() if picture.startswith(magic)), None)
    return (f"{stem}.{kind}", picture, f"image/{kind}") if kind else (stem, picture, "application/octet-stream")


@asynccontextmanager
async def _closing(response: httpx.Response) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await response.aclose()


async def _uninterrupted(work: Coroutine[Any, Any, Any]) -> None:
    """Finish clean-up although we are cancelled meanwhile; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and not task.cancelled():
        task.result()
        raise cancelled
    task.result()
