"""Files that images sent, kept until they are measured: an outage of ours costs no second generation.

Belongs here: bytes and times of an attempt on disk. Does not: when a file is done with (`fleet`), the results that
came of it (`resources.journal`). Losing a file costs a generation, never correctness.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from gen404_dagster.competition.models import Stem
from gen404_dagster.errors import Unavailable


@dataclass(frozen=True)
class Arrival:
    """One attempt's file. `attempts`: how many the prompt had taken before."""

    stem: Stem
    pod: str
    seconds: float
    attempts: int


class Arrivals:
    """A folder of one regeneration's files, in that of its round: a line of JSON, then the bytes; whole or ignored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, arrival: Arrival, file: IO[bytes]) -> None:
        """Raises Unavailable when there is no room."""
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as aside:
                part = Path(aside.name)
                try:
                    aside.write(json.dumps(asdict(arrival) | {"sha256": digest}).encode() + b"\n")
                    file.seek(0)
                    shutil.copyfileobj(file, aside)
                    aside.flush()
                    part.replace(self._path(arrival))
                finally:
                    part.unlink(missing_ok=True)  # a full disk must not stay full of parts
        except OSError as error:
            raise Unavailable(f"{self.folder}: no room for a file that arrived: {error.strerror}") from error

    def pending(self) -> list[Path]:
        """Files whose measuring never ended."""
        return sorted(self.folder.glob("*.file"))

    def read(self, path: Path) -> tuple[Arrival, bytes] | None:
        """None, and the file is gone, when a power cut left only a part of it."""
        head, _, data = path.read_bytes().partition(b"\n")
        try:
            values = json.loads(head)
            if values.pop("sha256") == hashlib.sha256(data).hexdigest():
                return Arrival(**values), data
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        path.unlink(missing_ok=True)
        return None

    def drop(self, arrival: Arrival) -> None:
        self._path(arrival).unlink(missing_ok=True)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def forget_other_rounds(self) -> None:
        """What a regeneration left that was called off."""
        round_ = self.folder.parent
        for other in round_.parent.glob("*"):
            if other != round_:
                shutil.rmtree(other, ignore_errors=True)

    def _path(self, arrival: Arrival) -> Path:
        name = hashlib.sha256(f"{arrival.stem}\0{arrival.pod}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.file"
