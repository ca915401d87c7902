"""What a rented provider's double shares: pods that are real image processes, an HTTP server, and ways to misbehave.

The doubles answer as the providers' documentation says (`targon_double`, `verda_double`); the images are
`image_server.py`, so that everything after a deployment is as real as with local pods.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

IMAGE = Path(__file__).with_name("image_server.py")


@dataclass
class Rented:
    """A pod as the provider sees it. `image` is the plan that `image_server.py` plays."""

    uid: str
    name: str
    image: str
    port: int
    process: "subprocess.Popen[bytes] | None" = None
    made: float = field(default_factory=time.monotonic)
    deleted: float | None = None
    error: str = ""

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None


@dataclass
class Cloud(ABC):
    """`full`: deployments that are refused. `lag`: seconds until a new pod is shown. `ghost`: seconds that a deleted pod
    stays in the list. `stubborn`: deletions that are answered well and not done. `slow`: seconds that a deployment takes to
    answer, after the pod was made. `down`: requests that fail with 500. `hang`: seconds every request waits, or until it
    is set to 0."""

    full: int = 0
    lag: float = 0.0
    ghost: float = 0.0
    stubborn: int = 0
    slow: float = 0.0
    down: int = 0
    hang: float = 0.0
    root: str = ""
    pods: list[Rented] = field(default_factory=list)
    most: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @abstractmethod
    def app(self) -> Any:
        """The provider's API."""

    @property
    def alive(self) -> list[Rented]:
        """Pods that cost money."""
        return [pod for pod in self.pods if pod.deleted is None]

    def trouble(self, method: str, path: str) -> bool:
        """Count a request; True when it fails."""
        began = time.monotonic()
        while time.monotonic() - began < self.hang:
            time.sleep(0.01)
        with self.lock:
            self.asked.append((method, path))
            self.down -= 1
            return self.down >= 0

    def refuses(self) -> bool:
        with self.lock:
            self.full -= 1
            return self.full >= 0

    def register(self, name: str, image: str) -> Rented:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with self.lock:
            pod = Rented(f"wrk-{len(self.pods):06d}", name, image, port)
            self.pods.append(pod)
            self.most = max(self.most, len(self.alive))
            return pod

    def start(self, pod: Rented, **environment: str) -> None:
        if not Path(pod.image).is_file():
            pod.error = "ImagePullBackOff"
            return
        pod.process = subprocess.Popen(
            [sys.executable, str(IMAGE), pod.image, str(pod.port)], stdin=subprocess.PIPE, env=os.environ | environment
        )

    def shown(self, pod: Rented, in_list: bool = False) -> bool:
        now = time.monotonic()
        if now - pod.made < self.lag:
            return False
        return pod.deleted is None or (in_list and now - pod.deleted < self.ghost)

    def delete(self, pod: Rented) -> None:
        with self.lock:
            self.stubborn -= 1
            if self.stubborn >= 0:
                return
            self.lose(pod)

    def lose(self, pod: Rented) -> None:
        """The pod is gone, as after a deletion."""
        with self.lock:
            if pod.deleted is None:
                pod.deleted = time.monotonic()
            if pod.process is not None:
                pod.process.kill()
                pod.process.wait()
                if pod.process.stdin:
                    pod.process.stdin.close()


@contextmanager
def serving(cloud: Cloud) -> Iterator[Cloud]:
    """Serve the double's API; at the end no pod may be left."""
    config = uvicorn.Config(
        cloud.app(), port=0, log_level="critical", lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    cloud.root = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield cloud
        left = [pod.name for pod in cloud.alive]
        assert left == [], f"pods are left: {left}"
    finally:
        for pod in cloud.pods:
            cloud.lose(pod)
        server.should_exit = True
        thread.join(10)
