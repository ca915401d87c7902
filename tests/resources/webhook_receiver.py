"""A webhook's receiver on loopback that really takes requests, and misbehaves as it is told."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """`status` is answered to each POST after `delay` seconds, a redirect to a page that is there for everyone; `drip`: the
    answer never ends. `got`: taken bodies."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.status = 200
        self.delay = 0.0
        self.drip = False
        self.got: list[dict[str, Any]] = []
        self.asked = 0

    @property
    def titles(self) -> list[str]:
        return [body["title"] for body in self.got]


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.asked += 1
            time.sleep(here.delay)
            if here.status == 200 and not here.drip:
                here.got.append(body)
            self.send_response(here.status)
            if 300 <= here.status < 400:
                self.send_header("Location", "/login")
            self.flush_headers()
            if here.drip:
                for _ in range(100):
                    self.wfile.write(b"X-Wait: 1\r\n")
                    self.wfile.flush()
                    time.sleep(0.05)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")  # Slack's answer

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that gave up

    with Server(("127.0.0.1", 0), Handler) as server:
        here = Receiver(server.server_address[1])
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield here
        server.shutdown()
