"""Checks of what surrounds the pipeline: the machine, its folder and clock, Dagster's instance."""

import os
import platform
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from dotenv import dotenv_values
from pydantic import SecretStr

from gen404_dagster.doctor.examination import Finding, Remark
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.workers import in_words
from gen404_dagster.settings import Settings

OLDEST_GIT = (2, 31)
"""The first that takes settings from the environment, where the token is."""
LEAST_FREE_BYTES = 2 * 1024**3
USUAL_FREE_BYTES = 30 * 1024**3
"""Below the first nothing is started; a local store of some rounds wants the second."""
MOST_SKEW_SECONDS = 30.0

SECRETS: Mapping[str, str] = {
    "GITHUB_TOKEN": "github_token",
    "R2_ACCESS_KEY_ID": "r2_access_key_id",
    "R2_SECRET_ACCESS_KEY": "r2_secret_access_key",
    "TARGON_API_KEY": "targon_api_key",
    "VERDA_CLIENT_ID": "verda_client_id",
    "VERDA_CLIENT_SECRET": "verda_client_secret",
    "VERDA_INFERENCE_KEY": "verda_inference_key",
    "OPENAI_API_KEY": "openai_api_key",
    "HF_TOKEN": "hf_token",
    "GEN404_NOTIFY": "notify",
}


def machine() -> str:
    """Versions, and what the machine has."""
    said = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    found = re.search(r"(\d+)\.(\d+)[\d.]*", said)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_GIT:
        raise OperatorError(f"{said.strip()} is too old: install git {OLDEST_GIT[0]}.{OLDEST_GIT[1]} or newer")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"gen404-dagster {version('gen404-dagster')}, dagster {version('dagster')}, Python {platform.python_version()}, "
        f"git {found[0]}; {os.cpu_count()} cores, {_about(memory)}"
    )


def configuration(settings: Settings) -> str:
    """Which secrets are set, by name alone, and that no other user can read the file they are in."""
    unset = {None, SecretStr(""), Settings.model_fields["openai_api_key"].default}
    given = [name for name, field in SECRETS.items() if getattr(settings, field) not in unset]
    words = f"secrets set: {', '.join(given) or 'none'}"
    named = (os.environ.get("GEN404_ENV_FILE"), os.environ.get("GEN404_SECRETS_DIR"))
    places = [Path(name) for name in named if name]
    if places:
        words += f"; from the environment and {', '.join(map(str, places))}"
    for place in places:
        files = [file for file in place.iterdir() if file.is_file()] if place.is_dir() else [place]
        if given and any(file.stat().st_mode & 0o077 for file in files) and place.stat().st_mode & 0o077:
            raise Remark(f"{words}: other users may read {place}, `chmod -R go-rwx {place}`")
    return words


def data_folder(settings: Settings) -> str:
    """Write, read and delete a file; room; who else may write."""
    folder = settings.data.absolute()
    probe = folder / f"doctor-{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(probe, "xb") as file:
                file.write(b"probe")
                file.flush()
                os.fsync(file.fileno())
            kept = probe.read_bytes() == b"probe"
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OperatorError(f"GEN404_DATA={folder} cannot be used: {error.strerror}") from error
    if not kept:
        raise OperatorError(f"GEN404_DATA={folder} does not give back what was written: check the disk")
    free = shutil.disk_usage(folder).free
    words = f"{folder}, {_about(free)} free"
    if free < LEAST_FREE_BYTES:
        raise OperatorError(
            f"{words}: at least {in_words(LEAST_FREE_BYTES)} are needed; delete files or move GEN404_DATA"
        )
    if folder.stat().st_mode & 0o022:
        raise Remark(f"{words}: other users may write there, `chmod go-w {folder}`")
    if settings.store == "local" and not settings.world and free < USUAL_FREE_BYTES:
        raise Remark(f"{words}: little for a local store, which keeps every submitted file of every round")
    return words


def clock(settings: Settings) -> str:
    """This machine's clock beside that of a server which is used anyway."""
    servers = [
        settings.r2_endpoint if settings.store == "s3" else "",
        (settings.github_url or "https://api.github.com") if settings.builds == "github" else "",
        settings.openai_base_url.split(",")[0].strip() if settings.judge == "openai" else "",
        settings.world,
        settings.cdn_url,
    ]
    faults = []
    for server in filter(None, servers):
        host = httpx.URL(server).host
        try:
            began = time.time()
            answer = httpx.get(server, timeout=5.0)
            there = parsedate_to_datetime(answer.headers["Date"]).timestamp()
        except (httpx.HTTPError, KeyError, ValueError) as error:
            faults.append(f"{host}: {type(error).__name__}")
            continue
        skew = (began + time.time()) / 2 - there
        if abs(skew) > MOST_SKEW_SECONDS:
            way = "ahead of" if skew > 0 else "behind"
            raise OperatorError(
                f"this machine's clock is {abs(skew):.0f} s {way} that of {host}: set it (`timedatectl set-ntp true`)"
            )
        return f"agrees with {host} (difference {abs(skew):.0f} s); {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    raise Remark(f"no server told the time ({'; '.join(faults) or 'none is configured'})")


def dagster_instance() -> list[Finding]:
    """Its folder, storage, limits, and whether the daemon lives. Reads only."""
    import dagster as dg

    file = os.environ.get("GEN404_ENV_FILE")
    home = os.environ.get("DAGSTER_HOME") or (dotenv_values(file).get("DAGSTER_HOME") if file else "")
    if not home:
        raise OperatorError("DAGSTER_HOME is not set: name an absolute folder that holds dagster.yaml")
    if not (Path(home) / "dagster.yaml").is_file():
        raise OperatorError(f"DAGSTER_HOME={home} holds no dagster.yaml: copy deploy/dagster.yaml there")
    began = time.monotonic()
    try:
        with dg.DagsterInstance.from_config(home) as instance:
            runs = instance.get_runs_count()
            storage = type(instance.run_storage).__name__
            limited = _limits_lanes(instance)
            beats = _silent_daemons(instance)
    except Exception as error:  # of the database's driver, of Dagster's configuration
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unavailable(f"the instance in {home} cannot be used: {first}") from error
    seconds = time.monotonic() - began
    words = f"{home}, {storage}, {runs} runs"
    findings = [Finding("dagster", True, words, seconds=seconds)]
    if not limited:
        words += "; dagster.yaml lacks the limit of one run for each gen404/lane: take over its section `concurrency`"
        findings = [Finding("dagster", False, words, seconds=seconds)]
    alive = "every daemon has reported within its time"
    silent = f"not heard of: {', '.join(beats)}; rounds start by themselves only while `dagster-daemon run` runs"
    return [*findings, Finding("dagster daemon", not beats, silent if beats else alive, needed=False)]


def _about(size: int) -> str:
    """A size in whole gibibytes, or mebibytes when it is less than one."""
    unit = 1024**3 if size >= 1024**3 else 1024**2
    return in_words(size // unit * unit)


def _limits_lanes(instance: Any) -> bool:
    queue = instance.get_concurrency_config().run_queue_config
    return queue is not None and any(limit.get("key") == "gen404/lane" for limit in queue.tag_concurrency_limits)


def _silent_daemons(instance: Any) -> list[str]:
    from dagster._daemon.controller import get_daemon_statuses

    statuses = get_daemon_statuses(instance, instance.get_required_daemon_types(), ignore_errors=True)
    return sorted(name for name, status in statuses.items() if not status.healthy)
