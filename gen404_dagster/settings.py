"""What an operator can set: one typed page, read from the environment (or the file that GEN404_ENV_FILE names, or
files named like the variables in the folder that GEN404_SECRETS_DIR names).

Belongs here: which form of each part is used, addresses, credentials, and the limits of the rules as configuration.
Does not: what the competition's own `config.json` says. `docs/configuration.md` is generated from this module.
"""

import os
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gen404_dagster.competition.limits import ACCEPTABLE_DISTANCE, Limits
from gen404_dagster.errors import OperatorError

DINOV3_REVISION = "114c1379950215c8b35dfcd4e90a5c251dde0d32"
"""The commit that several public projects, each for itself, record as `main` of the network's repository."""

FINNEY_GENESIS = "0x2f0555cc76fc2840a25a6ea3b9637146806f1f44b090c175ffde2a7e5ab36c03"
"""Bittensor's main chain, as the SDK's settings name it."""


class Settings(BaseSettings):
    """Settings of a pipeline. The defaults play the embedded world."""

    model_config = SettingsConfigDict(
        env_prefix="GEN404_", env_nested_delimiter="__", extra="ignore", frozen=True, populate_by_name=True
    )

    data: Path = Field(
        Path(".gen404/data"), description="Folder of locks, the journal, the git mirror and the local store."
    )
    state_repo: str = Field(
        "",
        description="Path of the competition's git repository, or its URL by https or ssh, without credentials.",
    )
    state_branch: str = Field("main", description="Branch of the state repository.")
    git_author: str = Field("gen404-dagster <gen404@localhost>", description="Author of the pipeline's commits.")
    git_ssh_key: str = Field(
        "",
        description="File of the key for a state repository by ssh; unset: ssh's own choice. A host that is not in "
        "known_hosts is entered at the first contact.",
    )
    world: str = Field("", description="Address of the embedded world, for every part that is embedded.")
    entropy_seed: int | None = Field(
        None, description="Derive round seeds from this number (simulations). Unset: a cryptographic source."
    )

    chain: Literal["simulated", "bittensor"] = Field("simulated", description="Which chain is read.")
    subtensor_endpoint: str = Field(
        "wss://entrypoint-finney.opentensor.ai:443",
        validation_alias="SUBTENSOR_ENDPOINT",
        description="Addresses of Bittensor nodes (ws:// or wss://), separated by commas: the first that can be believed "
        "is asked.",
    )
    netuid: int = Field(17, ge=0, le=65535, validation_alias="NETUID", description="Subnet of the competition.")
    genesis_hash: str = Field(
        FINNEY_GENESIS,
        pattern="^(0x[0-9a-f]{64})?$",
        description="Hash of the chain's first block; a node of another chain is refused. Empty: that of the first node "
        "that answers, kept in chain.json under GEN404_DATA.",
    )
    set_weights: bool = Field(
        False, description="Whether weights are set on chain; if not, they are worked out and shown (a dry run)."
    )
    wallet_name: str = Field(
        "",
        description="Wallet of the validator that sets weights; only its hotkey is opened. In the embedded world: its name.",
    )
    wallet_hotkey: str = Field("default", description="Hotkey within the wallet.")
    wallet_path: str = Field("", description="Folder of wallets; unset: ~/.bittensor/wallets.")
    store: Literal["local", "s3"] = Field(
        "local",
        description="Where 3D files and previews are kept: a folder of GEN404_DATA, or a bucket of R2 or another S3.",
    )
    r2_endpoint: str = Field(
        "",
        validation_alias="R2_ENDPOINT",
        description="Address of the S3 API, for the store s3; at R2 https://ACCOUNT.r2.cloudflarestorage.com.",
    )
    r2_access_key_id: SecretStr = Field(
        SecretStr(""), validation_alias="R2_ACCESS_KEY_ID", description="Key that may read and write R2_BUCKET."
    )
    r2_secret_access_key: SecretStr = Field(
        SecretStr(""), validation_alias="R2_SECRET_ACCESS_KEY", description="Secret of R2_ACCESS_KEY_ID."
    )
    r2_bucket: str = Field("", validation_alias="R2_BUCKET", description="Bucket of the store s3.")
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
    judge_repeats: int = Field(
        1,
        ge=1,
        le=99,
        description="How often each question is asked; the median penalty counts. Costs as many times more.",
    )
    judge_prompt_price: float = Field(
        0.0, ge=0, description="Price of a million tokens sent to the judge; 0: no cost is shown."
    )
    judge_completion_price: float = Field(
        0.0, ge=0, description="Price of a million tokens that the judge writes; 0: no cost is shown."
    )
    early_exit: bool = Field(
        False,
        description="Stop a match when win_margin is out of reach: the duels left are recorded as skipped, and the margin "
        "is a bound. A match that is won is always played to its end.",
    )
    openai_base_url: str = Field(
        "",
        validation_alias="OPENAI_BASE_URL",
        description="Address of the OpenAI-compatible server, or several that serve the same model, separated by commas.",
    )
    openai_api_key: SecretStr = Field(
        SecretStr("none"),
        validation_alias="OPENAI_API_KEY",
        description="Key of the OpenAI-compatible server; with several addresses one for all, or one for each.",
    )

    render_backend: str = Field(
        "auto", description="Renderer backend: auto takes the first that works here, `gen404 doctor` lists all."
    )
    embedder: Literal["efficientnet", "dinov3"] = Field(
        "efficientnet",
        description="Network behind distances: EfficientNet-Lite0 (embedded) or DINOv3 ViT-S/16 (the public competition's).",
    )
    embedder_path: Path | None = Field(
        None, description="Folder of DINOv3's config.json and model.safetensors. Unset: they come from the hub."
    )
    embedder_revision: str = Field(
        DINOV3_REVISION,
        description="Commit of facebook/dinov3-vits16-pretrain-lvd1689m on the Hugging Face hub.",
    )
    hf_token: SecretStr | None = Field(
        None, validation_alias="HF_TOKEN", description="Token for the hub, whose DINOv3 is gated."
    )
    embedder_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="What computes embeddings; auto: cuda where torch has it."
    )
    embedder_batch: int = Field(32, ge=1, description="Pictures embedded at once on a GPU. On a CPU: one a thread.")
    gpu_providers: str = Field(
        "local",
        validation_alias="GPU_PROVIDERS",
        description="Providers of pods, in the order in which they are tried, separated by commas: local, docker, targon, verda.",
    )
    local_image_command: str = Field(
        "", description="Command that serves a docker image locally; {image} and {port} are replaced."
    )
    docker_run_options: str = Field(
        "--gpus=all", description="Words for `docker run`, for local pods of GPU_PROVIDERS=docker."
    )
    targon_api_key: SecretStr = Field(
        SecretStr(""), validation_alias="TARGON_API_KEY", description="Key of Targon's API, for the provider targon."
    )
    targon_resource: str = Field(
        "h200-small", description="What a pod rents at Targon; h200-small is one H200, h200-large four."
    )
    targon_url: str = Field("", description="Address of Targon's API; unset: the SDK's own.")
    verda_client_id: SecretStr = Field(
        SecretStr(""), validation_alias="VERDA_CLIENT_ID", description="Client of Verda's API, for the provider verda."
    )
    verda_client_secret: SecretStr = Field(
        SecretStr(""), validation_alias="VERDA_CLIENT_SECRET", description="Secret of VERDA_CLIENT_ID."
    )
    verda_inference_key: SecretStr = Field(
        SecretStr(""),
        validation_alias="VERDA_INFERENCE_KEY",
        description="Key that Verda wants with each request to a container.",
    )
    verda_compute: str = Field("H200", description="Compute resource of a pod at Verda.")
    verda_gpus: int = Field(1, ge=1, description="GPUs of a pod at Verda.")
    verda_url: str = Field("", description="Address of Verda's API; unset: the SDK's own.")
    builds: Literal["simulated", "github"] = Field("simulated", description="Where miners' docker images are built.")
    builds_repo: str = Field(
        "", description="GitHub repository (owner/name) of the builds; unset: that of GEN404_STATE_REPO."
    )
    github_token: SecretStr = Field(
        SecretStr(""),
        validation_alias="GITHUB_TOKEN",
        description="Token for GitHub: with Contents read and write for a state repository by https, with Actions read "
        "for builds on GitHub.",
    )
    github_url: str = Field("", description="Address of GitHub's API; unset: api.github.com.")
    docker_image_template: str = Field(
        "registry.local/competition/{hotkey}:{tag}",
        description="Name of a miner's docker image; {hotkey} is the first 10 characters, the whole is lower-cased. To be "
        "set for builds on GitHub: where they push.",
    )
    allow_private_network: bool = Field(
        False, description="Only for simulations: http and loopback addresses are allowed for miners' URLs."
    )
    notify: SecretStr = Field(
        SecretStr(""),
        description="Addresses that are told what happens, as apprise URLs (Discord, Slack, e-mail and more), separated by "
        "spaces or commas. Unset: nobody is told.",
    )
    notify_events: str = Field(
        "stage,winner,verdict,failure",
        description="What they are told, of stage, winner, verdict and failure, separated by commas.",
    )
    dagster_url: str = Field("", description="Address of the Dagster UI, for links in messages.")
    dead_run_grace_seconds: float = Field(
        60.0, ge=0, description="An active run whose lane lock is free after this time is taken for dead, in seconds."
    )
    limits: Limits = Field(
        default_factory=Limits, description="Limits of the rules, each as GEN404_LIMITS__<NAME>; see the table below."
    )

    @field_validator("limits")
    @classmethod
    def _with_distance_of_network(cls, limits: Limits, info: ValidationInfo) -> Limits:
        """A limit of distances belongs to a network: unset it is that of the configured one."""
        known = ACCEPTABLE_DISTANCE.get(info.data.get("embedder", ""))
        if known is None or "acceptable_distance" in limits.model_fields_set:
            return limits
        return limits.model_copy(update={"acceptable_distance": known})


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment. Raises OperatorError naming the variable that is wrong."""
    env_file, secrets = (os.environ.get(name) or None for name in ("GEN404_ENV_FILE", "GEN404_SECRETS_DIR"))
    if env_file and not Path(env_file).is_file():
        raise OperatorError(f"GEN404_ENV_FILE names {env_file}, which is not a file")
    if secrets and not Path(secrets).is_dir():
        raise OperatorError(f"GEN404_SECRETS_DIR names {secrets}, which is not a folder")
    try:
        return Settings(_env_file=env_file, _secrets_dir=secrets, **overrides)  # type: ignore[arg-type]
    except OSError as error:
        raise OperatorError(f"configuration: {error.filename}: {error.strerror}") from error
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
