"""Where a state file lies in the repository, and where an object lies in the store."""

from typing import Literal

from gen404_dagster.competition.models import Hotkey, Stem

CONFIG = "config.json"
STATE = "state.json"
LEADERS = "leader.json"
PROMPT_POOL = "prompts.txt"

Kind = Literal["submitted", "generated"]


def round_folder(number: int) -> str:
    return f"rounds/{number}"


def schedule(number: int) -> str:
    return f"rounds/{number}/schedule.json"


def seed(number: int) -> str:
    return f"rounds/{number}/seed.json"


def prompts(number: int) -> str:
    return f"rounds/{number}/prompts.txt"


def submissions(number: int) -> str:
    return f"rounds/{number}/submissions.json"


def builds(number: int) -> str:
    return f"rounds/{number}/builds.json"


def audit_requests(number: int) -> str:
    return f"rounds/{number}/require_audit.json"


def generation_audits(number: int) -> str:
    return f"rounds/{number}/generation_audits.json"


def source_audits(number: int) -> str:
    return f"rounds/{number}/source_audit.json"


def matrix(number: int) -> str:
    return f"rounds/{number}/matches_matrix.csv"


def winner(number: int) -> str:
    return f"rounds/{number}/winner.json"


def results(number: int, hotkey: Hotkey, kind: Kind) -> str:
    return f"rounds/{number}/{hotkey}/{kind}.json"


def pod_stats(number: int, hotkey: Hotkey) -> str:
    return f"rounds/{number}/{hotkey}/pod_stats.json"


def match_report(number: int, left: Hotkey, right: Hotkey) -> str:
    return f"rounds/{number}/{right}/duels_{left[:10]}.json"


def object_key(number: int, hotkey: Hotkey, kind: Kind, stem: Stem, suffix: Literal["glb", "png"]) -> str:
    return f"rounds/{number}/{hotkey}/{kind}/{stem}.{suffix}"
