"""What a comparison says: cells of exact, explained and deviating items, each finding with the file it is about.

Belongs here: the words and counts every check reports in. Does not: any rule of the competition.
"""

from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    EXACT = "exact"
    EXPLAINED = "explained"
    DEVIATES = "deviates"


@dataclass(frozen=True)
class Finding:
    """One thing worth saying. `status` None: noticed, and nothing depends on it.

    `evidence` is the file that proves an explanation: altering it makes the finding a deviation.
    """

    cell: str
    status: Status | None
    file: str
    what: str
    hotkey: str | None = None
    evidence: str | None = None
    count: int = 1


@dataclass
class Cell:
    """One question about a round: how many recorded items follow from the rules."""

    name: str
    exact: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def explained(self) -> int:
        return sum(found.count for found in self.findings if found.status == Status.EXPLAINED)

    @property
    def deviating(self) -> int:
        return sum(found.count for found in self.findings if found.status == Status.DEVIATES)

    @property
    def total(self) -> int:
        return self.exact + self.explained + self.deviating

    @property
    def status(self) -> Status:
        """The worst of its items; exact when there is nothing (yet) to compare."""
        if self.deviating:
            return Status.DEVIATES
        return Status.EXPLAINED if self.explained else Status.EXACT

    def follows(self, count: int = 1) -> None:
        self.exact += count

    def explain(self, file: str, what: str, evidence: str, hotkey: str | None = None, count: int = 1) -> None:
        self.findings.append(Finding(self.name, Status.EXPLAINED, file, what, hotkey, evidence, count))

    def deviate(self, file: str, what: str, hotkey: str | None = None) -> None:
        self.findings.append(Finding(self.name, Status.DEVIATES, file, what, hotkey))

    def note(self, file: str, what: str, hotkey: str | None = None, count: int = 1) -> None:
        self.findings.append(Finding(self.name, None, file, what, hotkey, None, count))

    def expect(self, right: bool, file: str, what: str, hotkey: str | None = None) -> None:
        """One item: it follows, or it deviates for the reason `what`."""
        if right:
            self.follows()
        else:
            self.deviate(file, what, hotkey)
