"""Which of several servers gets the next question, and how many it gets at once.

Belongs here: load, limits and health of endpoints that serve the same model. Does not: what is asked (`openai`), what a
status means (`openai`).

Load: the least busy healthy endpoint is next; questions wait in the order in which they came. A 429 halves an
endpoint's limit, each answer raises it by a share of one question, up to where it began (additive increase,
multiplicative decrease: Chiu and Jain 1989). Health: an endpoint that fails three times in a row is rested, each time
longer, and probed with one question after each rest. When none is left that has not failed its last probe, the judge is
unavailable.
"""

import asyncio
import random
from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from gen404_dagster.errors import JudgeUnavailable

FAULTS_BEFORE_REST = 3


@dataclass(eq=False)
class Endpoint:
    """A server. Times are the event loop's, in seconds."""

    url: str
    most: int
    limit: float = field(init=False)
    busy: int = 0
    answered: int = 0
    faults: int = 0
    """Failures since it last answered."""
    rests: int = 0
    """Rests since it last answered."""
    rested_since: float = float("-inf")
    closed_until: float = float("-inf")
    halved_at: float = float("-inf")
    last_fault: str = ""

    def __post_init__(self) -> None:
        self.limit = float(self.most)

    def is_open(self, now: float) -> bool:
        return now >= self.closed_until

    def has_room(self) -> bool:
        return self.busy < (1 if self.rests else int(self.limit))


@dataclass(frozen=True)
class Lease:
    """A place at an endpoint, since when."""

    endpoint: Endpoint
    since: float


@dataclass(eq=False)
class _Waiting:
    place: "asyncio.Future[Lease]"
    avoid: Set[Endpoint]


class Endpoints:
    """The endpoints of one judge, for one event loop."""

    def __init__(self, urls: Sequence[str], most: int, rests: Sequence[float], longest_rest: float) -> None:
        """rests: seconds of an endpoint's first rests, about. longest_rest: of each later one, while others answer."""
        self.all = tuple(Endpoint(url, most) for url in urls)
        self._rests, self._longest = tuple(rests), longest_rest
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, avoid: Set[Endpoint] = frozenset()) -> Lease:
        """A place at the least busy healthy endpoint; one that is to be avoided only if no other is healthy.

        Raises JudgeUnavailable when every endpoint has failed its last probe.
        """
        waiting = _Waiting(asyncio.get_running_loop().create_future(), avoid)
        self._waiting.append(waiting)
        self._serve()
        try:
            return await waiting.place
        except asyncio.CancelledError:
            if waiting.place.done() and not waiting.place.cancelled() and waiting.place.exception() is None:
                self.give_back(waiting.place.result())
            raise
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def give_back(self, lease: Lease) -> None:
        lease.endpoint.busy -= 1
        self._serve()

    def other_than(self, tried: Set[Endpoint]) -> bool:
        """Whether an endpoint is healthy that is not among these."""
        now = _now()
        return any(one not in tried and one.is_open(now) and not one.rests for one in self.all)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    # --- what came of a question ---

    def answered(self, lease: Lease) -> None:
        endpoint = lease.endpoint
        endpoint.answered += 1
        endpoint.faults = endpoint.rests = 0
        endpoint.limit = min(endpoint.most, endpoint.limit + 1 / endpoint.limit)

    def throttled(self, lease: Lease, after: float | None) -> None:
        """It has too much to do. `after`: seconds that it asks for."""
        endpoint = lease.endpoint
        if lease.since > endpoint.halved_at:  # one burst halves once
            endpoint.limit, endpoint.halved_at = max(1.0, endpoint.limit / 2), _now()
        if after is not None:
            endpoint.closed_until = max(endpoint.closed_until, _now() + after)

    def failed(self, lease: Lease, fault: str) -> None:
        endpoint = lease.endpoint
        endpoint.last_fault = fault
        if lease.since < endpoint.rested_since:
            return  # what was asked before the rest says nothing new
        endpoint.faults += 1
        if endpoint.rests or endpoint.faults >= FAULTS_BEFORE_REST:
            seconds = (*self._rests, self._longest)[min(endpoint.rests, len(self._rests))]
            endpoint.rests += 1
            endpoint.rested_since = _now()
            endpoint.closed_until = _now() + seconds * random.uniform(0.9, 1.2)

    # --- who waits for what ---

    def _serve(self) -> None:
        if all(one.rests > len(self._rests) for one in self.all):
            faults = "; ".join(f"{one.url}: {one.last_fault}" for one in self.all)
            for waiting in self._waiting:
                if not waiting.place.done():
                    waiting.place.set_exception(JudgeUnavailable(f"no endpoint of the judge answers: {faults}"))
            self._waiting.clear()
            return
        now = _now()
        for waiting in list(self._waiting):
            if waiting.place.done():
                continue
            healthy = [one for one in self.all if one.is_open(now)]
            wanted = [one for one in healthy if one not in waiting.avoid and not one.rests] or healthy
            free = [one for one in wanted if one.has_room()]
            if free:
                endpoint = min(free, key=lambda one: one.busy / one.limit)
                endpoint.busy += 1
                waiting.place.set_result(Lease(endpoint, now))
                self._waiting.remove(waiting)
            elif not any(one.has_room() for one in healthy):
                break
        self._wake_when_one_opens(now)

    def _wake_when_one_opens(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        closed = [one.closed_until for one in self.all if not one.is_open(now)]
        if self._waiting and closed:
            self._timer = asyncio.get_running_loop().call_at(min(closed) + 0.001, self._serve)


def _now() -> float:
    return asyncio.get_running_loop().time()
