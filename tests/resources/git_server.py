"""A git server on loopback: git's own `http-backend` behind HTTP with basic authentication, and ways to fail.

Belongs here: what a forge's front door does (tokens, permissions, rate limits, cut connections). Does not: git itself.
https://git-scm.com/docs/git-http-backend
"""

import base64
import os
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "ghp_s3cretT0kenOfTheTests"


@dataclass
class GitServer:
    """Serves the repositories of a folder. Attributes may change while it runs."""

    folder: Path
    port: int = 0
    token: str = TOKEN
    private: bool = True
    """Whether reading needs the token too."""
    answer: int = 0
    """Answer every request with this status instead."""
    cut_pushes: str = ""
    """Close the connection of a push: "before" git has seen it, or "after" git has taken it."""
    during: Callable[[], None] = lambda: None
    """Called in each request, while whoever sent it waits for the answer."""
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    """Bytes of git's answers."""
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, on the port of last time after a `stop`."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, as a forge that is down."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def git_server(folder: Path) -> Iterator[GitServer]:
    server = GitServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _handler(server: GitServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            path, _, query = self.path.partition("?")
            pushing = "git-receive-pack" in self.path
            sent = self._body()
            server.requests.append(f"{self.command} {self.path}")
            server.during()
            if server.answer:
                self._reply(server.answer, b"no")
            elif (server.private or pushing) and not self._allowed():
                self._reply(401, b"who are you?", {"WWW-Authenticate": 'Basic realm="git"'})
            elif pushing and self.command == "POST" and server.cut_pushes == "before":
                self._cut()
            else:
                status, headers, body = self._backend(path, query, sent)
                server.sent += len(body)
                if pushing and self.command == "POST" and server.cut_pushes == "after":
                    self._cut()
                else:
                    self._reply(status, body, headers)

        def _allowed(self) -> bool:
            kind, _, value = self.headers.get("Authorization", "").partition(" ")
            password = base64.b64decode(value).decode().partition(":")[2] if kind == "Basic" else ""
            return password == server.token

        def _cut(self) -> None:
            self.close_connection = True
            self.connection.close()

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return zlib.decompress(body, 47) if self.headers.get("Content-Encoding") == "gzip" else body

        def _backend(self, path: str, query: str, sent: bytes) -> tuple[int, dict[str, str], bytes]:
            environment = {
                "PATH": os.environ["PATH"],
                "GIT_PROJECT_ROOT": str(server.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                "REQUEST_METHOD": self.command,
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(sent)),
                "REMOTE_USER": "x-access-token",  # whoever is let in may push
                "REMOTE_ADDR": "127.0.0.1",
            }
            done = subprocess.run(
                ["git", "http-backend"], input=sent, env=environment, capture_output=True, check=False
            )
            head, _, body = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
            return int(headers.pop("Status", "200").split()[0]), headers, body

        def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    return Handler
