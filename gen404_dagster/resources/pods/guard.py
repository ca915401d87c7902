"""Keeps one local pod on a leash: a program of its own, standard library only.

    python guard.py LOG LIMIT COMMAND...

Runs COMMAND in its own process group until it ends or standard input closes, which happens however the parent ends,
`kill -9` included. Then the group, and all that left it, is ended. The command's output goes to LOG, at most LIMIT bytes of it; the
rest is read and dropped, so that a talkative image neither blocks nor fills the disk.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 2.0
POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Linux's process control; elsewhere nothing, and the closed pipe has to do."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value)


def die_with_guard() -> None:
    """The kernel ends the command should the guard itself be killed."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def end_orphans() -> None:
    """End and reap what the command left behind, in its group or out of it: all of it is the guard's by now."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    with contextlib.suppress(ChildProcessError, OSError):
        while True:
            for pid in children.read_text().split():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(int(pid), signal.SIGKILL)
            os.waitpid(-1, 0)


def main(log: str, limit: int, command: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides, by the pipe; an empty handler is not inherited
        signal.signal(number, lambda *_: None)
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    with Path(log).open("wb", buffering=0) as file:
        try:
            child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_guard,
            )
        except OSError as error:
            file.write(f"{command[0]}: {error}\n".encode())
            return 127
        assert child.stdout is not None
        output, leash = child.stdout.fileno(), sys.stdin.fileno()
        watched = [output, leash]
        deadline: float | None = None
        while child.poll() is None:
            ready, _, _ = select.select(watched, [], [], POLL_SECONDS)
            if output in ready:
                chunk = os.read(output, 65536)
                if chunk:
                    limit -= file.write(chunk[:limit]) if limit else 0
                else:
                    watched.remove(output)
            if leash in ready and not os.read(leash, 1024):
                watched.remove(leash)
                deadline = time.monotonic() + GRACE_SECONDS
                signal_group(child, signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                signal_group(child, signal.SIGKILL)
        signal_group(child, signal.SIGKILL)
        end_orphans()
        with contextlib.suppress(OSError):
            if output in watched and select.select([output], [], [], 0)[0] and limit:
                file.write(os.read(output, 65536)[:limit])  # its last words
        return child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]) & 0xFF)
