"""What is said of a commit: its step, its change, its message.

Belongs here: the trailers, and reading them from git's log. Does not: making a commit (`repository`).
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

STEP_TRAILER = "Gen404-Step"
RUN_TRAILER = "Gen404-Run"

LOG_FORMAT = "format:%x00%H%x00%an%x00%ct%x00%B%x00"
"""For `git log --name-only`; read by `read_log`."""

_TOKEN = re.compile(r"[^\s/]+")


@dataclass(frozen=True)
class Step:
    """A piece of work that is committed once: `inputs` is the hash of everything it read."""

    round: int
    name: str
    inputs: str
    unit: str | None = None

    def __post_init__(self) -> None:
        for part in (self.name, self.inputs, *(self.unit.split("/") if self.unit is not None else ())):
            if not _TOKEN.fullmatch(part) or not part.isprintable():
                raise ValueError(f"a step's name, unit and inputs are words without blanks, not {part!r}")

    @property
    def value(self) -> str:
        return "/".join([str(self.round), self.name, *([self.unit] if self.unit is not None else []), self.inputs])

    def again(self, times: int) -> "Step":
        """The step, done `times` before: its inputs get a number, so that each step is in the log once."""
        return self if times == 0 else replace(self, inputs=f"{self.inputs}.{times + 1}")

    @property
    def trailer(self) -> str:
        return f"{STEP_TRAILER}: {self.value}"


@dataclass(frozen=True)
class Change:
    """What a step writes: text by path (None removes the file), and the message."""

    files: Mapping[str, str | None]
    subject: str
    body: str = ""


@dataclass(frozen=True)
class CommitInfo:
    sha: str
    subject: str
    author: str
    time: datetime
    step: str | None
    files: tuple[str, ...] = ()


def commit_text(tree: str, parent: str, author: str, change: Change, step: Step, run_id: str) -> bytes:
    """A commit object. Raises ValueError for a subject of several lines."""
    subject = change.subject.strip()
    if not subject or "\n" in subject or "\0" in subject + change.body:
        raise ValueError(f"a commit's subject is one line of text, not {subject!r}")
    trailers = "\n".join([step.trailer, *([f"{RUN_TRAILER}: {run_id}"] if run_id else [])])
    message = "\n\n".join(part for part in (subject, change.body.strip(), trailers) if part)
    stamp = f"{author} {int(time.time())} +0000"
    return f"tree {tree}\nparent {parent}\nauthor {stamp}\ncommitter {stamp}\n\n{message}\n".encode()


def read_log(text: str) -> list[CommitInfo]:
    fields = text.split("\0")[1:]
    return [_commit_info(*fields[i : i + 5]) for i in range(0, len(fields) - 4, 5)]


def _commit_info(sha: str, author: str, stamp: str, message: str, names: str) -> CommitInfo:
    paragraphs = message.strip().split("\n\n")
    step = None
    for line in paragraphs[-1].splitlines() if len(paragraphs) > 1 else ():
        key, _, value = line.partition(": ")
        if key == STEP_TRAILER:
            step = value.strip()
    return CommitInfo(
        sha=sha,
        subject=paragraphs[0].replace("\n", " "),
        author=author,
        time=datetime.fromtimestamp(int(stamp), UTC),
        step=step,
        files=tuple(line for line in names.split("\n") if line),
    )
