"""Every setting of weights, in one file of JSON lines under GEN404_DATA: append-only, the last line of an attempt counts.

It is written before anything is sent, and survives Dagster's directory: a run that was killed while it sent leaves an
attempt that the next one looks up on chain instead of sending again.
"""

import os
from pathlib import Path

from pydantic import ValidationError

from gen404_dagster.competition.weights import Attempt

_MOST_BYTES = 1024**2


class WeightsHistory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, attempt: Attempt) -> None:
        """On the disk when it returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            if file.tell() and not self._ends_whole():
                file.write(b"\n")
            file.write(attempt.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def attempts(self) -> list[Attempt]:
        """Those of the file's last mebibyte, oldest first. A line that a kill cut short is skipped."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _MOST_BYTES))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return []
        found: dict[int, Attempt] = {}
        for line in lines:
            try:
                attempt = Attempt.model_validate_json(line)
            except ValidationError:
                continue
            found[attempt.block] = attempt
        return [found[block] for block in sorted(found)]

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
