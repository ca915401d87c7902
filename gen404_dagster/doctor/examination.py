"""Running checks: all at once, each within its time, what they say as findings.

Belongs here: threads, times, and what an exception of a check means. Does not: any check.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from gen404_dagster.errors import Gen404Error


class Finding(NamedTuple):
    part: str
    good: bool
    detail: str
    needed: bool = True  # whether a round stops without it
    seconds: float = 0.0


class Remark(Exception):
    """Not well, but no round stops for it."""


class Check(NamedTuple):
    """`look` says what is well, raises what is not, or gives findings of several things. `seconds`: its longest time."""

    part: str
    look: Callable[[], str | list[Finding]]
    seconds: float = 30.0


def examine(checks: Sequence[Check], tell: Callable[[list[str]], None] = lambda _: None) -> list[Finding]:
    """Findings in the order of the checks, which run side by side; `tell` hears which are not done yet.

    A check that does not end in time is a finding; its thread is left behind, and ends with the process.
    """
    answers: queue.Queue[tuple[int, list[Finding]]] = queue.Queue()

    def run(position: int, check: Check) -> None:
        answers.put((position, _findings(check)))

    began = time.monotonic()
    for position, check in enumerate(checks):
        threading.Thread(target=run, args=(position, check), daemon=True, name=f"doctor {check.part}").start()
    found: dict[int, list[Finding]] = {}
    while len(found) < len(checks):
        open_ = [position for position in range(len(checks)) if position not in found]
        tell([checks[position].part for position in open_])
        first_end = began + min(checks[position].seconds for position in open_)
        try:
            position, findings = answers.get(timeout=max(0.0, first_end - time.monotonic()))
            found.setdefault(position, findings)
        except queue.Empty:
            for position in open_:
                part, _, seconds = checks[position]
                if time.monotonic() - began >= seconds:
                    found[position] = [Finding(part, False, f"did not answer within {seconds:g} s", True, seconds)]
    return [finding for position in range(len(checks)) for finding in found[position]]


def choose(checks: Iterable[Check], only: Sequence[str]) -> list[Check]:
    """The checks whose names begin with one of `only`; all when none is named. Raises ValueError for an unknown name."""
    checks = list(checks)
    unknown = [name for name in only if not any(check.part.startswith(name.lower()) for check in checks)]
    if unknown:
        parts = ", ".join(check.part for check in checks)
        raise ValueError(f"no part is called {', '.join(unknown)}: known are {parts}")
    return [check for check in checks if not only or any(check.part.startswith(name.lower()) for name in only)]


def _findings(check: Check) -> list[Finding]:
    began = time.monotonic()
    good, needed = True, True
    try:
        said = check.look()
    except Remark as remark:
        good, needed, said = False, False, str(remark)
    except (Gen404Error, OSError, ImportError) as error:
        good, said = False, str(error) or type(error).__name__
    except Exception as error:  # a doctor that dies of one part says nothing of the others
        good, said = False, f"{type(error).__name__}: {error}"
    if isinstance(said, list):
        return said
    return [Finding(check.part, good, " ".join(said.split())[:1000], needed, time.monotonic() - began)]
