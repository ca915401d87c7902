"""Writes docs/configuration.md from the typed settings, so that page and code cannot differ.

python -m gen404_dagster.configuration_page [--check] docs/configuration.md
"""

import sys
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from gen404_dagster.competition.limits import Limits
from gen404_dagster.settings import Settings, variable_name

_HEAD = """# Configuration

Generated from `gen404_dagster/settings.py` and `gen404_dagster/competition/limits.py` by `make docs`.

Everything is set by environment variables, by a file of `NAME=value` lines that `GEN404_ENV_FILE` names, or, which suits
secrets, by files in the folder that `GEN404_SECRETS_DIR` names: the file's name is the variable's, its content the value
(the environment wins over the first, which wins over the second). `gen404 doctor` shows what is set, what answers and what is missing. What belongs to one competition
(margins, dates, prompts a round) is not here but in `config.json` of its state repository.
"""


def page() -> str:
    parts = [_HEAD, "## Parts and addresses\n", *_table(Settings.model_fields, ())]
    parts += ["\n## Limits of the rules\n", "The defaults are those of the public competition.\n"]
    parts += _table(Limits.model_fields, ("limits",))
    return "\n".join(parts) + "\n"


def _table(fields: dict[str, FieldInfo], above: tuple[str, ...]) -> list[str]:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in fields.items():
        if name == "limits":
            continue
        choices = _choices(field)
        meaning = f"{field.description or ''}{' One of ' + choices + '.' if choices else ''}"
        rows.append(f"| `{variable_name((*above, name))}` | {_default(field)} | {meaning} |")
    return rows


def _choices(field: FieldInfo) -> str:
    arguments: tuple[Any, ...] = getattr(field.annotation, "__args__", ())
    return ", ".join(f"`{choice}`" for choice in arguments if isinstance(choice, str))


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=False)
    if isinstance(value, SecretStr):
        return "a secret"
    return f"`{value}`" if value not in (None, "") else "unset"


def main(arguments: list[str]) -> int:
    check, path = "--check" in arguments, Path(arguments[-1])
    if check:
        if path.exists() and path.read_text() == page():
            return 0
        print(f"{path} is out of date: run `make docs`", file=sys.stderr)
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
