"""What an operator can set: one typed page, read from the environment (or the file that GEN404_ENV_FILE names).

Belongs here: which form of each part is used, addresses, credentials, and the limits of the rules as configuration.
Does not: what the competition's own `config.json` says. `docs/configuration.md` is generated from this module.
"""

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import OperatorError


class Settings(BaseSettings):
    """Settings of a pipeline. The defaults play the embedded world."""

    model_config = SettingsConfigDict(
        env_prefix="GEN404_", env_nested_delimiter="__", extra="ignore", frozen=True, populate_by_name=True
    )

    data: Path = Field(
        Path(".gen404/data"), description="Folder of locks, the journal, the git mirror and the local store."
    )
    state_repo: str = Field("", description="URL or path of the competition's git repository.")
    state_branch: str = Field("main", description="Branch of the state repository.")
    git_author: str = Field("gen404-dagster <gen404@localhost>", description="Author of the pipeline's commits.")
    world: str = Field("", description="Address of the embedded world, for every part that is embedded.")
    entropy_seed: int | None = Field(
        None, description="Derive round seeds from this number (simulations). Unset: a cryptographic source."
    )

    chain: Literal["simulated"] = Field("simulated", description="Which chain is read.")
    store: Literal["local"] = Field("local", description="Where 3D files and previews are kept.")
    cdn_url: str = Field("", validation_alias="CDN_URL", description="Public base address of the store's objects.")

    judge: Literal["embedded", "openai"] = Field("embedded", description="Who judges duels.")
    judge_model: str = Field(
        "THUDM/GLM-4.1V-9B-Thinking", description="Vision-language model of the OpenAI-compatible server."
    )
    judge_images: Literal["url", "data", "auto"] = Field(
        "auto", description="How pictures reach the judge; auto: as data when CDN_URL is on loopback, else as URLs."
    )
    judge_timeout_seconds: float = Field(
        30.0, gt=0, description="Longest wait for one answer of the judge, in seconds."
    )
    judge_max_tokens: int = Field(1024, ge=1, description="Longest answer of the judge, in tokens.")
    openai_base_url: str = Field(
        "", validation_alias="OPENAI_BASE_URL", description="Address of the OpenAI-compatible server."
    )
    openai_api_key: SecretStr = Field(
        SecretStr("none"), validation_alias="OPENAI_API_KEY", description="Key of the OpenAI-compatible server."
    )

    render_backend: str = Field("auto", description="Renderer backend, or auto.")
    embedder: Literal["efficientnet"] = Field("efficientnet", description="Network behind distances.")
    gpu_providers: str = Field(
        "local", validation_alias="GPU_PROVIDERS", description="Providers of pods, in order, separated by commas."
    )
    local_image_command: str = Field(
        "", description="Command that serves a docker image locally; {image} and {port} are replaced."
    )
    docker_image_template: str = Field(
        "registry.local/competition/{hotkey}:{tag}",
        description="Name of a miner's docker image; {hotkey} is the first 10 characters, the whole is lower-cased.",
    )
    allow_private_network: bool = Field(
        False, description="Only for simulations: http and loopback addresses are allowed for miners' URLs."
    )
    dead_run_grace_seconds: float = Field(
        60.0, ge=0, description="An active run whose lane lock is free after this time is taken for dead, in seconds."
    )
    limits: Limits = Field(
        default_factory=Limits, description="Limits of the rules, each as GEN404_LIMITS__<NAME>; see the table below."
    )


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment. Raises OperatorError naming the variable that is wrong."""
    env_file = os.environ.get("GEN404_ENV_FILE")
    if env_file and not Path(env_file).is_file():
        raise OperatorError(f"GEN404_ENV_FILE names {env_file}, which is not a file")
    try:
        return Settings(_env_file=env_file, **overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = "; ".join(f"{variable_name(fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise OperatorError(f"configuration: {faults}") from error


def variable_name(location: tuple[int | str, ...]) -> str:
    """Environment variable of a field, for messages and documentation."""
    first, *rest = (str(part) for part in location)
    field = Settings.model_fields.get(first)
    name = str(field.validation_alias) if field and field.validation_alias else f"GEN404_{first.upper()}"
    if first.isupper():
        name = first
    return "__".join([name, *(part.upper() for part in rest)])


@cache
def settings() -> Settings:
    """The process's settings, read once."""
    return load_settings()
