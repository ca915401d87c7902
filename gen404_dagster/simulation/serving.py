"""What the world's process and the images' processes share: an HTTP server that ends with its parent."""

import contextlib
import os
import socket
import sys
import threading
from typing import Any

GRACE_SECONDS = 2.0


def serve(application: Any, listener: socket.socket, *, end_with_stdin: bool) -> None:
    """Serve in the foreground until interrupted, or until stdin closes because the parent has died."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            application,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=int(GRACE_SECONDS),
        )
    )

    def end_at_eof() -> None:
        try:
            while os.read(sys.stdin.fileno(), 4096):
                pass
        except (OSError, ValueError):
            pass
        server.should_exit = True
        # Nothing here needs an orderly end: every file is written atomically.
        threading.Timer(GRACE_SECONDS + 1, os._exit, args=(0,)).start()

    if end_with_stdin:
        threading.Thread(target=end_at_eof, name="parent", daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if end_with_stdin and server.should_exit:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
